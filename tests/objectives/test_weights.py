import math

import pytest
import torch

from retroformer.objectives import weights

MASK = torch.tensor([[True, True, True, False]])
POLICY = torch.tensor([[0.8, 0.2, 0.5, float("nan")]], dtype=torch.double)
BEHAVIOUR = torch.tensor([[0.4, 0.4, 0.5, float("nan")]], dtype=torch.double)
RATIOS = torch.tensor([[2.0, 0.5, 1.0, 0.0]], dtype=torch.double)


def test_ratios_by_hand_without_gradient():
    logprobs_bt = POLICY.log().requires_grad_()
    found = weights.ratios(logprobs_bt, BEHAVIOUR.log(), MASK)
    assert not found.requires_grad
    torch.testing.assert_close(found, RATIOS)


def test_ratios_and_their_squares_stay_finite():
    found = weights.ratios(torch.zeros(1, 1), torch.full((1, 1), -1e4), torch.ones(1, 1, dtype=torch.bool))
    assert found.square().isfinite().all()


def test_truncated_and_tapered():
    torch.testing.assert_close(weights.truncated(RATIOS), RATIOS.clamp(max=1.0))
    good_bad_bad = torch.tensor([[1.0, -1.0, -1.0, 0.0]], dtype=torch.double)
    torch.testing.assert_close(
        weights.tapered(RATIOS, good_bad_bad), torch.tensor([[1.0, 0.5, 1.0, 0.0]], dtype=torch.double)
    )
    torch.testing.assert_close(weights.tapered(RATIOS, -good_bad_bad)[0, :2], torch.tensor([1.0, 1.0]).double())


def test_effective_sample_size():
    # (2 + .5 + 1)^2 / (3 (4 + .25 + 1)) = 12.25 / 15.75
    assert weights.effective_sample_size(RATIOS, MASK).item() == pytest.approx(12.25 / 15.75)
    assert weights.effective_sample_size(torch.full((2, 3), 0.1), torch.ones(2, 3, dtype=torch.bool)) == pytest.approx(
        1
    )
    one_of_four = torch.tensor([[5.0, 0.0, 0.0, 0.0]])
    assert weights.effective_sample_size(one_of_four, torch.ones(1, 4, dtype=torch.bool)).item() == pytest.approx(0.25)


def test_clipped_share():
    assert weights.clipped_share(RATIOS, MASK).item() == pytest.approx(1 / 3)
    assert weights.clipped_share(RATIOS, MASK, limit=0.4).item() == pytest.approx(1)


def test_kl_is_exact_in_expectation_and_its_direction_is_behaviour_to_policy():
    policy, behaviour = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    one = torch.ones(1, 1, dtype=torch.bool)
    samples = [
        weights.kl_from_behaviour(policy[None, a : a + 1].log(), behaviour[None, a : a + 1].log(), one)
        for a in range(3)
    ]
    expected = sum(m * math.log(m / p) for m, p in zip(behaviour.tolist(), policy.tolist(), strict=True))
    assert sum(m * k.item() for m, k in zip(behaviour.tolist(), samples, strict=True)) == pytest.approx(expected)
    assert min(samples) >= 0


def test_kl_by_hand_ignores_padding():
    # (2 - 1 - log 2) + (.5 - 1 + log 2) + 0 = .5, over three steps
    assert weights.kl_from_behaviour(POLICY.log(), BEHAVIOUR.log(), MASK).item() == pytest.approx(0.5 / 3)


def test_surrogate_advantage_by_hand():
    """One trajectory with ratios 2, .5, 1 and advantages 1, -1, .5: (2 - .5 + .5) / 3.5; a second adds ratio 1, A 0."""
    logprobs_bt = torch.cat([POLICY.log(), torch.zeros(1, 4, dtype=torch.double)])
    behaviour_bt = torch.cat([BEHAVIOUR.log(), torch.zeros(1, 4, dtype=torch.double)])
    advantages_bt = torch.tensor([[1.0, -1.0, 0.5, 9.0], [0.0, 9.0, 9.0, 9.0]], dtype=torch.double)
    mask_bt = torch.cat([MASK, torch.tensor([[True, False, False, False]])])
    estimate, influence_b = weights.surrogate_advantage(logprobs_bt, behaviour_bt, advantages_bt, mask_bt)
    assert float(estimate) == pytest.approx(2 / 4.5)
    # sum over steps of ratio x (A - estimate), over the sum of ratios
    assert influence_b.tolist() == pytest.approx([(2 - 3.5 * 2 / 4.5) / 4.5, (0 - 2 / 4.5) / 4.5])
    assert float(influence_b.sum()) == pytest.approx(0)


def test_surrogate_advantage_prefers_the_policy_that_takes_the_better_action():
    """Two actions drawn alike, worth 1 and 0: pi = .9 on the first is worth .4 over the behaviour."""
    behaviour_bt = torch.tensor([[0.5], [0.5]]).log()
    advantages_bt, mask_bt = torch.tensor([[0.5], [-0.5]]), torch.ones(2, 1, dtype=torch.bool)
    estimate, _ = weights.surrogate_advantage(torch.tensor([[0.9], [0.1]]).log(), behaviour_bt, advantages_bt, mask_bt)
    assert float(estimate) == pytest.approx(0.4)
