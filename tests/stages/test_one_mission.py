"""Tasks whose mission cannot be swapped: no control is played for them, and the others are still held to it."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from retroformer.config import DecideConfig, EvaluateConfig
from retroformer.files import read_json, write_json
from retroformer.stages.decide import decide
from tiny_round import pin, run_evaluate, run_to_batches, run_train, tiny_config

CONFIG = tiny_config(tasks__train=["toy_text:Taxi", "toy_text:CliffWalking"], tasks__held_out=["toy_text:Lake4"])


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("one_mission")
    pin(root, "scripted:random")
    run_to_batches(root, CONFIG)
    run_train(root, CONFIG)
    run_evaluate(root, CONFIG)
    return root


def judged(root: Path, out: Path) -> dict:
    elsewhere = dict.fromkeys(("training", "batches", "validated", "rollouts", "history"), root / "none")
    decide(
        DecideConfig(min_improvement=0.0, max_regression=0.1, max_swapped=0.6),
        EvaluateConfig(first_look=4, looks=2, confidence=0.95, final=4, transfer=2),
        evaluation=root / "data/evaluation",
        out=out,
        **elsewhere,
    )
    return read_json(out / "verdict.json")


def test_only_tasks_with_other_missions_are_played_with_them(played: Path) -> None:
    with (played / "data/evaluation/episodes.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["task"] for row in rows if row["mission"] != "true") == {"Taxi": 12}
    assert {row["task"] for row in rows if row["range"] == "transfer"} == {"Lake4"}
    report = read_json(played / "data/evaluation/evaluation.json")
    assert (report["one_mission"], report["errors"]) == (["CliffWalking"], 0)


def test_the_verdict_is_reached_with_some_tasks_controlled_or_none(played: Path, tmp_path: Path) -> None:
    assert judged(played, tmp_path / "some")["verdict"] in ("keep", "not_enough_evidence")
    report = read_json(played / "data/evaluation/evaluation.json")
    write_json(played / "data/evaluation/evaluation.json", {**report, "one_mission": ["CliffWalking", "Taxi"]})
    assert "swapped mission was lost" not in judged(played, tmp_path / "none")["reason"]
