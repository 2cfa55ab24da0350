"""ATIF in and out; what is written is checked against the published models of the format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from atif import Trajectory as Published

from builders import make_error, make_trajectory
from retroformer.environments.splits import of_instance
from retroformer.importers.atif import VERSIONS
from retroformer.importers.atif_export import document
from retroformer.importers.importing import export_atif, import_logs
from retroformer.storage import TrajectoryWriter, read_trajectories
from retroformer.types import Outcome, Step
from tiny_logs import REFUND, import_chat, quarantined, rules, write_lines

RUN: dict[str, Any] = {
    "schema_version": "ATIF-v1.6",
    "trajectory_id": "t1",
    "agent": {
        "name": "desk-agent",
        "version": "1.0",
        "model_name": "m-1",
        "tool_definitions": [
            {"type": "function", "function": {"name": "find", "description": "Find.", "parameters": {}}}
        ],
    },
    "steps": [
        {"step_id": 1, "source": "system", "message": "You run the order desk.", "timestamp": "2026-01-01T10:00:00Z"},
        {"step_id": 2, "source": "user", "message": "Refund order 7."},
        {
            "step_id": 3,
            "source": "agent",
            "message": "Let me look.",
            "reasoning_content": "Find it.",
            "tool_calls": [
                {"tool_call_id": "a", "function_name": "find", "arguments": {"id": 7}},
                {"tool_call_id": "b", "function_name": "find", "arguments": {"id": 8}},
            ],
            "observation": {
                "results": [
                    {"source_call_id": "a", "content": "open"},
                    {"source_call_id": "b", "content": [{"type": "text", "text": "closed"}]},
                ]
            },
            "metrics": {"completion_token_ids": [5, 6, 7], "logprobs": [-0.5, -0.25, -0.25]},
            "timestamp": "2026-01-01T10:00:05+00:00",
        },
        {"step_id": 4, "source": "agent", "message": "It is open."},
    ],
    "final_metrics": {"extra": {"reward": 0.5}},
}


def load(tmp_path: Path, *documents: Any, **names: str) -> dict[str, Any]:
    path = write_lines(tmp_path / "runs.jsonl", list(documents))
    return import_logs([path], "atif", tmp_path / "out", rules(1.0, **names), max_quarantined=1.0, afresh=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_read(version: str, tmp_path: Path) -> None:
    load(tmp_path, {**RUN, "schema_version": version})
    [found] = read_trajectories(tmp_path / "out")
    assert found.task.description.startswith("You run the order desk.\n\nTools,")
    assert found.steps[0].observation == "Refund order 7."
    assert found.steps[0].action.startswith("<think>\nFind it.\n</think>\nLet me look.\n<tool_call>\n")
    assert (found.steps[0].token_ids, found.steps[0].logprob) == ((5, 6, 7), -1.0)
    assert found.steps[1] == Step(
        "<tool_response>\nopen\n</tool_response>\n<tool_response>\nclosed\n</tool_response>", "It is open.", 0.5
    )
    assert (found.outcome, found.policy) == (Outcome.SUCCESS, "m-1")


def test_a_whole_document_in_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RUN, indent=2))
    assert import_logs([tmp_path], "atif", tmp_path / "out", rules())["steps"] == 2


def test_what_the_agent_did_not_say_here_is_told_not_learned(tmp_path: Path) -> None:
    first = {**RUN["steps"][2], "is_copied_context": True}
    fixed = {"step_id": 4, "source": "agent", "message": "One moment.", "llm_call_count": 0}
    load(tmp_path, {**RUN, "steps": [*RUN["steps"][:2], first, fixed, {**RUN["steps"][3], "step_id": 5}]})
    [found] = read_trajectories(tmp_path / "out")
    [step] = found.steps
    assert step.action == "It is open."
    assert step.observation.startswith("Refund order 7.\n<think>\nFind it.")
    assert step.observation.endswith("closed\n</tool_response>\nOne moment.")


def test_subagents_are_runs_of_their_own_with_their_own_outcome(tmp_path: Path) -> None:
    sub = {key: value for key, value in RUN.items() if key != "final_metrics"}
    report = load(tmp_path, {**RUN, "subagent_trajectories": [{**sub, "trajectory_id": "s1"}]})
    assert (report["read"], report["episodes"]) == (1, 2)
    assert report["outcomes"] == {"success": 1, "unknown": 1}
    assert [one.source[-2:] for one in read_trajectories(tmp_path / "out")] == [":1", "#1"]


BAD = {
    "not_this_format": {"messages": []},
    "unknown_schema_version": {**RUN, "schema_version": "ATIF-v9.0"},
    "unknown_role": {**RUN, "steps": [{"source": "robot", "message": ""}]},
    "no_agent_step": {**RUN, "steps": RUN["steps"][:2]},
    "call_without_result": {
        **RUN,
        "steps": [*RUN["steps"][:2], {**RUN["steps"][2], "observation": None}, RUN["steps"][3]],
    },
    "result_without_call": {
        **RUN,
        "steps": [*RUN["steps"][:2], {**RUN["steps"][2], "tool_calls": []}, RUN["steps"][3]],
    },
    "logprobs_of_wrong_length": {
        **RUN,
        "steps": [*RUN["steps"][:3], {**RUN["steps"][3], "metrics": {"completion_tokens": 2, "logprobs": [-1.0]}}],
    },
    "invalid_logprob": {**RUN, "steps": [*RUN["steps"][:3], {**RUN["steps"][3], "metrics": {"logprobs": [0.5]}}]},
    "timestamps_out_of_order": {
        **RUN,
        "steps": [*RUN["steps"][:3], {**RUN["steps"][3], "timestamp": "2026-01-01T09:00:00Z"}],
    },
    "reward_out_of_range": {**RUN, "extra": {"reward": 7}},
    "malformed_message": {
        **RUN,
        "steps": [*RUN["steps"][:3], {**RUN["steps"][3], "tool_calls": [{"function_name": "f"}]}],
    },
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_documents(reason: str, tmp_path: Path) -> None:
    report = load(tmp_path, BAD[reason], RUN)
    assert report["reasons"] == {reason: 1}
    assert report["accepted"] == 1
    assert quarantined(tmp_path / "out")[0]["source"] == f"{tmp_path}/runs.jsonl:1"


def test_what_is_exported_is_valid_and_comes_back_as_it_was(tmp_path: Path) -> None:
    broke = {"error": "no disk", "task": "desk:a:b", "attempt": 1}
    load(tmp_path, RUN, {**RUN, "trajectory_id": "t2", "final_metrics": None, "extra": {"temperature": 0.5, **broke}})
    count = export_atif(tmp_path / "out", tmp_path / "back.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "back.jsonl").read_text().splitlines()]
    assert count == len(lines) == 2
    for line in lines:
        Published.model_validate(line)
    import_logs([tmp_path / "back.jsonl"], "atif", tmp_path / "again", rules())
    before, after = read_trajectories(tmp_path / "out"), read_trajectories(tmp_path / "again")
    assert [replace(one, source="") for one in after] == [replace(one, source="") for one in before]
    assert after[0].source == f"{tmp_path}/back.jsonl:1 {before[0].source}"


def test_a_folders_own_export_adds_nothing_to_it(tmp_path: Path) -> None:
    import_chat(tmp_path, [{**REFUND, "id": f"r{n}", "task_id": str(n), "attempt": n % 2} for n in range(30)])
    before = read_trajectories(tmp_path / "out")
    export_atif(tmp_path / "out", tmp_path / "back.jsonl")
    for named in ({}, {"reward": "extra.reward"}):
        report = import_logs([tmp_path / "back.jsonl"], "atif", tmp_path / "out", rules(**named))
        assert (report["read"], report["repeated"], report["episodes"]) == (30, 30, 30)
    assert read_trajectories(tmp_path / "out") == before


def test_a_redacted_folders_own_export_adds_nothing_to_it(tmp_path: Path) -> None:
    secret = {**RUN, "steps": [*RUN["steps"][:3], {**RUN["steps"][3], "message": "Ask ann@example.org"}]}
    load(tmp_path, secret)
    export_atif(tmp_path / "out", tmp_path / "whole.jsonl")
    for path, redact in (("whole", ["email"]), ("whole", ["email"]), ("redacted", [])):
        report = import_logs([tmp_path / f"{path}.jsonl"], "atif", tmp_path / "two", rules(), redact=redact)
        assert (report["episodes"], report["quarantined"]) == (1, 0)
        export_atif(tmp_path / "two", tmp_path / "redacted.jsonl")
    assert "[email]" in (tmp_path / "redacted.jsonl").read_text()


def exported_lines(tmp_path: Path) -> list[dict[str, Any]]:
    export_atif(tmp_path / "out", tmp_path / "back.jsonl")
    return [json.loads(line) for line in (tmp_path / "back.jsonl").read_text().splitlines()]


def test_an_export_that_was_changed_is_another_run_of_the_same_instance(tmp_path: Path) -> None:
    import_chat(tmp_path, [REFUND])
    [before] = read_trajectories(tmp_path / "out")
    [line] = exported_lines(tmp_path)
    line["extra"] |= {"success": False, "reward": -1.0}
    write_lines(tmp_path / "back.jsonl", [line])
    import_logs([tmp_path / "back.jsonl"], "atif", tmp_path / "again", rules())
    [after] = read_trajectories(tmp_path / "again")
    assert (after.outcome, after.task, after.id == before.id) == (Outcome.FAILURE, before.task, False)
    options = {"max_quarantined": 1.0}
    report = import_logs([tmp_path / "back.jsonl"], "atif", tmp_path / "out", rules(), **options)
    assert (report["episodes"], report["reasons"]) == (1, {"conflicting_id": 1})


def test_the_outcome_of_an_export_is_what_a_function_says_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_chat(tmp_path, [REFUND])
    exported_lines(tmp_path)
    (tmp_path / "says.py").write_text("def no(trajectory):\n    return False\n")
    monkeypatch.chdir(tmp_path)
    import_logs([tmp_path / "back.jsonl"], "atif", tmp_path / "again", rules(function="says:no"))
    [after] = read_trajectories(tmp_path / "again")
    assert (after.outcome, after.task) == (Outcome.FAILURE, read_trajectories(tmp_path / "out")[0].task)


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("retroformer", "seed", "7"),
        ("retroformer", "seed", 2**63),
        ("retroformer", "family", 3),
        ("retroformer", "previous_id", [1]),
        ("extra", "attempt", True),
        ("step", "reward", "much"),
        ("step", "logprob", [-1.0]),
        ("step", "admissible_actions", [1, 2]),
    ],
)
def test_an_export_with_something_of_another_kind_ends_no_import(
    place: str, key: str, value: Any, tmp_path: Path
) -> None:
    import_chat(tmp_path, [REFUND])
    [line] = exported_lines(tmp_path)
    extra = line["extra"]
    {"retroformer": extra["retroformer"], "extra": extra, "step": line["steps"][-1]["extra"]}[place][key] = value
    write_lines(tmp_path / "back.jsonl", [line])
    report = import_logs([tmp_path / "back.jsonl"], "atif", tmp_path / "again", rules(), max_quarantined=1.0)
    assert report["accepted"] + report["quarantined"] == report["read"] == 1
    assert "not_understood" not in report["reasons"]


def test_a_session_keeps_runs_apart_that_say_the_same(tmp_path: Path) -> None:
    alike = {key: value for key, value in RUN.items() if key != "trajectory_id"}
    sessions = [{**alike, "session_id": f"s{n}"} for n in (1, 2, 2)]
    other = {**sessions[0], "final_metrics": None}  # a segment of the same session is no contradiction
    sub = {**alike, "subagent_trajectories": [{**alike, "trajectory_id": "a"}]}
    report = load(tmp_path, *sessions, other, {**sub, "session_id": "s3"}, {**sub, "session_id": "s4"})
    assert (report["read"], report["episodes"], report["repeated"], report["reasons"]) == (6, 7, 1, {})
    named = {**alike, "trajectory_id": "main"}  # the same name in every session
    report = load(
        tmp_path,
        *({**named, "session_id": f"s{n}"} for n in (1, 2)),
        {**named, "session_id": "s1", "extra": {"reward": 0.0}},
    )
    assert (report["episodes"], report["reasons"]) == (2, {"conflicting_id": 1})


def test_played_choices_and_odd_texts_are_exported_whole(tmp_path: Path) -> None:
    odd = Step(
        "say </tool_response>\n<tool_response>\nx\n</tool_response> ok", '<tool_call>\n{"name": 3}\n</tool_call>', 1.0
    )
    chosen = make_trajectory(attempt=1, previous_id="before", family="f")
    broken = make_error(seed=2, steps=())
    texts = replace(make_trajectory(seed=1), steps=(odd, Step("<tool_response>\nx\n</tool_response>", "bye", 0.0)))
    (tmp_path / "in").mkdir()
    with TrajectoryWriter(tmp_path / "in") as writer:
        for one in (chosen, broken, texts):
            writer.add(one)
    for line in map(document, (chosen, broken, texts)):
        Published.model_validate(line)
    export_atif(tmp_path / "in", tmp_path / "back.jsonl")
    import_logs([tmp_path / "back.jsonl"], "atif", tmp_path / "again", rules())
    for before, after in zip((chosen, broken, texts), read_trajectories(tmp_path / "again"), strict=True):
        of_a_log = replace(before.task, split=of_instance(before.task.id))
        assert replace(after, source="") == replace(before, task=of_a_log, source="")
    assert document(chosen)["steps"][-1]["extra"]["admissible_actions"] == ["left", "right", "forward"]
