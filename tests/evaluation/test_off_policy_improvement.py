"""Intervals of the improvement, and the gate on logs over several hundred simulated decisions."""

from functools import cache

import numpy as np
import pytest
from chain import MU, PI, action_values, arrays, paths
from scipy import stats

from retroformer.config import DecideConfig
from retroformer.errors import DataError
from retroformer.evaluation.gate import judge_on_logs
from retroformer.evaluation.off_policy import estimators
from retroformer.evaluation.off_policy.action_value import Decisions, fitted_q
from retroformer.evaluation.off_policy.evidence import evidence, refusal
from retroformer.evaluation.off_policy.improvement import Ratios, counts, freedom, improvement, interval, spent

CONFIG = DecideConfig(min_improvement=0.0, max_regression=0.1, max_swapped=0.6)
DEFAULT = 1320
"""A fifth of 6,600 episodes."""


def test_the_interval_is_the_wider_of_bootstrap_and_students_t():
    returns = np.array([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0])[:, None]
    means = estimators.on_policy(returns)
    found = interval(means, np.arange(8), 0.9, ess=8)
    error = returns.std() / 7**0.5
    assert found.mean == 0.625
    assert found.standard_error == pytest.approx(error)
    # Deviations: five of .375, three of -.625.
    squares, fourths = 5 * 0.375**2 + 3 * 0.625**2, 5 * 0.375**4 + 3 * 0.625**4
    assert freedom(means.influence()) == pytest.approx(min(7, 2 / (fourths / squares**2 - 1 / 8)))
    half = stats.t.ppf(0.95, 7) * error
    draws = means.resampled(counts(8, 2000, 0))
    low, high = np.quantile(draws, [0.05, 0.95])
    assert found.lower == pytest.approx(min(0.625 - half, low), abs=2e-4)
    assert found.upper == pytest.approx(max(0.625 + half, high), abs=2e-4)


def test_an_error_that_rests_on_one_trajectory_has_hardly_a_degree_of_freedom():
    assert freedom(np.array([9.0, *[0.01] * 999])) == pytest.approx(2, abs=0.01)
    assert freedom(np.array([1.0, -1.0] * 50)) == 99
    assert freedom(np.zeros(5)) == 4


def test_the_answer_has_to_hold_without_the_action_value_too():
    every = paths()
    of = [
        every[place] for place in np.random.default_rng(4).choice(len(every), 200, p=[one.probability for one in every])
    ]
    # An action value that explains the logs too well: the answer's own interval is that of an estimate without spread.
    given = arrays(of, PI, action_values(PI, 1.0))
    ratios = Ratios(**given)
    reference = estimators.on_policy(ratios.rewards_nt)
    plain = estimators.weighted_per_decision(ratios.ratios_nt, ratios.rewards_nt).plus(reference, -1)
    without = interval(plain, np.arange(200), 0.95, 150)
    found = improvement([ratios], np.arange(200), 0.95, 150)
    assert found.lower <= without.lower < without.upper <= found.upper
    assert found.standard_error < without.standard_error
    # Where policy and behaviour are one, so are both intervals.
    same = Ratios(**arrays(of, MU, action_values(MU, 1.0)))
    narrow = improvement([same], np.arange(200), 0.95, 200)
    assert narrow.upper - narrow.lower < 1e-3


def test_what_rounding_makes_is_no_difference():
    returns = np.random.default_rng(0).random((50, 1))
    means = estimators.on_policy(returns * (1 + 1e-7)).plus(estimators.on_policy(returns), -1)
    found = interval(means, np.arange(50), 0.95, ess=50)
    assert found.lower < 0 < found.mean < found.upper < 1e-3


def test_attempts_that_only_repeat_each_other_do_not_narrow_it():
    returns = np.tile([[0.0], [1.0]], (20, 1))
    once = interval(estimators.on_policy(returns), np.arange(40), 0.95, ess=40)
    twice = interval(estimators.on_policy(np.repeat(returns, 2, 0)), np.repeat(np.arange(40), 2), 0.95, ess=40)
    assert twice == pytest.approx(once)


def test_all_rounds_together_spend_what_was_to_spend():
    assert spent(0.95, 1) == pytest.approx(0.975)
    assert spent(0.95, 2) == pytest.approx(1 - 0.05 / 6)
    assert sum(1 - spent(0.95, number) for number in range(1, 10_000)) == pytest.approx(0.05, rel=1e-3)


def test_against_a_champion_what_both_have_in_common_cancels():
    every = paths()
    chance = [one.probability for one in every]
    of = [every[place] for place in np.random.default_rng(0).choice(len(every), 500, p=chance)]
    same, near = (Ratios(**arrays(of, policy, action_values(policy, 1.0))) for policy in (PI, 0.99 * PI + 0.01 * MU))
    alone = improvement([same], np.arange(500), 0.95, 400)
    paired = improvement([same, near], np.arange(500), 0.95, 400)
    assert improvement([same, same], np.arange(500), 0.95, 400).mean == pytest.approx(0, abs=1e-12)
    assert paired.standard_error < alone.standard_error / 10


# A corridor of four cells, six steps: of three actions the first goes on, the others stay. At its end is 1.

CELLS, STEPS = 4, 6


def truth(policy: np.ndarray) -> float:
    """Chance to go on four times in six steps."""
    return float(stats.binom.sf(CELLS - 1, STEPS, policy[0]))


