import math
from typing import get_args

import pytest
import torch

from retroformer.config import TrainConfig
from retroformer.objectives.losses import (
    NEEDS_ADVANTAGES,
    NEEDS_BEHAVIOUR,
    NORMALISES_ADVANTAGES,
    OBJECTIVES,
    Batch,
    entropy,
    observation_loss,
    surrogate,
    value_loss,
)

# Three steps: good and likelier than under mu, bad and rarer (pi / mu = 1/2), bad and likelier (pi / mu = 2).
POLICY = torch.tensor([[0.8, 0.2], [0.6, 0.5]], dtype=torch.double)
BEHAVIOUR = torch.tensor([[0.4, 0.4], [0.3, 0.5]], dtype=torch.double)
ADVANTAGES = torch.tensor([[2.0, -1.0], [-3.0, 0.0]], dtype=torch.double)
RETURNS = torch.tensor([[1.0, 0.5], [-0.5, 7.0]], dtype=torch.double)
SUCCESS = torch.tensor([True, False])
MASK = torch.tensor([[True, True], [True, False]])

# What multiplies each log-probability, by hand.
WEIGHTS = {
    "topr": [[2.0, -0.5], [-3.0, 0.0]],
    "truncated": [[2.0, -0.5], [-3.0, 0.0]],  # min(1, 2) 2, min(1, .5) (-1), min(1, 2) (-3)
    "symmetric": [[2.0, -1.0], [-3.0, 0.0]],
    "asymmetric": [[2.15, -0.85], [-2.85, 0.0]],
    "reward_weighted": [[1.0, 0.5], [0.0, 0.0]],
    "imitation": [[1.0, 1.0], [1.0, 0.0]],
    "imitation_of_successes": [[1.0, 1.0], [0.0, 0.0]],
}


def batch_of(logprobs_bt, behaviour_logprobs_bt=None):
    behaviour_bt = BEHAVIOUR.log() if behaviour_logprobs_bt is None else behaviour_logprobs_bt
    return Batch(logprobs_bt, behaviour_bt, ADVANTAGES, RETURNS, SUCCESS, MASK)


def test_every_objective_of_the_parameters_is_there():
    assert set(OBJECTIVES) == set(get_args(TrainConfig.model_fields["objective"].annotation)) == set(WEIGHTS)
    assert set(OBJECTIVES) >= NEEDS_BEHAVIOUR | NEEDS_ADVANTAGES
    assert NORMALISES_ADVANTAGES < NEEDS_ADVANTAGES


def test_a_baseline_above_the_value_lets_what_topr_overuses_grow_and_one_below_imitates():
    # One state, two actions, mu = (.8, .2) and pi = (.6, .4), all advantages alike: by enumeration over mu.
    behaviour, logits = torch.tensor([0.8, 0.2]).double(), torch.tensor([0.6, 0.4]).double().log().requires_grad_()
    whole = torch.ones(2, 1, dtype=torch.bool)

    def drift(advantage):
        logprobs_bt = logits.log_softmax(0)[:, None]
        advantages_bt = torch.full((2, 1), advantage).double()
        seen = Batch(logprobs_bt, behaviour.log()[:, None], advantages_bt, advantages_bt, whole[:, 0], whole)
        weights_bt = OBJECTIVES["topr"](seen).weights_bt
        (gradient,) = torch.autograd.grad((behaviour[:, None] * weights_bt * logprobs_bt).sum(), logits)
        return gradient.tolist()

    # A = -1: weights -(.75, 1), times mu -(.6, .2); the gradient is w_a - pi_a sum of w = -(.6, .2) + .8 (.6, .4).
    assert drift(-1.0) == pytest.approx([-0.12, 0.12])  # away from mu, to the action that is taken too often
    assert drift(1.0) == pytest.approx([0.2, -0.2])  # mu - pi


