"""Prefect's server and one worker in this terminal: `python flows/serve.py`, from the project's root.

Ctrl-C, or SIGTERM from a service manager, ends both in good order: the worker with the run that it has, whose stage can
be resumed, then the server, which has to note that.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

POOL = "local"
PATIENCE = 60.0
"""Seconds that each has to leave in good order."""


def settings(url: str) -> dict[str, str]:
    """The environment of both. A database of its own, since two servers on one block each other."""
    given = {
        "PREFECT_HOME": str(Path(".prefect/server").resolve()),
        # Where a server that was killed finds which runs hold a limit's slots, and gives them back.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # Seconds that a write waits for another; on a busy machine the default of 10 loses some.
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "DO_NOT_TRACK": "1",
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**given, **os.environ, "PREFECT_API_URL": url, "PATH": path}


def answers(url: str) -> bool:
    """Whether a server is there."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


class Children:
    """What was started, each in a group of its own, so that the terminal's Ctrl-C reaches none before its turn."""

    def __init__(self, environment: dict[str, str]):
        self.environment = environment
        self.running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a prefect command."""
        words = (sys.executable, "-m", "prefect", *words)
        child = subprocess.Popen(words, env=self.environment, process_group=0)
        self.running.append((name, child))
        return child

    def ended(self) -> str:
        """The name of one that is no longer there, empty where all are."""
        return next((name for name, child in self.running if child.poll() is not None), "")

    def end(self) -> None:
        """Interrupt them, the newest first, with all that each has started; kill what does not leave."""
        for _, child in reversed(self.running):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(child.pid, number)
                    child.wait(timeout=PATIENCE)
                    break
                except ProcessLookupError:
                    break
                except subprocess.TimeoutExpired:
                    continue


def serve(host: str, port: int) -> int:
    """Run until a signal comes or one of the two ends. Returns the exit code."""
    url = f"http://{host}:{port}/api"
    if answers(url):
        print(f"serve: error: {url} is in use; two servers on one database block each other", file=sys.stderr)
        return 2
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: stop.set())
    environment = settings(url)
    Path(environment["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    children = Children(environment)
    try:
        children.start("server", "server", "start", "--host", host, "--port", str(port))
        while not stop.is_set() and not children.ended() and not answers(url):
            stop.wait(0.5)
        if not stop.is_set() and not children.ended():
            children.start("worker", "worker", "start", "--pool", POOL, "--type", "process")
            print(f"serve: the server answers at {url}; next: make deploy", flush=True)
        while not stop.is_set() and not children.ended():
            stop.wait(0.5)
        if ended := children.ended():
            print(f"serve: error: the {ended} ended by itself, see above", file=sys.stderr)
            return 1
        return 0
    finally:
        children.end()


def main() -> int:
    """Parse the flags and serve. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="on which to listen (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, default=4200)
    asked = parser.parse_args()
    return serve(asked.host, asked.port)


if __name__ == "__main__":
    sys.exit(main())