@cache
def played(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """DEFAULT episodes of the behaviour: actions, mask and cell at each step, [N, STEPS]."""
    actions = np.random.default_rng(seed).choice(3, size=(DEFAULT, STEPS), p=BEHAVIOUR)
    after = (actions == 0).cumsum(1)
    cells = np.concatenate([np.zeros((DEFAULT, 1), dtype=int), after[:, :-1]], 1)
    return actions, cells < CELLS, cells


def decision(seed: int, policy: np.ndarray) -> str:
    """What the gate says of a policy on the logs of a seed."""
    actions, mask, cells = played(seed)
    rewards = (mask & (cells == CELLS - 1) & (actions == 0)).astype(float)
    ratios = np.where(mask, (policy / BEHAVIOUR)[actions], 1.0)
    count = int(mask.sum())
    steps = np.broadcast_to(np.arange(STEPS), mask.shape)
    decisions = Decisions(
        trajectory_s=np.repeat(np.arange(DEFAULT), mask.sum(1)),
        states_sd=np.eye(CELLS * STEPS)[cells[mask] * STEPS + steps[mask]],
        probabilities_sa=np.broadcast_to(policy, (count, 3)),
        kinds_sa=np.broadcast_to(np.arange(3), (count, 3)),
        chosen_s=actions[mask],
        rewards_s=rewards[mask],
    )
    q, v = np.zeros(mask.shape), np.zeros(mask.shape)
    q[mask], v[mask] = fitted_q(decisions, np.arange(DEFAULT) % 5)
    found = evidence(ratios, rewards, mask)
    difference = improvement([Ratios(ratios, rewards, q, v)], np.arange(DEFAULT), spent(0.95, 1), found.ess)
    report = {
        "trajectories": DEFAULT,
        "refused": refusal(found, {"corridor": (DEFAULT, found.ess)}),
        "assumptions": [],
        "compared_with": "behaviour",
        "difference": difference._asdict(),
    }
    return judge_on_logs(report, CONFIG).verdict


BEHAVIOUR = np.array([0.6, 0.3, 0.1])
EQUAL, WORSE = np.array([0.6, 0.1, 0.3]), np.array([0.58, 0.22, 0.2])
BETTER = np.array([0.6486, 0.2, 0.1514])
LOGS = 80


def test_what_the_simulated_challengers_are_worth():
    assert truth(EQUAL) == truth(BEHAVIOUR)
    assert truth(WORSE) < truth(BEHAVIOUR)
    assert truth(BETTER) - truth(BEHAVIOUR) == pytest.approx(0.1, abs=1e-3)


@pytest.mark.long
def test_240_decisions_seldom_promote_what_is_not_better_and_mostly_what_is():
    verdicts = {
        name: [decision(seed, policy) for seed in range(LOGS)]
        for name, policy in (("equal", EQUAL), ("worse", WORSE), ("better", BETTER))
    }
    assert verdicts["equal"].count("promote") + verdicts["worse"].count("promote") <= 0.05 * 2 * LOGS
    assert verdicts["better"].count("promote") >= 0.8 * LOGS
    assert "promote" in verdicts["better"]


# The gate on a report.


def report(mean=0.1, lower=0.02, upper=0.18, error=0.04, **changes):
    difference = {"mean": mean, "standard_error": error, "lower": lower, "upper": upper}
    whole = {"trajectories": 1000, "refused": None, "assumptions": [], "compared_with": "behaviour", "per_task": []}
    return whole | {"difference": difference} | changes


def task(mean, lower, upper):
    return {"task": "P5N2", "n": 90, "ess": 60.0, "difference": {"mean": mean, "lower": lower, "upper": upper}}


@pytest.mark.parametrize(
    ("given", "verdict", "worse", "told"),
    [
        (report(), "promote", False, "better than the behaviour by +0.100 (interval +0.020 to +0.180), estimated from"),
        (report(lower=-0.02), "not_enough_evidence", False, "about 1,"),
        (report(-0.1, -0.2, -0.01), "keep", True, "worse than the behaviour"),
        (report(0.0, -0.1, 0.0), "keep", False, "proven not above 0"),
        (report(-0.02, -0.1, 0.06), "not_enough_evidence", False, "not above 0, and not proven to be below"),
        (report(per_task=[task(-0.3, -0.4, -0.2)]), "keep", True, "On P5N2 the challenger fell by -0.300"),
        (report(per_task=[task(-0.3, -0.6, 0.0)]), "promote", False, "proven above 0"),
        (report(per_task=[{"task": "P5N2", "n": 3, "ess": 1.0, "difference": None}]), "promote", False, "proven"),
        (report(assumptions=["the moon is round"]), "promote", False, "assumed: the moon is round"),
    ],
)
def test_the_verdict_on_a_report(given, verdict, worse, told):
    found = judge_on_logs(given, CONFIG)
    assert (found.verdict, found.judged_worse) == (verdict, worse)
    assert told in found.reason


def test_where_the_logs_cannot_tell_no_figure_is_given():
    found = judge_on_logs({"trajectories": 7, "refused": "they are few", "assumptions": []}, CONFIG)
    assert (found.verdict, found.difference, found.n) == ("not_enough_evidence", None, 7)
    assert found.reason == "On logs alone: they are few."


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"trajectories": 7}, "lacks a part of its answer: 'refused'"),
        (report(mean=float("nan")), "a difference that is not finite"),
        (report(difference={"mean": 1.0}), "lacks a part"),
    ],
)
def test_a_report_that_is_none_is_refused(broken, told):
    with pytest.raises(DataError, match=told):
        judge_on_logs(broken, CONFIG)


def test_trajectories_needed_by_hand():
    # Reach .12 below the mean, .84 errors of .04 for the power: ((.12 + .0336) / .1)^2 = 2.359 times as many.
    found = judge_on_logs(report(lower=-0.02), CONFIG)
    assert "about 1,360 more such trajectories" in found.reason
