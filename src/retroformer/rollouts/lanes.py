"""The environments behind the slots, and everything they say held against what a record can hold.

What breaks is data: whatever an environment raises or returns, its answer is a plain record that can be sent to
another process and written to disk, with the error told in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retroformer.chat import describe_tools
from retroformer.environments import make, start
from retroformer.environments.protocol import MOST_TEXT, TextEnvironment
from retroformer.rollouts.episodes import Episode
from retroformer.types import Outcome, StopReason

STEP = "observation, reward, terminated, truncated, info"
QUESTIONS = ("expert_action", "possible_actions")
"""What scripted agents ask an environment besides."""


@dataclass(frozen=True, slots=True)
class Order:
    """Start an episode in a slot, or do an action in the one that runs there."""

    slot: int
    episode: Episode | None = None
    """To be started; None for an action."""
    action: str = ""
    t: int = 0
    """The step that the action is."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an environment said to an order."""

    family: str = ""
    description: str = ""
    """Family and task, where an episode was started."""
    reward: float | None = None
    """None where no step was done."""
    observation: str = ""
    admissible: tuple[str, ...] | None = None
    """None in text mode."""
    ended: tuple[StopReason, Outcome] | None = None
    error: str | None = None
    """What was seen when it broke; its environment is not used again."""
    said: dict[str, Any] = field(default_factory=dict)
    """The environment's answers to the agent's questions, of those that it has."""
    seconds: float = field(default=0.0, compare=False)


class Said:
    """Stands for an environment elsewhere: has the methods that the agent asks for, with what they answered."""

    def __init__(self, name: str, answers: dict[str, Any]):
        self._name = name
        for question, answer in answers.items():
            setattr(self, question, lambda answer=answer: answer)

    def __repr__(self) -> str:
        return self._name


class Lanes:
    """An environment for each slot, in this process."""

    def __init__(
        self,
        text: str,
        actions: str,
        questions: Iterable[str] = (),
        caught: tuple[type[BaseException], ...] = (Exception, SystemExit),
    ):
        """`caught`: what is an environment's fault; where nobody else interrupts, a KeyboardInterrupt is one too."""
        self.text, self.actions, self.questions, self.caught = text, actions, tuple(questions), caught
        self.instances: dict[tuple[int, str], TextEnvironment] = {}
        """Kept for the next episode of the same task in the same slot."""
        self.running: dict[int, tuple[int, str]] = {}
        self.choosing: dict[int, bool] = {}
        """Whether a slot's episode began with admissible actions; it stays so."""

    def do(self, orders: Sequence[Order]) -> list[Answer]:
        """The answers to orders for different slots."""
        return [self.one(order) for order in orders]

    def one(self, order: Order) -> Answer:
        """The answer to one order. A broken environment is closed, and what it says to that no longer matters."""
        began = time.monotonic()
        found: dict[str, Any] = {}
        try:
            if order.episode is not None:
                self._start(order.slot, order.episode, found)
            else:
                self._step(order, found)
        except self.caught as error:
            found["error"] = told(error)
            if order.episode is None:
                kind = "admissible" if self.choosing[order.slot] else "written"
                found["error"] += f" (at step {order.t}, the {kind} action {order.action[:200]!r})"
            found.pop("ended", None)
            broken = self.instances.pop(self.running.get(order.slot, (-1, "")), None)
            if broken is not None:
                with suppress(*self.caught):
                    broken.close()
        return Answer(**found, seconds=time.monotonic() - began)

    def release(self, slot: int) -> None:
        """The slot's episode is given up; the next one resets its environment."""

    def close(self) -> None:
        """Free what the environments hold."""
        for environment in self.instances.values():
            with suppress(*self.caught):
                environment.close()
        self.instances.clear()

    def _start(self, slot: int, episode: Episode, found: dict[str, Any]) -> None:
        key = self.running[slot] = (slot, episode.name)
        if key not in self.instances:
            self.instances[key] = make(episode.name, text=self.text, actions=self.actions)
        environment = self.instances[key]
        found["family"] = sound(environment.family, "the family")
        observation, info = unpacked(start(environment, episode.seed, episode.mission), "reset", "observation, info")
        parts = (sound(info["task"], "info['task']"), describe_tools(info.get("tools") or ()))
        found["description"] = sound("\n\n".join(part for part in parts if part), "the task with its tools")
        self.choosing[slot] = info.get("admissible_actions") is not None
        self._observe(slot, observation, info, found)

    def _step(self, order: Order, found: dict[str, Any]) -> None:
        result = self.instances[self.running[order.slot]].step(order.action)
        observation, reward, terminated, truncated, info = unpacked(result, "step", STEP)
        found["reward"] = number(reward)
        for name, value in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(value, (bool, np.bool_)):
                raise TypeError(f"{name} must be true or false, got {value!r:.80}")
        if not terminated and not truncated:
            self._observe(order.slot, observation, info, found)
            return
        success = info.get("success")
        if not isinstance(success, (bool, np.bool_)) and (terminated or success is not None):
            raise TypeError(f"the episode ends and info['success'] must be true or false, got {success!r:.80}")
        if success and not terminated:
            raise ValueError("the episode is truncated and a success: a step limit is a failed task")
        stop = StopReason.TERMINATED if terminated else StopReason.STEP_LIMIT
        found["ended"] = stop, Outcome.SUCCESS if success else Outcome.FAILURE

    def _observe(self, slot: int, observation: Any, info: dict[str, Any], found: dict[str, Any]) -> None:
        """What the agent sees next, and what it asks besides."""
        observation = filled(sound(observation, "the observation"), "the observation")
        actions = info.get("admissible_actions")
        if actions is not None:
            actions = sound_actions(actions)
        if not actions and self.choosing[slot]:
            raise ValueError("info['admissible_actions'] must hold at least one action: end the episode instead")
        found["said"] = self._ask(self.instances[self.running[slot]], choosing=bool(actions))
        found["observation"], found["admissible"] = observation, actions

    def _ask(self, environment: TextEnvironment, choosing: bool) -> dict[str, Any]:
        said: dict[str, Any] = {}
        for name in self.questions:
            method = getattr(environment, name, None)
            if method is not None and not (choosing and name == "possible_actions"):
                answer = method()
                if name == "possible_actions":
                    said[name] = sound_actions(answer)
                else:
                    said[name] = answer if answer is None else sound(answer, f"what {name} says")
        return said


