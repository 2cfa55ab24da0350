from __future__ import annotations

from typing import Any

import pytest
import torch

from retroformer.policies.tree import Window


def test_needed_operations_by_hand(bench: Any) -> None:
    limit = bench("limit")
    policy = bench("workload").build_policy(32, layers=1, vocabulary=64)
    # Width 32, one head of 32: q, k, v, o 32x32 each, then 32x128 twice and 128x32.
    assert sorted(limit.linear_shapes(policy)) == sorted([(32, 32)] * 4 + [(32, 128)] * 2 + [(128, 32)])
    # Three tokens are fed, an action of two tokens is scored: 6 pairs of tokens, 2 places.
    window = Window(0, 0, [3, 4, 5, 2], [1], [((5, 2),)], [0])
    linear = 3 * (4 * 32 * 32 + 3 * 32 * 128)
    assert limit.needed(policy, [window]) == 6 * (linear + 2 * 32 * 6 + 2 * 32 * 64)


def test_products_are_those_of_forward_and_backward(bench: Any) -> None:
    products = bench("limit").Products([(3, 5)], tokens=7)
    assert products.operations == 6 * 7 * 3 * 5
    products()
    x, weight, gradient, into_x, into_weight, into_y = products.buffers[0]
    assert torch.allclose(into_y, x @ weight.T, atol=1e-5)
    assert torch.allclose(into_x, gradient @ weight, atol=1e-5)
    assert torch.allclose(into_weight, gradient.T @ x, atol=1e-5)


def test_quick_report(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = bench("limit")
    monkeypatch.setattr(bench("measure"), "LONG_ENOUGH", 1e-9)
    monkeypatch.setattr(limit, "SHAPE", (2, 2))
    told = limit.measure(True, widths=(32,), vocabulary=64, large=2000).as_json()
    assert set(told["ratios"]) == {"gemm_share_32", "selected_logits_2k"}
    losses = [case["loss"] for case in told["cases"] if "loss" in case]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
