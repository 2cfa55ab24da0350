"""A round that nothing was played in: what was not measured is empty everywhere, never 0."""

import csv

from rich.console import Console

from project import make_round
from retroformer.files import read_json, write_json
from retroformer.pins import Pin, Pins
from retroformer.tracking.record import build, write_rounds
from retroformer.tracking.table import table


def test_a_round_on_logs_alone(tmp_path):
    (tmp_path / "data").mkdir()
    make_round(tmp_path / "data", 1, verdict="not_enough_evidence")
    evaluation = read_json(tmp_path / "data/evaluation/evaluation.json")
    write_json(tmp_path / "data/evaluation/evaluation.json", evaluation | {"summary": [], "looks": []})
    verdict = read_json(tmp_path / "data/decision/verdict.json")
    unknown = dict.fromkeys(("difference", "lower", "upper"))
    write_json(tmp_path / "data/decision/verdict.json", verdict | unknown)
    pins = Pins(0, Pin("scripted:random", ""), None)
    record = build(tmp_path, pins, challenger_hash="c", dataset_hash="d", model_version="1")
    assert record["verdict"] == "not_enough_evidence"
    assert record["behaviour_success"] == 0.5
    for name in ("champion_success", "challenger_success", "swapped_success", *unknown):
        assert record[name] is None, name
    write_rounds(tmp_path / "rounds.csv", [record])
    with (tmp_path / "rounds.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["difference"], row["challenger_success"], row["n"]) == ("", "", "400")
    console = Console(width=120, record=True, file=(tmp_path / "table").open("w"))
    console.print(table([record]))
    assert "all levels" in console.export_text()