def told(error: BaseException) -> str:
    """An exception as a record can hold it, whatever its message is."""
    try:
        message = str(error)
    except Exception:
        message = "its message cannot be read"
    return f"{type(error).__name__}: {message}"[:2000].encode(errors="replace").decode()


def unpacked(result: Any, method: str, parts: str) -> Any:
    """What `method` gave. Raises TypeError where it is not a tuple of these parts, the last of them a dict."""
    if not isinstance(result, (tuple, list)) or len(result) != parts.count(",") + 1:
        size = f" of {len(result)}" if isinstance(result, (tuple, list)) else ""
        raise TypeError(f"{method} gave a {type(result).__name__}{size}, expected ({parts})")
    if not isinstance(result[-1], dict):
        raise TypeError(f"{method}'s info must be a dict, got {type(result[-1]).__name__}")
    return result


def number(reward: Any) -> float:
    """A reward. Raises TypeError where it is no number, ValueError where it is not finite."""
    if isinstance(reward, (str, bytes)):
        raise TypeError(f"the reward must be a number, got {reward!r:.80}")
    value = float(reward)
    if not math.isfinite(value):
        raise ValueError(f"the reward must be finite, got {value}")
    return value


def sound(value: Any, what: str) -> str:
    """A text that can be stored and read. Raises TypeError or ValueError that says why it is none."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, got {type(value).__name__}")
    if len(value) > MOST_TEXT:
        raise ValueError(f"{what} has {len(value):,} characters, at most {MOST_TEXT:,} are allowed")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{what} is no text that UTF-8 can hold: {error.reason} at {error.start}") from None
    return value if type(value) is str else str.__str__(value)


def filled(text: str, what: str) -> str:
    """The text, which must not be empty: nothing could be read there, or sampled."""
    if not text:
        raise ValueError(f"{what} is empty, expected something in it")
    return text


def sound_actions(actions: Any) -> tuple[str, ...]:
    """Actions to choose among. Raises TypeError or ValueError where they are none, or one is there twice."""
    if not isinstance(actions, (tuple, list)):
        raise TypeError(f"info['admissible_actions'] must be a tuple of str, got {type(actions).__name__}")
    texts = tuple(filled(sound(action, "an admissible action"), "an admissible action") for action in actions)
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise ValueError(f"info['admissible_actions'] has {twice!r:.80} twice: name every action once")
    return texts
