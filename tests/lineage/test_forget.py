"""`retroformer forget`, as a user types it: nothing of it is found again, wherever one looks."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from conftest import ACME, LOG, import_config, make_data
from project import dvc, run
from retroformer import cli
from retroformer.errors import DataError
from retroformer.lineage import forgetting, objects
from retroformer.pins import read_pins, verify
from retroformer.stages.collect import import_into
from retroformer.storage import hash_directory, read_json, read_trajectories
from retroformer.tombstones import TOMBSTONES, forgotten_ids, read_tombstones
from retroformer.tracking.record import read_records

WHERE = ("--where", "text~ACME")
DO = (*WHERE, "--yes", "--reason", "ticket 12")


def forget(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code = cli.main(["forget", *words, "--json"])
    told = capsys.readouterr()
    assert code == 0, told.err
    return json.loads(told.out)


def of_acme(root: Path) -> set[str]:
    held = read_trajectories(root / "data/history/round-0001/validated")
    return {one.id for one in held if "ACME" in one.steps[0].observation}


def holders(root: Path, *needles: str) -> list[str]:
    """Every file below a folder in which one of the words can be found, tables read as tables."""
    found = []
    for path in files(root):
        head = path.read_bytes()
        text = str(pq.read_table(path).to_pylist()) if head.startswith(b"PAR1") else head.decode("utf-8", "ignore")
        if any(needle in text for needle in needles):
            found.append(path.relative_to(root).as_posix())
    return found


def files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root).parts
        if path.is_file() and not {".git", "src"} & set(inside):
            yield path


def state(root: Path) -> dict[str, Any]:
    """All that a forgetting changes, but for the time and the count of deleted files."""
    return {
        "tombstones": [{**one, "at": None} for one in read_tombstones(root / TOMBSTONES)],
        "history": {path.name: hash_directory(path) for path in (root / "data/history").glob("round-*/")},
        "pointers": {path.name: path.read_text() for path in (root / "data/history").glob("*.dvc")},
        "data": sorted(path.name for path in (root / "data").iterdir()),
        "cache": sorted(path.name for path in (root / ".dvc/cache/files").rglob("*") if path.is_file()),
    }


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(told)
    ids = of_acme(told)
    assert len(ids) == 2
    found = forget(capsys, *WHERE)
    assert found["trajectories"] == {
        id: f"{LOG}:{line}" for id, line in zip(sorted(ids, key=lambda id: source(told, id)), ACME, strict=True)
    }
    assert set(found["touched"]) == {"1", "2"}
    assert found["open"] == ["batches"], "what the closed round left in data/ replays round 1"
    assert cli.main(["forget", *WHERE]) == 0
    text = capsys.readouterr().out
    assert "2 trajectories would be forgotten; nothing was changed" in text
    assert "2 read from data/logs/desk.jsonl, line 3, 7" in text
    assert state(told) == before


def source(root: Path, id: str) -> str:
    held = read_trajectories(root / "data/history/round-0001/validated")
    return next(one.source for one in held if one.id == id)


def test_what_was_forgotten_is_nowhere_and_does_not_come_back(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = of_acme(told)
    policies = {n: hash_directory(told / f"data/history/round-{n:04d}/challenger") for n in (1, 2)}
    records = read_records(told, 2)
    kept = {one.id for one in read_trajectories(told / "data/history/round-0001/validated")} - ids
    assert ".dvc-remote" in {Path(one).parts[0] for one in holders(told, "ACME")}, "it was pushed"

    done = forget(capsys, *DO, "--logs")
    assert holders(told, "ACME") == [], "no table, log, cache or remote has it"
    assert holders(told, *ids) == [TOMBSTONES.as_posix()]
    assert {one.id for one in read_trajectories(told / "data/history/round-0001/validated")} == kept
    assert {n: hash_directory(told / f"data/history/round-{n:04d}/challenger") for n in (1, 2)} == policies
    assert read_records(told, 2) == records, "figures are history"
    verify(read_pins(told / "data/champion.json").champion, told)
    assert dvc(told, "status", "data/history/round-0001.dvc", "data/history/round-0002.dvc").endswith("up to date.\n")
    assert done["purged"]["files"] > 0

    [grave] = read_tombstones(told / TOMBSTONES)
    assert (grave["reason"], grave["by"]) == ("ticket 12", "a test")
    assert grave["where"][0].startswith("text~sha256:")
    assert forgotten_ids(told / TOMBSTONES) == ids
    assert grave["rounds"]["1"]["before"] != grave["rounds"]["1"]["after"]
    assert grave["rounds"]["1"]["after"] in (told / "data/history/round-0001.dvc").read_text()

    lines = (told / LOG).read_text().split("\n")
    assert [number for number, line in enumerate(lines, 1) if not line] == [*ACME, 13], "others keep their numbers"


def test_an_import_leaves_out_what_the_log_still_has(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = forget(capsys, *DO)
    assert any(f"{LOG}, line 3, 7: the log itself" in sentence for sentence in done["remains"])
    ids = forgotten_ids(told / TOMBSTONES)
    assert "ACME" in (told / LOG).read_text()

    found = import_into(told / "data/rollouts", Path("data/logs"), import_config(told), 3, ids)
    assert (found["read"], found["accepted"], found["episodes"]) == (12, 10, 10)
    assert read_json(told / "data/rollouts/collect.json")["forgotten"] == 2
    assert ids.isdisjoint(one.id for one in read_trajectories(told / "data/rollouts"))
    assert cli.main(["import", "data/logs", "--format", "openai-chat", "--out", "imported/desk"]) == 0
    assert "left out, named by a tombstone: 2" in capsys.readouterr().out
    assert holders(told / "imported", "ACME", *ids) == []


def test_a_killed_rewriting_is_not_replayed(told: Path) -> None:
    held = read_trajectories(told / "data/history/round-0001/validated")
    ids = of_acme(told)
    group = {"ids": dict.fromkeys(ids, ""), "rounds": [1], "trained": [], "checkpoint": [], "judged": []}
    (told / TOMBSTONES).write_text(json.dumps({"trajectories": [group]}) + "\n")
    make_data(told, 3, [one for one in held if one.id in ids] + held[:2], [])
    assert ids.isdisjoint(one.id for one in read_trajectories(told / "data/batches"))


def test_lineage_tells_of_what_was_forgotten(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    id = sorted(of_acme(told))[0]
    assert cli.main(["lineage", "--trajectory", id, "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    done = forget(capsys, *DO)
    assert cli.main(["lineage", "--trajectory", id, "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert after["found"] == []
    assert after["forgotten"] == {"at": done["at"], "by": "a test", "reason": "ticket 12", "rounds": [1]}
    same = ("trained", "checkpoint", "judged", "inherited", "source")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert cli.main(["lineage", "1"]) == 0
    assert f"forgotten on {done['at']} (ticket 12):" in capsys.readouterr().out


def test_what_to_run_again_makes_a_round_that_nothing_of_it_is_in(
    told: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = forget(capsys, *DO)
    assert done["rerun"][1:] == ["dvc exp run -S curate.window=1", "retroformer close"]
    repin = done["rerun"][0].replace("python ", "python3 ", 1)
    assert repin.startswith("python3 -c ")
    subprocess.run(repin, shell=True, check=True)
    pins = read_pins(told / "data/champion.json")
    assert (pins.closed_rounds, pins.champion.policy, pins.train_from) == (2, "scripted:babyai-bot?noise=0.7", None)
    verify(pins.champion, told)
    changed = json.loads(dvc(told, "status", "--json"))
    assert {"collect", "curate"} <= changed.keys(), "the open round is run again from its start"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (forgetting, "finish"),
        (forgetting, "rewrite"),
        (forgetting, "dvc"),
        (forgetting, "empty_open_round"),
        (objects, "purge"),
        (forgetting, "record"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_killed_anywhere_and_repeated_it_ends_in_the_same_state(
    told: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    conditions = [forgetting_condition("text~ACME")]

    def dying(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, dying)
        with pytest.raises(KeyboardInterrupt):
            forgetting.forget(told, conditions, "ticket 12", commit_it=True)
    try:
        forgetting.forget(told, conditions, "ticket 12", commit_it=True)
    except DataError as error:
        assert name == "record", error
    assert state(told) == undisturbed
    assert run(told, "git", "log", "-1", "--format=%s").strip() == "Forget 2 trajectories: ticket 12"
    assert "tombstones.jsonl" not in run(told, "git", "status", "--porcelain")


def forgetting_condition(text: str) -> Any:
    from retroformer.lineage.where import parse

    return parse(text)


@pytest.fixture(scope="module")
def undisturbed(told_rounds: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = Path(shutil.copytree(told_rounds, tmp_path_factory.mktemp("undisturbed") / "project", symlinks=True))
    forgetting.forget(root, [forgetting_condition("text~ACME")], "ticket 12", commit_it=True)
    return state(root)
