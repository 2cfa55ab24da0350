"""`retroformer lineage` and `forget` on two closed rounds; in one file, so that one worker makes them once."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lineage.conftest import ACME, LOG, import_config, make_data
from project import dvc, run
from retroformer import cli
from retroformer.errors import DataError
from retroformer.files import hash_directory, read_json, write_text
from retroformer.lineage import aftermath, forgetting, objects
from retroformer.lineage.where import parse
from retroformer.pins import read_pins, verify, write_pins
from retroformer.stages.collect import import_into
from retroformer.storage import read_trajectories
from retroformer.tombstones import TOMBSTONES, forgotten_ids, read_tombstones
from retroformer.tracking import aliases
from retroformer.tracking.record import read_records


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(["lineage", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def catalogue(root: Path, number: int) -> list[dict[str, str]]:
    with (root / f"data/history/round-{number:04d}/batches/catalogue.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def line_of(root: Path, id: str) -> int:
    """Found by the log's content, not by what lineage says."""
    text = next(one for one in read_trajectories(root / "data/history/round-0001/validated") if one.id == id)
    said = text.steps[0].observation
    lines = (root / "data/logs/desk.jsonl").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if said in line)


def test_a_version_is_told_back_to_the_lines_of_the_log(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, "1")
    drawn = {row["trajectory_id"] for row in catalogue(told, 1) if float(row["probability"]) > 0}
    chose = {row["trajectory_id"] for row in catalogue(told, 1) if row["split"] == "checkpoint"}
    assert {one["id"] for one in found["trajectories"]["trained"]} == drawn
    assert {one["id"] for one in found["trajectories"]["checkpoint"]} == chose
    for role in found["trajectories"].values():
        for one in role:
            assert one["source"] == f"data/logs/desk.jsonl:{line_of(told, one['id'])}"
    assert found["sources"] == {"data/logs/desk.jsonl": {"trajectories": 12, "lines": list(range(1, 13))}}
    assert found["trained_from"] is None
    assert found["in_production"] is True
    assert (found["uri"], found["round"]) == ("models:/retroformer/1", 1)
    assert found["hash"] == read_pins(told / "data/champion.json").champion.hash
    assert found["params"]["collect"]["source"] == "import"
    assert found["git"]["commit"] == run(told, "git", "rev-parse", "round/1").strip()
    assert found["hashes"]["data/batches"].endswith(".dir")
    assert {"data/logs", "src/retroformer/importers", "data/history/tombstones.jsonl"} <= found["hashes"].keys()
    assert found["dataset_hash"] == read_json(told / "data/history/round-0001/round.json")["dataset_hash"]
    pointer = (told / "data/history/round-0001.dvc").read_text()
    assert found["history"]["md5"] in pointer
    assert found["inherited"] == []


def test_what_a_version_inherits_is_told_with_the_way(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, "challenger")
    assert found["version"] == "2"
    assert found["trained_from"]["policy"] == "data/history/round-0001/challenger"
    parent = found["inherited"][0]
    assert parent["version"] == "1"
    assert parent["through"] == [{"version": "2", "by": "data"}, {"version": "2", "by": "weights"}]
    assert len(found["inherited"]) == 1
    assert {one["policy"]: one["version"] for one in found["policies"]} == {"m-1": None, parent["hash"][:16]: "1"}
    assert {one["round"] for one in found["trajectories"]["trained"]} == {1, 2}
    assert found["git"]["commit"] is None, "closed without a commit, and there is no registry"


