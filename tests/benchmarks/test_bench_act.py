from __future__ import annotations

from typing import Any

import pytest


def test_quick_report(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    act = bench("act")
    monkeypatch.setattr(bench("measure"), "LONG_ENOUGH", 1e-9)
    monkeypatch.setattr(act, "NAIVE_QUICK", (20, 3))
    told = act.measure(True, width=32, vocabulary=64, shapes=((20, 3), (30, 2))).as_json()
    assert {"name", "machine", "model", "cases", "ratios", "reps"} <= told.keys()
    assert set(told["ratios"]) == {
        "act_vs_lamorel_cached_20_3",
        "act_vs_naive_20_3",
        "act_vs_lamorel_cached_30_2",
    }
    assert all(case["difference"] < 1e-4 for case in told["cases"]), "peers and project give the same probabilities"
    assert len(told["cases"]) == 5


def test_what_is_timed_is_one_decision_after_the_history(bench: Any) -> None:
    policy = bench("workload").build_policy(32, vocabulary=64)
    scene = bench("act").Scene(policy, history=20, actions=3)
    fed = scene.agent.reader.cache.lengths.tolist()
    assert fed == [len(prefix) for prefix in scene.prefixes], "the action is not fed, the observation is"
    assert len(set(fed)) > 1, "histories are ragged"
