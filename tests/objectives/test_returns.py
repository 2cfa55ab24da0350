import pytest
import torch

from retroformer.objectives.returns import returns_to_go


def test_by_hand_with_padding():
    rewards_bt = torch.tensor([[1.0, 2.0, 4.0], [0.0, 1.0, float("nan")]])
    mask_bt = torch.tensor([[True, True, True], [True, True, False]])
    # 1 + .5 (2 + .5 * 4) = 3, 2 + .5 * 4 = 4, 4; and .5 * 1, 1, padding
    expected = torch.tensor([[3.0, 4.0, 4.0], [0.5, 1.0, 0.0]])
    torch.testing.assert_close(returns_to_go(rewards_bt, mask_bt, 0.5), expected)


def test_without_steps():
    assert returns_to_go(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), 0.9).shape == (2, 0)


def test_shapes_are_named():
    with pytest.raises(ValueError, match=r"rewards_bt has shape \[2, 1\], expected \[2, 3\]"):
        returns_to_go(torch.zeros(2, 1), torch.ones(2, 3, dtype=torch.bool), 0.9)
