from __future__ import annotations

from typing import Any

import pytest


def test_quick_report(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = bench("rollouts")
    monkeypatch.setattr(rollouts, "ENVIRONMENTS", 4)
    monkeypatch.setattr(rollouts, "QUICK_REPS", 1)
    report = rollouts.measure(True, count=16, long=64)
    ways = {"rollouts_2_vs_1", "rollouts_2_vs_bare", "engine_vs_bare", "apart_vs_engine"}
    assert set(report.ratios) == ways | {"memory_growth_parent", "memory_growth_workers"}
    assert all(ratio > 0 for ratio in report.ratios.values())
    steps = {case["variant"]: case["steps_per_second"] for case in report.cases if case["case"] == "throughput"}
    assert list(steps) == ["bare", "engine", "apart", "workers 2"]


def test_the_bare_loop_plays_to_the_end(bench: Any) -> None:
    rollouts = bench("rollouts")
    assert rollouts.bare(rollouts.plan(8)) > 8
