import csv
import json

import pytest

from retroformer.config import DecideConfig, EvaluateConfig
from retroformer.errors import DataError
from retroformer.evaluation.episodes import COLUMNS
from retroformer.stages.decide import decide

CONFIG = DecideConfig(min_improvement=0.0, max_regression=0.1, max_swapped=0.6)
EVALUATE = EvaluateConfig(first_look=40, looks=1, confidence=0.95, final=10, transfer=10)


def rows_of(policy, outcomes, *, task="P5N2", mission="true", decoding="sampled", range_="gate", start=0):
    letters = {"s": ("1", "success"), "f": ("0", "failure"), "e": ("", "error"), "t": ("", "truncated")}
    return [
        {
            "policy": policy,
            "range": range_,
            "mission": mission,
            "decoding": decoding,
            "family": "strict",
            "task": task,
            "seed": start + i,
            "success": letters[letter][0],
            "outcome": letters[letter][1],
            "steps": 5,
        }
        for i, letter in enumerate(outcomes)
    ]


def evaluation_of(folder, rows, *, report=None, columns=COLUMNS):
    folder.mkdir(parents=True, exist_ok=True)
    # A summary that lies, to show that it is not believed.
    looks = [{"n": 40, "difference": 0.9, "lower": 0.8, "upper": 1.0}]
    report = report or {"round": 3, "confidence": 0.95, "looks": looks}
    (folder / "evaluation.json").write_text(json.dumps(report))
    with (folder / "episodes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def elsewhere(tmp_path):
    """The folders that the report alone reads; all empty."""
    return {name: tmp_path / name for name in ("training", "batches", "validated", "rollouts", "history")}


def run(tmp_path, rows, config=CONFIG, **kwargs):
    folder = evaluation_of(tmp_path / "evaluation", rows, **kwargs)
    found = decide(config, EVALUATE, evaluation=folder, out=tmp_path / "decision", **elsewhere(tmp_path))
    verdict = json.loads((tmp_path / "decision" / "verdict.json").read_text())
    assert {key: verdict[key] for key in found} == found
    return verdict


BETTER = [
    *rows_of("champion", "s" * 10 + "f" * 30),
    *rows_of("challenger", "s" * 30 + "f" * 10),
    *rows_of("challenger", "s" * 2 + "f" * 38, mission="shuffled"),
]


def test_promotes_on_the_episodes_alone(tmp_path):
    verdict = run(tmp_path, BETTER)
    assert verdict["verdict"] == "promote"
    assert (verdict["round"], verdict["n"], verdict["difference"]) == (3, 40, 0.5)
    # variance of 20 ones and 20 zeros with half a pair in each cell: 21 / 42 - (20 / 42)^2 over 40; t of 39 at .975
    half = 2.0227 * ((21 / 42 - (20 / 42) ** 2) / 40) ** 0.5
    assert (verdict["lower"], verdict["upper"]) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)
    assert [one["task"] for one in verdict["per_task"]] == ["P5N2"]
    page = (tmp_path / "decision" / "report.html").read_text()
    assert verdict["reason"] in page
    assert page.count("is not here") == 5  # the catalogue, train.json, curve.csv, collect.json, validate.json


def test_names_the_imitation_that_the_challenger_is_behind(tmp_path):
    final = [
        *rows_of("challenger", "s" * 20 + "f" * 20, range_="final"),
        *rows_of("imitation", "s" * 19 + "f" * 21, range_="final"),
        *rows_of("imitation_of_successes", "s" * 36 + "f" * 4, range_="final"),
        *rows_of("random", "s" * 40, range_="final"),
    ]
    verdict = run(tmp_path, BETTER + final)
    assert verdict["verdict"] == "promote"  # an imitation is not what is in production
    (behind,) = verdict["behind"]
    assert (behind["baseline"], behind["difference"], behind["n"]) == ("imitation_of_successes", -0.4, 40)
    # 16 pairs of -1 and 24 of 0 with half a pair in each cell: 17 / 42 - (16 / 42)^2 over 40; t of 39 at .975
    half = 2.0227 * ((17 / 42 - (16 / 42) ** 2) / 40) ** 0.5
    assert behind["upper"] == pytest.approx(-0.4 + half, abs=1e-4)
    assert "try train.objective=imitation_of_successes" in (tmp_path / "decision" / "report.html").read_text()


def test_only_the_gate_range_sampled_counts(tmp_path):
    noise = [
        *rows_of("champion", "s" * 40, decoding="greedy"),
        *rows_of("challenger", "f" * 40, decoding="greedy"),
        *rows_of("champion", "s" * 40, range_="final"),
        *rows_of("challenger", "f" * 40, range_="final"),
        *rows_of("challenger", "s" * 40, mission="other"),
        *rows_of("random", "f" * 40),
    ]
    assert run(tmp_path, noise + BETTER)["difference"] == 0.5


