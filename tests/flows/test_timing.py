"""Where the time of a round went, on hand-made tasks."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from project import HERE

MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)
RECORD: dict[str, Any] = {"seconds": {"collect": 10.0, "train": 30.0}, "around": {"collect": 1.5, "train": 2.0}}


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(HERE / "flows"), *sys.path])
    import timing

    return timing


def spans(timing: Any, *times: tuple[str, float, float]) -> list[Any]:
    return [timing.Span(name, at(start), at(end)) for name, start, end in times]


def at(second: float) -> datetime:
    return MIDNIGHT + timedelta(seconds=second)


def test_the_parts_add_up_from_the_event_to_the_close(timing: Any) -> None:
    run = SimpleNamespace(parameters={"announced": at(0).isoformat()}, expected_start_time=at(4))
    tasks = spans(timing, ("collect", 9, 21), ("train", 22, 55), ("close_round-1a2", 56, 60))
    lines = timing.measure(run, tasks, RECORD)
    assert [(line.name, line.seconds, line.orchestration) for line in lines] == [
        ("until the first stage", 9.0, True),
        ("collect", 10.0, False),
        ("", 2.0, True),
        ("train", 30.0, False),
        ("", 3.0, True),
        ("close", 4.0, False),
        ("between the tasks", 2.0, True),
    ]
    assert sum(line.seconds for line in lines) == 60
    assert "the event" in lines[0].told


def test_a_second_round_of_a_run_begins_where_the_first_was_closed(timing: Any) -> None:
    run = SimpleNamespace(parameters={"announced": at(0).isoformat()}, expected_start_time=at(4))
    tasks = spans(timing, ("collect", 9, 21), ("close_round-1", 22, 24), ("collect", 25, 37), ("close_round-2", 38, 40))
    lines = timing.measure(run, tasks, RECORD)
    assert sum(line.seconds for line in lines) == 16
    assert "the closing before" in lines[0].told


def test_without_an_event_it_begins_when_the_run_was_due(timing: Any) -> None:
    run = SimpleNamespace(parameters={}, expected_start_time=at(4))
    lines = timing.measure(run, spans(timing, ("collect", 9, 21), ("close_round-1", 22, 24)), RECORD)
    assert lines[0][:2] == ("until the first stage", 5.0)
    assert "due" in lines[0].told
