"""OpenTelemetry spans in OTLP JSON (a collector's file exporter writes one request a line), GenAI conventions.

Spans of one trace may lie in several lines and files: they are gathered on disk first, and each trace is a record,
its place that of its first span. Read are the spans whose ``gen_ai.operation.name`` is chat, text_completion or
generate_content, their messages from the attributes or the event of the current conventions (1.37 and later), or from
the events of one message each of those before. Attributes of the root span and of resources are fields; evaluation
results (``gen_ai.evaluation.result``) are assessments.

https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

from __future__ import annotations

import base64
import binascii
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from retroformer.importers.conversation import Run, Turn
from retroformer.importers.messages import tools_of, turns_of
from retroformer.importers.openai_chat import name_of
from retroformer.importers.outcomes import finite
from retroformer.importers.records import Advance, Record, Rejected, decoded, encoded, json_records, parsed
from retroformer.importers.spans import ChatCall, check_span, nanoseconds, runs_of

CHAT = ("chat", "text_completion", "generate_content")
DETAILS = "gen_ai.client.inference.operation.details"
EVALUATION = "gen_ai.evaluation.result"
OLD_EVENTS = {f"gen_ai.{role}.message": role for role in ("system", "user", "assistant", "tool")}
TASK = ("retroformer.task", "retroformer.task_id", "retroformer.attempt")
"""Attributes that name the task, its instance and which attempt at it a trace is."""
MAX_SPANS = 100_000
"""Spans that one trace may have."""


def read(files: list[Path], advance: Advance) -> Iterator[Record | Rejected]:
    """Every trace of the files, in the order of their first spans; what holds no spans is rejected by itself."""
    with tempfile.TemporaryDirectory(prefix="retroformer-otlp-") as folder, closing(_store(Path(folder))) as store:
        for record in json_records(files, advance):
            if isinstance(record, Rejected):
                yield record
                continue
            try:
                found = [_row(record.source, *one) for one in spans_of(parsed(record).value)]
                if not found:
                    raise Rejected("not_this_format", "no spans")
            except Rejected as why:
                yield Rejected(why.reason, why.detail, record.source, record.raw)
                continue
            store.executemany("INSERT INTO spans VALUES (?, ?, ?)", found)
        store.execute("CREATE INDEX by_trace ON spans (trace)")
        order = store.execute("SELECT trace, MIN(rowid), COUNT(*) FROM spans GROUP BY trace ORDER BY 2")
        for trace, first, count in order:
            source = store.execute("SELECT source FROM spans WHERE rowid = ?", (first,)).fetchone()[0]
            if count > MAX_SPANS:
                yield Rejected("too_large", f"trace {trace} has {count} spans, at most {MAX_SPANS} allowed", source)
                continue
            rows = store.execute("SELECT span FROM spans WHERE trace = ? ORDER BY rowid", (trace,))
            yield Record(source, {"trace": trace, "spans": [decoded(row[0].decode()) for row in rows]})


def _store(folder: Path) -> sqlite3.Connection:
    store = sqlite3.connect(folder / "spans.db")
    store.execute("PRAGMA synchronous = OFF")
    store.execute("PRAGMA journal_mode = OFF")
    store.execute("CREATE TABLE spans (trace TEXT, source TEXT, span BLOB)")
    return store


def _row(source: str, span: dict[str, Any], resource: Any) -> tuple[str, str, bytes]:
    return span["traceId"], source, encoded({**span, "resource": resource})


def spans_of(value: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """The spans of a request, each with its resource's attributes. Raises Rejected."""
    for one in _objects(value, "resourceSpans"):
        resource = one.get("resource")
        attributes = resource.get("attributes") if isinstance(resource, dict) else None
        for scope in _objects(one, "scopeSpans"):
            for span in _objects(scope, "spans"):
                if not isinstance(span.get("traceId"), str) or not span["traceId"]:
                    raise Rejected("not_this_format", "a span has no traceId")
                yield span, attributes


