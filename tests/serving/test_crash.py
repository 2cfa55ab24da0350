"""The application is killed at any moment: whatever action it was given is in the record."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

import retroformer
from project import HERE
from retroformer.importers.importing import import_logs
from retroformer.policies.checkpoints import build
from retroformer.serving.recording import Recorder
from retroformer.storage import read_trajectories
from tiny import WORDS
from tiny_logs import rules
from tiny_round import tiny_config


def kill_and_find(tmp_path: Path, policy: str, kills: int) -> None:
    """Processes are killed with SIGKILL after 0 to 0.5 s of acting (seed 0), and each of their actions is found."""
    chance, returned, ended = random.Random(0), defaultdict(dict), set()
    words = [sys.executable, str(HERE / "tests/serving/application.py"), policy, str(tmp_path / "runs")]
    for number in range(kills):
        told = tmp_path / f"told-{number}"
        with told.open("w") as out:
            process = subprocess.Popen(words, stdout=out)
            while not told.stat().st_size:
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(chance.random() / 2)
            process.kill()
            process.wait()
        for line in told.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                id, t, action = line.split()
                if t == "end":
                    ended.add(id)
                else:
                    returned[id][int(t)] = action
    for id in returned:
        if id not in ended:
            retroformer.report(tmp_path / "runs", id, success=False)
    report = import_logs([tmp_path / "runs"], "recorded", tmp_path / "out", rules(), max_quarantined=0.0)
    found = {one.id: [step.action for step in one.steps] for one in read_trajectories(tmp_path / "out")}
    assert report["quarantined"] == 0
    assert len(returned) >= 2 * kills
    lost = 0
    for id, actions in returned.items():
        recorded = found[id][: len(actions)]
        assert recorded == [actions[t] for t in range(len(actions))]
        assert len(found[id]) <= len(actions) + 1, "at most the action that was not yet told"
        lost += id not in ended
    assert lost, "some were killed in the middle"


def test_a_crash_loses_at_most_the_step_in_flight(tmp_path: Path) -> None:
    kill_and_find(tmp_path, "scripted:random", kills=4)


@pytest.mark.slow
def test_a_crash_of_a_model_loses_at_most_the_step_in_flight(tmp_path: Path) -> None:
    build(tiny_config().policy, WORDS, seed=0).save(tmp_path / "policy")
    kill_and_find(tmp_path, str(tmp_path / "policy"), kills=10)


def test_files_rotate_and_a_forked_process_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retroformer.serving.recording.FILE", 100)
    recorder = Recorder(tmp_path, fsync=True)
    for number in range(10):
        recorder.write([{"event": "outcome", "id": f"e{number}", "time": 0.0}])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 4
    assert [name.split("-")[-1] for name in names] == [f"{part:04d}.jsonl" for part in range(4)]
    child = os.fork()
    if child == 0:
        recorder.write([{"event": "outcome", "id": "child", "time": 0.0}])
        os._exit(0)
    os.waitpid(child, 0)
    recorder.close()
    recorder.write([{"event": "outcome", "id": "last", "time": 0.0}])
    (own,) = [path for path in tmp_path.iterdir() if "child" in path.read_text()]
    assert own.name not in names
    assert own.name.endswith("-0000.jsonl")
    assert sum(len(path.read_text().splitlines()) for path in tmp_path.iterdir()) == 12
