"""`retroformer lineage`, as a user types it, on two closed rounds."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from project import run
from retroformer import cli
from retroformer.pins import read_pins
from retroformer.storage import read_json, read_trajectories, write_text


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
        (["7"], "'7' is not a version; known: champion, challenger, 1, 2"),
        ([], "name a version, or a trajectory"),
        (["1", "--trajectory", "ab"], "name a version, or a trajectory"),
        (["--trajectory", "zz"], "no trajectory's id begins with 'zz'"),
        (["--trajectory", ""], "ids begin with ''"),
    ],
)
def test_mistakes_are_one_line(told: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert cli.main(["lineage", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_round_that_is_not_here_is_named(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (told / "data/history/round-0002/batches/catalogue.csv").unlink()
    assert cli.main(["lineage", "1"]) == 2
    assert "round-0002/batches/catalogue.csv, a part of a closed round, is not here" in capsys.readouterr().err
