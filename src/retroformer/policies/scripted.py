"""Agents without a model: an environment's expert with noise, and the random agent.

They are the agents one has before training, so what they did must be as well recorded as a model's: each choice among
admissible actions carries its exact log-probability. What they write in text mode carries none, as in most logs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from urllib.parse import parse_qsl

from retroformer.errors import PolicyError
from retroformer.pins import SCRIPTED
from retroformer.policies.agent import Agent, Choice, Decision

EXPERTS = ("babyai-bot", "desk", "expert")
"""Each asks the environment what its expert would do; the last is for any environment that has one."""
KNOWN = "scripted:babyai-bot?noise=0.7, scripted:desk?noise=0.3, scripted:expert?noise=0.5, scripted:random"


def load_scripted(spec: str) -> Agent:
    """The agent that ``scripted:NAME?key=value`` describes. Raises PolicyError that says what is known."""
    name, _, query = spec.removeprefix(SCRIPTED).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if not spec.startswith(SCRIPTED) or name not in (*EXPERTS, "random"):
        raise PolicyError(f"no scripted agent {spec!r}; known: {KNOWN}")
    unknown = set(options) - ({"noise"} if name in EXPERTS else set())
    if unknown:
        raise PolicyError(f"{spec!r} has the unknown option {sorted(unknown)[0]!r}; known: {KNOWN}")
    if name == "random":
        return Scripted(spec, noise=1.0)
    try:
        noise = float(options.get("noise", "0"))
    except ValueError:
        noise = math.nan
    if not 0 <= noise <= 1:
        raise PolicyError(f"{spec!r} has noise {options['noise']!r}, allowed: a number from 0 to 1")
    return Scripted(spec, noise)


class Scripted:
    """With probability `noise` a uniform admissible action, else the expert's.

    Where the expert does not know, uniform. With noise 1 no expert is asked for. In text mode the environment names
    some possible actions, and log-probabilities are not recorded.
    """

    def __init__(self, version: str, noise: float):
        self.version = version
        self.temperature = 1.0
        self.noise = noise
        self.questions = ("possible_actions",) if noise >= 1 else ("expert_action", "possible_actions")
        """What it asks of an environment, which answers after every step, where it can."""

    def act(self, decisions: Sequence[Decision]) -> list[Choice]:
        """One choice for each decision, by its own random number."""
        return [self._choose(decision) for decision in decisions]

    def release(self, slot: int) -> None:
        """Nothing is remembered."""

    def suspend(self, slot: int) -> None:
        """Nothing is kept."""

    def resume(self, slot: int, kept: None) -> None:
        """Nothing is needed."""

    def _choose(self, decision: Decision) -> Choice:
        text = decision.admissible_actions is None
        actions = decision.admissible_actions or getattr(decision.environment, "possible_actions", tuple)()
        expert = None
        if self.noise < 1:
            ask = getattr(decision.environment, "expert_action", None)
            if ask is None:
                raise PolicyError(
                    f"{self.version} needs an environment with an expert, got {decision.environment!r}; "
                    "give it expert_action(), or begin with scripted:random: retroformer first-agent scripted:random"
                )
            expert = ask()
        if text and expert is not None:
            actions = tuple(dict.fromkeys((*actions, expert)))
        if not actions:
            raise PolicyError(
                f"{self.version} has no action to choose in slot {decision.slot} at step {decision.t}: where "
                "actions are written, a scripted agent needs expert_action() or possible_actions() of the environment"
            )
        noise = 1.0 if expert is None else self.noise
        probabilities = tuple(noise / len(actions) + (1 - noise) * (action == expert) for action in actions)
        index = draw(probabilities, decision.uniform)
        if text:
            return Choice(actions[index], None)
        return Choice(actions[index], math.log(probabilities[index]), probabilities)


def draw(probabilities: Sequence[float], uniform: float) -> int:
    """The first index where the cumulative probability exceeds `uniform`, in [0, 1)."""
    total, last = 0.0, 0
    for index, probability in enumerate(probabilities):
        if probability > 0:
            total, last = total + probability, index
            if uniform < total:
                return index
    return last  # rounding left the sum a hair below one