@pytest.mark.parametrize("name", OBJECTIVES)
def test_weights_loss_and_gradient_by_hand(name):
    logprobs_bt = POLICY.log().requires_grad_()
    found = OBJECTIVES[name](batch_of(logprobs_bt))
    expected = torch.tensor(WEIGHTS[name], dtype=torch.double)
    torch.testing.assert_close(found.weights_bt, expected)
    assert not found.weights_bt.requires_grad
    assert found.loss.item() == pytest.approx(-(expected * POLICY.log()).sum().item() / 3)
    (gradient,) = torch.autograd.grad(found.loss, logprobs_bt)
    torch.testing.assert_close(gradient, -expected / 3)


def test_tapered_and_truncated_differ_on_a_good_action_that_the_policy_has_lost():
    # pi / mu = .1 with advantage 1: TOPR pulls at full strength, truncated weights at a tenth, plain replay fully.
    one = torch.ones(1, 1, dtype=torch.bool)
    logprobs_bt, behaviour_bt = torch.tensor([[0.05]]).log(), torch.tensor([[0.5]]).log()
    weights = {
        sign: [
            OBJECTIVES[name](
                Batch(logprobs_bt, behaviour_bt, torch.tensor([[sign]]), torch.ones(1, 1), one[0], one)
            ).weights_bt.item()
            for name in ("topr", "truncated", "symmetric")
        ]
        for sign in (1.0, -1.0)
    }
    assert weights[1.0] == pytest.approx([1.0, 0.1, 1.0])
    assert weights[-1.0] == pytest.approx([-0.1, -0.1, -1.0])


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - NEEDS_BEHAVIOUR))
def test_logs_without_behaviour_logprobs_train(name):
    found = OBJECTIVES[name](batch_of(POLICY.log(), torch.full_like(POLICY, float("nan"))))
    assert found.loss.isfinite()


@pytest.mark.parametrize("name", sorted(NEEDS_BEHAVIOUR))
def test_logs_without_behaviour_logprobs_cannot_pass_unseen(name):
    found = OBJECTIVES[name](batch_of(POLICY.log(), torch.full_like(POLICY, float("nan"))))
    assert found.loss.isnan()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_padding_has_no_effect(name):
    nan = float("nan")
    spoilt = [torch.where(MASK, tensor, nan) for tensor in (POLICY.log(), BEHAVIOUR.log(), ADVANTAGES, RETURNS)]
    clean_logprobs, spoilt_logprobs = POLICY.log().requires_grad_(), spoilt[0].requires_grad_()
    clean = OBJECTIVES[name](batch_of(clean_logprobs)).loss
    found = OBJECTIVES[name](Batch(spoilt_logprobs, *spoilt[1:], SUCCESS, MASK)).loss
    torch.testing.assert_close(found, clean)
    torch.testing.assert_close(
        torch.autograd.grad(found, spoilt_logprobs)[0], torch.autograd.grad(clean, clean_logprobs)[0]
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_through_a_softmax_matches_finite_differences(name):
    logits_bta = torch.tensor([[[0.2, 1.0, -0.3], [0.5, -1.0, 0.1]], [[0.0, 0.4, 0.9], [1.0, 1.0, 1.0]]]).double()
    actions_bt1 = torch.tensor([[[1], [0]], [[2], [1]]])

    def logprobs(flat):
        return flat.view(2, 2, 3).log_softmax(-1).gather(-1, actions_bt1)[..., 0]

    flat = logits_bta.flatten().requires_grad_()
    found = OBJECTIVES[name](batch_of(logprobs(flat)))
    (gradient,) = torch.autograd.grad(found.loss, flat)
    nudge = 1e-6
    for i in range(flat.numel()):
        step = torch.zeros(12, dtype=torch.double)
        step[i] = nudge
        up, down = (surrogate(logprobs(flat + s), found.weights_bt, MASK).loss.item() for s in (step, -step))
        assert gradient[i].item() == pytest.approx((up - down) / (2 * nudge), abs=1e-8)


def test_an_impossible_action_of_weight_zero_is_harmless():
    logprobs_bt = torch.tensor([[-torch.inf, -1.0]], requires_grad=True)
    found = surrogate(logprobs_bt, torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool))
    assert found.loss.item() == pytest.approx(0.5)
    assert torch.autograd.grad(found.loss, logprobs_bt)[0].isfinite().all()


