"""In a copy of the repository with stand-ins for the stages, `make serve` running and `make deploy` done: a schedule
and an event each run a round to its close, and what would overlap is refused."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import sleep

import pytest

from project import run
from retroformer.pins import read_pins
from served import Served, serving

pytestmark = pytest.mark.slow  # `make test-schedule`: a server and its worker want the machine to themselves

LIMIT = "Deployment concurrency limit reached."


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("deployed")) as one:
        yield one


def deliver(root: Path, name: str) -> None:
    (root / "data/inbox").mkdir(exist_ok=True)
    (root / f"data/inbox/{name}").write_text("{}\n")


def schedule_once(served: Served, deployment: str) -> None:
    """A schedule whose next time is soon, and then tomorrow; a busy server may see it only when it is past."""
    for seconds in (75, 240):  # the server looks once a minute
        soon = (datetime.now(UTC) + timedelta(seconds=seconds)).replace(microsecond=0)
        daily = {"active": True, "schedule": {"interval": 86400, "anchor_date": soon.isoformat()}}
        served.ask(f"deployments/{deployment}/schedules", [daily])
        while datetime.now(UTC) < soon:
            asked = {"deployments": {"id": {"any_": [deployment]}}}
            times = {one["expected_start_time"] for one in served.ask("flow_runs/filter", asked)}
            if any(datetime.fromisoformat(time) == soon for time in times):
                return
            sleep(1)
    pytest.fail("the server schedules nothing")


def test_a_schedule_runs_a_round_to_its_close(served: Served) -> None:
    root = served.root
    deliver(root, "first.jsonl")
    deliver(root, ".half.jsonl")
    served("make", "deploy")
    (nightly,) = served.ask("deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}})
    assert [one["schedule"]["cron"] for one in nightly["schedules"]] == ["0 2 * * *"]
    schedule_once(served, nightly["id"])
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


def test_an_event_starts_a_round_and_what_would_overlap_is_refused(served: Served) -> None:
    root = served.root
    closed = read_pins(root / "data/champion.json").closed_rounds
    nights = len(served.runs("nightly"))
    (root / "endless").touch()
    (root.parent / "second.jsonl").write_text('{"second": 1}\n')
    assert "received data/inbox/second.jsonl" in served("make", "arrived", "LOGS=../second.jsonl")
    served.wait(lambda: (root / "endless").read_text())
    stage = int((root / "endless").read_text())

    served("make", "arrived")
    served("prefect", "deployment", "run", "improve-once/nightly")
    refused = served("python", "flows/improve.py", "--rounds", "9", told=False, code=2)
    assert re.fullmatch(
        r"improve: error: another run of rounds is under way here \(run improve-once [a-z-]+, pid \d+, since [^)]+\); "
        r"this one did nothing\n",
        refused,
    )
    (second,) = served.ended("arrived", 1)
    assert (second["state_type"], second["state"]["message"]) == ("CANCELLED", LIMIT)
    by_hand = served.ended("nightly", nights + 1)[-1]
    assert (by_hand["state_type"], by_hand["state_name"]) == ("CANCELLED", "Refused")
    assert by_hand["state"]["message"].startswith("another run of rounds is under way here (run improve-once ")

    (root / "endless").unlink()
    os.kill(stage, signal.SIGKILL)  # as if memory had run out: tried again
    first = served.ended("arrived", 2)[0]
    assert first["state_type"] == "COMPLETED", first["state"]["message"]
    assert first["state"]["message"].startswith(f"round {closed + 1}, ")
    assert datetime.fromisoformat(first["parameters"]["announced"]) < datetime.fromisoformat(first["created"])
    assert read_pins(root / "data/champion.json").closed_rounds == closed + 1
    there = run(root, "git", "ls-tree", "-r", "--name-only", f"round/{closed + 1}")
    assert "data/logs/second.jsonl.dvc" in there
    told = served("python", "flows/timing.py")
    assert re.match(rf"round {closed + 1}, [a-z ]+, closed by the run {first['name']} in [\d.]+ s\n", told)
    assert "from the event: " in told
    assert "* orchestration: " in told