def _objects(value: Any, key: str) -> list[dict[str, Any]]:
    found = value.get(key, []) if isinstance(value, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Rejected("not_this_format", f"{key} is no list of objects")
    return found


def runs(value: dict[str, Any]) -> Iterator[Run]:
    """The runs of a gathered trace. Raises Rejected."""
    fields: dict[str, Any] = {}
    assessments: dict[str, Any] = {}
    calls = []
    failed = None
    for span in value["spans"]:
        attributes = attributes_of(span.get("attributes"))
        events = [
            (event.get("name"), attributes_of(event.get("attributes")), event) for event in _objects(span, "events")
        ]
        for name, found, _ in events:
            if name == EVALUATION:
                _assess(assessments, found)
        _assess(assessments, attributes)
        if not span.get("parentSpanId"):
            fields |= {**attributes_of(span.get("resource")), **attributes}
            status = span.get("status")
            if isinstance(status, dict) and status.get("code") in (2, "STATUS_CODE_ERROR"):
                failed = str(status.get("message") or "the root span ended in an error")
        if attributes.get("gen_ai.operation.name") in CHAT:
            calls.append(_call(span, attributes, events))
    attempt = fields.get(TASK[2], 0)
    if type(attempt) is not int or not 0 <= attempt < 2**31:
        raise Rejected("invalid_attempt", f"{TASK[2]} is {str(attempt)[:40]!r}, expected a whole number from 0")
    facts = {
        "fields": fields,
        "assessments": assessments,
        "task": name_of(fields, TASK[0]),
        "instance": name_of(fields, TASK[1]),
        "attempt": attempt,
        "error": failed,
    }
    yield from runs_of(calls, value["trace"], facts)


def _assess(assessments: dict[str, Any], attributes: dict[str, Any]) -> None:
    name = attributes.get("gen_ai.evaluation.name")
    score, label = (attributes.get(f"gen_ai.evaluation.score.{kind}") for kind in ("value", "label"))
    if isinstance(name, str) and (score is not None or label is not None):
        assessments[name] = label if score is None else score


def _call(span: dict[str, Any], attributes: dict[str, Any], events: list[Any]) -> ChatCall:
    start = nanoseconds(span.get("startTimeUnixNano"), "startTimeUnixNano")
    check_span(start, nanoseconds(span.get("endTimeUnixNano") or 0, "endTimeUnixNano"))
    told = dict(attributes)
    for name, found, _ in events:
        if name == DETAILS:
            told |= found
    prompt = [
        *_turns(told.get("gen_ai.system_instructions"), "system"),
        *_turns(told.get("gen_ai.input.messages")),
    ]
    answer = [turn for turn in _turns(told.get("gen_ai.output.messages")) if turn.role == "agent"]
    if not prompt and not answer:
        prompt, answer = _old_events(events)
    model = told.get("gen_ai.response.model") or told.get("gen_ai.request.model")
    temperature = told.get("gen_ai.request.temperature")
    return ChatCall(
        start,
        prompt,
        answer[:1],
        tools_of(_decoded(told.get("gen_ai.tool.definitions"))),
        model if isinstance(model, str) else "",
        None if temperature is None else finite(temperature, "temperature", "gen_ai.request.temperature"),
    )


def _turns(messages: Any, role: str = "") -> list[Turn]:
    """The turns of messages in parts; `role` where the list is that of the parts of one message."""
    messages = _decoded(messages)
    if messages is None:
        return []
    if isinstance(messages, str) and role:
        messages = [{"type": "text", "content": messages}]
    if not isinstance(messages, list):
        raise Rejected("malformed_message", f"messages are {type(messages).__name__}, expected a list")
    if role:
        messages = [{"role": role, "parts": messages}]
    found: list[dict[str, Any]] = []
    for place, message in enumerate(messages):
        parts = message.get("parts") if isinstance(message, dict) else None
        if parts is None:
            found.append(message)  # OpenAI's own form, which instrumentations send too
        elif not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise Rejected("malformed_message", f"the parts of message {place} are no list of objects")
        else:
            found += _of_parts(message, parts)
    return turns_of(found)


def _of_parts(message: dict[str, Any], parts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A message in parts as one in OpenAI's form, and one for each result in it."""
    whole: dict[str, Any] = {"role": message.get("role"), "content": []}
    results = []
    for part in parts:
        kind = part.get("type")
        if kind == "tool_call":
            function = {"name": part.get("name"), "arguments": part.get("arguments")}
            whole.setdefault("tool_calls", []).append({"id": part.get("id"), "function": function})
        elif kind == "tool_call_response":
            content = part.get("response", part.get("result"))
            text = content if isinstance(content, str) else encoded(content).decode()
            results.append({"role": "tool", "tool_call_id": part.get("id"), "content": text})
        elif kind == "reasoning":
            whole["reasoning"] = part.get("content")
        else:
            whole["content"].append({"type": kind, "text": part.get("content")})
    if whole["content"] or "tool_calls" in whole or not results:
        yield whole
    yield from results


def _old_events(events: list[Any]) -> tuple[list[Turn], list[Turn]]:
    """Prompt and answer from events of one message each, whose body is in the event's attributes."""
    prompt, answer = [], []
    for name, attributes, _ in events:
        body = {key.removeprefix("gen_ai."): _decoded(value) for key, value in attributes.items()}
        if name in OLD_EVENTS:
            body.setdefault("tool_call_id", body.get("id"))
            prompt.append({"role": OLD_EVENTS[name], **body})
        elif name == "gen_ai.choice":
            message = body.get("message")
            answer.append({"role": "assistant", **(message if isinstance(message, dict) else body)})
    return turns_of(prompt), turns_of(answer)


def attributes_of(listed: Any) -> dict[str, Any]:
    """A list of OTLP's key-value pairs as an object. Raises Rejected."""
    if listed is None:
        return {}
    if not isinstance(listed, list):
        raise Rejected("not_this_format", f"attributes is {type(listed).__name__}, expected a list")
    return {
        one["key"]: any_value(one.get("value"))
        for one in listed
        if isinstance(one, dict) and isinstance(one.get("key"), str)
    }


def any_value(value: Any) -> Any:
    """OTLP's AnyValue as what it stands for. Raises Rejected."""
    if not isinstance(value, dict) or not value:
        return None
    kind, found = next(iter(value.items()))
    try:
        if kind == "intValue":
            return int(found)
        if kind == "doubleValue":
            return float(found)
        if kind == "bytesValue":
            return base64.b64decode(found).decode("utf-8", "replace")
    except (TypeError, ValueError, OverflowError, binascii.Error):
        raise Rejected("not_this_format", f"{kind} is {str(found)[:40]!r}") from None
    if kind == "arrayValue":
        return [any_value(one) for one in _objects(found, "values")]
    return attributes_of(found.get("values")) if kind == "kvlistValue" and isinstance(found, dict) else found


def _decoded(value: Any) -> Any:
    """An attribute that is structured, or the same as JSON text."""
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    try:
        return decoded(value)
    except (ValueError, RecursionError):
        return value
