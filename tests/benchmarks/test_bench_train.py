from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from retroformer.policies.tree import Window


@pytest.fixture
def update(bench: Any) -> Any:
    policy = bench("workload").build_policy(32, layers=2, vocabulary=64)
    return bench("train").Update(policy, steps=3, actions=4, rows=2)


def gradients(update: Any, run: Any) -> torch.Tensor:
    run()
    return torch.cat([parameter.grad.flatten() for parameter in update.policy.model.parameters()])


@pytest.mark.parametrize(("ours", "peer"), [("tree", "lamorel"), ("chosen", "sequence_per_step")])
def test_peer_and_project_do_the_same(update: Any, ours: str, peer: str) -> None:
    run, other = getattr(update, ours), getattr(update, peer)
    assert float(run()) == pytest.approx(float(other()), abs=1e-5)
    mine, theirs = gradients(update, run), gradients(update, other)
    assert mine.norm() > 0.01
    assert (mine - theirs).norm() < 1e-4 * mine.norm()


def test_grpo_sees_the_same_actions(bench: Any, update: Any) -> None:
    inputs = bench("peers").trl_inputs(update.branched, [1.0, -1.0])
    for row, window in enumerate(update.branched):
        taken = inputs["completion_ids"][row][inputs["tool_mask"][row].bool()].tolist()
        actions = zip(window.actions, window.chosen, strict=True)
        assert taken == [token for own, chosen in actions for token in own[chosen]]
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist()
        completion = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()].tolist()
        assert prompt + completion == window.tokens
    assert int(inputs["num_items_in_batch"]) == int(inputs["tool_mask"].sum())


def test_tokens_are_counted_by_the_algorithm(bench: Any) -> None:
    # Trunk 1 2 | 5 6 9 | 3 | then 5 7 9: its last action's 5 7 are fed for themselves, the 9 never.
    window = Window(0, 0, [1, 2, 5, 6, 9, 3, 5, 7, 9], [1, 5], [((5, 6, 9), (5, 8, 9)), ((5, 7, 9), (4,))], [0, 0])
    # Alternatives: one node for 8 below the 5 that is on the trunk; the second step's 4 needs none.
    assert bench("workload").fed_tokens(window) == (8, 9)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_quick_report(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train, peers = bench("train"), bench("peers")
    monkeypatch.setattr(bench("measure"), "LONG_ENOUGH", 1e-9)
    monkeypatch.setattr(train, "QUICK_SHAPES", ((3, 2),))
    monkeypatch.setattr(train, "LAMOREL_QUICK", ((3, 2),))
    report = train.measure(True, width=32, vocabulary=64)
    told = report.as_json()
    assert {"name", "machine", "model", "cases", "ratios", "reps"} <= told.keys()
    assert told["reps"] == 3
    by_variant = {(case["case"], case["variant"]): case for case in told["cases"]}
    losses = [by_variant["3_2", name]["loss"] for name in ("tree", "lamorel")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    with_trl = peers.TRL not in report.skipped
    assert set(told["ratios"]) == {"tree_vs_lamorel_3_2"} | ({"chosen_vs_trl", "tree_vs_trl"} if with_trl else set())
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in told["ratios"].values())


def test_without_trl_its_cases_are_left_out(bench: Any, update: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = bench("peers")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert peers.trl_trainer(update.policy.model, update.policy.tokenizer) is None


def test_overhead_is_time_over_tokens(bench: Any) -> None:
    train = bench("train")
    report = bench("measure").Report("train", 3)
    seconds = {"chosen": 2.0, "tree": 3.0, "trl": 6.0, "lamorel": 30.0}
    train.add_ratios(report, (12, 10), seconds, {"chosen": 100, "tree": 120})
    assert report.ratios == pytest.approx(
        {"chosen_vs_trl": 3.0, "tree_vs_trl": 2.0, "tree_vs_lamorel_12_10": 10.0, "tree_overhead_12_10": 1.25}
    )
