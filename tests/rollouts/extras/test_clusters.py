"""The same collection on a cluster engine, with a worker killed in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from retroformer.errors import ConfigError
from retroformer.rollouts.episodes import Conditions, Episode
from retroformer.rollouts.workers import SHARD, Player, play_all
from retroformer.storage import hash_directory
from tiny_round import pin, run_collect, tiny_config

BOT = Player("scripted:babyai-bot?noise=0.5")
CONDITIONS = Conditions(0, "compact", "token", environments=2)
SHARDS = 12
WORK = [(BOT, [Episode("babyai:P5N2", seed, "train") for seed in range(SHARDS * SHARD * CONDITIONS.environments)])]


@pytest.fixture(scope="module")
def alone() -> list[Any]:
    return list(play_all(WORK, CONDITIONS, 1))


@pytest.fixture(scope="module")
def dask() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="Dask is missing: pip install 'retroformer[dask]'")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


def test_a_dask_worker_killed_in_the_middle_loses_nothing(dask: Any, alone: list[Any]) -> None:
    address = dask.scheduler_address.partition("://")[2]
    arriving = play_all(WORK, CONDITIONS, cluster=f"dask://{address}")
    found = [next(arriving)]
    victim = next(iter(dask.workers.values())).pid
    os.kill(victim, signal.SIGKILL)
    found += arriving
    assert found == alone
    assert victim not in {worker.pid for worker in dask.workers.values()}


def test_a_stage_runs_there_by_one_parameter(dask: Any, tmp_path: Any) -> None:
    hashes = []
    for name, cluster in (("here", ""), ("there", "dask")):
        pin(tmp_path / name)
        run_collect(tmp_path / name, tiny_config(collect__cluster=cluster, collect__environments=2))
        hashes.append(hash_directory(tmp_path / name / "data/rollouts"))
    assert hashes[0] == hashes[1]


def test_a_scheduler_that_does_not_answer_is_told(tmp_path: Any) -> None:
    pytest.importorskip("distributed", reason="Dask is missing: pip install 'retroformer[dask]'")
    with pytest.raises(ConfigError, match=r"no Dask scheduler answers at localhost:9: "):
        list(play_all(WORK, CONDITIONS, cluster="dask://localhost:9"))
