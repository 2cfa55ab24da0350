"""A logged run as turns, and from turns to a trajectory in text mode: the one place where the rules are.

- The system prompt and the tools are the task's description; the first user message is the first observation.
- Between two actions everything that the agent was told is one observation: messages as they are, results of tools in
  the form of `retroformer.chat`, joined by newlines. What follows the last action is no observation of any.
- Turns of the agent with nothing between them are one action.
- What the agent did not say in this run (copied context, a fixed reply) is told in the observation, not learned from.
- Where no user speaks first, the system prompt is the first observation.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from retroformer.chat import describe_tools, write_action, write_call, write_result
from retroformer.importers.outcomes import OutcomeRule, Verdict
from retroformer.importers.records import Rejected, decoded, encoded
from retroformer.storage import EpisodeRow, StepRow, row_of, row_of_step, trajectory_from_row
from retroformer.types import Outcome, Step, StopReason, Trajectory, total

MAX_TOKEN_ID = 2**31 - 1
LOG_END = StopReason.LOG_END.value


@dataclass(slots=True)
class LoggedCall:
    """A call of a tool as it was logged."""

    id: str
    name: str
    arguments: dict[str, Any] | str
    """Text where it stands as it is: written just so already, or no JSON object, the agent's own mistake."""


@dataclass(slots=True)
class Turn:
    """One message, or one result of a tool."""

    role: Literal["system", "user", "agent", "result"]
    text: str = ""
    calls: Sequence[LoggedCall] = ()
    reasoning: str = ""
    answers: str = ""
    """The call's id that a result answers; empty: the first open one."""
    token_ids: tuple[int, ...] | None = None
    logprob: float | None = None
    """Of all sampled tokens, in nats."""
    reward: float | None = None
    copied: bool = False
    """The agent's, but not sampled in this run."""


@dataclass(slots=True)
class Run:
    """One run of an agent as its log tells it; a format makes these from records."""

    turns: list[Turn]
    fields: dict[str, Any] = field(default_factory=dict)
    """Where a reward or success is looked up by name."""
    assessments: dict[str, Any] = field(default_factory=dict)
    tools: list[dict[str, Any]] = field(default_factory=list)
    log_id: str = ""
    """The log's own id of the run."""
    shared: bool = False
    """Whether other runs may have that id too: then no contradiction is seen in what they say."""
    segment: int = 0
    """Which part of the run, where its prompts do not extend each other."""
    task: str = ""
    """``environment:name``, or a name alone; empty: one task for all."""
    instance: str = ""
    """What names the task instance; empty: the prompt up to the first action."""
    seed: int | None = None
    """The instance's number, where this project gave it one before."""
    policy: str = ""
    temperature: float | None = None
    attempt: int = 0
    error: str | None = None
    """What the log says of an infrastructure that broke."""

    @property
    def name(self) -> str:
        """What the log calls this trajectory; empty where it has no id of its own."""
        if not self.log_id or self.shared:
            return ""
        return name_in_log(self.log_id, self.attempt, self.segment)


def name_in_log(id: str, attempt: int, segment: int = 0) -> str:
    """What the ledger knows a logged run by."""
    return f"{id}\x1f{attempt}\x1f{segment}"


class Found(NamedTuple):
    """A trajectory in a record, as the rows that it becomes."""

    name: str
    """What the log calls it; empty where the log has no name for it."""
    content: str
    """Differs where anything that was logged does."""
    episode: EpisodeRow
    steps: list[StepRow]


def found_of(name: str, content: str, trajectory: Trajectory) -> Found:
    """What is a trajectory already, as rows."""
    return Found(name, content, row_of(trajectory), [row_of_step(step) for step in trajectory.steps])


@dataclass(frozen=True, slots=True)
class Rules:
    """How runs become trajectories."""

    outcome: OutcomeRule
    split_of: Callable[[str], str]
    """From a task instance's id to its split."""


