"""The same collection on a cluster engine, with a worker killed in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retroformer.errors import ConfigError, EnvironmentFault
from retroformer.files import hash_directory
from retroformer.rollouts import clusters, workers
from retroformer.rollouts.episodes import Conditions, Episode
from retroformer.rollouts.workers import SHARD, Player, play_all
from tiny_round import pin, run_collect, tiny_config

BOT, RANDOM = Player("scripted:babyai-bot?noise=0.5"), Player("scripted:random")
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


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A cluster that gives a shard up when one worker died of it."""
    distributed = pytest.importorskip("distributed", reason="Dask is missing: pip install 'retroformer[dask]'")
    dask = pytest.importorskip("dask")
    monkeypatch.setenv("LEAVES", str(tmp_path / "once"))
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
    ):
        yield cluster


def at(cluster: Any) -> str:
    return cluster.scheduler_address.replace("tcp", "dask")


def of(name: str, count: int = 6) -> list[Any]:
    return [(RANDOM, [Episode(name, seed, "train") for seed in range(count)])]


def test_a_dask_worker_killed_in_the_middle_loses_nothing(dask: Any, alone: list[Any]) -> None:
    arriving = play_all(WORK, CONDITIONS, cluster=at(dask))
    found = [next(arriving)]
    victim = next(iter(dask.workers.values())).pid
    os.kill(victim, signal.SIGKILL)
    found += arriving
    assert found == alone
    assert victim not in {worker.pid for worker in dask.workers.values()}


def test_what_the_engine_gives_up_goes_out_again(impatient: Any, tmp_path: Path) -> None:
    work = of("chaos.One:worker", 20)
    survived = list(play_all(work, CONDITIONS, cluster=at(impatient)))
    assert (tmp_path / "once").exists()
    assert survived == list(play_all(work, CONDITIONS, 1))


def test_workers_that_die_again_and_again_are_told_and_the_rest_is_kept(
    impatient: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(workers, "RESTARTS", 1)
    work = [*of("chaos.One:sound"), *of("chaos.One:workers")]
    with pytest.raises(EnvironmentFault, match=r"ended at least 2 times without .*but all those workers died"):
        list(play_all(work, CONDITIONS, cluster=at(impatient), folder=tmp_path / "shards"))
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["000000"]


def test_a_cluster_that_its_workers_have_left_is_told(impatient: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "WORKERLESS", 0.1)
    monkeypatch.setattr(clusters, "ANSWER", 1.0)
    arriving = play_all(WORK, CONDITIONS, cluster=at(impatient))
    next(arriving)
    impatient.scale(0)
    with pytest.raises(ConfigError, match=r"has no worker; nothing that was played is lost: run the same command"):
        list(arriving)


def test_a_scheduler_that_is_lost_is_told(impatient: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "ANSWER", 1.0)
    arriving = play_all(WORK, CONDITIONS, cluster=at(impatient))
    next(arriving)
    impatient.close()
    with pytest.raises(ConfigError, match=r"no Dask scheduler answers at .*; nothing that was played is lost: run"):
        list(arriving)


def test_an_environment_that_the_workers_lack_is_told_before_it_is_played(
    dask: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "only_here.py").write_text("from chaos import One\n")
    monkeypatch.chdir(tmp_path)
    message = r"on the cluster's worker .* 'only_here'; environments have to be importable on every worker"
    with pytest.raises(EnvironmentFault, match=message):
        list(play_all(of("only_here.One:sound"), CONDITIONS, cluster=at(dask)))


def test_a_cluster_with_another_version_is_told(dask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.play_there, "__qualname__", "play_elsewhere")
    with pytest.raises(ConfigError, match=r"cannot import retroformer\.rollouts\.workers:play_elsewhere .* install"):
        list(play_all(WORK, CONDITIONS, cluster=at(dask)))


def test_a_stage_runs_there_by_one_parameter(dask: Any, tmp_path: Any) -> None:
    hashes = []
    for name, cluster in (("here", ""), ("there", "dask")):
        pin(tmp_path / name)
        run_collect(tmp_path / name, tiny_config(collect__cluster=cluster, collect__environments=2))
        hashes.append(hash_directory(tmp_path / name / "data/rollouts"))
    assert hashes[0] == hashes[1]


def test_a_scheduler_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="Dask is missing: pip install 'retroformer[dask]'")
    monkeypatch.setattr(clusters, "ANSWER", 1.0)
    with pytest.raises(ConfigError, match=r"no Dask scheduler answers at localhost:9 \("):
        list(play_all(WORK, CONDITIONS, cluster="dask://localhost:9"))
