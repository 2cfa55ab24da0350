"""OpenTelemetry spans: traces gathered from lines in any order, conversations cut where a prompt extends none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retroformer.importers.importing import import_logs
from retroformer.importers.otlp import any_value
from retroformer.importers.records import Rejected
from retroformer.storage import read_trajectories
from retroformer.types import Outcome, Trajectory
from tiny_logs import quarantined, rules, write_lines

TOOL = [{"type": "function", "name": "find", "description": "Find.", "parameters": {"type": "object"}}]


def value_of(value: Any) -> dict[str, Any]:
    """An AnyValue, structured where the value is."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [value_of(one) for one in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": attributes(value)}}
    return {"stringValue": value}


def attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value_of(value)} for key, value in values.items()]


def span(n: int, trace: str = "t1", parent: str = "root", **values: Any) -> dict[str, Any]:
    events = values.pop("events", [])
    return {
        "traceId": trace,
        "spanId": f"s{n}",
        "parentSpanId": parent,
        "name": "x",
        "startTimeUnixNano": str(1_000_000_000 + n),
        "endTimeUnixNano": str(1_000_000_500 + n),
        "attributes": attributes(values),
        "events": events,
    }


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


CALL = {
    "role": "assistant",
    "parts": [
        {"type": "reasoning", "content": "Find it."},
        {"type": "tool_call", "id": "c1", "name": "find", "arguments": {"id": 7}},
    ],
    "finish_reason": "tool_call",
}
RESULT = {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": {"status": "open"}}]}


def chat(n: int, prompt: list[Any], answer: Any, structured: bool = False, **more: Any) -> dict[str, Any]:
    values = {
        "gen_ai.system_instructions": [{"type": "text", "content": "You run the desk."}],
        "gen_ai.input.messages": prompt,
        "gen_ai.output.messages": [answer],
        "gen_ai.tool.definitions": TOOL,
    }
    told = values if structured else {key: json.dumps(value) for key, value in values.items()}
    return span(
        n,
        **{
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "m-1",
            "gen_ai.request.temperature": 0.5,
            **told,
            **more,
        },
    )


def root(trace: str = "t1", **values: Any) -> dict[str, Any]:
    return span(0, trace, parent="", **{"gen_ai.operation.name": "invoke_agent", **values})


def request(*spans: dict[str, Any]) -> dict[str, Any]:
    resource = {"attributes": attributes({"service.name": "desk"})}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]}


FIRST = chat(1, [said("user", "Refund 7.")], CALL)
SECOND = chat(2, [said("user", "Refund 7."), CALL, RESULT], said("assistant", "It is open."), structured=True)


def load(tmp_path: Path, *requests: Any, **names: str) -> tuple[dict[str, Any], list[Trajectory]]:
    path = write_lines(tmp_path / "spans.jsonl", list(requests))
    report = import_logs([path], "otlp", tmp_path / "out", rules(**names), max_quarantined=1.0, afresh=True)
    return report, read_trajectories(tmp_path / "out")


def test_the_spans_of_a_trace_from_lines_in_any_order(tmp_path: Path) -> None:
    report, [found] = load(tmp_path, request(SECOND), request(root(reward=1.0)), request(FIRST))
    assert (report["read"], report["accepted"]) == (1, 1)
    assert found.task.description.startswith("You run the desk.\n\nTools,")
    assert [step.observation for step in found.steps] == [
        "Refund 7.",
        '<tool_response>\n{"status":"open"}\n</tool_response>',
    ]
    assert found.steps[0].action.startswith("<think>\nFind it.\n</think>\n<tool_call>\n")
    assert found.steps[1].action == "It is open."
    assert (found.outcome, found.policy, found.temperature) == (Outcome.SUCCESS, "m-1", 0.5)
    assert found.source == f"{tmp_path}/spans.jsonl:1"
    _, [same] = load(tmp_path, request(root(reward=1.0), FIRST, SECOND))
    assert same.id == found.id


def test_a_prompt_that_extends_none_begins_a_conversation_of_its_own(tmp_path: Path) -> None:
    other = chat(
        3,
        [said("user", "Summary: 7 is open."), said("assistant", "Noted."), said("user", "Now?")],
        said("assistant", "Done."),
    )
    report, [first, second] = load(tmp_path, request(root(success=True), FIRST, SECOND, other))
    assert (report["accepted"], report["episodes"]) == (1, 2)
    [step] = second.steps
    assert (step.observation, step.action) == ("Summary: 7 is open.\nNoted.\nNow?", "Done.")
    assert second.source.endswith("#1")
    assert (first.outcome, second.outcome) == (Outcome.SUCCESS, Outcome.SUCCESS)
    assert (first.rewards, second.rewards) == ((0.0, 1.0), (1.0,))


