from __future__ import annotations

import contextlib
import csv
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock
import pytest

from project import HERE, dvc, make_round, record_round, run
from retroformer import cli, rounds
from retroformer.errors import DataError, PinMismatch
from retroformer.files import hash_directory, read_json, write_json
from retroformer.journal import read_seconds, record_seconds
from retroformer.pins import policy_hash, read_pins, verify
from retroformer.tracking import aliases, mlflow_view, promotions, record
from three_rounds import quick_dvc

POLICY = "data/history/round-0001/challenger"


def table(root: Path) -> list[dict[str, str]]:
    with (root / "data/rounds.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def state(root: Path) -> dict[str, Any]:
    """All that closing a round changes."""
    store = mlflow_view.client(root)
    experiment = store.get_experiment_by_name(mlflow_view.NAME).experiment_id
    model = store.get_registered_model(mlflow_view.NAME)
    return {
        "pins": read_json(root / "data/champion.json"),
        "table": table(root),
        "history": hash_directory(root / "data/history"),
        "versions": sorted((one.version, tuple(sorted(one.tags.items()))) for one in mlflow_view.versions(store)),
        "aliases": {alias: str(version) for alias, version in model.aliases.items()},
        "in production": model.tags,
        "promotions": [{**asdict(one), "at": ""} for one in promotions.read(root)],
        "runs": [one.data.metrics["challenger_success"] for one in store.search_runs([experiment])],
        "left": [path.name for path in (root / "data/history").iterdir() if path.name.startswith(".")],
    }


def test_a_promotion_moves_both_pins(project: Path) -> None:
    closed = rounds.close(project)
    pins = read_pins(project / "data/champion.json")
    assert (pins.closed_rounds, pins.champion, pins.train_from) == (1, pins.champion, pins.champion)
    assert (pins.champion.policy, pins.champion.uri) == (POLICY, "models:/retroformer/1")
    verify(pins.champion, project)
    assert closed == read_json(project / "data/history/round-0001/round.json")
    assert closed["champion"]["policy"] == "scripted:babyai-bot?noise=0.7"
    assert state(project)["aliases"] == {"challenger": "1", "champion": "1"}
    # By hand: A 3 of 4, B 1 of 4, weighted equally; told another mission, the champion from now on has 0.2.
    assert table(project) == [
        {
            "round": "1",
            "verdict": "promote",
            "reason": "because 1",
            "behaviour_success": "0.5",
            "champion_success": "0.5",
            "challenger_success": "0.8",
            "swapped_success": "0.2",
            "difference": "0.3",
            "lower": "0.2",
            "upper": "0.4",
            "n": "400",
            "seconds": "",
            "model_version": "1",
        }
    ]
    assert [(one["task"], one["behaviour"]["n"]) for one in closed["levels"]] == [(None, 8), ("A", 4), ("B", 4)]


def test_closing_a_closed_round_changes_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "dvc", quick_dvc)
    first = rounds.close(project)
    before = state(project)
    assert rounds.close(project) == first
    assert state(project) == before


@pytest.mark.parametrize(
    ("verdict", "worse", "goes_on"),
    [("keep", True, None), ("keep", False, POLICY), ("not_enough_evidence", False, POLICY)],
)
def test_without_a_promotion_the_champion_stays(
    project: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, worse: bool, goes_on: str | None
) -> None:
    monkeypatch.setattr(rounds, "dvc", quick_dvc)
    make_round(project / "data", 1, verdict=verdict, worse=worse)
    rounds.close(project)
    pins = read_pins(project / "data/champion.json")
    assert pins.champion.policy == "scripted:babyai-bot?noise=0.7"
    assert (pins.train_from.policy if pins.train_from else None) == goes_on
    assert state(project)["aliases"] == {"challenger": "1"}
    assert table(project)[0]["swapped_success"] == "0.4"


def kill(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, after: bool) -> None:
    """Let a step be the last thing that happens: before it began, or after it was done."""
    original: Callable[..., Any] = getattr(module, name)

    def dying(*arguments: Any, **options: Any) -> Any:
        if after:
            original(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, dying)