def test_a_person_reads_the_same(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lineage", "2", "--ids"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("version 2 of round 2: not enough evidence\n")
    for words in (
        "trained from  data/history/round-0001/challenger",
        "inherited from version 1 of round 1: version 2 learned from its runs and version 2 was trained on from it",
        "12 read from data/logs/desk.jsonl, line 1-12",
        "6 read from rollout",
        "train         objective topr",
        "(tag round/1)",
        "closed without --commit",
    ):
        assert words in text, words
    assert all(row["trajectory_id"] in text for number in (1, 2) for row in catalogue(told, number))


def test_forward_from_a_trajectory(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    id = next(row["trajectory_id"] for row in catalogue(told, 1) if float(row["probability"]) > 0)
    found = asked(capsys, "--trajectory", id[:10])
    assert found["id"] == id
    assert found["source"] == f"data/logs/desk.jsonl:{line_of(told, id)}"
    assert found["line"] == "same", "the line was read again, by the round's rules, and gave this id"
    assert (found["trained"], found["checkpoint"], found["inherited"]) == (["1", "2"], [], [])
    assert [one["folder"] for one in found["found"]] == ["data/history/round-0001/validated"]

    path = told / "data/logs/desk.jsonl"
    write_text(path, path.read_text().replace("Refund order", "Return order"))
    assert asked(capsys, "--trajectory", id)["line"] == "other"
    path.unlink()
    assert asked(capsys, "--trajectory", id)["line"] == "gone"
    assert cli.main(["lineage", "--trajectory", id]) == 0
    assert "drawn for training: version 1, 2" in capsys.readouterr().out


def test_what_no_version_learned_from_is_told_so(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lineage", "--trajectory", "quarantined"]) == 0
    text = capsys.readouterr().out
    assert "round 1: quarantined, in data/history/round-0001/validated/quarantine" in text
    assert "no version learned from it" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lineage", "7"], "'7' is not a version; known: champion, challenger, 1, 2"),
        (["lineage"], "name a version, or a trajectory"),
        (["lineage", "1", "--trajectory", "ab"], "name a version, or a trajectory"),
        (["lineage", "--trajectory", "zz"], "no trajectory's id begins with 'zz'"),
        (["lineage", "--trajectory", ""], "ids begin with ''"),
        (["forget"], "say what is to be forgotten, for example --where 'text~ACME'"),
        (["forget", "--where", "text~ACME", "--yes"], "a tombstone says why: --reason TEXT"),
        (["forget", "--where", "id=x", "--yes", "--reason", "r"], "describe no trajectory here; nothing was changed"),
        (["forget", "--where", "colour=red"], "no column colour; known: id, environment"),
    ],
)
def test_mistakes_are_one_line(told: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err


def test_a_round_that_is_not_here_is_named(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (told / "data/history/round-0002/batches/catalogue.csv").unlink()
    assert cli.main(["lineage", "1"]) == 2
    assert "round-0002/batches/catalogue.csv, a part of a closed round, is not here" in capsys.readouterr().err


def test_a_registry_that_has_to_be_asked_and_does_not_answer_is_one_line(
    told: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commit of a round is its tag's; without the tag, the registry knows it."""
    write_text(told / "mlruns/mlflow.db", "no database")
    assert asked(capsys, "1")["git"]["commit"] == run(told, "git", "rev-parse", "round/1").strip()
    run(told, "git", "tag", "--delete", "round/1")
    assert cli.main(["lineage", "1"]) == 2
    assert "the registry, mlruns/mlflow.db, did not answer: " in capsys.readouterr().err


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


@pytest.fixture(scope="module")
def forgotten_rounds(told_rounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ACME is forgotten, the log still has its lines."""
    root = Path(shutil.copytree(told_rounds, tmp_path_factory.mktemp("forgotten") / "project", symlinks=True))
    forgetting.forget(root, [parse("text~ACME")], "ticket 12")
    return root


@pytest.fixture
def forgotten(forgotten_rounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `forgotten_rounds`, and the working folder."""
    root = Path(shutil.copytree(forgotten_rounds, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(root)
    return root


def test_an_import_leaves_out_what_the_log_still_has(forgotten: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [grave] = read_tombstones(forgotten / TOMBSTONES)
    remains = aftermath.remaining(forgotten, grave, [parse("text~ACME")])
    assert any(f"{LOG}, line 3, 7: the log itself" in sentence for sentence in remains)
    assert any(f"{LOG}: the text stands there too" in sentence for sentence in remains)
    ids = forgotten_ids(forgotten / TOMBSTONES)
    assert "ACME" in (forgotten / LOG).read_text()

    found = import_into(forgotten / "data/rollouts", Path("data/logs"), import_config(forgotten), 3, ids)
    assert (found["read"], found["accepted"], found["episodes"]) == (12, 10, 10)
    assert read_json(forgotten / "data/rollouts/collect.json")["forgotten"] == 2
    assert ids.isdisjoint(one.id for one in read_trajectories(forgotten / "data/rollouts"))
    assert cli.main(["import", "data/logs", "--format", "openai-chat", "--out", "imported/desk"]) == 0
    assert "left out, named by a tombstone: 2" in capsys.readouterr().out
    assert holders(forgotten / "imported", "ACME", *ids) == []

    assert cli.main(["forget", "--logs"]) == 0
    assert capsys.readouterr().out == f"{LOG}, line 3, 7: would be emptied; --yes does it\n"
    assert "ACME" in (forgotten / LOG).read_text()
    assert cli.main(["forget", "--logs", "--yes"]) == 0
    assert [n for n, line in enumerate((forgotten / LOG).read_text().split("\n"), 1) if not line] == [*ACME, 13]
    assert cli.main(["forget", "--logs", "--yes"]) == 0
    assert capsys.readouterr().out.endswith("no line of a log is left of what was forgotten\n")


def test_a_killed_rewriting_is_not_replayed(told: Path) -> None:
    held = read_trajectories(told / "data/history/round-0001/validated")
    ids = of_acme(told)
    group = {"ids": dict.fromkeys(ids, ""), "rounds": [1], "trained": [], "checkpoint": [], "judged": []}
    (told / TOMBSTONES).write_text(json.dumps({"trajectories": [group]}) + "\n")
    make_data(told, 3, [one for one in held if one.id in ids] + held[:2], [])
    assert ids.isdisjoint(one.id for one in read_trajectories(told / "data/batches"))


def test_lineage_tells_of_what_was_forgotten(
    told_rounds: Path, forgotten: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    id = min(of_acme(told_rounds))
    [grave] = read_tombstones(forgotten / TOMBSTONES)
    after = asked(capsys, "--trajectory", id)
    assert after["found"] == []
    assert after["forgotten"] == {"at": grave["at"], "by": "a test", "reason": "ticket 12", "rounds": [1]}
    assert cli.main(["lineage", "1"]) == 0
    assert f"forgotten on {grave['at']} (ticket 12):" in capsys.readouterr().out
    monkeypatch.chdir(told_rounds)
    before = asked(capsys, "--trajectory", id)
    same = ("trained", "checkpoint", "judged", "inherited", "source")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}


def test_what_to_run_again_makes_a_round_that_nothing_of_it_is_in(
    forgotten: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliases, "reconcile", lambda *arguments: {})
    [grave] = read_tombstones(forgotten / TOMBSTONES)
    [back, *rest] = aftermath.commands(forgotten, grave)
    assert back == "retroformer models rollback --reason 'it learned from what was forgotten'"
    assert rest == ["dvc exp run -S curate.window=1", "retroformer close"]
    assert cli.main(shlex.split(back)[1:]) == 0
    pins = read_pins(forgotten / "data/champion.json")
    assert (pins.closed_rounds, pins.champion.policy, pins.train_from) == (2, "scripted:babyai-bot?noise=0.7", None)
    verify(pins.champion, forgotten)
    changed = json.loads(dvc(forgotten, "status", "--json"))
    assert {"collect", "curate"} <= changed.keys(), "the open round is run again from its start"


def test_where_the_candidate_alone_is_touched_training_begins_afresh(forgotten: Path) -> None:
    [grave] = read_tombstones(forgotten / TOMBSTONES)
    pins = read_pins(forgotten / "data/champion.json")
    agent = read_pins(forgotten / "data/history/round-0001/champion.json").champion
    write_pins(forgotten / "data/champion.json", replace(pins, champion=agent))
    repin = aftermath.commands(forgotten, grave)[0]
    assert repin.startswith("python -c ")
    subprocess.run(repin.replace("python", sys.executable, 1), shell=True, check=True)
    assert read_pins(forgotten / "data/champion.json") == replace(pins, champion=agent, train_from=None)


def quick_dvc(root: Path, command: str, *words: str) -> str:
    """Stands in for DVC where a forgetting is repeated many times."""
    if command == "add":
        for name in words[1:]:
            md5 = hash_directory(root / name)
            (root / f"{name}.dvc").write_text(f"outs:\n- md5: {md5}\n  path: {Path(name).name}\n")
    return ""


STEPS = [
    (forgetting, "finish"),
    (forgetting, "rewrite"),
    (forgetting, "dvc"),
    (forgetting, "empty_open_round"),
    (objects, "purge"),
    (forgetting, "record"),
]


def without_dvc(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(forgetting, "dvc", quick_dvc)
    patch.setattr(objects, "on_remote", lambda root, oids: False)
    patch.setattr(objects, "purge", lambda root, ids, pointers, also: objects.Purged())


def killed_and_repeated(root: Path, patch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    def dying(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    original = getattr(module, name)
    patch.setattr(module, name, dying)
    with pytest.raises(KeyboardInterrupt):
        forgetting.forget(root, [parse("text~ACME")], "ticket 12", commit_it=True)
    patch.setattr(module, name, original)
    with nullcontext() if name != "record" else pytest.raises(DataError, match="describe no trajectory"):
        forgetting.forget(root, [parse("text~ACME")], "ticket 12", commit_it=True)


@pytest.fixture(scope="module")
def undisturbed(told_rounds: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = Path(shutil.copytree(told_rounds, tmp_path_factory.mktemp("undisturbed") / "project", symlinks=True))
    with pytest.MonkeyPatch.context() as patch:
        without_dvc(patch)
        forgetting.forget(root, [parse("text~ACME")], "ticket 12", commit_it=True)
    return state(root)


@pytest.mark.parametrize(("module", "name"), STEPS, ids=[name for _, name in STEPS])
def test_killed_anywhere_and_repeated_it_ends_in_the_same_state(
    told: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    without_dvc(monkeypatch)
    killed_and_repeated(told, monkeypatch, module, name)
    assert state(told) == undisturbed
    assert run(told, "git", "log", "-1", "--format=%s").strip() == "Forget 2 trajectories: ticket 12"
    assert "tombstones.jsonl" not in run(told, "git", "status", "--porcelain")


@pytest.mark.slow
def test_killed_before_the_stored_versions_are_deleted(
    told: Path, forgotten_rounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_and_repeated(told, monkeypatch, objects, "purge")
    assert state(told) == state(forgotten_rounds)
