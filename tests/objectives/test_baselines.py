import itertools

import pytest
import torch

from retroformer.objectives.baselines import advantages, constant_baselines, normalise
from retroformer.objectives.losses import Batch, symmetric, topr, truncated

# Four trajectories. Return-to-go means over steps: (1 + 3) / 2, 5, (2 + 2) / 2, 8.
RETURNS = torch.tensor([[1.0, 3.0], [5.0, float("nan")], [2.0, 2.0], [8.0, float("nan")]])
MASK = torch.tensor([[True, True], [True, False], [True, True], [True, False]])
TASKS = torch.tensor([7, 7, 7, 9])
INSTANCES = torch.tensor([40, 40, 41, 42])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", [0.0, 0.0, 0.0, 0.0]),
        # the others' sum over the others' steps: (21 - 4) / 4, (21 - 5) / 5, (21 - 4) / 4, (21 - 8) / 5
        ("mean", [4.25, 3.2, 4.25, 2.6]),
        # task 7: (5 + 4) / 3, (4 + 4) / 4, (4 + 5) / 3; task 9 was seen once and falls back to the mean
        ("task", [3.0, 2.0, 3.0, 2.6]),
        # instance 40: each has the other; 41 and 42 are single attempts and fall back to their task
        ("leave_one_out", [5.0, 2.0, 3.0, 2.6]),
    ],
)
def test_constant_baselines_by_hand(kind, expected):
    found = constant_baselines(RETURNS, MASK, kind, task_b=TASKS, instance_b=INSTANCES)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_lone_trajectory_has_no_baseline():
    found = constant_baselines(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), "mean")
    torch.testing.assert_close(found, torch.zeros(1))


def test_missing_labels_are_named():
    with pytest.raises(ValueError, match="task needs task_b"):
        constant_baselines(RETURNS, MASK, "task")
    with pytest.raises(ValueError, match="leave_one_out needs instance_b"):
        constant_baselines(RETURNS, MASK, "leave_one_out", task_b=TASKS)


def test_advantages_have_no_gradient():
    values_bt = torch.tensor([[0.25, 9.0]], requires_grad=True)
    found = advantages(torch.tensor([[1.0, 9.0]]), values_bt, torch.tensor([[True, False]]))
    assert not found.requires_grad
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.0]]))


def test_normalise_by_hand():
    advantages_bt = torch.tensor([[3.0, -4.0, float("nan")]])
    mask_bt = torch.tensor([[True, True, False]])
    rms = 12.5**0.5  # root of (9 + 16) / 2
    torch.testing.assert_close(normalise(advantages_bt, mask_bt), torch.tensor([[3 / rms, -4 / rms, 0.0]]))


def test_normalise_leaves_vanishing_advantages_small():
    found = normalise(torch.full((1, 4), 1e-4), torch.ones(1, 4, dtype=torch.bool), floor=0.1)
    torch.testing.assert_close(found, torch.full((1, 4), 1e-3))


def test_normalise_clamps():
    advantages_bt = torch.zeros(1, 100)
    advantages_bt[0, 0] = -1.0  # rms .1, so -10 before the clamp
    assert normalise(advantages_bt, torch.ones(1, 100, dtype=torch.bool), limit=3.0)[0, 0] == -3.0


# --- By enumeration: a bandit of three arms, batches of two independent pulls ---

ARM_REWARDS = torch.tensor([1.0, 0.2, -0.5], dtype=torch.double)
BEHAVIOUR = torch.tensor([0.2, 0.5, 0.3], dtype=torch.double)
LOGITS = torch.tensor([0.3, -0.4, 0.8], dtype=torch.double)
TWO_STEPS = torch.ones(2, 1, dtype=torch.bool)
SAME = torch.zeros(2, dtype=torch.long)


def bandit_gradient(objective, kind, sampler_b, behaviour_a):
    """E over both pulls of the gradient that the loss gives, exactly. [A]"""
    total = torch.zeros(3, dtype=torch.double)
    for arms in itertools.product(range(3), repeat=2):
        logits = LOGITS.clone().requires_grad_()
        arm_b = torch.tensor(arms)
        returns_bt = ARM_REWARDS[arm_b][:, None]
        baseline_b = constant_baselines(returns_bt, TWO_STEPS, kind, task_b=SAME, instance_b=SAME)
        advantages_bt = advantages(returns_bt, baseline_b[:, None], TWO_STEPS)
        logprobs_bt = logits.log_softmax(0)[arm_b][:, None]
        behaviour_bt = behaviour_a.log()[arm_b][:, None]
        batch = Batch(logprobs_bt, behaviour_bt, advantages_bt, returns_bt, arm_b == 0, TWO_STEPS)
        (gradient,) = torch.autograd.grad(objective(batch).loss, logits)
        total += sampler_b[arm_b].prod() * gradient
    return total


