"""What agents recorded that `retroformer.load_agent` opened: JSON lines of events, joined by the episode's id.

=======  ================================================================================================
start    id, time, task, task_id, attempt, description, policy, temperature (0 where greedy)
step     id, time, t, observation, admissible_actions, action, logprob, token_ids
reward   id, t, reward: of the step t
end      id, time, success, reward, truncated, error: what was known of the outcome when the episode ended
outcome  id, time, success, reward, error: what was learned of it later, from whatever process
=======  ================================================================================================

Every event has ``event`` and ``id``; a field that is null may be missing. Episodes interleave, and may go on in the
next file of their process; an outcome may lie in any file. Files are read twice: for the outcomes, and for the rest.

- The last outcome that was reported counts. An error, or a cut by a limit of the application's own, stays what it is.
- The reward of an outcome is given at the last step, on top of what the steps had; a success without one is worth 1,
  unless steps had rewards.
- An episode whose outcome is not known is open (`records.Open`): it is imported once that is known. What an import
  once took is thus never another thing later, unless a report is corrected.
- A last line that does not end is what a crash left of it: no record. The process that wrote it never told anybody of
  the action in it.
- The log-probabilities of a greedy agent (temperature 0) are not its behaviour's, and left out as from every log.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from retroformer.importers.conversation import Found, Rules, found_of, instance_of
from retroformer.importers.messages import tokens_of
from retroformer.importers.openai_chat import name_of
from retroformer.importers.outcomes import finite
from retroformer.importers.records import MAX_RECORD, SHOWN, Advance, Open, Record, Rejected, json_records, parsed
from retroformer.importers.redaction import Redactor
from retroformer.types import Outcome, Step, StopReason, Task, Trajectory

SUFFIXES = (".jsonl", ".jsonl.gz")
EVENTS = ("start", "step", "reward", "end", "outcome")


class Reported(NamedTuple):
    """The outcome of an episode as it was reported last."""

    time: float
    line: bytes
    source: str


@dataclass(slots=True)
class Episode:
    """The lines of an episode as they arrive."""

    source: str
    lines: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, line: bytes) -> None:
        """One more; beyond what a record may have, the size alone is kept."""
        self.size += len(line) + 1
        if self.size <= MAX_RECORD:
            self.lines.append(line)

    def record(self, reported: Reported | None) -> Record | Rejected:
        """All of it as one record, a JSON list of events."""
        lines = [*self.lines, reported.line] if reported else self.lines
        text = b"[" + b",".join(lines) + b"]"
        if self.size > MAX_RECORD:
            detail = f"{self.size} bytes, at most {MAX_RECORD} allowed"
            return Rejected("too_large", detail, self.source, text[:SHOWN])
        return Record(self.source, raw=text)


def read(files: list[Path], advance: Advance) -> Iterator[Record | Rejected]:
    """The episodes, each when its end is read; those without one last. What is no event is a record by itself.

    Held are the episodes that are open at one time, and each reported outcome.
    """
    files = sorted(files, key=lambda file: file.name)
    reported = _reported(files)
    found: set[str] = set()
    episodes: dict[str, Episode] = {}
    for read_record in json_records(files, advance):
        try:
            if isinstance(read_record, Rejected):
                raise read_record
            if (event := _event(read_record)) is None:
                continue
        except Rejected as why:
            yield why
            continue
        kind, id, line = event
        if kind == "outcome":
            continue
        if kind == "start" and id in episodes:  # a copy of the file; this one never ended in it
            yield episodes.pop(id).record(reported.get(id))
        if id not in episodes:
            episodes[id] = Episode(read_record.source)
            found.add(id)
        episodes[id].add(line)
        if kind == "end":
            yield episodes.pop(id).record(reported.get(id))
    for id, episode in episodes.items():
        yield episode.record(reported.get(id))
    for id, (_, line, source) in reported.items():
        if id not in found:
            yield Rejected("unknown_episode", "an outcome of an episode that is in none of the files", source, line)


def _reported(files: list[Path]) -> dict[str, Reported]:
    """The last outcome that was reported of each episode."""
    reported: dict[str, Reported] = {}
    for record in json_records(files, lambda count: None):
        if isinstance(record, Rejected) or (record.raw and b"outcome" not in record.raw):
            continue
        try:
            event = _event(record)
        except Rejected:
            continue  # told when the rest is read
        if event and event[0] == "outcome":
            _, id, line = event
            time = parsed(Record(record.source, raw=line)).value["time"]
            if id not in reported or time >= reported[id].time:
                reported[id] = Reported(time, line, record.source)
    return reported


def _event(record: Record) -> tuple[str, str, bytes] | None:
    """An event's kind, its episode's id and its text; None for a last line that does not end. Raises Rejected."""
    try:
        value = parsed(record).value
    except Rejected:
        if record.raw.endswith(b"\n"):
            raise
        return None
    raw = record.raw.strip() or json.dumps(value).encode()
    kind, id = (value.get("event"), value.get("id")) if isinstance(value, dict) else (None, None)
    if kind not in EVENTS or not isinstance(id, str) or not id:
        detail = f"no object with an id and an event of {', '.join(EVENTS)}"
        raise Rejected("not_this_format", detail, record.source, raw)
    if kind == "outcome":
        try:
            finite(value.get("time"), "timestamp", "the time of an outcome")
        except Rejected as why:
            raise Rejected(why.reason, why.detail, record.source, raw) from None
    return kind, id, raw


def trajectories(record: Record, rules: Rules, redactor: Redactor) -> list[Found]:
    """The trajectory of an episode. Raises Rejected, or Open where its outcome is not known yet."""
    events: list[dict[str, Any]] = record.value
    start, *others = events
    if start["event"] != "start" or any(one["event"] == "start" for one in others):
        raise Rejected("no_start", "the episode does not begin with the one event that starts it")
    steps: list[Step] = []
    end: dict[str, Any] = {}
    reported: dict[str, Any] = {}
    rewarded = False
    for event in others:
        match event["event"]:
            case "step":
                steps.append(_step(event, len(steps)))
            case "reward":
                reward, t = finite(event.get("reward"), "reward", "the reward of a step"), event.get("t")
                if type(t) is not int or not 0 <= t < len(steps):
                    raise Rejected("steps_out_of_order", f"a reward of step {str(t)[:40]}, of {len(steps)}")
                rewarded = True
                steps[t] = _rewarded(steps[t], reward, t)
            case "end":
                end = event
            case _:
                reported = event
    temperature = finite(start.get("temperature", 1.0), "temperature", "temperature")
    attempt = start.get("attempt", 0)
    if temperature < 0:
        raise Rejected("invalid_temperature", f"temperature {temperature}")
    if type(attempt) is not int or not 0 <= attempt < 2**31:
        raise Rejected("invalid_attempt", f"attempt {str(attempt)[:40]!r}, expected a whole number from 0")
    if temperature == 0:
        steps = [replace(step, logprob=None) for step in steps]
    first = steps[0].observation if steps else ""
    told = name_of(start, "description")
    instance = instance_of(name_of(start, "task"), name_of(start, "task_id"), told, first, rules)
    unknown = Trajectory(
        id=start["id"],
        task=Task(instance.environment, instance.environment, instance.task, told, instance.seed, instance.split),
        steps=tuple(steps),
        stop_reason=StopReason.TERMINATED if end else StopReason.LOG_END,
        outcome=Outcome.UNKNOWN,
        policy=name_of(start, "policy") or "log",
        temperature=temperature or 1.0,
        attempt=attempt,
        source=record.source,
    )
    for step in steps:
        rules.outcome.check(step.reward, "the reward of a step")
    trajectory = _judged(unknown, end, reported, rules, rewarded)
    if not steps and trajectory.outcome is not Outcome.ERROR:
        raise Rejected("no_agent_step", "the episode has no step")
    content = hashlib.sha256(repr((trajectory.steps, replace(trajectory, source=""), temperature)).encode())
    for part in (trajectory.task, trajectory.policy, attempt, trajectory.error):
        content.update(repr(part).encode())
    return [found_of(trajectory.id, content.hexdigest(), redactor.trajectory(trajectory))]


def _judged(
    trajectory: Trajectory, end: dict[str, Any], reported: dict[str, Any], rules: Rules, rewarded: bool
) -> Trajectory:
    """The trajectory with its outcome; `rewarded` says whether its steps had rewards. Raises Open."""
    if error := name_of(end, "error") or name_of(reported, "error"):
        return replace(trajectory, outcome=Outcome.ERROR, stop_reason=StopReason.EXCEPTION, error=error)
    if end.get("truncated") is True:
        return replace(trajectory, outcome=Outcome.TRUNCATED, stop_reason=StopReason.TIME_LIMIT)
    said = reported or end
    if not said and rules.outcome.function:
        raise Open  # it may still go on
    verdict = rules.outcome.judge(said, {}, lambda: trajectory)
    if verdict.outcome is Outcome.UNKNOWN:
        raise Open
    worth = verdict.reward if not rewarded or said.get("reward") is not None else 0.0
    steps = trajectory.steps
    if steps and worth:
        steps = (*steps[:-1], _rewarded(steps[-1], worth, len(steps) - 1))
    return replace(trajectory, steps=steps, outcome=verdict.outcome)


def _step(event: dict[str, Any], due: int) -> Step:
    t, observation, action = event.get("t"), event.get("observation"), event.get("action")
    if type(t) is not int or t != due:
        raise Rejected("steps_out_of_order", f"step {str(t)[:40]} where step {due} was due")
    for name, text in (("observation", observation), ("action", action)):
        if not isinstance(text, str) or not text.strip():
            raise Rejected("empty_text", f"no {name} at step {t}")
    admissible = event.get("admissible_actions")
    if admissible is not None:
        if not isinstance(admissible, list) or not all(isinstance(one, str) for one in admissible):
            raise Rejected("malformed_field", f"admissible_actions of step {t} is no list of texts")
        if action not in admissible:
            raise Rejected("inadmissible_action", f"step {t} took none of the {len(admissible)} admissible actions")
    token_ids, _ = tokens_of(event.get("token_ids"), None, t)
    logprob = event.get("logprob")
    if logprob is not None:
        _, logprob = tokens_of(None, [logprob], t)
    choices = None if admissible is None else tuple(admissible)
    return Step(str(observation), str(action), 0.0, choices, token_ids, logprob)


def _rewarded(step: Step, reward: float, t: int) -> Step:
    return replace(step, reward=finite(step.reward + reward, "reward", f"the sum of the rewards of step {t}"))
