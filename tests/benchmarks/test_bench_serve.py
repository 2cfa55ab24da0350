from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


def test_quick_report(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    serve = bench("serve")
    monkeypatch.setattr(bench("measure"), "LONG_ENOUGH", 1e-9)
    told = serve.measure(True, widths=(32,), histories=(20, 40), vocabulary=64).as_json()
    assert {"name", "machine", "model", "cases", "ratios", "reps"} <= told.keys()
    assert set(told["ratios"]) == {f"serve_{kind}_{history}" for kind in ("vs_bare", "record") for history in (20, 40)}
    assert [case["variant"] for case in told["cases"]] == ["agent", "silent", "bare"] * 2 + ["buffer", "fsync"]


def test_the_bare_model_is_asked_the_same(bench: Any, tmp_path: Path) -> None:
    """Over the one-token actions, what the bare model gives is what the agent samples from."""
    serve = bench("serve")
    policy = bench("workload").build_policy(32, vocabulary=64)
    scene = serve.Scene(policy, history=20, folder=tmp_path)
    assert len(scene.new) in (serve.NEW, serve.NEW + 1), "the end of the last action and the observation"
    for _ in range(2):
        scene.rewind()
        logprobs = scene.bare()
    ids = [policy.encode(*policy.layout.piece("action", action))[0] for action in scene.admissible]
    scene.prepare("silent")
    scene.act("silent")
    mine = torch.tensor(scene.episodes["silent"].last.probabilities)
    # The two episodes drew other first actions: compare only where they are the same.
    kept = scene.agents["silent"]._policy.transcripts[0].tokens[: len(scene.history)]
    assert len(kept) == len(scene.history)
    if kept == scene.history:
        assert mine == pytest.approx(logprobs[ids].softmax(-1), abs=1e-4)