def found_in(run: Run, source: str, rules: Rules) -> Found:
    """The run as a trajectory's rows. Raises Rejected with the reason where it is none.

    All of the reward is given at the last step, unless the log has rewards of its own for the steps. Behaviour
    log-probabilities are kept as logged; those of a greedy run (temperature 0) are not its behaviour's and left out.
    """
    description, steps = steps_of(run)
    instance = instance_of(run.task, run.instance, description, steps[0][0], rules, run.seed)
    environment, name, seed, split = instance
    temperature = 1.0 if run.temperature is None else run.temperature
    if not 0 <= temperature < math.inf:
        raise Rejected("invalid_temperature", f"temperature {temperature}")
    if temperature == 0:
        for t, (observation, action, reward, admissible, token_ids, _) in enumerate(steps):
            steps[t] = observation, action, reward, admissible, token_ids, None

    def row(id: str, outcome: Outcome) -> EpisodeRow:
        return EpisodeRow(  # by place: names take longer than all the rest of it
            id,
            environment,
            environment,  # family
            name,
            description,
            seed,
            split,
            outcome.value,
            LOG_END,
            len(steps),
            total([step[2] for step in steps]),
            run.policy or "log",
            temperature or 1.0,
            run.attempt,
            None,  # previous_id
            source,
            run.error,
        )

    def unjudged() -> Trajectory:
        return trajectory_from_row(row("", Outcome.UNKNOWN)._asdict(), [Step(*step) for step in steps])

    verdict = Verdict(Outcome.ERROR)
    if not run.error:
        verdict = rules.outcome.judge(run.fields, run.assessments, unjudged)
    logged = [turn.reward for turn in run.turns if turn.reward is not None]
    for reward in logged:
        rules.outcome.check(reward, "the reward of a step")
    if verdict.reward and not logged:
        observation, action, _, admissible, token_ids, logprob = steps[-1]
        steps[-1] = observation, action, verdict.reward, admissible, token_ids, logprob
    id = content_id(run, instance, description, verdict.outcome, steps)
    return Found(run.name, id, row(id, verdict.outcome), steps)


class Instance(NamedTuple):
    """What tells one task instance from another, and its split."""

    environment: str
    task: str
    seed: int
    split: str


def instance_of(
    named: str, instance: str, description: str, first: str, rules: Rules, seed: int | None = None
) -> Instance:
    """The task that a log calls `named`, and which instance of it; without a name of that, what was told first."""
    environment, _, name = named.rpartition(":")
    environment, name = environment or "log", name or "runs"
    if seed is None:
        instance = instance or "\x1f".join((description, first))
        seed = int.from_bytes(_digest((named, instance))[:6])
    return Instance(environment, name, seed, rules.split_of(f"{environment}:{name}#{seed}"))


def steps_of(run: Run) -> tuple[str, list[StepRow]]:
    """The task's description and the steps, rewards as the turns have them. Raises Rejected."""
    prompt: list[str] = []
    told: list[str] = []
    steps: list[StepRow] = []
    said: list[Turn] = []
    awaited: list[str] = []
    for turn in run.turns:
        role = turn.role
        if role == "agent" and not turn.copied:
            if awaited:
                raise _unanswered(awaited, len(steps))
            if turn.calls:
                awaited = [call.id for call in turn.calls]
            said.append(turn)
            continue
        if said:
            steps.append(_step(told, said))
            told, said = [], []
        if role == "result":
            answers = turn.answers
            if answers in awaited:
                awaited.remove(answers)
            elif awaited and not answers:
                awaited.pop(0)
            else:
                raise Rejected("result_without_call", f"no open call has the id {answers!r}")
            told.append(write_result(turn.text))
        elif role == "agent":
            if awaited:
                raise _unanswered(awaited, len(steps))
            awaited = [call.id for call in turn.calls]
            told.append(_action(turn))
        elif role == "system" and not steps and not told:
            prompt.append(turn.text)
        elif turn.text:
            told.append(turn.text)
    if said:
        steps.append(_step(told, said))
    if not steps:
        raise Rejected("no_agent_step", f"none of the {len(run.turns)} messages is the agent's own")
    if not steps[0][0]:
        steps[0] = ("\n\n".join(prompt), *steps[0][1:])
        prompt = []
    for t, step in enumerate(steps):
        if not step[0] or step[0].isspace():
            raise Rejected("empty_observation", f"nothing was said to the agent before step {t}")
        if not step[1] or step[1].isspace():
            raise Rejected("empty_action", f"the agent said nothing at step {t}")
    if run.tools:
        prompt.append(_described(encoded(run.tools)))
    return "\n\n".join(filter(None, prompt)), steps


