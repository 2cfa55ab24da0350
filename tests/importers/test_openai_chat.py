"""Chat JSONL, from a file to the tables: the rules of conversation.py on runs that a person can check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retroformer.chat import read_action
from retroformer.storage import read_trajectories
from retroformer.types import Outcome, StopReason
from tiny_logs import REFUND, import_chat, quarantined


def test_a_run_becomes_a_trajectory(tmp_path: Path) -> None:
    report = import_chat(tmp_path, [REFUND])
    [found] = read_trajectories(tmp_path / "out")
    assert found.task.id.startswith("desk:refund#")
    assert found.task.description.startswith("You run the order desk.\n\nTools, one JSON schema a line:\n<tools>\n")
    assert [step.observation for step in found.steps] == [
        "Refund order 7.",
        '<tool_response>\n{"status": "open"}\n</tool_response>',
    ]
    assert found.steps[0].action == (
        '<think>\nFind it first.\n</think>\n<tool_call>\n{"name": "find", "arguments": {"id": 7}}\n</tool_call>'
    )
    assert found.steps[1].action == "It is open, so no refund."
    assert [step.reward for step in found.steps] == [0.0, 1.0]
    assert (found.outcome, found.stop_reason) == (Outcome.SUCCESS, StopReason.LOG_END)
    assert (found.policy, found.temperature, found.source) == ("m-1", 0.5, f"{tmp_path}/log.jsonl:1")
    assert found.task.split in ("train", "checkpoint", "evaluation")
    assert (report["read"], report["accepted"], report["quarantined"], report["steps"]) == (1, 1, 0, 2)


def test_several_results_are_one_observation_and_several_calls_one_action(tmp_path: Path) -> None:
    calls = [{"id": f"c{n}", "function": {"name": "find", "arguments": {"id": n}}} for n in (1, 2)]
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Compare"}, {"type": "text", "text": "1 and 2"}]},
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "user", "content": "Quick!"},
        {"role": "assistant", "content": "Same."},
    ]
    import_chat(tmp_path, [{"messages": messages}])
    [found] = read_trajectories(tmp_path / "out")
    assert found.steps[0].observation == "Compare\n1 and 2"
    assert [call.arguments for call in read_action(found.steps[0].action).calls] == [{"id": 1}, {"id": 2}]
    assert found.steps[1].observation == (
        "<tool_response>\ntwo\n</tool_response>\n<tool_response>\none\n</tool_response>\nQuick!"
    )
    assert found.outcome is Outcome.UNKNOWN


def test_what_an_agent_wrote_wrongly_stays_as_it_was(tmp_path: Path) -> None:
    call = {"id": "a", "function": {"name": "find", "arguments": '{"id": 7'}}
    messages = [
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": "Now.", "tool_calls": [call]},
    ]
    import_chat(tmp_path, [{"messages": messages, "success": False}])
    [found] = read_trajectories(tmp_path / "out")
    assert '"arguments": {"id": 7}' in found.steps[0].action
    assert len(read_action(found.steps[0].action).malformed) == 1
    assert found.outcome is Outcome.FAILURE


def test_turns_with_nothing_between_are_one_action_without_tokens(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Say two things."},
        {"role": "assistant", "content": "One.", "logprobs": [-1.0]},
        {"role": "assistant", "content": "Two.", "logprobs": [-1.0]},
    ]
    import_chat(tmp_path, [{"messages": messages, "reward": 0.5}])
    [found] = read_trajectories(tmp_path / "out")
    [step] = found.steps
    assert (step.observation, step.action, step.logprob, step.reward) == ("Say two things.", "One.\nTwo.", None, 0.5)
    assert found.task.description == ""


def test_logprobs_are_summed_and_a_greedy_run_has_none(tmp_path: Path) -> None:
    def run(temperature: float, **message: object) -> dict[str, object]:
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", **message}]
        return {"messages": messages, "temperature": temperature}

    api = {"logprobs": {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}]}}
    import_chat(
        tmp_path,
        [run(1.0, **api), run(0.7, token_ids=[5, 6], logprobs=[-1.0, -2.0]), run(0, token_ids=[5], logprobs=[-1.0])],
    )
    found = {one.source[-1]: one for one in read_trajectories(tmp_path / "out")}
    assert [found[n].steps[0].logprob for n in "123"] == [-0.75, -3.0, None]
    assert [found[n].steps[0].token_ids for n in "123"] == [None, (5, 6), (5,)]
    assert [found[n].temperature for n in "123"] == [1.0, 0.7, 1.0]


def test_rewards_of_steps_stay_where_they_are(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reward": 0.25},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "reward": 0.5},
    ]
    import_chat(tmp_path, [{"messages": messages, "success": True}])
    [found] = read_trajectories(tmp_path / "out")
    assert found.rewards == (0.25, 0.5)
    assert found.outcome is Outcome.SUCCESS
    report = import_chat(tmp_path, [{"messages": messages, "success": True}], highest=0.4, afresh=True)
    assert report["reasons"] == {"reward_out_of_range": 1}


def test_attempts_are_linked_whatever_the_order(tmp_path: Path) -> None:
    records = [{**REFUND, "id": f"r{attempt}", "task_id": "7", "attempt": attempt} for attempt in (2, 0, 1, 5)]
    import_chat(tmp_path, records)
    found = {one.attempt: one for one in read_trajectories(tmp_path / "out")}
    assert found[0].previous_id is None
    assert (found[1].previous_id, found[2].previous_id) == (found[0].id, found[1].id)
    assert found[5].previous_id == "not in these logs"
    assert len({one.task.id for one in found.values()}) == 1
    assert len({one.task.split for one in found.values()}) == 1


BAD = {
    "not_this_format": {"prompt": "hello"},
    "unknown_role": {"messages": [{"role": "wizard", "content": "x"}]},
    "malformed_message": {"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]},
    "not_text": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    "no_agent_step": {"messages": [{"role": "user", "content": "x"}]},
    "empty_action": {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]},
    "empty_observation": {"messages": [{"role": "assistant", "content": "x"}]},
    "result_without_call": {"messages": [{"role": "tool", "tool_call_id": "x", "content": "1"}]},
    "call_without_result": {"messages": [*REFUND["messages"][:3], *REFUND["messages"][4:]]},
    "reward_not_a_number": {**REFUND, "reward": "1.0"},
    "reward_not_finite": {**REFUND, "reward": float("nan")},
    "reward_out_of_range": {**REFUND, "reward": 7.0},
    "success_not_a_truth_value": {**REFUND, "success": "perhaps"},
    "invalid_attempt": {**REFUND, "attempt": -1},
    "invalid_temperature": {**REFUND, "temperature": -1.0},
    "temperature_not_a_number": {**REFUND, "temperature": "hot"},
    "malformed_tools": {**REFUND, "tools": [{"type": "function"}]},
    "malformed_field": {**REFUND, "id": ["r1"]},
    "invalid_logprob": {"messages": [{"role": "user", "content": "x"}, {**REFUND["messages"][4], "logprobs": [0.1]}]},
    "logprobs_of_wrong_length": {
        "messages": [
            {"role": "user", "content": "x"},
            {**REFUND["messages"][4], "logprobs": [-1.0], "token_ids": [1, 2]},
        ]
    },
    "invalid_token_ids": {"messages": [{"role": "user", "content": "x"}, {**REFUND["messages"][4], "token_ids": [-1]}]},
    "timestamps_out_of_order": {
        "messages": [
            {"role": "user", "content": "x", "timestamp": "2026-01-01T10:00:00Z"},
            {"role": "assistant", "content": "y", "timestamp": "2026-01-01T09:59:59Z"},
        ]
    },
    "invalid_timestamp": {"messages": [{"role": "user", "content": "x", "timestamp": "soon"}]},
}


@pytest.mark.parametrize("reason", BAD)
def test_what_cannot_be_believed_is_in_quarantine_with_its_reason(reason: str, tmp_path: Path) -> None:
    report = import_chat(tmp_path, [BAD[reason], REFUND], highest=1.0)
    assert report["reasons"] == {reason: 1}
    assert (report["read"], report["accepted"], report["quarantined"], report["episodes"]) == (2, 1, 1, 1)
    [entry] = quarantined(tmp_path / "out")
    assert entry["source"] == f"{tmp_path}/log.jsonl:1"
    assert json.loads(entry["record"]).keys() == BAD[reason].keys()
