"""Policies: prompt layout, prefix tree, language model, scripted agents, checkpoints."""

from __future__ import annotations

from pathlib import Path

from retroformer.pins import SCRIPTED
from retroformer.policies.agent import Agent


def open_agent(policy: str, *, slots: int, temperature: float = 1.0, greedy: bool = False) -> Agent:
    """The agent behind a pin: ``scripted:NAME?key=value``, or a checkpoint folder or hub id.

    A scripted agent has no temperature and no greedy mode; it is what it is.
    """
    if policy.startswith(SCRIPTED):
        from retroformer.policies.scripted import load_scripted

        return load_scripted(policy)
    from retroformer.policies.checkpoints import load
    from retroformer.policies.devices import choose

    loaded = load(Path(policy) if Path(policy).is_dir() else policy)
    acting = choose(loaded.model.config.hidden_size).act(loaded)
    return acting.agent(slots, temperature=temperature, greedy=greedy)
