"""A real traced run of an agent, in a store on SQLite, and dumped as lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retroformer import cli
from retroformer.errors import DataError
from retroformer.importers.importing import import_logs
from retroformer.storage import read_trajectories
from retroformer.tracking.traces import read_traces
from retroformer.types import Outcome
from tiny_logs import rules, write_lines

FIND = {"type": "function", "function": {"name": "find", "description": "Find.", "parameters": {"type": "object"}}}


def completion(messages: list[dict[str, Any]], tools: list[Any], model: str, temperature: float) -> dict[str, Any]:
    """What an OpenAI-style client gives back: a call first, then words."""
    if messages[-1]["role"] == "user":
        function = {"name": "find", "arguments": '{"id": 7}'}
        message = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        }
    else:
        message = {"role": "assistant", "content": "It is " + json.loads(messages[-1]["content"])["status"] + "."}
    return {"id": "x", "model": model, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three runs: judged good, judged bad, and one that raised."""
    import mlflow
    from mlflow.entities import AssessmentSource, SpanType

    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment("desk", artifact_location=str(folder / "artifacts"))
    mlflow.set_experiment("desk")
    chat = mlflow.trace(completion, span_type=SpanType.CHAT_MODEL)

    @mlflow.trace(span_type=SpanType.TOOL)
    def find(id: int) -> dict[str, str]:
        if id == 9:
            raise ConnectionError("no database")
        return {"status": "open" if id == 7 else "closed"}

    @mlflow.trace(span_type=SpanType.AGENT)
    def run(order: int) -> str:
        messages = [{"role": "system", "content": "You run the desk."}, {"role": "user", "content": f"Order {order}?"}]
        mlflow.update_current_trace(tags={"retroformer.task": "desk:status", "retroformer.task_id": str(order)})
        said = chat(list(messages), [FIND], "m-1", 0.5)["choices"][0]["message"]
        messages += [said, {"role": "tool", "tool_call_id": "c1", "content": json.dumps(find(order))}]
        return chat(list(messages), [FIND], "m-1", 0.5)["choices"][0]["message"]["content"]

    try:
        for order in (7, 8, 9):
            try:
                run(order)
            except ConnectionError:
                continue
            mlflow.flush_trace_async_logging()
            mlflow.log_feedback(
                trace_id=mlflow.get_last_active_trace_id(),
                name="solved",
                value="yes" if order == 7 else "no",
                source=AssessmentSource(source_type="CODE", source_id="checker"),
            )
        mlflow.flush_trace_async_logging()
    finally:
        mlflow.set_tracking_uri(before)
    return uri


def test_a_store_by_command(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["import", store, "--format", "mlflow", "--experiment", "desk", "--assessment", "solved"]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "import: read 3, accepted 3, repeated 0, quarantined 0" in capsys.readouterr().out
    good, bad, broken = sorted(read_trajectories(tmp_path / "out"), key=lambda one: one.steps[0].observation)
    assert [one.outcome for one in (good, bad, broken)] == [Outcome.SUCCESS, Outcome.FAILURE, Outcome.ERROR]
    assert broken.error == "the trace ended in an error"
    assert [step.observation for step in good.steps] == [
        "Order 7?",
        '<tool_response>\n{"status": "open"}\n</tool_response>',
    ]
    assert good.steps[0].action == '<tool_call>\n{"name": "find", "arguments": {"id": 7}}\n</tool_call>'
    assert good.steps[1].action == "It is open."
    assert good.task.description.startswith("You run the desk.\n\nTools,")
    assert (good.task.environment, good.task.name, good.policy, good.temperature) == ("desk", "status", "m-1", 0.5)
    assert good.source.startswith(f"{store}:tr-")


def test_the_same_from_lines(store: str, tmp_path: Path) -> None:
    traces = [trace for _, trace in read_traces(store, ["desk"])]
    path = write_lines(tmp_path / "traces.jsonl", traces)
    rule = rules(assessment="solved")
    import_logs([path], "mlflow", tmp_path / "out", rule)
    cli.main(["import", store, "--format", "mlflow", "--assessment", "solved", "--out", str(tmp_path / "direct")])
    direct = {one.id for one in read_trajectories(tmp_path / "direct")}
    assert {one.id for one in read_trajectories(tmp_path / "out")} == direct
    bad = [{"info": {}}, {"info": {}, "data": {"spans": [1]}}, traces[0] | {"data": {"spans": []}}]
    report = import_logs([write_lines(path, bad)], "mlflow", tmp_path / "bad", rule, max_quarantined=1.0)
    assert report["reasons"] == {"not_this_format": 2, "no_agent_step": 1}


def test_a_store_that_is_not_there(store: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.db does not exist"):
        list(read_traces(f"sqlite:///{tmp_path}/nothing.db", []))
    with pytest.raises(DataError, match="has no experiment 'dsk'; it has Default, desk"):
        list(read_traces(store, ["dsk"]))
