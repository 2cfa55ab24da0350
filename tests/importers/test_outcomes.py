from __future__ import annotations

from pathlib import Path

import pytest

from retroformer.errors import ConfigError
from retroformer.importers.importing import import_logs
from retroformer.importers.outcomes import OutcomeRule, look_up, parse_rule
from retroformer.importers.records import Rejected
from retroformer.storage import read_trajectories
from retroformer.types import Outcome, Trajectory
from tiny_logs import REFUND, import_chat, rules, write_lines

PLAIN = {key: value for key, value in REFUND.items() if key != "reward"}


def judged(rule: OutcomeRule, **fields: object) -> tuple[str, float]:
    verdict = rule.judge(fields, {"solved": "yes", "score": 0.25}, lambda: pytest.fail("not needed"))
    return verdict.outcome.value, verdict.reward


@pytest.mark.parametrize(
    ("rule", "fields", "expected"),
    [
        (OutcomeRule(), {}, ("unknown", 0.0)),
        (OutcomeRule(), {"reward": 0.25}, ("success", 0.25)),
        (OutcomeRule(), {"reward": 0}, ("failure", 0.0)),
        (OutcomeRule(), {"reward": -1}, ("failure", -1.0)),
        (OutcomeRule(), {"reward": None, "success": "Passed"}, ("success", 1.0)),
        (OutcomeRule(), {"reward": 0.5, "success": False}, ("failure", 0.5)),
        (OutcomeRule(), {"success": 0}, ("failure", 0.0)),
        (OutcomeRule(reward="score"), {"reward": 1.0}, ("unknown", 0.0)),
        (OutcomeRule(reward="eval.score"), {"eval": {"score": 2}}, ("success", 2.0)),
        (OutcomeRule(reward="eval.score"), {"eval.score": 3}, ("success", 3.0)),
        (OutcomeRule(success="ok"), {"reward": 1.0, "ok": "no"}, ("failure", 0.0)),
        (OutcomeRule(assessment="solved"), {"reward": 0.0}, ("success", 1.0)),
        (OutcomeRule(assessment="score"), {}, ("success", 0.25)),
        (OutcomeRule(assessment="other"), {"reward": 1.0}, ("unknown", 0.0)),
        (OutcomeRule(reward="r", assessment="solved"), {"r": -0.5}, ("success", -0.5)),
    ],
)
def test_where_an_outcome_is_found(rule: OutcomeRule, fields: dict[str, object], expected: tuple[str, float]) -> None:
    assert judged(rule, **fields) == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"reward": "1"}, "reward_not_a_number"),
        ({"reward": True}, "reward_not_a_number"),
        ({"reward": float("inf")}, "reward_not_finite"),
        ({"reward": 10**400}, "reward_not_finite"),
        ({"reward": 1.5}, "reward_out_of_range"),
        ({"success": "maybe"}, "success_not_a_truth_value"),
        ({"success": []}, "reward_not_a_number"),
    ],
)
def test_what_is_no_outcome(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(Rejected) as why:
        judged(OutcomeRule(lowest=0, highest=1), **fields)
    assert why.value.reason == reason


def test_fields_with_dots() -> None:
    assert look_up({"a": {"b.c": 1}}, "a.b.c") == 1
    assert look_up({"a": {"b": {"c": 2}}, "a.b": 3}, "a.b.c") == 2


def test_an_unknown_outcome_carries_no_reward_and_is_counted(tmp_path: Path) -> None:
    report = import_chat(tmp_path, [PLAIN, {**REFUND, "id": "r2"}])
    assert report["outcomes"] == {"success": 1, "unknown": 1}
    assert report["tasks"]["refund"] == {"episodes": 2, "family": "desk", "success": 1.0, "n": 1}
    unknown = next(one for one in read_trajectories(tmp_path / "out") if one.outcome is Outcome.UNKNOWN)
    assert not unknown.learnable
    assert unknown.rewards == (0.0, 0.0)


def test_an_infrastructure_that_broke_is_an_error_whatever_the_reward_says(tmp_path: Path) -> None:
    import_chat(tmp_path, [{**REFUND, "error": "504 from the model", "reward": 0.0}])
    [found] = read_trajectories(tmp_path / "out")
    assert (found.outcome, found.error, found.total_reward) == (Outcome.ERROR, "504 from the model", 0.0)


def by_length(trajectory: Trajectory) -> float | None:
    """Stands for the user's own function."""
    if trajectory.policy == "broken":
        raise RuntimeError("no such run")
    return None if trajectory.policy == "unseen" else 1.0 / len(trajectory.steps)


def test_the_users_own_function(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{**REFUND, "id": m, "model": m} for m in ("m", "unseen", "broken")])
    rule = rules(function="test_outcomes:by_length")
    report = import_logs([path], "openai-chat", tmp_path / "out", rule)
    assert report["outcomes"] == {"success": 1, "unknown": 1}
    assert report["reasons"] == {"outcome_function_failed": 1}
    assert report["returns"] == [0.5, 0.5]
    assert report["outcome"] == "test_outcomes:by_length"


