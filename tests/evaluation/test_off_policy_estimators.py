import numpy as np
import pytest
from chain import DISCOUNT, HORIZON, MU, PI, action_values, arrays, paths

from retroformer.evaluation.off_policy import estimators
from retroformer.evaluation.off_policy.estimators import Means

EVERY = paths()
CHANCE = np.array([one.probability for one in EVERY])
EXACT = action_values(PI)
WRONG = np.random.default_rng(0).normal(size=EXACT.shape)


def value_of(policy):
    """By enumeration."""
    return sum(
        one.probability * sum(DISCOUNT**t * reward for t, reward in enumerate(one.rewards)) for one in paths(policy)
    )


def expected(means: Means) -> float:
    """The estimate when each trajectory is in the logs exactly as often as mu makes it."""
    return float(means.resampled(CHANCE[None])[0])


def estimate(name, q=EXACT, **changes):
    given = arrays(EVERY, PI, q) | changes
    if name in ("per_decision", "weighted_per_decision"):
        given = {key: given[key] for key in ("ratios_nt", "rewards_nt")}
    return getattr(estimators, name)(**given, discount=DISCOUNT)


def test_the_chain_by_hand():
    # Under mu: left .3 for .5; right .7, then from state 1 (.8) right .5 * .6 for .9, and so on to the third step.
    assert CHANCE.sum() == pytest.approx(1)
    assert value_of(PI) == pytest.approx(PI[0] @ EXACT[0, 0])
    assert EXACT[2, 1, 1] == 0.6
    assert EXACT[1, 1, 1] == pytest.approx(0.6 + 0.4 * 0.9 * 0.1 * 0.5)


@pytest.mark.parametrize("name", ["per_decision", "weighted_per_decision"])
def test_importance_sampling_is_exact_in_expectation(name):
    assert expected(estimate(name)) == pytest.approx(value_of(PI), abs=1e-12)


@pytest.mark.parametrize("q", [EXACT, WRONG, np.zeros_like(EXACT)], ids=["exact", "wrong", "zero"])
@pytest.mark.parametrize("name", ["doubly_robust", "weighted_doubly_robust"])
def test_doubly_robust_is_exact_in_expectation_whatever_the_action_value(name, q):
    assert expected(estimate(name, q)) == pytest.approx(value_of(PI), abs=1e-12)


@pytest.mark.parametrize("name", ["doubly_robust"])
def test_doubly_robust_is_exact_with_wrong_ratios_and_the_right_action_value(name):
    wrong = arrays(EVERY, PI, EXACT)["ratios_nt"] ** 0.5
    assert expected(estimate(name, ratios_nt=wrong)) == pytest.approx(value_of(PI), abs=1e-12)
    assert expected(estimate("per_decision", ratios_nt=wrong)) != pytest.approx(value_of(PI), abs=1e-3)


def test_the_direct_method_is_as_good_as_the_action_value():
    assert estimators.direct(arrays(EVERY, PI, EXACT)["v_nt"]).value == pytest.approx(value_of(PI))
    assert estimators.direct(arrays(EVERY, PI, WRONG)["v_nt"]).value == pytest.approx(PI[0] @ WRONG[0, 0])


def test_the_behaviour_is_valued_by_its_own_returns():
    rewards = arrays(EVERY, PI, EXACT)["rewards_nt"]
    assert expected(estimators.on_policy(rewards, DISCOUNT)) == pytest.approx(value_of(MU))