def test_a_batch_without_steps_has_loss_zero():
    empty = torch.zeros(1, 1, dtype=torch.bool)
    assert surrogate(torch.full((1, 1), -2.0), torch.ones(1, 1), empty).loss == 0
    assert entropy(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2, dtype=torch.bool)) == 0
    assert value_loss(torch.ones(1, 1), torch.zeros(1, 1), empty) == 0


def test_shapes_are_named():
    with pytest.raises(ValueError, match=r"weights_bt has shape \[2, 1\], expected \[2, 2\]"):
        surrogate(torch.zeros(2, 2), torch.zeros(2, 1), MASK)


def test_entropy_by_hand():
    logprobs_bta = torch.tensor([[[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]], [[1.0, 0.0, 0.0], [0.3, 0.3, 0.4]]]).log()
    mask_bta = torch.tensor([[[1, 1, 0], [1, 1, 1]], [[1, 0, 0], [0, 0, 0]]], dtype=torch.bool)
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    # three steps: log 2, that of (1/4, 3/4), and 0 for a single action; the fourth is padding
    assert entropy(logprobs_bta, mask_bta).item() == pytest.approx((math.log(2) + quarter) / 3, rel=1e-6)


def test_entropy_gradient_with_masked_actions():
    logits = torch.tensor([[[0.3, -0.2, 5.0]]], dtype=torch.double, requires_grad=True)
    mask_bta = torch.tensor([[[True, True, False]]])

    def of_logits(logits_bta):
        return entropy(logits_bta.masked_fill(~mask_bta, -torch.inf).log_softmax(-1), mask_bta)

    assert torch.autograd.gradcheck(of_logits, logits)
    (gradient,) = torch.autograd.grad(of_logits(logits), logits)
    assert gradient[0, 0, 2] == 0
    assert gradient[0, 0, 0] < 0 < gradient[0, 0, 1]  # towards uniform


def test_observation_loss_is_the_mean_over_all_tokens():
    assert observation_loss(torch.tensor([0.5, 0.25, 1.0]).log()).item() == pytest.approx(math.log(8) / 3)
    assert observation_loss(torch.zeros(0)).item() == 0


def test_value_loss_by_hand():
    values_bt = torch.tensor([[1.0, 2.0], [0.0, float("nan")]], requires_grad=True)
    returns_bt = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert value_loss(values_bt, returns_bt, MASK).item() == pytest.approx((1 + 4 + 9) / 3)
    weighted = value_loss(values_bt, returns_bt, MASK, torch.tensor([1.0, 4.0]))
    assert weighted.item() == pytest.approx((1 + 4 + 4 * 9) / (1 + 1 + 4))
    (gradient,) = torch.autograd.grad(weighted, values_bt)
    torch.testing.assert_close(gradient, torch.tensor([[2.0, 4.0], [-24.0, 0.0]]) / 6)


def test_value_loss_weights_undo_the_sampling():
    # Drawn with probability .8 and .2; in expectation the weighted sum of errors is that of a uniform draw.
    draw = torch.tensor([0.8, 0.2])
    errors = []
    for b in range(2):
        values_bt, returns_bt = torch.zeros(2, 1), torch.tensor([[1.0], [0.0]])
        weights_b = torch.zeros(2)
        weights_b[b] = 1 / draw[b]
        mean = value_loss(values_bt, returns_bt, torch.ones(2, 1, dtype=torch.bool), weights_b)
        errors.append(draw[b] * mean * weights_b.sum())
    assert sum(errors).item() == pytest.approx(1.0)  # 1^2 + 0^2
