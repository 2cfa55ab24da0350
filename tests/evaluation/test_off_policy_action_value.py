import numpy as np
import pytest
from chain import DISCOUNT, HORIZON, PI, Path, action_values, paths

from retroformer.evaluation.off_policy.action_value import Decisions, fitted_q, reach
from retroformer.evaluation.off_policy.action_value import action_values as predicted

EVERY = paths()
CHANCE = np.array([one.probability for one in EVERY])


def decisions_of(of: list[Path]) -> Decisions:
    """Features: which of the states at which of the steps. Both actions are admissible everywhere."""
    steps = [(n, t, one) for n, one in enumerate(of) for t in range(len(one.states))]
    states = np.zeros((len(steps), 2 * HORIZON))
    for row, (_, t, one) in zip(states, steps, strict=True):
        row[2 * t + one.states[t]] = 1
    return Decisions(
        trajectory_s=np.array([n for n, _, _ in steps]),
        states_sd=states,
        probabilities_sa=np.array([PI[one.states[t]] for _, t, one in steps]),
        kinds_sa=np.tile([0, 1], (len(steps), 1)),
        chosen_s=np.array([one.actions[t] for _, t, one in steps]),
        rewards_s=np.array([one.rewards[t] for _, t, one in steps]),
    )


def sample(n: int, seed: int = 0) -> list[Path]:
    return [EVERY[place] for place in np.random.default_rng(seed).choice(len(EVERY), n, p=CHANCE)]


def test_it_is_the_action_value_of_the_policy_and_not_of_the_behaviour():
    of = sample(20_000)
    decisions = decisions_of(of)
    q_s, v_s = fitted_q(decisions, np.arange(len(of)) % 5, DISCOUNT)
    exact = action_values(PI)
    wanted = np.array([exact[t, one.states[t], one.actions[t]] for one in of for t in range(len(one.states))])
    assert np.abs(q_s - wanted).max() < 0.05
    assert v_s[0] == pytest.approx(PI[0] @ exact[0, 0], abs=0.02)


def test_a_trajectory_is_predicted_by_a_fit_that_never_saw_its_fold():
    of = sample(400)
    fold = np.arange(400) % 4
    decisions = decisions_of(of)
    before, _ = fitted_q(decisions, fold)
    mine = fold[decisions.trajectory_s] == 2
    changed = np.where(mine, 1 - decisions.rewards_s, decisions.rewards_s)
    kept = {name: getattr(decisions, name) for name in Decisions.__slots__}
    after, _ = fitted_q(Decisions(**{**kept, "rewards_s": changed}), fold)
    assert after[mine] == pytest.approx(before[mine])
    assert np.abs(after[~mine] - before[~mine]).max() > 0.05


def test_the_state_value_is_the_mean_of_the_action_values_under_the_policy():
    of = sample(300)
    decisions = decisions_of(of)
    fold = np.zeros(300, dtype=int)
    fold[:2] = 1  # so that the first two trajectories are predicted by all others
    q_s, v_s = fitted_q(decisions, fold)
    seen = {}
    for row in range(int((decisions.trajectory_s < 2).sum())):
        key = decisions.states_sd[row].tobytes()
        seen.setdefault(key, {"v": v_s[row], "pi": decisions.probabilities_sa[row], "q": {}})
        seen[key]["q"][int(decisions.chosen_s[row])] = q_s[row]
    both = [one for one in seen.values() if len(one["q"]) == 2]
    assert both, "the sample has a state in which each action was taken"
    for one in both:
        assert one["v"] == pytest.approx(one["pi"] @ [one["q"][0], one["q"][1]])


def test_values_stay_within_what_the_logs_can_return():
    of = sample(50)
    decisions = decisions_of(of)
    assert reach(decisions, 1.0) == (0.0, 1.0)
    q_s, v_s = fitted_q(decisions, np.arange(50) % 5)
    assert q_s.min() >= 0
    assert v_s.max() <= 1
    weights = np.array([[5.0, 0.0, 0.0]])
    assert predicted(np.ones((1, 1)), weights, np.zeros((1, 2), dtype=int), (0.0, 1.0)).tolist() == [[1.0, 1.0]]


def test_rewards_below_nothing_are_in_reach_too():
    two = [Path((0, 1), (1, 1), (-0.5, -1.0), 1.0), Path((0,), (0,), (0.5,), 1.0)]
    assert reach(decisions_of(two), 1.0) == (-1.5, 0.5)
    assert reach(decisions_of(two), 0.5) == (-1.0, 0.5)


def test_one_fold_alone_has_no_fit_and_says_nothing():
    q_s, v_s = fitted_q(decisions_of(sample(20)), np.zeros(20, dtype=int))
    assert not q_s.any()
    assert not v_s.any()