def test_numbers_worked_out_by_hand():
    ratios = np.array([[2.0, 0.5], [0.5, 1.0]])
    rewards = np.array([[0.0, 1.0], [2.0, 0.0]])
    q, v = np.array([[1.0, 0.5], [0.5, 0.0]]), np.array([[1.0, 1.0], [1.0, 0.0]])
    # w = [[2, 1], [.5, .5]]; the second trajectory ends after one step.
    assert estimators.per_decision(ratios, rewards).value == pytest.approx((1 * 1 + 0.5 * 2) / 2)
    assert estimators.weighted_per_decision(ratios, rewards).value == pytest.approx(1 / 2.5 + 1 / 1.5)
    # First: 2 (0 - 1) + 1 + 1 (1 - .5) + 2 * 1 = 1.5; second: .5 (2 - .5) + 1 = 1.75.
    assert estimators.doubly_robust(ratios, rewards, q, v).value == pytest.approx((1.5 + 1.75) / 2)
    # Step 0: (-2 + .75) / 2.5 + 2 / 2; step 1: .5 / 1.5 + 2 / 2.5.
    assert estimators.weighted_doubly_robust(ratios, rewards, q, v).value == pytest.approx(-0.5 + 1 + 1 / 3 + 0.8)
    assert estimators.on_policy(rewards, 0.5).value == pytest.approx((0.5 + 2) / 2)


def test_the_influence_is_what_leaving_one_out_changes():
    # The jackknife's pseudo-values are the influence but for terms of order 1 / n.
    generator = np.random.default_rng(1)
    of = [EVERY[place] for place in generator.choice(len(EVERY), 400, p=CHANCE)]
    means = estimators.weighted_doubly_robust(**arrays(of, PI, EXACT))
    left_out = means.resampled(1 - np.eye(400))
    assert (means.value - left_out) * 399 == pytest.approx(means.influence(), abs=0.02)
    assert means.influence().sum() == pytest.approx(0, abs=1e-9)


def test_attempts_at_one_instance_count_as_one():
    means = estimators.weighted_per_decision(np.array([[2.0], [0.5], [1.0]]), np.array([[1.0], [0.0], [1.0]]))
    grouped = means.grouped(np.array([1, 0, 1]))
    assert grouped.value == pytest.approx(means.value)
    assert grouped.parts_nk.tolist() == [[0.0], [3.0]]
    assert grouped.weights_nk.tolist() == [[0.5], [3.0]]


def test_near_the_behaviour_the_action_value_is_left_out_of_the_difference():
    generator = np.random.default_rng(2)
    of = [EVERY[place] for place in generator.choice(len(EVERY), 200, p=CHANCE)]
    given = arrays(of, MU, action_values(MU))
    plain = estimators.weighted_per_decision(given["ratios_nt"], given["rewards_nt"])
    robust = estimators.weighted_doubly_robust(**given)
    same, share = estimators.least_variance(plain, robust, estimators.on_policy(given["rewards_nt"]))
    assert share == pytest.approx(0, abs=1e-12)
    assert same.value == pytest.approx(given["rewards_nt"].sum(1).mean())


def test_the_least_variance_is_at_most_that_of_either():
    generator = np.random.default_rng(3)
    of = [EVERY[place] for place in generator.choice(len(EVERY), 300, p=CHANCE)]
    given = arrays(of, PI, EXACT)
    reference = estimators.on_policy(given["rewards_nt"])
    plain = estimators.weighted_per_decision(given["ratios_nt"], given["rewards_nt"])
    robust = estimators.weighted_doubly_robust(**given)
    mixed, share = estimators.least_variance(plain, robust, reference)
    spreads = [float(one.plus(reference, -1).influence().std()) for one in (mixed, plain, robust)]
    assert 0 < share <= 1
    assert spreads[0] <= min(spreads[1:]) + 1e-12
    assert mixed.value == pytest.approx((1 - share) * plain.value + share * robust.value)


def test_weights_stay_what_they_were_after_the_end():
    assert estimators.cumulative(np.array([[2.0, 1.0, 1.0]])).tolist() == [[2.0, 2.0, 2.0]]
    assert estimators.before(np.array([[2.0, 6.0, 6.0]])).tolist() == [[1.0, 2.0, 6.0]]
    assert estimators.discounts(HORIZON, 0.5).tolist() == [1.0, 0.5, 0.25]