def test_rules_as_parameters_write_them() -> None:
    assert parse_rule("") == OutcomeRule()
    assert parse_rule("reward:a.b success:ok") == OutcomeRule(reward="a.b", success="ok")
    assert parse_rule("test_outcomes:by_length").function == "test_outcomes:by_length"
    for text, message in (
        ("score", "outcome 'score' is none of reward:FIELD"),
        ("no_such_module:f", "no_such_module:f is not a function to import"),
        ("test_outcomes:nothing", "test_outcomes:nothing is not a function to import"),
        ("test_outcomes:PLAIN", "is a dict, expected a function"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_rule(text)


def told(tmp_path: Path, records: list[object], **names: str) -> list[str]:
    path = write_lines(tmp_path / "a.jsonl", records)
    report = import_logs([path], "openai-chat", tmp_path / "out", rules(**names), afresh=True, max_quarantined=1.0)
    return report.get("missing", [])


def test_a_name_that_no_record_has_is_told_with_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{**PLAIN, "id": f"r{n}", "score": 0.5, "eval": {"passed": True, "notes": "x"}} for n in range(3)]
    sentence = "reward:scor is in no record; the nearest that there are: score"
    assert told(tmp_path, records, reward="scor") == [sentence]
    assert capsys.readouterr().err.endswith(f"import: {sentence}\n")
    assert len(read_trajectories(tmp_path / "out")) == 3  # nothing is lost
    assert told(tmp_path, records, success="passd") == [
        "success:passd is in no record; the nearest that there are: eval.passed"
    ]
    # One is found, and all outcomes are known: the other is told all the same.
    assert told(tmp_path, records, reward="score", success="evl.passed") == [
        "success:evl.passed is in no record; the nearest that there are: eval.passed"
    ]
    assert told(tmp_path, records, assessment="solved") == [
        "assessment:solved is in no record; the names that there are: none"
    ]
    assert told(tmp_path, records, reward="zzz")[0].startswith("reward:zzz is in no record; the names that there are: ")


def test_a_name_that_one_record_has_is_none_to_tell_of(tmp_path: Path) -> None:
    records = [{**PLAIN, "id": f"r{n}"} for n in range(2500)]  # more than a chunk
    assert told(tmp_path, [*records, {**PLAIN, "score": 1.0}], reward="score") == []
    assert told(tmp_path, [{**PLAIN, "score": "much"}, PLAIN], reward="score") == []  # refused with its own reason
    assert told(tmp_path, [PLAIN]) == told(tmp_path, [{"messages": []}], reward="score") == []
    assert len(told(tmp_path, records, reward="score")) == 1


def test_fields_and_a_function_are_not_both_followed() -> None:
    with pytest.raises(ConfigError, match="outcomes by reward:score m:f: expected fields to read, or a function alone"):
        OutcomeRule(reward="score", function="m:f")
    with pytest.raises(ConfigError, match="expected fields to read, or a function alone"):
        parse_rule("success:ok test_outcomes:by_length")
