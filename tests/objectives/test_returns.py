import pytest
import torch

from retroformer.objectives.returns import lambda_returns, returns_to_go


def test_by_hand_with_padding():
    rewards_bt = torch.tensor([[1.0, 2.0, 4.0], [0.0, 1.0, float("nan")]])
    mask_bt = torch.tensor([[True, True, True], [True, True, False]])
    # 1 + .5 (2 + .5 * 4) = 3, 2 + .5 * 4 = 4, 4; and .5 * 1, 1, padding
    expected = torch.tensor([[3.0, 4.0, 4.0], [0.5, 1.0, 0.0]])
    torch.testing.assert_close(returns_to_go(rewards_bt, mask_bt, 0.5), expected)


def test_lambda_returns_by_hand():
    mask_bt = torch.tensor([[True, True, True], [True, True, False]])
    rewards_bt = torch.tensor([[1.0, 2.0, 4.0], [0.0, 1.0, float("nan")]])
    values_bt = torch.tensor([[9.0, 3.0, 6.0], [9.0, 0.5, float("nan")]], requires_grad=True)
    returns_bt = returns_to_go(rewards_bt, mask_bt, 0.5)
    # 4; 2 + .5 (.75 * 6 + .25 * 4) = 4.75; 1 + .5 (.75 * 3 + .25 * 4.75) = 2.71875
    # 1; 0 + .5 (.75 * .5 + .25 * 1) = .3125, padding
    expected = torch.tensor([[2.71875, 4.75, 4.0], [0.3125, 1.0, 0.0]])
    found = lambda_returns(returns_bt, values_bt, mask_bt, 0.5, 0.25)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    torch.testing.assert_close(lambda_returns(returns_bt, values_bt, mask_bt, 0.5, 1.0), returns_bt)
    one_step = torch.tensor([[1 + 0.5 * 3, 2 + 0.5 * 6, 4], [0.5 * 0.5, 1, 0]])
    torch.testing.assert_close(lambda_returns(returns_bt, values_bt, mask_bt, 0.5, 0.0), one_step)


def test_the_last_step_of_a_window_keeps_what_comes_after_it():
    """Rewards 0, 0, 1 in windows of two steps and one: the first window's returns know of the 1."""
    returns_bt = torch.tensor([[0.25, 0.5], [1.0, 0.0]])
    mask_bt = torch.tensor([[True, True], [True, False]])
    # .5; 0 + .5 (.5 * .4 + .5 * .5) = .225
    expected = torch.tensor([[0.225, 0.5], [1.0, 0.0]])
    torch.testing.assert_close(lambda_returns(returns_bt, torch.full((2, 2), 0.4), mask_bt, 0.5, 0.5), expected)


def test_lambda_returns_are_the_sum_of_temporal_differences():
    """A_t = sum over k of (discount lambda)^k delta_(t+k), as Schulman et al. 2016 write it."""
    generator = torch.Generator().manual_seed(0)
    rewards_bt, values_bt = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    mask_bt = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    discount, decay = 0.9, 0.8
    mixed_bt = lambda_returns(returns_to_go(rewards_bt, mask_bt, discount), values_bt, mask_bt, discount, decay)
    for b, length in enumerate((7, 4, 1)):
        for t in range(length):
            expected = 0.0
            for k in range(t, length):
                following = values_bt[b, k + 1] if k + 1 < length else 0.0
                delta = rewards_bt[b, k] + discount * following - values_bt[b, k]
                expected += (discount * decay) ** (k - t) * delta
            torch.testing.assert_close(mixed_bt[b, t] - values_bt[b, t], expected)


def test_without_steps():
    assert returns_to_go(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), 0.9).shape == (2, 0)


def test_shapes_are_named():
    with pytest.raises(ValueError, match=r"rewards_bt has shape \[2, 1\], expected \[2, 3\]"):
        returns_to_go(torch.zeros(2, 1), torch.ones(2, 3, dtype=torch.bool), 0.9)
