from __future__ import annotations

from pathlib import Path

import pytest

from retroformer.policies.layout import Layout
from retroformer.policies.text import TextActions
from retroformer.serving.agent import ServingAgent
from retroformer.serving.recording import Recorder
from tiny import tiny_policy


@pytest.fixture
def make_agent(tmp_path: Path):
    """A tiny policy at work, which records to ``runs``."""

    def made(
        slots: int = 2, temperature: float = 0.7, greedy: bool = False, text: bool = False, seed: int = 0
    ) -> ServingAgent:
        policy = tiny_policy(version="p" * 16)
        if text:  # w0 ends what it says
            policy.layout = Layout(action="{action} w0")
            policy.text = TextActions(policy.tokenizer, policy.layout, policy.encode)
        acting = policy.agent(slots, temperature=temperature, greedy=greedy)
        recorder = Recorder(tmp_path / "runs")
        return ServingAgent(acting, slots=slots, recorder=recorder, greedy=greedy, max_new_tokens=6, seed=seed)

    return made
