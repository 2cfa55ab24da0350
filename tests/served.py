"""A copy of the repository whose stages are stand-ins, with the server and worker that `make serve` starts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flows.test_pipeline import copy_of_the_repository
from project import replace_stages, run
from retroformer.tracking import mlflow_view

PATIENCE = 900
"""Seconds until something that has to happen is given up; on an idle machine it takes a fortieth."""
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Served:
    """The project, and what its server says."""

    def __init__(self, root: Path):
        self.root, self.port = root, free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        bin = Path(sys.executable).parent
        (root / ".venv").mkdir()
        for name in ("bin", "lib", "pyvenv.cfg"):
            (root / ".venv" / name).symlink_to(bin.parent / name)
        (root / ".venv/.ready").touch()
        self.environment = {**os.environ, "PATH": os.pathsep.join([str(bin), os.environ["PATH"]])}
        for name in ("PREFECT_HOME", "PREFECT_API_URL", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            self.environment.pop(name, None)

    def __call__(self, *words: str, told: bool = True, code: int = 0) -> str:
        """Run a command of the user's; `told` where it knows of the server."""
        environment = self.environment | ({"PREFECT_API_URL": self.url} if told else {})
        done = subprocess.run(
            words, cwd=self.root, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    @property
    def log(self) -> Path:
        return self.root.parent / "serve.log"

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as reply:
                return reply.status == 200
        except OSError:
            return False

    def ask(self, path: str, value: Any = None) -> Any:
        """Post to the server's interface, again where its database was locked, as Prefect's own client does."""
        data = json.dumps({} if value is None else value).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data, {"content-type": "application/json"})
        end = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > end:
                    raise
            time.sleep(1)

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """The runs of a deployment in the order in which they were made, those left out that are not due yet."""
        found = self.ask("flow_runs/filter", {"deployments": {"name": {"any_": [deployment]}}})
        return sorted((one for one in found if one["state_type"] != "SCHEDULED"), key=lambda one: one["created"])

    def ended(self, deployment: str, count: int) -> list[dict[str, Any]]:
        """Its runs that have ended, once there are so many."""
        found: list[dict[str, Any]] = []

        def enough() -> bool:
            found[:] = [one for one in self.runs(deployment) if one["state_type"] in FINAL]
            return len(found) >= count

        self.wait(enough)
        return found

    def wait(self, until: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < end, self.log.read_text()[-5000:]
            time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """Start both, wait until the server answers; at the end stop both as a service manager would."""
    root = copy_of_the_repository(folder / "project")
    replace_stages(root)
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("source: play", "source: import"))
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "--quiet", "--message", "stand-ins on imported logs")
    served = Served(root)
    words = [sys.executable, "flows/serve.py", "--port", str(served.port)]
    with served.log.open("wb") as log:
        child = subprocess.Popen(words, cwd=root, env=served.environment, stdout=log, stderr=log, process_group=0)
    try:
        mlflow_view.client(root)  # meanwhile
        served.wait(lambda: child.poll() is not None or served.answers())
        assert child.poll() is None, served.log.read_text()
        yield served
    finally:
        child.terminate()
        code = child.wait(timeout=PATIENCE)
    assert code == 0, served.log.read_text()
    assert not served.answers()
