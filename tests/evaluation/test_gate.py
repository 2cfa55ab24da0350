import dataclasses
import json

import numpy as np
import pytest

from retroformer.config import DecideConfig
from retroformer.evaluation import gate
from retroformer.evaluation.comparison import Difference, TaskDifference, decided, paired_difference, planned_looks
from retroformer.evaluation.intervals import Estimate

CONFIG = DecideConfig(min_improvement=0.0, max_regression=0.1, max_swapped=0.6)


def judge(difference, true, swapped, config, half=0.01):
    """The verdict, success told the true and another mission given as means with an interval of +-`half`."""
    true, swapped = (
        None if mean is None else Estimate(mean, mean - half, mean + half, 500) for mean in (true, swapped)
    )
    return gate.judge(difference, true, swapped, config)


def measured(mean, half, *, lost=0, tasks=()):
    """A difference with a given interval; 1000 pairs."""
    tasks = tasks or (TaskDifference("a", mean, mean - 3 * half, mean + 3 * half, 1000),)
    return Difference(mean, mean - half, mean + half, 1000, lost, half / 2.5, 2.5, tasks)


def test_promotes_what_is_proven_better():
    found = judge(measured(0.10, 0.04), 0.85, 0.1, CONFIG)
    assert (found.verdict, found.judged_worse) == ("promote", False)
    assert found.reason == (
        "The challenger is better by +0.100 (interval +0.060 to +0.140, 1000 pairs), proven above 0."
    )


def test_tasks_of_one_mission_are_judged_without_the_control():
    found = gate.judge(measured(0.10, 0.04), None, None, CONFIG, controlled=False)
    assert found.verdict == "promote"
    assert found.reason.endswith("proven above 0. Its tasks have one mission each, so none was swapped.")
    assert gate.judge(measured(-0.10, 0.04), None, None, CONFIG, controlled=False).judged_worse


def test_min_improvement_moves_the_bar():
    config = CONFIG.model_copy(update={"min_improvement": 0.06})
    assert judge(measured(0.10, 0.05), 0.85, 0.1, config).verdict == "not_enough_evidence"
    assert judge(measured(0.10, 0.03), 0.85, 0.1, config).verdict == "promote"
    kept = judge(measured(0.02, 0.03), 0.85, 0.1, config)
    assert (kept.verdict, kept.judged_worse) == ("keep", False)
    assert "proven not above 0.06" in kept.reason


def test_keeps_what_is_proven_worse():
    found = judge(measured(-0.10, 0.04), 0.65, 0.1, CONFIG)
    assert (found.verdict, found.judged_worse) == ("keep", True)


def test_asks_for_as_many_pairs_as_the_power_says():
    found = judge(measured(0.02, 0.04), 0.8, 0.1, CONFIG)
    assert (found.verdict, found.judged_worse) == ("not_enough_evidence", False)
    # 1000 ((2.5 + .8416) .016 / .02)^2 = 7147, of which 1000 are there
    assert "about 6147 more pairs" in found.reason
    assert "more pairs" not in judge(measured(-0.02, 0.04), 0.8, 0.1, CONFIG).reason


def test_a_proven_regression_of_one_task_keeps_the_champion():
    def with_task(mean, half):
        tasks = (TaskDifference("a", 0.3, 0.2, 0.4, 500), TaskDifference("b", mean, mean - half, mean + half, 500))
        return judge(measured(0.10, 0.04, tasks=tasks), 0.85, 0.1, CONFIG)

    proven = with_task(-0.25, 0.1)
    assert (proven.verdict, proven.judged_worse) == ("keep", True)
    assert proven.reason.startswith("On b the challenger fell by -0.250")
    assert with_task(-0.15, 0.1).verdict == "promote"  # as low as -.15, and not proven below -.10


def test_ignoring_the_mission_keeps_the_champion():
    # .60 of .80 +-.01 is .474 to .486.
    found = judge(measured(0.10, 0.04), 0.80, 0.50, CONFIG)
    assert (found.verdict, found.judged_worse) == ("keep", True)
    assert "ignores its mission" in found.reason
    assert judge(measured(0.10, 0.04), 0.80, 0.46, CONFIG).verdict == "promote"


