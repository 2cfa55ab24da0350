"""The drift check plays a real checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from project import HERE
from retroformer.config import PolicyConfig, load_config
from retroformer.environments import lexicon
from retroformer.policies.checkpoints import build


def test_the_champion_is_played_on_the_seeds_of_its_final_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(HERE / "flows"), *sys.path])
    import evaluate_champion

    policy = build(PolicyConfig(model="", width=16, layers=1, heads=2), lexicon(["babyai:P5N2"]), seed=0)
    policy.save(tmp_path / "champion")
    few = load_config(HERE / "params.yaml", {"evaluate.final": 16, "collect.workers": 1})
    monkeypatch.setattr(evaluate_champion, "load_config", lambda: few)
    found = evaluate_champion.play_champion.fn(str(tmp_path / "champion"))
    assert (found["policy"], found["range"], found["n"]) == ("champion", "final", 16)
    assert 0 <= found["lower"] <= found["success"] <= found["upper"] <= 1
