"""ATIF in and out; what is written is checked against the published models of the format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from atif import Trajectory as Published

from builders import make_trajectory
from retroformer.importers.atif import VERSIONS, document
from retroformer.importers.importing import export_atif, import_logs
from retroformer.storage import TrajectoryWriter, read_trajectories
from retroformer.types import Outcome, Step
from tiny_logs import quarantined, rules, write_lines

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


def test_what_is_exported_is_valid_and_comes_back(tmp_path: Path) -> None:
    load(tmp_path, RUN, {**RUN, "trajectory_id": "t2", "final_metrics": None, "extra": {"temperature": 0.5}})
    count = export_atif(tmp_path / "out", tmp_path / "back.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "back.jsonl").read_text().splitlines()]
    assert count == len(lines) == 2
    for line in lines:
        Published.model_validate(line)
    import_logs([tmp_path / "back.jsonl"], "atif", tmp_path / "again", rules())
    for before, after in zip(read_trajectories(tmp_path / "out"), read_trajectories(tmp_path / "again"), strict=True):
        assert after.steps == before.steps
        assert after.task.description == before.task.description
        assert (after.outcome, after.policy, after.temperature) == (before.outcome, before.policy, before.temperature)


def test_played_choices_and_odd_texts_are_exported_whole(tmp_path: Path) -> None:
    odd = Step(
        "say </tool_response>\n<tool_response>\nx\n</tool_response> ok", '<tool_call>\n{"name": 3}\n</tool_call>', 1.0
    )
    chosen = make_trajectory()
    texts = replace(make_trajectory(seed=1), steps=(odd, Step("<tool_response>\nx\n</tool_response>", "bye", 0.0)))
    (tmp_path / "in").mkdir()
    with TrajectoryWriter(tmp_path / "in") as writer:
        for one in (chosen, texts):
            writer.add(one)
    for line in map(document, (chosen, texts)):
        Published.model_validate(line)
    export_atif(tmp_path / "in", tmp_path / "back.jsonl")
    import_logs([tmp_path / "back.jsonl"], "atif", tmp_path / "again", rules())
    back = read_trajectories(tmp_path / "again")
    assert [(s.observation, s.action, s.reward) for s in back[0].steps] == [
        (s.observation, s.action, s.reward) for s in chosen.steps
    ]
    assert document(chosen)["steps"][-1]["extra"]["admissible_actions"] == ["left", "right", "forward"]
    assert back[1].steps == texts.steps