def test_whether_the_mission_is_followed_must_be_proven_either_way():
    open_question = judge(measured(0.10, 0.04), 0.80, 0.47, CONFIG)
    assert (open_question.verdict, open_question.judged_worse) == ("not_enough_evidence", False)
    assert "not proven that it follows its mission" in open_question.reason
    few = judge(measured(0.0, 0.3), 0.375, 0.312, CONFIG, half=0.25)  # 6 and 5 of 16
    assert (few.verdict, few.judged_worse) == ("not_enough_evidence", False)


def test_lost_episodes_are_no_evidence():
    found = judge(measured(0.10, 0.04, lost=112), 0.85, 0.1, CONFIG)
    assert (found.verdict, found.judged_worse) == ("not_enough_evidence", False)
    assert "112 of 1112 pairs were lost" in found.reason
    assert judge(measured(0.10, 0.04, lost=111), 0.85, 0.1, CONFIG).verdict == "promote"
    assert judge(measured(0.10, 0.04), 0.85, None, CONFIG).verdict == "not_enough_evidence"


def test_a_task_that_was_hardly_played_is_no_evidence():
    tasks = (TaskDifference("a", 0.1, 0.0, 0.2, 999), TaskDifference("b", 1.0, -1.0, 1.0, 1))
    found = judge(measured(0.10, 0.04, tasks=tasks), 0.85, 0.1, CONFIG)
    assert (found.verdict, found.reason) == ("not_enough_evidence", "b has 1 valid pairs, at least 2 are needed.")


def test_the_verdict_as_json():
    found = judge(measured(0.10, 0.04), 0.85, 0.1, CONFIG).to_dict()
    assert set(found) == {"verdict", "reason", "difference", "lower", "upper", "n", "judged_worse", "per_task"}
    assert set(found["per_task"][0]) == {"task", "difference", "lower", "upper", "n"}
    assert json.loads(json.dumps(found)) == found


def test_the_verdict_cannot_be_edited():
    with pytest.raises(dataclasses.FrozenInstanceError):
        judge(measured(0.10, 0.04), 0.85, 0.1, CONFIG).verdict = "promote"


def judged(random, champion_rates, challenger_rates, swapped=0.1):
    """A whole evaluation of eight tasks, 256 episodes doubling over 4 looks, and its verdict."""
    tasks = [f"task{k}" for k in range(8)]

    def play(rates):
        return (random.random((8, 256)) < np.asarray(rates)[..., None]).astype(float)

    champion, challenger = play(champion_rates), play(challenger_rates)
    for n in planned_looks(256, 4):
        ours, theirs = (
            {task: row[: n // 8].tolist() for task, row in zip(tasks, both, strict=True)}
            for both in (champion, challenger)
        )
        difference = paired_difference(ours, theirs, 0.95, 4)
        if decided(difference, CONFIG.min_improvement, CONFIG.max_regression):
            break
    return judge(difference, float(challenger.mean()), swapped, CONFIG)


def test_says_yes_where_yes_is_right():
    random = np.random.default_rng(21)
    found = [judged(random, np.full(8, 0.75), np.full(8, 0.85)) for _ in range(100)]
    assert sum(one.verdict == "promote" for one in found) >= 80
    assert not any(one.judged_worse for one in found)


def test_says_no_where_no_is_right():
    random = np.random.default_rng(22)
    found = [judged(random, np.full(8, 0.75), np.full(8, 0.65)) for _ in range(50)]
    assert not any(one.verdict == "promote" for one in found)
    assert sum(one.judged_worse for one in found) >= 45


def test_says_no_to_better_on_the_whole_by_giving_up_one_task():
    random = np.random.default_rng(23)
    found = [judged(random, np.full(8, 0.6), [0.1] + [0.8] * 7) for _ in range(50)]
    assert all((one.verdict, one.judged_worse) == ("keep", True) for one in found)
    assert all("task0" in one.reason for one in found)
