import math

import numpy as np
import pytest

from retroformer.evaluation.comparison import decided, paired_difference, pairs_needed, planned_looks, variance_of_mean

CHAMPION = {"a": [0, 0, 1, 1], "b": [1, 0, 0, 0, 1, None]}
CHALLENGER = {"a": [1, 0, 1, 1], "b": [1, 1, 1, 0, None, None]}


def test_planned_looks_double():
    assert planned_looks(256, 4) == [256, 512, 1024, 2048]


def test_by_hand():
    found = paired_difference(CHAMPION, CHALLENGER, confidence=0.95, looks=2)
    # a: differences 1 0 0 0; b: 0 1 1 0 and two pairs lost
    assert (found.n, found.lost) == (8, 2)
    assert found.mean == (0.25 + 0.5) / 2
    a = ((1 + 1) / 6 - (1 / 6) ** 2) / 4
    b = ((2 + 1) / 6 - (2 / 6) ** 2) / 4
    assert found.standard_error == pytest.approx(math.sqrt(a + b) / 2)
    freedom = (a + b) ** 2 / (a * a / 3 + b * b / 3)
    assert 5.9 < freedom < 6
    assert 2.969 < found.critical < 3.163  # t at .9875 with 6 and 5 degrees
    assert found.lower == pytest.approx(found.mean - found.critical * found.standard_error)
    first, second = found.per_task
    assert (first.task, first.mean, first.n, second.task, second.mean, second.n) == ("a", 0.25, 4, "b", 0.5, 4)


def test_more_planned_looks_widen_every_interval():
    widths = [
        [one.upper - one.lower for one in (found, *found.per_task)]
        for found in (paired_difference({"a": [0, 1] * 40}, {"a": [1, 0] * 40}, 0.95, looks) for looks in (1, 2, 4))
    ]
    assert widths[0] < widths[1] < widths[2]


def test_intervals_of_tasks_hold_together():
    ours, theirs = {"a": [0, 1] * 20, "b": [0] * 40}, {"a": [1, 1] * 20, "b": [0, 1] * 20}
    both = paired_difference(ours, theirs, 0.95, 1)
    alone = paired_difference({"a": ours["a"]}, {"a": theirs["a"]}, 0.975, 1)
    assert both.per_task[0] == alone.per_task[0]


def test_tasks_are_weighted_equally():
    found = paired_difference({"a": [0] * 90, "b": [0] * 10}, {"a": [0] * 90, "b": [1] * 10}, 0.95, 1)
    assert found.mean == 0.5


@pytest.mark.parametrize("score", [0, 1])
def test_equal_pairs_are_not_proof_of_equality(score):
    same = {"a": [score] * 100}
    found = paired_difference(same, same, 0.95, 1)
    # (1 / 102) / 100 is the variance, so about +-t / n; the rule of three allows a rate of 3 / n
    assert found.mean == 0
    assert found.upper == -found.lower == pytest.approx(1.984 / math.sqrt(100 * 102), rel=1e-3)


def test_a_task_without_pairs_widens_and_never_decides():
    found = paired_difference({"a": [0] * 500, "b": [None]}, {"a": [1] * 500, "b": [1]}, 0.95, 1)
    assert found.mean == 0.5
    assert found.lower < 0
    assert (found.per_task[1].lower, found.per_task[1].upper, found.per_task[1].n) == (-1, 1, 0)
    assert not decided(found, 0.0)


