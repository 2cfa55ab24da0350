"""A policy at work in somebody's application, which calls it; `rollouts` is the reverse.

Every action is recorded before it is returned. Threads share one agent: those that wait while the model runs are
decided together by its next forward.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from retroformer.chat import describe_tools
from retroformer.errors import ConfigError, PolicyError
from retroformer.policies.agent import Agent, Choice, Decision
from retroformer.serving.outcomes import finite, outcome, report
from retroformer.serving.recording import Recorder

FORMAT = 1
"""Of the events; in every start."""
Asked = tuple["Episode", str, Sequence[str] | None]
"""An episode, what it observes, and what may be chosen; None where the policy writes its action."""


class Episode:
    """One attempt at a task, from `ServingAgent.episode`; a context manager.

    Where the block ends, the episode does; an exception that leaves it is recorded as an error of the infrastructure,
    which says nothing of the task. An episode that is dropped without an end stays open, as after a crash.
    """

    def __init__(self, agent: ServingAgent, facts: dict[str, Any], environment: Any):
        self.id = f"e{secrets.token_hex(8)}"  # a letter first: no number that redaction could take for a card's
        self.last: Choice | None = None
        """The last action with its log-probability, and the probabilities of all that could be chosen."""
        self._agent = agent
        self._facts: dict[str, Any] | None = facts
        """What the start says, until it is recorded with the first event."""
        self._description = facts["description"]
        self._environment = environment
        self._steps = 0
        self._ended = False
        self._error = ""
        self._place = _Place()
        weakref.finalize(self, agent._dropped.append, self._place).atexit = False

    def act(self, observation: str, admissible_actions: Sequence[str] | None = None) -> str:
        """The action that the policy chooses, recorded by now; without `admissible_actions` one that it writes itself.

        Raises PolicyError where it cannot, after which the episode can only be finished, as an error; OSError where
        nothing can be written.
        """
        return self._agent.act_many([(self, observation, admissible_actions)])[0]

    def reward(self, reward: float) -> None:
        """Add to the reward of the last action. Raises ConfigError where it is no finite number."""
        self._check_open()
        if not self._steps:
            raise PolicyError(f"episode {self.id} has no action yet that a reward could be for")
        self._record({"event": "reward", "id": self.id, "t": self._steps - 1, "reward": finite(reward)})

    def finish(
        self, success: bool | None = None, *, reward: float | None = None, truncated: bool = False, error: str = ""
    ) -> None:
        """The episode is over; what is known of its outcome, or nothing where `report` will say it later.

        A success is worth 1 where neither it nor the steps have a reward. `truncated`: a limit of the application, not
        of the task, cut it. `error`: the infrastructure broke. Raises ConfigError where something else is said.
        """
        self._check_open()
        # What the policy or the disk failed at is an error whatever the application thinks of it.
        said = outcome(success, reward, self._error or error)
        self._ended = True
        self._agent._leave(self)
        if said or truncated or self._steps:
            marked = {"truncated": True} if truncated else {}
            self._record({"event": "end", "id": self.id, "time": time.time(), **said, **marked})

    def __enter__(self) -> Episode:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ended:
            self.finish(error="" if kind is None else f"{kind.__name__}: {error}"[:2000])

    def _check_open(self) -> None:
        if self._ended:
            raise PolicyError(f"episode {self.id} is over")

    def _record(self, event: dict[str, Any]) -> None:
        try:
            self._agent._record([*self._start(), event])
        except OSError as error:
            self._error = self._error or f"not recorded: {error}"
            raise
        self._facts = None

    def _start(self) -> list[dict[str, Any]]:
        """The event that starts the episode, until it is written."""
        return [] if self._facts is None else [{"event": "start", "format": FORMAT, "id": self.id, **self._facts}]


@dataclass(eq=False, slots=True)
class _Place:
    """Where the policy keeps an episode; outlives it."""

    slot: int | None = None
    kept: Any = None
    """What `Agent.suspend` gave, where another episode has the slot meanwhile."""


@dataclass(eq=False, slots=True)
class _Request:
    """An action that is waited for."""

    episode: Episode
    observation: str
    admissible: tuple[str, ...] | None
    answer: Choice | BaseException | None = None


class ServingAgent:
    """A policy that acts in any number of episodes, from any number of threads, see `retroformer.load_agent`."""

    def __init__(
        self,
        policy: Agent,
        *,
        slots: int,
        recorder: Recorder | None = None,
        greedy: bool = False,
        max_new_tokens: int = 256,
        seed: int | None = None,
    ):
        self.version = policy.version
        """Content hash of the policy, or its ``scripted:`` name: what its trajectories record."""
        self.temperature = 0.0 if greedy else policy.temperature
        self.recorder = recorder
        self._policy = policy
        self._max_new_tokens = max_new_tokens
        self._chance = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._waiting: deque[_Request] = deque()
        self._dropped: deque[_Place] = deque()
        """Places of episodes that were garbage-collected, at whatever moment; freed before the next action."""
        self._free = list(range(slots))[::-1]
        self._slots: dict[_Place, None] = {}
        """The places that have a slot, the one that acted longest ago first."""
        self._most = slots

    def episode(
        self,
        description: str,
        *,
        task: str = "",
        task_id: str | int = "",
        attempt: int = 0,
        tools: Sequence[dict[str, Any]] = (),
        environment: Any = None,
    ) -> Episode:
        """Begin an attempt at a task that the agent is told in `description`.

        `task` is ``environment:name`` (figures are by task). `task_id` names the instance, a seed or a ticket: attempts
        at one are compared and never lie on both sides of a split; without it, the description and the first
        observation stand for it. `attempt` counts from 0. `tools` are described to the agent as in training
        (`retroformer.chat`). `environment` is for scripted experts alone. Raises ConfigError for anything else.
        """
        for name, text in (("description", description), ("task", task)):
            check_text(name, text)
        if not isinstance(task_id, (str, int)) or type(attempt) is not int or not 0 <= attempt < 2**31:
            raise ConfigError(
                f"task_id is {task_id!r} and attempt {attempt!r}, expected text or a number, and a whole number from 0"
            )
        facts = {
            "time": time.time(),
            "task": task,
            "task_id": str(task_id),
            "attempt": attempt,
            "description": "\n\n".join(part for part in (description, describe_tools(tools)) if part),
            "policy": self.version,
            "temperature": self.temperature,
        }
        return Episode(self, facts, environment)

    def act_many(self, asked: Sequence[Asked]) -> list[str]:
        """The actions of several episodes, chosen together: ``[(episode, observation, admissible_actions), ...]``.

        Raises as `Episode.act` where one of them fails; the others are recorded, and `Episode.last` has their actions.
        """
        requests = [self._request(*one) for one in asked]
        if len({request.episode.id for request in requests}) < len(requests):
            raise PolicyError("an episode is asked for two actions at once")
        self._waiting.extend(requests)
        while any(request.answer is None for request in requests):
            with self._lock:
                # Whoever had the lock may have answered these too.
                if any(request.answer is None for request in requests):
                    self._answer_those_that_wait()
        for request in requests:
            if isinstance(request.answer, BaseException):
                raise request.answer
        return [request.answer.action for request in requests if isinstance(request.answer, Choice)]

    def report(
        self, episode: str, *, success: bool | None = None, reward: float | None = None, error: str | None = None
    ) -> None:
        """Say how an episode ended, see `retroformer.report`; this agent's or another's."""
        if self.recorder is None:
            raise ConfigError("this agent records nothing: load it with record=FOLDER, or use retroformer.report")
        report(self.recorder, episode, success=success, reward=reward, error=error)

    def close(self) -> None:
        """Close the file that is recorded to. The agent can go on; it begins another."""
        if self.recorder is not None:
            self.recorder.close()

    def _request(self, episode: Episode, observation: str, admissible: Sequence[str] | None) -> _Request:
        if episode._agent is not self:
            raise ConfigError(f"episode {episode.id} is another agent's")
        check_text("the observation", observation)
        if not observation.strip():
            raise ConfigError("the observation is empty")
        if admissible is None:
            return _Request(episode, observation, None)
        if isinstance(admissible, str) or not admissible:
            raise ConfigError(f"admissible_actions is {admissible!r}, expected at least one action, or None")
        actions = tuple(admissible)
        for action in actions:
            check_text("an admissible action", action)
        if len(set(actions)) < len(actions) or not all(action.strip() for action in actions):
            raise ConfigError("admissible_actions has an action twice, or an empty one")
        return _Request(episode, observation, actions)

    def _record(self, events: Sequence[dict[str, Any]]) -> None:
        if self.recorder is not None:
            self.recorder.write(events)

    def _answer_those_that_wait(self) -> None:
        """Choose for all that wait, as many at once as there are slots. The lock is held."""
        while self._dropped:
            self._release(self._dropped.popleft())
        waiting: list[_Request] = []
        while self._waiting:
            waiting.append(self._waiting.popleft())
        while waiting:
            batch: dict[Episode, _Request] = {}
            later: list[_Request] = []
            for request in waiting:
                if len(batch) < self._most and request.episode not in batch:
                    batch[request.episode] = request
                else:
                    later.append(request)
            waiting = later
            try:
                self._choose(list(batch.values()))
            except Exception as error:
                fail(batch.values(), error)
            except BaseException:
                fail((*batch.values(), *waiting), PolicyError("the thread that chose the actions was interrupted"))
                raise

    def _choose(self, requests: list[_Request]) -> None:
        asked: list[_Request] = []
        decisions: list[Decision] = []
        for request in requests:
            episode = request.episode
            if episode._ended or episode._error:
                why = f": {episode._error}" if episode._error else ""
                request.answer = PolicyError(f"episode {episode.id} is over{why}")
                continue
            asked.append(request)
            decisions.append(
                Decision(
                    slot=self._slot(episode, requests),
                    t=episode._steps,
                    description=episode._description,
                    observation=request.observation,
                    admissible_actions=request.admissible,
                    uniform=self._chance.random(),
                    environment=episode._environment,
                    max_new_tokens=self._max_new_tokens,
                )
            )
        choices = self._policy.act(decisions) if decisions else []
        events: list[dict[str, Any]] = []
        now = time.time()
        for request, decision, choice in zip(asked, decisions, choices, strict=True):
            if isinstance(choice, PolicyError):
                request.episode._error = str(choice)
            elif self.recorder is not None:
                events += [*request.episode._start(), self._step(request.episode, decision, choice, now)]
        if events:
            self._record(events)
        for request, choice in zip(asked, choices, strict=True):
            if isinstance(choice, Choice):
                request.episode.last = choice
                request.episode._facts = None
                request.episode._steps += 1
            request.answer = choice

    def _step(self, episode: Episode, decision: Decision, choice: Choice, now: float) -> dict[str, Any]:
        return {
            "event": "step",
            "id": episode.id,
            "t": decision.t,
            "time": now,
            "observation": decision.observation,
            "admissible_actions": decision.admissible_actions,
            "action": choice.action,
            "logprob": choice.logprob if self.temperature else None,  # the likeliest one is not drawn
            "token_ids": choice.token_ids,
            **({"cut": True} if choice.cut else {}),
        }

    def _slot(self, episode: Episode, batch: Sequence[_Request]) -> int:
        """The episode's slot; where it has none, a free one, or that of the episode which acted longest ago."""
        place = episode._place
        if place.slot is None:
            if not self._free:
                needed = {request.episode._place for request in batch}
                oldest = next(one for one in self._slots if one not in needed)
                assert oldest.slot is not None
                oldest.kept = self._policy.suspend(oldest.slot)
                self._take_slot(oldest)
            place.slot = self._free.pop()
            if place.kept is not None:
                self._policy.resume(place.slot, place.kept)
                place.kept = None
        self._slots.pop(place, None)
        self._slots[place] = None
        return place.slot

    def _take_slot(self, place: _Place) -> None:
        if place.slot is not None:
            self._free.append(place.slot)
            self._slots.pop(place)
            place.slot = None

    def _leave(self, episode: Episode) -> None:
        self._dropped.append(episode._place)

    def _release(self, place: _Place) -> None:
        """Forget an episode."""
        if place.slot is not None:
            self._policy.release(place.slot)
        self._take_slot(place)
        place.kept = None


def fail(requests: Iterable[_Request], error: Exception) -> None:
    """Tell those that have no answer yet; what the model has read of their episodes is not known, so they are over."""
    for request in requests:
        if request.answer is None:
            request.episode._error = request.episode._error or f"{type(error).__name__}: {error}"
            request.answer = error


def check_text(name: str, text: Any) -> None:
    """Raise ConfigError where it is no text that could be written down."""
    if not isinstance(text, str):
        raise ConfigError(f"{name} is {type(text).__name__}, expected text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{name} holds half of a surrogate pair, expected text that UTF-8 can write") from None


def check_settings(temperature: float, max_new_tokens: int, slots: int) -> None:
    """Raise ConfigError where one is out of its range."""
    if not isinstance(temperature, (int, float)) or not 0 <= temperature < math.inf:
        raise ConfigError(f"temperature is {temperature!r}, expected a number from 0, which is greedy")
    for name, value in (("max_new_tokens", max_new_tokens), ("slots", slots)):
        if type(value) is not int or value < 1:
            raise ConfigError(f"{name} is {value!r}, expected a whole number from 1")