def true_bandit_gradient():
    """- grad of the expected reward under the policy. [A]"""
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(-(logits.softmax(0) * ARM_REWARDS).sum(), logits)
    return gradient


def unclipped(batch):
    return truncated(batch, limit=float("inf"))


@pytest.mark.parametrize("kind", ["none", "mean", "task", "leave_one_out"])
def test_on_policy_every_baseline_gives_the_true_gradient(kind):
    policy = LOGITS.softmax(0)
    torch.testing.assert_close(bandit_gradient(symmetric, kind, policy, policy), true_bandit_gradient())


@pytest.mark.parametrize("kind", ["none", "mean", "task", "leave_one_out"])
def test_importance_weighted_every_baseline_is_the_same(kind):
    # The others' mean estimates the behaviour's value, not the policy's, and still adds nothing.
    torch.testing.assert_close(bandit_gradient(unclipped, kind, BEHAVIOUR, BEHAVIOUR), true_bandit_gradient())


@pytest.mark.parametrize("objective", [symmetric, topr, truncated])
def test_on_raw_or_clipped_replay_a_baseline_changes_the_gradient(objective):
    without = bandit_gradient(objective, "none", BEHAVIOUR, BEHAVIOUR)
    assert not torch.allclose(bandit_gradient(objective, "mean", BEHAVIOUR, BEHAVIOUR), without, atol=1e-3)


# --- By enumeration: two steps, two actions; state 0, then state 1 or 2 by the first action ---

STATE_LOGITS = torch.tensor([[0.5, -0.2], [1.0, 0.1], [-0.7, 0.4]], dtype=torch.double)
STATE_BEHAVIOUR = torch.tensor([[0.4, 0.6], [0.3, 0.7], [0.8, 0.2]], dtype=torch.double)
STATE_REWARDS = torch.tensor([[0.0, 0.3], [1.0, 0.6], [0.5, 2.0]], dtype=torch.double)
ONE_TRAJECTORY = torch.ones(1, 2, dtype=torch.bool)


def state_values(probabilities):
    later = (probabilities * STATE_REWARDS).sum(1)
    first = (probabilities[0] * (STATE_REWARDS[0] + later[1:])).sum()
    return torch.stack([first, later[1], later[2]])


def mdp_moments(objective, values_s, sampler_sa):
    """Expected gradient [3, 2] and total variance of the gradient of one trajectory, exactly."""
    mean, square = torch.zeros(3, 2, dtype=torch.double), 0.0
    for first, second in itertools.product(range(2), repeat=2):
        states, actions = torch.tensor([0, 1 + first]), torch.tensor([first, second])
        logits = STATE_LOGITS.clone().requires_grad_()
        rewards = STATE_REWARDS[states, actions]
        returns_bt = torch.stack([rewards.sum(), rewards[1]])[None]
        batch = Batch(
            logits.log_softmax(1)[states, actions][None],
            sampler_sa[states, actions].log()[None],
            advantages(returns_bt, values_s[states][None], ONE_TRAJECTORY),
            returns_bt,
            torch.tensor([True]),
            ONE_TRAJECTORY,
        )
        (gradient,) = torch.autograd.grad(objective(batch).loss, logits)
        weight = sampler_sa[states, actions].prod()
        mean += weight * gradient
        square += weight * gradient.square().sum()
    return mean, float(square - mean.square().sum())


def test_value_baseline_keeps_the_true_gradient_and_lowers_the_variance():
    policy = STATE_LOGITS.softmax(1)
    logits = STATE_LOGITS.clone().requires_grad_()
    (expected,) = torch.autograd.grad(-state_values(logits.softmax(1))[0] / 2, logits)  # the loss is a mean of 2 steps
    plain, plain_variance = mdp_moments(symmetric, torch.zeros(3, dtype=torch.double), policy)
    with_value, value_variance = mdp_moments(symmetric, state_values(policy), policy)
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(with_value, expected)
    assert value_variance < 0.5 * plain_variance


def test_value_baseline_under_weights_per_step_adds_nothing():
    plain, _ = mdp_moments(unclipped, torch.zeros(3, dtype=torch.double), STATE_BEHAVIOUR)
    with_value, _ = mdp_moments(unclipped, torch.tensor([1.0, -2.0, 3.0], dtype=torch.double), STATE_BEHAVIOUR)
    torch.testing.assert_close(with_value, plain)
