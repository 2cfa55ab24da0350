"""MLflow traces: what ``Trace.to_dict()`` gives, from a store (see tracking/traces.py) or as lines of JSON.

The spans of type CHAT_MODEL (or LLM, where they hold messages) are the run: their inputs the prompt, their outputs the
answer. Results of tools are in the next prompt; those of TOOL spans after the last one have no action to follow.
Feedback is looked up by name with ``assessment``; tags and metadata are fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from retroformer.importers.conversation import Run, Turn
from retroformer.importers.messages import tools_of, turn_of, turns_of
from retroformer.importers.openai_chat import name_of
from retroformer.importers.outcomes import finite
from retroformer.importers.records import Rejected, decoded
from retroformer.importers.spans import ChatCall, check_span, nanoseconds, runs_of

CHAT = ("CHAT_MODEL", "LLM")
TASK = ("retroformer.task", "retroformer.task_id", "retroformer.attempt")
"""Tags that name the task, its instance and which attempt at it a trace is."""


def runs(value: Any) -> Iterator[Run]:
    """The runs of a trace. Raises Rejected."""
    info = value.get("info") if isinstance(value, dict) else None
    data = value.get("data") if isinstance(value, dict) else None
    spans = data.get("spans") if isinstance(data, dict) else None
    if not isinstance(info, dict) or not isinstance(spans, list) or not all(isinstance(one, dict) for one in spans):
        raise Rejected("not_this_format", "no trace with info and data.spans")
    tags, metadata = _object(info, "tags"), _object(info, "trace_metadata")
    task, instance, attempt = (name_of(tags, key) for key in TASK)
    if attempt and not (attempt.isascii() and attempt.isdigit() and len(attempt) < 10):
        raise Rejected("invalid_attempt", f"tag {TASK[2]} is {attempt[:40]!r}, expected a whole number from 0")
    facts = {
        "fields": {**metadata, **tags, "tags": tags, "metadata": metadata},
        "assessments": _assessments(info.get("assessments") or []),
        "task": task,
        "instance": instance,
        "attempt": int(attempt or 0),
        # A run that raised says nothing of its task.
        "error": "the trace ended in an error" if info.get("state") == "ERROR" else None,
    }
    calls = [call for span in spans for call in _calls(span)]
    yield from runs_of(calls, name_of(info, "trace_id") or name_of(info, "request_id"), facts)


def _object(value: dict[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _assessments(listed: Any) -> dict[str, Any]:
    """Feedback and expectations by name; of several the last that is valid."""
    found: dict[str, Any] = {}
    if not isinstance(listed, list):
        raise Rejected("not_this_format", f"assessments is {type(listed).__name__}, expected a list")
    for one in listed:
        if isinstance(one, dict) and isinstance(one.get("assessment_name"), str) and one.get("valid") is not False:
            feedback = one.get("feedback")
            if isinstance(feedback, dict) and feedback.get("value") is not None:
                found[one["assessment_name"]] = feedback["value"]
    return found


def _calls(span: dict[str, Any]) -> Iterator[ChatCall]:
    """The call that a span is, if it is one of a chat model."""
    attributes = _object(span, "attributes")
    inputs = _decoded(attributes.get("mlflow.spanInputs"))
    if _decoded(attributes.get("mlflow.spanType")) not in CHAT or not isinstance(inputs, dict):
        return
    inputs = {**inputs, **_object(inputs, "kwargs")}
    prompt = inputs.get("messages", inputs.get("input"))
    if not isinstance(prompt, list):
        return
    start = nanoseconds(span.get("start_time_unix_nano"), "start_time_unix_nano")
    check_span(start, nanoseconds(span.get("end_time_unix_nano") or 0, "end_time_unix_nano"))
    model = _decoded(attributes.get("mlflow.llm.model")) or inputs.get("model")
    temperature = inputs.get("temperature")
    yield ChatCall(
        start,
        turns_of(prompt),
        _answer(_decoded(attributes.get("mlflow.spanOutputs"))),
        tools_of(_decoded(attributes.get("mlflow.chat.tools")) or inputs.get("tools")),
        model if isinstance(model, str) else "",
        None if temperature is None else finite(temperature, "temperature", "temperature"),
    )


def _answer(outputs: Any) -> list[Turn]:
    """The assistant's turn in what a call gave: a completion, a message, a list that ends in one, or text."""
    logprobs = None
    if isinstance(outputs, dict):
        choices = outputs.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            outputs, logprobs = choices[0].get("message"), choices[0].get("logprobs")
        elif isinstance(outputs.get("messages"), list):
            outputs = outputs["messages"]
    if isinstance(outputs, list) and outputs:
        outputs = outputs[-1]
    if isinstance(outputs, str) and outputs:
        outputs = {"role": "assistant", "content": outputs}
    if not isinstance(outputs, dict) or not (outputs.get("content") or outputs.get("tool_calls")):
        return []
    message = {"role": "assistant", **outputs}
    if logprobs is not None:
        message.setdefault("logprobs", logprobs)
    turn = turn_of(message, 0)
    return [turn] if turn.role == "agent" else []


def _decoded(value: Any) -> Any:
    """An attribute: MLflow stores each as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return decoded(value)
    except (ValueError, RecursionError):
        return value
