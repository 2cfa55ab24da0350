"""Chat logs: one JSON object a line, ``{"messages": [...]}`` in OpenAI's form, a whole run each.

Beside the messages a record may have ``id`` (or ``run_id``), ``task`` (``environment:name``), ``task_id`` (which
instance of it), ``attempt`` (from 0), ``model``, ``temperature``, ``tools``, ``error`` and whatever the outcome is read
from. Messages may have ``timestamp``, ``reward``, ``logprobs`` and ``token_ids``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from retroformer.importers.conversation import Run
from retroformer.importers.messages import tools_of, turns_of
from retroformer.importers.outcomes import finite
from retroformer.importers.records import Rejected, check_exact


def runs(value: Any) -> Iterator[Run]:
    """The one run of a record. Raises Rejected."""
    if not isinstance(value, dict) or "messages" not in value:
        raise Rejected("not_this_format", "no object with messages")
    temperature, attempt, tools = value.get("temperature"), value.get("attempt", 0), value.get("tools")
    error = value.get("error")
    if type(attempt) is not int or not 0 <= attempt < 2**31:
        raise Rejected("invalid_attempt", f"attempt {str(attempt)[:40]!r}, expected a whole number from 0")
    yield Run(
        turns_of(value["messages"]),
        fields=value,
        tools=tools_of(tools) if tools else [],
        log_id=name_of(value, "id") or name_of(value, "run_id"),
        task=name_of(value, "task"),
        instance=name_of(value, "task_id"),
        policy=name_of(value, "model"),
        temperature=None if temperature is None else finite(temperature, "temperature", "temperature"),
        attempt=attempt,
        error=None if not error else str(error),
    )


def name_of(fields: dict[str, Any], key: str) -> str:
    """A name as text; numbers are names too. Raises Rejected for lists and objects."""
    value = fields.get(key)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        check_exact(value)
        return str(value)
    raise Rejected("malformed_field", f"{key} is {type(value).__name__}, expected text")
