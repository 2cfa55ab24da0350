"""A trace, whatever recorded it, as runs: the calls of chat models in order of time, joined into conversations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from retroformer.importers.conversation import Run, Turn, threads
from retroformer.importers.records import Rejected


@dataclass(slots=True)
class ChatCall:
    """One call of a chat model."""

    start: int
    """Nanoseconds."""
    prompt: list[Turn]
    answer: list[Turn]
    """One turn; none where the call failed."""
    tools: list[dict[str, Any]] = field(default_factory=list)
    model: str = ""
    temperature: float | None = None


def runs_of(calls: list[ChatCall], log_id: str, facts: dict[str, Any]) -> Iterator[Run]:
    """A run for each conversation of a trace; `facts` are the fields of `Run` that hold for all of them.

    Every conversation carries the trace's outcome: where its prompts do not extend each other (a summary in place of
    the past, subagents), which of them brought it about is not known. Raises Rejected where nobody said anything.
    """
    answered = [call for call in sorted(calls, key=lambda call: call.start) if call.answer]
    if not answered:
        raise Rejected("no_agent_step", f"none of the trace's {len(calls)} calls of a chat model has an answer")
    by_answer = {id(call.answer[0]): call for call in answered}
    for segment, turns in enumerate(threads((call.prompt, call.answer[0]) for call in answered)):
        first = next(by_answer[id(turn)] for turn in turns if id(turn) in by_answer)
        yield Run(
            turns,
            tools=first.tools,
            log_id=log_id,
            segment=segment,
            policy=first.model,
            temperature=first.temperature,
            **facts,
        )


def nanoseconds(value: Any, name: str) -> int:
    """A time of a span: a whole number, or its digits as text, as JSON needs for 64 bits. Raises Rejected."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    if type(value) is int and 0 <= value < 2**64:
        return value
    raise Rejected("invalid_timestamp", f"{name} is {str(value)[:40]!r}, expected nanoseconds")


def check_span(start: int, end: int) -> None:
    """Raise Rejected where a span ends before it starts."""
    if end and end < start:
        raise Rejected("timestamps_out_of_order", f"a span ends {(start - end) / 1e9:g} s before it starts")
