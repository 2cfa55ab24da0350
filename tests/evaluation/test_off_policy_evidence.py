from dataclasses import replace

import numpy as np
import pytest
from chain import MU, PI, action_values, arrays, paths

from retroformer.evaluation.off_policy.evidence import MIN_ESS, effective_size, evidence, refusal
from retroformer.evaluation.off_policy.table import gauges

EVERY = paths()
CHANCE = np.array([one.probability for one in EVERY])


def logs(n, target=PI, logged=MU, seed=0):
    of = [EVERY[place] for place in np.random.default_rng(seed).choice(len(EVERY), n, p=CHANCE)]
    given = arrays(of, target, action_values(target), logged)
    lengths = np.array([len(one.states) for one in of])
    return given["ratios_nt"], given["rewards_nt"], np.arange(3) < lengths[:, None]


def test_the_behaviour_itself_has_all_the_evidence():
    found = evidence(*logs(500, MU))
    assert (found.trajectories, found.ess, found.overlap, found.outside, found.mean_weight) == pytest.approx(
        (500, 500, 1, 0, 1)
    )
    assert refusal(found, {"A": (500, 500.0)}) is None


def test_overlap_and_support_need_only_the_actions_taken():
    ratios, rewards, mask = logs(40_000)
    found = evidence(ratios, rewards, mask)
    # sum_a min(pi, mu): .1 + .7 in state 0, .2 + .5 in state 1.
    states = np.concatenate([one.states for one in EVERY for _ in range(int(one.probability * 100_000))])
    assert found.overlap == pytest.approx(np.where(states == 0, 0.8, 0.7).mean(), abs=0.01)
    assert found.outside == pytest.approx(0, abs=4 * found.outside_error)
    assert found.mean_weight == pytest.approx(1, abs=4 * found.mean_weight_error)


def test_the_effective_size_by_hand():
    # Weights after one step (2, 1, 1), after two (2, 3, 0): sizes 16 / 6 and 25 / 13.
    ratios = np.array([[2.0, 1.0], [1.0, 3.0], [1.0, 0.0]])
    rewards = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    # Paid: 2 of 4 at the first step, 3 of 5 at the second.
    shares = np.array([0.5, 0.6]) / 1.1
    assert effective_size(ratios, rewards) == pytest.approx(1 / (shares[0] * 6 / 16 + shares[1] * 13 / 25))
    assert effective_size(ratios, np.zeros_like(rewards)) == pytest.approx(25 / 13)
    assert effective_size(np.zeros_like(ratios), rewards) == 0


def test_a_policy_that_acts_where_the_behaviour_never_does_is_refused_whatever_the_size():
    # The behaviour never goes left in state 0, the policy does so half of the time.
    logged, target = np.array([[0.0, 1.0], [0.5, 0.5]]), np.array([[0.5, 0.5], [0.5, 0.5]])
    every = paths(logged)
    of = [every[k] for k in np.random.default_rng(1).choice(len(every), 3000, p=[one.probability for one in every])]
    with np.errstate(divide="ignore", invalid="ignore"):
        given = arrays(of, target, np.zeros((3, 2, 2)), logged)
    mask = np.arange(3) < np.array([len(one.states) for one in of])[:, None]
    found = evidence(given["ratios_nt"], given["rewards_nt"], mask)
    in_state_0 = np.mean(np.concatenate([one.states for one in of]) == 0)
    assert found.outside == pytest.approx(0.5 * in_state_0, abs=1e-9)
    assert "never acts" in str(refusal(found, {"A": (3000, found.ess)}))


def test_log_probabilities_that_do_not_fit_show_in_the_mean_weight():
    ratios, rewards, mask = logs(3000, MU)
    found = evidence(np.where(mask, ratios * 1.2, 1.0), rewards, mask)
    # Of 1.2 to the power of the length: sum of probability times that over all trajectories.
    assert sum(one.probability * 1.2 ** len(one.states) for one in EVERY) == pytest.approx(1.51, abs=0.01)
    assert "have mean 1.51 where 1 is due" in str(refusal(found, {"A": (3000, found.ess)}))


def test_what_would_change_a_no():
    found = replace(evidence(*logs(500)), trajectories=1000, ess=20.0)
    told = str(refusal(found, {"easy": (500, 100.0), "hard": (400, 2.0), "far": (100, 1.0)}))
    assert "worth 20" in told
    assert f"about {int(1000 * (MIN_ESS / 20 - 1)):,} more would do, above all of hard, far, easy" in told


def test_too_few_different_returns_have_no_spread():
    ratios, rewards, mask = logs(200, MU)
    rewards = np.zeros_like(rewards)
    rewards[:9, 0] = 1
    assert "all but 9 of the 200" in str(refusal(evidence(ratios, rewards, mask), {}))
    rewards[9, 0] = 1
    assert refusal(evidence(ratios, rewards, mask), {}) is None


def test_no_share_below_0_is_shown():
    ratios, rewards, mask = logs(500, MU)
    found = evidence(ratios * 4, rewards, mask)
    assert found.outside == pytest.approx(-3)
    row = next(row for row in gauges("Evidence", found.to_dict())["rows"] if "outside" in row[0])
    assert row[1].startswith("0.0% ± ")
