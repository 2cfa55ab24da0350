"""`make serve` and `make deploy` in a copy of the repository with stand-ins for the stages: a schedule and an event each
run a round to its close, and what would overlap is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.test_pipeline import copy_of_the_repository
from project import replace_stages, run
from retroformer.pins import read_pins
from retroformer.tracking import mlflow_view

PATIENCE = 300
"""Seconds until something that has to happen is given up; it takes a tenth on an idle machine."""
LIMIT = "Deployment concurrency limit reached."


class Served:
    """A project whose server and worker run."""

    def __init__(self, root: Path):
        self.root = root
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/api"
        bin = Path(sys.executable).parent
        (root / ".venv").mkdir()
        (root / ".venv/bin").symlink_to(bin)
        (root / ".venv/.ready").touch()
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(bin), os.environ["PATH"]]),
            "PREFECT_HOME": str(root / ".prefect/server"),
        }
        for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            self.environment.pop(name, None)

    def start(self) -> subprocess.Popen[bytes]:
        words = [sys.executable, "flows/serve.py", "--port", str(self.port)]
        log = (self.root.parent / "serve.log").open("wb")
        return subprocess.Popen(words, cwd=self.root, env=self.environment, stdout=log, stderr=log, process_group=0)

    def __call__(self, *words: str, told: bool = True, code: int = 0) -> str:
        """Run a command of the user's; `told` where it knows of the server."""
        environment = self.environment | ({"PREFECT_API_URL": self.url} if told else {})
        done = subprocess.run(
            words, cwd=self.root, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def ask(self, path: str, value: Any = None) -> Any:
        data = json.dumps({} if value is None else value).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.url}/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """The runs of a deployment, the oldest first."""
        wanted = {"deployments": {"name": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return self.ask("flow_runs/filter", wanted)

    def ended(self, deployment: str, count: int) -> list[dict[str, Any]]:
        """Its runs, once so many have ended."""
        final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
        found: list[dict[str, Any]] = []

        def enough() -> bool:
            found[:] = [one for one in self.runs(deployment) if one["state_type"] in final]
            return len(found) >= count

        self.wait(enough)
        return found

    def wait(self, until: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < end, (self.root.parent / "serve.log").read_text()[-5000:]
            time.sleep(0.5)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = copy_of_the_repository(tmp_path_factory.mktemp("deployed") / "project")
    replace_stages(root)
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("source: play", "source: import"))
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "--quiet", "--message", "stand-ins on imported logs")
    served = Served(root)
    child = served.start()
    try:
        mlflow_view.client(root)  # meanwhile
        served.wait(lambda: child.poll() is not None or healthy(served.url))
        assert child.poll() is None, (root.parent / "serve.log").read_text()
        yield served
    finally:
        child.terminate()
        code = child.wait(timeout=PATIENCE)
    assert code == 0, (root.parent / "serve.log").read_text()
    assert not healthy(served.url)


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def deliver(root: Path, name: str) -> None:
    (root / "data/inbox").mkdir(exist_ok=True)
    (root / f"data/inbox/{name}").write_text("{}\n")


def test_a_schedule_runs_a_round_to_its_close(served: Served) -> None:
    root = served.root
    deliver(root, "first.jsonl")
    deliver(root, ".half.jsonl")
    served("make", "deploy")
    (nightly,) = served.ask("deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}})
    assert [one["schedule"]["cron"] for one in nightly["schedules"]] == ["0 2 * * *"]
    soon = (datetime.now(UTC) + timedelta(seconds=10)).isoformat(timespec="seconds")
    once_more = {"active": True, "schedule": {"interval": 86400, "anchor_date": soon}}
    served.ask(f"deployments/{nightly['id']}/schedules", [once_more])
    (done,) = served.ended("nightly", 1)
    assert done["auto_scheduled"]
    assert (done["state_type"], done["state_name"]) == ("COMPLETED", "Completed"), done["state"]["message"]
    assert done["state"]["message"] == "round 1, promote: because 1"
    assert read_pins(root / "data/champion.json").closed_rounds == 1
    assert "data/logs/first.jsonl.dvc" in run(root, "git", "ls-tree", "-r", "--name-only", "round/1")
    assert run(root, "git", "status", "--porcelain") == ""
    assert [path.name for path in (root / "data/inbox").iterdir() if path.suffix == ".jsonl"] == [".half.jsonl"]
    keys = {artifact["key"] for artifact in served.ask("artifacts/filter")}
    assert {"rounds", "report", "round-1"} <= keys


def test_an_event_starts_rounds_and_what_would_overlap_is_refused(served: Served) -> None:
    root = served.root
    closed = read_pins(root / "data/champion.json").closed_rounds
    (root / "endless").touch()
    (root.parent / "second.jsonl").write_text('{"second": 1}\n')
    (root.parent / "third.jsonl").write_text('{"third": 1}\n')
    assert "received data/inbox/second.jsonl" in served("make", "arrived", "LOGS=../second.jsonl")
    served.wait(lambda: (root / "endless").read_text())
    stage = int((root / "endless").read_text())

    served("make", "arrived", "LOGS=../third.jsonl")
    served("prefect", "deployment", "run", "improve-once/nightly")
    refused = served("python", "flows/improve.py", "--rounds", "9", told=False, code=2)
    assert re.fullmatch(
        r"improve: error: another run of rounds is under way here \(run improve-once [a-z-]+, pid \d+, since [^)]+\); "
        r"this one did nothing\n",
        refused,
    )
    (second,) = served.ended("arrived", 1)
    assert (second["state_type"], second["state"]["message"]) == ("CANCELLED", LIMIT)
    by_hand = served.ended("nightly", 2)[-1]
    assert (by_hand["state_type"], by_hand["state_name"]) == ("CANCELLED", "Refused")
    assert by_hand["state"]["message"].startswith("another run of rounds is under way here (run improve-once ")

    (root / "endless").unlink()
    os.kill(stage, signal.SIGKILL)  # as if memory had run out: tried again
    first = min(served.ended("arrived", 2), key=lambda one: one["created"])
    assert first["state_type"] == "COMPLETED", first["state"]["message"]
    assert first["state"]["message"].startswith(f"round {closed + 2}, "), "the third log came in the meantime"
    assert datetime.fromisoformat(first["parameters"]["announced"]) < datetime.fromisoformat(first["created"])
    assert read_pins(root / "data/champion.json").closed_rounds == closed + 2
    of_second, of_third = (
        run(root, "git", "ls-tree", "-r", "--name-only", f"round/{number}") for number in (closed + 1, closed + 2)
    )
    assert "data/logs/second.jsonl.dvc" in of_second
    assert "data/logs/third.jsonl.dvc" not in of_second
    assert "data/logs/third.jsonl.dvc" in of_third
    told = served("python", "flows/timing.py")
    assert re.match(rf"round {closed + 2}, not enough evidence, closed by the run {first['name']} in [\d.]+ s\n", told)
    assert "* orchestration: " in told


def test_where_nothing_is_new_no_round_is_run(served: Served) -> None:
    closed = read_pins(served.root / "data/champion.json").closed_rounds
    assert closed
    before = len(served.runs("arrived"))
    served("make", "arrived")
    done = max(served.ended("arrived", before + 1), key=lambda one: one["created"])
    assert (done["state_type"], done["state_name"]) == ("COMPLETED", "Nothing new")
    assert read_pins(served.root / "data/champion.json").closed_rounds == closed