def test_pairs_are_matched_by_seed_and_not_by_order(tmp_path):
    assert run(tmp_path, list(reversed(BETTER[:40])) + BETTER[40:])["lower"] == run(tmp_path, BETTER)["lower"]


def test_a_challenger_that_ignores_its_mission(tmp_path):
    swapped = rows_of("challenger", "s" * 38 + "f" * 2, mission="shuffled")
    verdict = run(tmp_path, BETTER[:80] + swapped)
    assert (verdict["verdict"], verdict["judged_worse"]) == ("keep", True)
    assert "0.950" in verdict["reason"]
    assert "0.750" in verdict["reason"]


def test_lost_episodes_are_dropped_in_pairs_and_too_many_end_it(tmp_path):
    few = [*rows_of("champion", "s" * 10 + "f" * 28 + "ee"), *BETTER[40:]]
    assert run(tmp_path, few)["n"] == 38
    many = [*rows_of("champion", "s" * 10 + "f" * 20 + "e" * 5 + "t" * 5), *BETTER[40:]]
    verdict = run(tmp_path, many)
    assert (verdict["verdict"], verdict["n"]) == ("not_enough_evidence", 30)
    assert "10 of 40" in verdict["reason"]


def test_nothing_but_errors_is_a_verdict_too(tmp_path):
    rows = [
        *rows_of("champion", "e" * 4),
        *rows_of("challenger", "e" * 4),
        *rows_of("challenger", "e" * 4, mission="shuffled"),
    ]
    assert run(tmp_path, rows)["verdict"] == "not_enough_evidence"


def edited(index, **values):
    rows = [dict(row) for row in BETTER]
    rows[index].update(values)
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (BETTER[1:], r"1 episodes are unpaired; P5N2 seed 0 was played by challenger alone"),
        (BETTER + BETTER[:1], r"champion played P5N2 seed 0 \(true mission\) twice"),
        (BETTER[:80], "no sampled episode of the challenger in the gate range with the shuffled mission"),
        (BETTER[40:], "no sampled episode of the champion in the gate range with the true mission"),
        (edited(1, success="nan"), r"episodes.csv, line 3: success is nan where the outcome is success"),
        (edited(1, success="inf"), r"line 3: success is inf where the outcome is success"),
        (edited(1, success=""), r"line 3: success is empty where the outcome is success"),
        (edited(1, success="0"), r"line 3: success is 0 where the outcome is success"),
        (edited(1, outcome="error"), r"line 3: success is 1 where the outcome is error"),
        (edited(1, outcome="won"), r"line 3: 'won' is not a valid Outcome"),
        (edited(1, seed="x"), r"line 3: invalid literal for int\(\) with base 10: 'x'"),
        ([*BETTER[:80], *rows_of("challenger", "f" * 40, mission="shuffled", task="P6N3")], "P5N2 was not played with"),
    ],
)
def test_bad_episodes(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        run(tmp_path, rows)
    assert not (tmp_path / "decision").exists()


def test_floats_as_pandas_writes_them(tmp_path):
    rows = [row | {"success": row["success"] and f"{row['success']}.0"} for row in BETTER]
    assert run(tmp_path, rows)["difference"] == 0.5


def test_missing_columns_and_values(tmp_path):
    with pytest.raises(DataError, match="lacks the columns outcome, steps; it has policy, range"):
        run(tmp_path, BETTER, columns=COLUMNS[:-2])
    folder = evaluation_of(tmp_path / "evaluation", BETTER)
    path = folder / "episodes.csv"
    path.write_text(path.read_text() + "champion,gate\n")
    with pytest.raises(DataError, match="line 122: expected 10 values"):
        decide(CONFIG, EVALUATE, evaluation=folder, out=tmp_path / "decision", **elsewhere(tmp_path))


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match=r"evaluation.json does not exist"):
        decide(CONFIG, EVALUATE, evaluation=tmp_path, out=tmp_path / "decision", **elsewhere(tmp_path))
    evaluation_of(tmp_path / "evaluation", BETTER)
    (tmp_path / "evaluation" / "episodes.csv").unlink()
    with pytest.raises(DataError, match=r"episodes.csv does not exist"):
        decide(CONFIG, EVALUATE, evaluation=tmp_path / "evaluation", out=tmp_path / "decision", **elsewhere(tmp_path))


def test_more_looks_than_planned(tmp_path):
    with pytest.raises(DataError, match=r"looked 2 times, evaluate.looks plans 1"):
        run(tmp_path, BETTER, report={"round": 1, "looks": [{}, {}]})
    with pytest.raises(DataError, match="lacks a round or its looks"):
        run(tmp_path, BETTER, report={"round": 1})
