"""SIGKILL of the collecting process, at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from project import HERE
from retroformer.config import PolicyConfig
from retroformer.environments import lexicon
from retroformer.files import hash_directory
from retroformer.policies.checkpoints import build
from tiny_round import BOT, pin

COLLECT = """
import sys
from pathlib import Path
from tiny_round import run_collect, tiny_config
options = {"collect__episodes": int(sys.argv[4]), "collect__environments": 2, "collect__policy": sys.argv[3]}
run_collect(Path(sys.argv[1]), tiny_config(collect__workers=int(sys.argv[2]), **options))
"""
EPISODES = 64
SHARDS = 8


def start(root: Path, workers: int, policy: str, episodes: int = EPISODES) -> subprocess.Popen[bytes]:
    paths = {"PYTHONPATH": os.pathsep.join((str(HERE / "src"), str(HERE / "tests")))}
    words = [sys.executable, "-c", COLLECT, str(root), str(workers), policy, str(episodes)]
    return subprocess.Popen(words, env={**os.environ, **paths}, stderr=subprocess.DEVNULL)


def finished(root: Path) -> int:
    return len(list((root / ".resume").glob("collect-*/[0-9]*")))


def make(root: Path, model: bool) -> str:
    """Pins; returns which of them plays."""
    if not model:
        pin(root, BOT)
        return "champion"
    names = ["babyai:P5N2", "babyai:GoToLocalS5N2"]
    policy = build(PolicyConfig(model="", width=16, layers=1, heads=2), lexicon(names), seed=0)
    (root / "data/policy").mkdir(parents=True)
    policy.save(root / "data/policy")
    pin(root, BOT, train_from="data/policy", closed=1)
    return "train_from"


def kill_and_go_on(tmp_path: Path, moments: list[float], model: bool, episodes: int) -> list[int]:
    """Kill at these shares of an undisturbed run; the shards that were on disk each time."""
    policy = make(tmp_path / "whole", model)
    began = time.monotonic()
    assert start(tmp_path / "whole", 2, policy, episodes).wait() == 0
    seconds = time.monotonic() - began
    expected = hash_directory(tmp_path / "whole/data/rollouts")
    there = []
    for number, moment in enumerate(moments):
        root = tmp_path / f"killed-{number}"
        make(root, model)
        process = start(root, 2, policy, episodes)
        time.sleep(moment * seconds)
        process.send_signal(signal.SIGKILL)
        killed = process.wait() == -signal.SIGKILL
        there.append(finished(root))
        assert not killed or not (root / "data/rollouts").exists() or not finished(root)
        assert start(root, 1 + number % 3, policy, episodes).wait() == 0
        assert hash_directory(root / "data/rollouts") == expected, f"killed after {moment:.2f} of the run"
        assert not list((root / ".resume").glob("collect-*"))
    return there


def test_a_killed_collection_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    policy = make(tmp_path / "whole", model=False)
    make(tmp_path / "killed", model=False)
    whole, killed = start(tmp_path / "whole", 1, policy), start(tmp_path / "killed", 1, policy)
    while killed.poll() is None and finished(tmp_path / "killed") < 3:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert 3 <= finished(tmp_path / "killed") < SHARDS
    assert not (tmp_path / "killed/data/rollouts").exists()
    assert start(tmp_path / "killed", 2, policy).wait() == 0
    assert whole.wait() == 0
    assert hash_directory(tmp_path / "killed/data/rollouts") == hash_directory(tmp_path / "whole/data/rollouts")


@pytest.mark.slow
@pytest.mark.parametrize(("model", "episodes"), [(False, EPISODES), (True, 10 * EPISODES)])
def test_killed_at_ten_random_moments(tmp_path: Path, model: bool, episodes: int) -> None:
    """A small model plays so fast that with few episodes nearly all of a run is its start."""
    chance = random.Random(int(model))
    there = kill_and_go_on(tmp_path, [chance.random() for _ in range(10)], model, episodes)
    print(there)
    assert len(set(there)) > 1