@lru_cache(maxsize=64)
def _described(tools: bytes) -> str:
    return describe_tools(decoded(tools.decode()))


def _unanswered(awaited: list[str], t: int) -> Rejected:
    return Rejected("call_without_result", f"call {awaited[0]!r} has no result before step {t}")


def _step(told: list[str], said: list[Turn]) -> StepRow:
    observation = told[0] if len(told) == 1 else "\n".join(told)
    if len(said) == 1:
        one = said[0]
        return observation, _action(one), one.reward or 0.0, None, one.token_ids, one.logprob
    # The tokens of several turns are not known: the ends of the turns between are missing.
    action = "\n".join(_action(Turn("agent", turn.text, turn.calls)) for turn in said)
    if reasoning := "\n".join(turn.reasoning for turn in said if turn.reasoning):
        action = write_action(action, reasoning=reasoning)
    return observation, action, sum(turn.reward or 0.0 for turn in said), None, None, None


def _action(turn: Turn) -> str:
    calls = turn.calls
    if not turn.reasoning:
        if not calls:
            return turn.text
        if len(calls) == 1:  # most are
            written = write_call(calls[0].name, calls[0].arguments)
            return f"{turn.text}\n{written}" if turn.text else written
    parts = [write_action(reasoning=turn.reasoning)] if turn.reasoning else []
    if turn.text:
        parts.append(turn.text)
    parts += [write_call(call.name, call.arguments) for call in calls]
    return "\n".join(parts)


def content_id(run: Run, task: Instance, description: str, outcome: Outcome, steps: list[StepRow]) -> str:
    """16 hex digits that depend on what was logged alone: not on the file, its order, or what is read beside it."""
    parts = [
        run.log_id,
        f"{run.attempt} {run.segment} {run.temperature!r} {outcome.value} {task.seed}",
        task.environment,
        task.task,
        description,
        run.policy,
        run.error or "",
    ]
    numbers = []
    for t, (observation, action, reward, _, token_ids, logprob) in enumerate(steps):
        parts += (observation, action)
        if reward or logprob is not None or token_ids:
            numbers.append((t, reward, logprob, token_ids))
    parts.append(repr(numbers))
    return _digest(parts).hex()[:16]


def _digest(parts: Iterable[str]) -> bytes:
    return hashlib.sha256("\x1f".join(parts).encode()).digest()


def threads(calls: Iterable[tuple[list[Turn], Turn]]) -> Iterator[list[Turn]]:
    """Calls of a chat model in order of time, each its prompt and the answer, as append-only conversations.

    A call goes on with the conversation that its prompt extends; one that extends none (another agent, a summary in
    place of the past, a second try) begins its own, in which what its prompt says the agent had said is copied.
    """
    open_threads: list[list[Turn]] = []
    for prompt, answer in calls:
        for known in reversed(open_threads):
            if len(prompt) > len(known) and all(map(_same, known, prompt)):
                known += [*_copied(prompt[len(known) :]), answer]
                break
        else:
            open_threads.append([*_copied(prompt), answer])
    yield from open_threads


def _copied(turns: Iterable[Turn]) -> Iterator[Turn]:
    for turn in turns:
        if turn.role == "agent":
            turn.copied = True
        yield turn


def _same(one: Turn, other: Turn) -> bool:
    """Whether two logged messages say the same; reasoning is often not sent back, and ids may be lost."""
    return (
        one.role == other.role
        and one.text == other.text
        and [_meant(call) for call in one.calls] == [_meant(call) for call in other.calls]
    )


def _meant(call: LoggedCall) -> tuple[str, Any]:
    try:
        return call.name, decoded(call.arguments) if isinstance(call.arguments, str) else call.arguments
    except (ValueError, RecursionError):
        return call.name, call.arguments