@pytest.fixture(scope="module")
def undisturbed(finished_round: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = Path(shutil.copytree(finished_round, tmp_path_factory.mktemp("undisturbed") / "project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "dvc", quick_dvc)
        rounds.close(root)
    return state(root)


STEPS = [
    (rounds, "check"),
    (mlflow_view, "log_dataset"),
    (mlflow_view, "log_policy"),
    (mlflow_view, "publish"),
    (rounds, "append"),
    (record, "write_rounds"),
    (aliases, "reconcile"),
    (promotions, "append"),
    (rounds, "write_pins"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("module", "name"), STEPS, ids=[name for _, name in STEPS])
def test_killed_anywhere_and_repeated_it_ends_in_the_same_state(
    project: Path,
    undisturbed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    after: bool,
) -> None:
    monkeypatch.setattr(rounds, "dvc", quick_dvc)
    with monkeypatch.context() as patch:
        kill(patch, module, name, after)
        with pytest.raises(KeyboardInterrupt):
            rounds.close(project)
    moved = read_pins(project / "data/champion.json").closed_rounds
    assert moved == int((name, after) == ("write_pins", True)), "the pins move last"
    rounds.close(project)
    assert state(project) == undisturbed


def test_a_history_that_a_killed_closing_has_grown_does_not_hinder_its_repetition(
    project: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill(patch, rounds, "append", after=True)
        with pytest.raises(KeyboardInterrupt):
            rounds.close(project)
    assert "data/history" in dvc(project, "status"), "DVC has seen it"
    rounds.close(project)
    assert state(project)["pins"] == undisturbed["pins"]


def test_the_second_round_builds_on_the_first(project: Path) -> None:
    rounds.close(project)
    make_round(project / "data", 2, verdict="not_enough_evidence", weights="v")
    record_round(project)
    rounds.close(project)
    pins = read_pins(project / "data/champion.json")
    assert pins.closed_rounds == 2
    assert (pins.champion.policy, pins.train_from and pins.train_from.policy) == (
        POLICY,
        "data/history/round-0002/challenger",
    )
    assert [row["round"] for row in table(project)] == ["1", "2"]
    assert state(project)["aliases"] == {"champion": "1", "challenger": "2"}


def test_a_verdict_of_another_round_is_refused(project: Path) -> None:
    write_json(
        project / "data/decision/verdict.json", {**read_json(project / "data/decision/verdict.json"), "round": 3}
    )
    with pytest.raises(DataError, match=r"is of round 3, the open one is round 1; run `dvc repro`"):
        rounds.close(project)


@pytest.mark.parametrize("name", ["challenger/model.txt", "evaluation/episodes.csv"])
def test_what_changed_after_the_verdict_is_refused(project: Path, name: str) -> None:
    (project / "data" / name).write_text("changed")
    with pytest.raises(DataError, match="something changed since the verdict was reached; run `dvc repro` first"):
        rounds.close(project)
    assert not (project / "data/history/round-0001").exists()
    assert read_pins(project / "data/champion.json").closed_rounds == 0


def test_an_edited_champion_is_refused(project: Path) -> None:
    value = read_json(project / "data/champion.json")
    value["champion"]["policy"] = "scripted:random"
    write_json(project / "data/champion.json", value)
    with pytest.raises(PinMismatch, match="the policy or the pin was edited"):
        rounds.close(project)


def test_a_round_that_was_not_pulled_is_not_lost_from_the_table(project: Path) -> None:
    rounds.close(project)
    shutil.rmtree(project / "data/history/round-0001")
    make_round(project / "data", 2)
    with pytest.raises(DataError, match=r"round-0001/round.json, a closed round, is not here; try `dvc pull`"):
        rounds.close(project)


def test_two_closings_at_once_are_refused(project: Path) -> None:
    (project / ".resume").mkdir(exist_ok=True)
    with filelock.FileLock(project / ".resume/close.lock"):
        with pytest.raises(DataError, match="another closing, promotion or rollback is under way"):
            rounds.close(project)


def test_seconds_of_the_stages_are_in_the_record(project: Path) -> None:
    for stage, own, whole in (("train", 2.5, 4.0), ("collect", 1.25, 2.0)):
        record_seconds(stage, own, project)
        record_seconds(stage, whole, project, around=True)
    closed = rounds.close(project)
    assert (closed["seconds"], closed["around"]) == ({"train": 2.5, "collect": 1.25}, {"train": 1.5, "collect": 0.75})
    assert table(project)[0]["seconds"] == "3.8"


def test_a_stage_that_was_up_to_date_has_all_its_time_around_it(project: Path) -> None:
    record_seconds("train", 40.0, project)
    record_seconds("train", 0.5, project, around=True)
    assert read_seconds(1, project, around=True) == {"train": 0.5}


def test_a_commit_holds_the_round_and_no_other_change(project: Path) -> None:
    (project / "other.txt").write_text("mine")
    run(project, "git", "add", "other.txt")
    rounds.close(project, commit=True)
    rounds.close(project, commit=True)
    assert run(project, "git", "log", "--format=%s").split("\n")[:2] == ["Close round 1", "Round 1"]
    assert run(project, "git", "log", "--format=%s", "-1", "round/1").strip() == "Round 1"
    assert run(project, "git", "show", "--name-only", "--format=", "HEAD").split() == [
        "data/champion.json",
        "data/history/round-0001.dvc",
        "data/rounds.csv",
    ]
    assert "other.txt" in run(project, "git", "diff", "--cached", "--name-only")


def test_a_second_clone_has_all_that_the_next_round_needs(project: Path, tmp_path: Path) -> None:
    run(project, "git", "add", "--all")
    run(project, "git", "commit", "--quiet", "--message", "start")
    rounds.close(project, commit=True)
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(project), str(clone))
    dvc(clone, "remote", "modify", "--local", "local", "url", str(project / ".dvc-remote"))
    dvc(clone, "pull", "--quiet")
    verify(read_pins(clone / "data/champion.json").champion, clone)
    assert policy_hash("data/challenger", clone) == policy_hash("data/challenger", project)
    assert hash_directory(clone / "data/history") == hash_directory(project / "data/history")
    assert rounds.close(clone) == rounds.close(project)

    run(clone, "git", "checkout", "--quiet", "round/1")
    shutil.rmtree(clone / "data/history/round-0001")
    assert json.loads(dvc(clone, "status", "--json")) == {}, "at its tag, nothing of the round has to be run again"


def test_a_round_that_was_closed_without_a_commit_is_committed_with_the_next(project: Path, tmp_path: Path) -> None:
    run(project, "git", "add", "--all")
    run(project, "git", "commit", "--quiet", "--message", "start")
    rounds.close(project)
    started = (project / "data/champion.json").read_text(), (project / "data/rounds.csv").read_text()
    make_round(project / "data", 2, verdict="not_enough_evidence", weights="v")
    record_round(project)
    rounds.close(project, commit=True)
    assert run(project, "git", "status", "--porcelain") == ""
    assert read_pins(project / "data/champion.json").closed_rounds == 2
    assert [row["round"] for row in table(project)] == ["1", "2"]
    assert run(project, "git", "log", "--format=%s").split("\n")[:3] == ["Close round 2", "Round 2", "start"]
    held = tuple(run(project, "git", "show", f"round/2:data/{name}") for name in ("champion.json", "rounds.csv"))
    assert held == started

    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(project), str(clone))
    dvc(clone, "remote", "modify", "--local", "local", "url", str(project / ".dvc-remote"))
    dvc(clone, "pull", "--quiet")
    verify(read_pins(clone / "data/champion.json").champion, clone)
    assert hash_directory(clone / "data/history") == hash_directory(project / "data/history")
    run(clone, "git", "checkout", "--quiet", "round/2")
    shutil.rmtree(clone / "data/history/round-0002")
    assert json.loads(dvc(clone, "status", "--json")) == {}, "at its tag, nothing of the round has to be run again"


def test_a_commit_that_was_killed_and_repeated_ends_in_the_same_state(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "dvc", quick_dvc)
    closed = rounds.close(project)
    before = state(project)
    with rounds.as_started(project, 1):
        assert read_pins(project / "data/champion.json").closed_rounds == 0
        opened = (project / "data/champion.json").read_bytes()
    assert state(project) == before
    (project / "data/champion.json").write_bytes(opened)  # what a kill in between leaves
    (project / "data/rounds.csv").unlink()
    assert rounds.close(project, commit=True) == closed
    assert state(project) == before


def killed_closings(root: Path) -> None:
    """In a process of its own: SIGKILL, which no block cleans up after, at the worst moments of one closing."""
    import mlflow  # noqa: F401 (once, for all forks)

    from dying import dies, lives

    rounds.dvc = quick_dvc

    def close() -> None:
        rounds.close(root, commit=True)

    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))
        os.chdir(root)
        assert cli.main(["close"]) == 2

    lives(full)
    dies(close, rounds, "append")  # registered, and nothing else
    dies(close, os, "rename")  # the history's folder is written and not in its place
    dies(close, rounds, "write_pins")  # everything but the pins
    assert read_pins(root / "data/champion.json").closed_rounds == 0
    dies(close, rounds, "commit", after=True)  # committed with the pins as the round started from them
    assert read_pins(root / "data/champion.json").closed_rounds == 0
    (root / ".git/index.lock").touch()
    (root / "data/history/round-0001.dvc").write_text("")
    lives(close)


def test_a_closing_that_sigkill_ends_again_and_again_ends_in_the_same_state(
    project: Path, undisturbed: dict[str, Any]
) -> None:
    code = f"import sys; sys.path.insert(0, {str(HERE / 'tests')!r}); import test_rounds; "
    code += f"from pathlib import Path; test_rounds.killed_closings(Path({str(project)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("retroformer: error: "))
    assert "disk" in error.lower() or "file too large" in error.lower(), error
    assert "Traceback" not in done.stderr
    assert "index.lock was left by a killed git: removed" in done.stderr
    assert "round-0001.dvc was half written by a killed process" in done.stderr
    assert state(project) == undisturbed
    assert run(project, "git", "log", "--format=%s").splitlines() == ["Close round 1", "Round 1"]
    assert run(project, "git", "tag").split() == ["round/1"]
    assert not list(project.glob("data/**/.*.writing-*"))


def test_a_store_that_another_program_holds_is_one_sentence_and_closing_again_helps(
    project: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rounds, "dvc", quick_dvc)
    with monkeypatch.context() as patch, contextlib.closing(sqlite3.connect(project / mlflow_view.DATABASE)) as held:
        connect = sqlite3.connect
        for module in (sqlite3, sqlite3.dbapi2):  # both wait five seconds
            patch.setattr(module, "connect", lambda *given, **options: connect(*given, **{**options, "timeout": 0.05}))
        held.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DataError, match=r"mlflow\.db, did not answer: database is locked by another program"):
            rounds.close(project)
        held.rollback()
    assert "Traceback" not in capsys.readouterr().err
    assert read_pins(project / "data/champion.json").closed_rounds == 0
    rounds.close(project)
    assert state(project) == undisturbed