@pytest.mark.parametrize(
    ("champion", "challenger", "message"),
    [
        ({"a": [0]}, {"b": [0]}, r"champion played \['a'\], challenger \['b'\]"),
        ({"a": [0]}, {"a": [0, 1]}, "a: 1 episodes of the champion, 2 of the challenger"),
        ({"a": [2]}, {"a": [1]}, "a: a score must be in 0..1, got 2"),
        ({"a": [float("nan")]}, {"a": [1]}, "a: a score must be in 0..1, got nan"),
        ({}, {}, "champion played"),
    ],
)
def test_what_cannot_be_compared(champion, challenger, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(champion, challenger, 0.95, 1)


def test_decided():
    better = paired_difference({"a": [0] * 100}, {"a": [1] * 50 + [0] * 50}, 0.95, 4)
    worse = paired_difference({"a": [1] * 50 + [0] * 50}, {"a": [0] * 100}, 0.95, 4)
    equal = paired_difference({"a": [0, 1] * 50}, {"a": [1, 0] * 50}, 0.95, 4)
    assert [decided(one, 0.0) for one in (better, worse, equal)] == [True, True, False]
    assert not decided(better, 0.45)


def test_a_suspected_fall_of_one_task_is_looked_at_further():
    def fallen(by):
        ours = {"a": [0] * 100, "b": [1] * by + [0] * (20 - by)}
        return paired_difference(ours, {"a": [1] * 100, "b": [0] * 20}, 0.95, 4)

    suspected, proven = fallen(5), fallen(20)
    assert suspected.lower > 0
    assert decided(suspected, 0.0)
    assert not decided(suspected, 0.0, max_regression=0.1)
    assert decided(suspected, 0.0, max_regression=0.3)
    assert decided(proven, 0.0, max_regression=0.1)


def test_pairs_needed_by_hand():
    found = paired_difference({"a": [0] * 100}, {"a": [1] * 5 + [0] * 95}, 0.95, 1)
    expected = 100 * ((found.critical + 0.8416) * found.standard_error / 0.05) ** 2
    assert pairs_needed(found, 0.0) == math.ceil(expected)
    assert pairs_needed(found, 0.04) > pairs_needed(found, 0.0)
    assert pairs_needed(found, 0.05) is None


# --- By simulation: what the intervals promise when one looks again and again ---

TASKS = [f"task{k}" for k in range(8)]


def played(random, rate, episodes):
    """Outcomes of a policy on every task, independent of the other policy's. [tasks, episodes per task]"""
    return (random.random((len(TASKS), episodes // len(TASKS))) < np.asarray(rate)[..., None]).astype(float)


def stops_at(champion, challenger):
    """Look as evaluate does until it is decided."""
    for n in planned_looks(256, 4):
        upto = n // len(TASKS)
        ours, theirs = (
            {task: scores[k, :upto].tolist() for k, task in enumerate(TASKS)} for scores in (champion, challenger)
        )
        found = paired_difference(ours, theirs, 0.95, 4)
        if decided(found, 0.0):
            break
    return found


@pytest.mark.parametrize("rates", [np.full(8, 0.75), np.array([0.05, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 1.0])])
def test_equal_policies_are_rarely_told_apart_however_often_one_looks(rates):
    random = np.random.default_rng(11)
    ends = [stops_at(played(random, rates, 2048), played(random, rates, 2048)) for _ in range(400)]
    better, worse = sum(one.lower > 0 for one in ends), sum(one.upper < 0 for one in ends)
    # alpha is .05 for both sides, so .025 a side is promised: 10 of 400
    assert better <= 10
    assert worse <= 10


def test_a_better_policy_is_found():
    random = np.random.default_rng(12)
    ends = [
        stops_at(played(random, np.full(8, 0.75), 2048), played(random, np.full(8, 0.85), 2048)) for _ in range(100)
    ]
    assert sum(one.lower > 0 for one in ends) >= 80
    assert sum(one.n for one in ends) / len(ends) < 2048  # and looking early saves episodes


def test_where_most_pairs_differ_the_variance_is_not_shrunk():
    """Four pairs, two won and two lost: the sample's variance is 4/3, the corrected one only (4 + 1) / 6."""
    assert variance_of_mean([1.0, 1.0, -1.0, -1.0]) == pytest.approx(4 / 3 / 4)
    # Two that agree: the correction speaks, (0 + 1) / 4.
    assert variance_of_mean([0.0, 0.0]) == pytest.approx(1 / 4 / 2)
