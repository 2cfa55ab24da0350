"""From an event to a promoted model: where the time of the newest closed round went. `python flows/timing.py`.

Prefect knows when the event was sent and when each task began and ended, round.json what each stage took by itself and
around it. Asked is the server that PREFECT_API_URL names, else the project's own database.
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import improve  # first: it sets what Prefect reads when it is imported

# isort: split
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, TaskRunFilter, TaskRunFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import TaskRunSort

from retroformer.errors import RetroformerError
from retroformer.pins import read_pins
from retroformer.tracking.record import read_records

CLOSE = "close_round"


class Span(NamedTuple):
    """A task of a flow run."""

    name: str
    start: datetime
    end: datetime

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.end - self.start).total_seconds()

    @property
    def closes(self) -> bool:
        """Whether it closed a round."""
        return self.name.startswith(CLOSE)


class Line(NamedTuple):
    """A part of the time; all lines add up to the whole."""

    name: str
    seconds: float
    orchestration: bool
    told: str


def last_run(client: SyncPrefectClient) -> tuple[FlowRun, list[Span]]:
    """The run that closed a round last, and its tasks in order. Raises LookupError where none has."""
    closings = client.read_task_runs(
        task_run_filter=TaskRunFilter(name=TaskRunFilterName(like_=CLOSE)), sort=TaskRunSort.END_TIME_DESC, limit=20
    )
    run_id = next((one.flow_run_id for one in closings if one.state and one.state.is_completed()), None)
    if run_id is None:
        raise LookupError("no run on this server has closed a round")
    found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
    spans = [Span(one.name, one.start_time, one.end_time) for one in found if one.start_time and one.end_time]
    return client.read_flow_run(run_id), sorted(spans, key=lambda span: span.start)


def measure(run: FlowRun, spans: list[Span], record: dict[str, Any]) -> list[Line]:
    """Where the time of the last round went that the run closed, from what started it."""
    *before, closing = [place for place, span in enumerate(spans) if span.closes]
    tasks = spans[before[-1] + 1 if before else 0 : closing + 1]
    announced = str((run.parameters or {}).get("announced") or "")
    began, what = run.expected_start_time or tasks[0].start, "the time it was due"
    if before:
        began, what = spans[before[-1]].end, "the closing before"
    elif announced:
        began, what = datetime.fromisoformat(announced), "the event"
    waited = (tasks[0].start - began).total_seconds()
    lines = [Line("until the first stage", waited, True, f"from {what}: trigger, worker, the run's process")]
    for span in tasks:
        if span.closes:
            lines.append(Line("close", span.seconds, False, "register, append to the history, move the pins, push"))
            continue
        own, around = (record[key].get(span.name, 0.0) for key in ("seconds", "around"))
        lines.append(Line(span.name, min(own, span.seconds), False, "the stage itself"))
        told = f"around it: DVC and the interpreter {around:.1f} s, the rest Prefect and attempts before"
        lines.append(Line("", max(0.0, span.seconds - own), True, told))
    between = (tasks[-1].end - tasks[0].start).total_seconds() - sum(span.seconds for span in tasks)
    return [*lines, Line("between the tasks", between, True, "Prefect's states and artifacts")]


def main() -> int:
    """Print the table. Returns the exit code."""
    try:
        closed = read_pins(improve.PINS).closed_rounds
        if not closed:
            raise LookupError("no round is closed yet")
        record = read_records(Path(), closed)[-1]
        with get_client(sync_client=True) as client:
            run, spans = last_run(client)
    except (LookupError, RetroformerError) as error:
        print(f"timing: error: {error}", file=sys.stderr)
        return 2
    lines = measure(run, spans, record)
    whole = sum(line.seconds for line in lines)
    spent = sum(line.seconds for line in lines if line.orchestration)
    print(f"round {closed}, {record['verdict'].replace('_', ' ')}, closed by the run {run.name} in {whole:.1f} s")
    for line in lines:
        print(f"  {line.name:<22}{line.seconds:8.1f} s {'*' if line.orchestration else ' '} {line.told}")
    print(f"* orchestration: {spent:.1f} s, {spent / whole:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