def test_conversations_that_run_at_the_same_time_are_kept_apart(tmp_path: Path) -> None:
    one = [
        chat(1, [said("user", "a")], said("assistant", "b")),
        chat(3, [said("user", "a"), said("assistant", "b"), said("user", "c")], said("assistant", "d")),
    ]
    two = [
        chat(2, [said("user", "A")], said("assistant", "B")),
        chat(4, [said("user", "A"), said("assistant", "B"), said("user", "C")], said("assistant", "D")),
    ]
    _, found = load(tmp_path, request(root(), *one, *two))
    assert [[step.action for step in run.steps] for run in found] == [["b", "d"], ["B", "D"]]


def test_messages_in_the_events_of_old_and_new_conventions(tmp_path: Path) -> None:
    details = {
        "name": "gen_ai.client.inference.operation.details",
        "attributes": attributes(
            {"gen_ai.input.messages": [said("user", "a")], "gen_ai.output.messages": [said("assistant", "b")]}
        ),
    }
    new = span(1, events=[details], **{"gen_ai.operation.name": "chat"})
    message = {"role": "assistant", "content": "B"}
    events = [
        {"name": "gen_ai.system.message", "attributes": attributes({"content": "S"})},
        {"name": "gen_ai.user.message", "attributes": attributes({"content": "A"})},
        {"name": "gen_ai.choice", "attributes": attributes({"index": 0, "message": json.dumps(message)})},
    ]
    old = span(2, "t2", events=events, **{"gen_ai.operation.name": "chat"})
    _, found = load(tmp_path, request(root(), new), request(root("t2"), old))
    assert [(run.task.description, run.steps[0].observation, run.steps[0].action) for run in found] == [
        ("", "a", "b"),
        ("S", "A", "B"),
    ]


def test_an_evaluation_is_an_assessment(tmp_path: Path) -> None:
    judged = {
        "name": "gen_ai.evaluation.result",
        "attributes": attributes({"gen_ai.evaluation.name": "solved", "gen_ai.evaluation.score.label": "pass"}),
    }
    _, [found] = load(tmp_path, request(root(events=[judged]), FIRST, SECOND), assessment="solved")
    assert found.outcome is Outcome.SUCCESS


def test_a_run_that_broke_is_an_error(tmp_path: Path) -> None:
    broken = {**root(reward=0.0), "status": {"code": 2, "message": "timeout"}}
    _, [found] = load(tmp_path, request(broken, FIRST, SECOND))
    assert (found.outcome, found.error) == (Outcome.ERROR, "timeout")


BAD = {
    "not_this_format": {"spans": []},
    "no_agent_step": request(root()),
    "timestamps_out_of_order": request(root(), {**FIRST, "endTimeUnixNano": "5"}),
    "invalid_timestamp": request(root(), {**FIRST, "startTimeUnixNano": "soon"}),
    "malformed_message": request(root(), span(1, **{"gen_ai.operation.name": "chat", "gen_ai.input.messages": 7})),
    "reward_not_a_number": request(root(reward="high"), FIRST, SECOND),
    "call_without_result": request(
        root(), FIRST, chat(2, [said("user", "Refund 7."), CALL, said("user", "?")], said("assistant", "Hm."))
    ),
    "invalid_attempt": request(root(**{"retroformer.attempt": "two"}), FIRST),
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_traces(reason: str, tmp_path: Path) -> None:
    good = request(root("t9"), *({**one, "traceId": "t9"} for one in (FIRST, SECOND)))
    report, _ = load(tmp_path, BAD[reason], good)
    assert report["reasons"] == {reason: 1}
    assert (report["read"], report["accepted"]) == (2, 1)
    assert quarantined(tmp_path / "out")[0]["source"] == f"{tmp_path}/spans.jsonl:1"


def test_values() -> None:
    assert any_value({"bytesValue": "aGk="}) == "hi"
    assert any_value({}) is None
    for bad in ({"intValue": "x"}, {"doubleValue": None}, {"bytesValue": 3}):
        with pytest.raises(Rejected, match="not_this_format"):
            any_value(bad)
