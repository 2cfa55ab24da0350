"""Trajectories as ATIF documents, and such documents as the trajectories that they were: ids and instances stay.

What ATIF has no field for is in ``extra.retroformer`` of the document and in ``extra`` of its steps.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from typing import Any

import pyarrow as pa

from retroformer.chat import ToolCall, read_action, write_action, write_result
from retroformer.storage import EPISODES, STEPS, episode_row, step_rows
from retroformer.types import Outcome, Step, StopReason, Task, Trajectory

VERSION = "ATIF-v1.8"
OWN = "retroformer"
"""Key in a document's ``extra`` of what only this project knows of a trajectory."""
RESULT = re.compile(r"<tool_response>\n(.*?)\n</tool_response>", re.DOTALL)


def document(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as an ATIF v1.8 document, which `restored` makes the same trajectory again.

    The description (system prompt and tools, as the agent read them) is the system step. Calls that cannot be read,
    and choices among admissible actions, stay in the message as they were. ATIF has log-probabilities for tokens
    alone: the sum over an action's is ``extra.logprob`` of its step.
    """
    task = trajectory.task
    steps: list[dict[str, Any]] = [{"source": "system", "message": task.description}] if task.description else []
    open_calls: list[str] = []
    for t, step in enumerate(trajectory.steps):
        said, results = _told(step.observation, open_calls)
        if results:
            steps[-1]["observation"] = {"results": results}
        if said:
            steps.append({"source": "user", "message": said})
        steps.append(_agent_step(t, step))
        open_calls = [call["tool_call_id"] for call in steps[-1].get("tool_calls", ())]
    extra: dict[str, Any] = {
        "task": f"{task.environment}:{task.name}",
        "task_id": str(task.seed),
        "attempt": trajectory.attempt,
        "temperature": trajectory.temperature,
        "outcome": trajectory.outcome.value,
        "stop_reason": trajectory.stop_reason.value,
        OWN: {
            "environment": task.environment,
            "family": task.family,
            "name": task.name,
            "seed": task.seed,
            "split": task.split,
            "previous_id": trajectory.previous_id,
            "source": trajectory.source,
        },
    }
    if trajectory.learnable:
        extra |= {"reward": trajectory.total_reward, "success": trajectory.outcome is Outcome.SUCCESS}
    if trajectory.error is not None:
        extra["error"] = trajectory.error
    return {
        "schema_version": VERSION,
        "trajectory_id": trajectory.id,
        "agent": {"name": OWN, "version": trajectory.policy, "model_name": trajectory.policy},
        "steps": [{"step_id": number, **step} for number, step in enumerate(steps, 1)],
        "extra": extra,
    }


def restored(value: dict[str, Any]) -> Trajectory | None:
    """The trajectory that `document` made this of; None where it made no such document, or something was changed."""
    try:
        extra = value["extra"]
        own = extra[OWN]
        steps = list(value["steps"])
        description = steps.pop(0)["message"] if steps and steps[0]["source"] == "system" else ""
        found = Trajectory(
            id=value["trajectory_id"],
            task=Task(own["environment"], own["family"], own["name"], description, own["seed"], own["split"]),
            steps=tuple(_restored_steps(steps)),
            stop_reason=StopReason(extra["stop_reason"]),
            outcome=Outcome(extra["outcome"]),
            policy=value["agent"]["model_name"],
            temperature=extra["temperature"],
            attempt=extra["attempt"],
            previous_id=own["previous_id"],
            source=own["source"],
            error=extra.get("error"),
        )
        # Written again it says the same: that is the proof, whatever was read above.
        return found if document(found) == value and _fits_the_tables(found) else None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return None


def _fits_the_tables(trajectory: Trajectory) -> bool:
    """Whether everything is of its column's type: what was read is JSON, of whatever kind."""
    rows = [(episode_row(trajectory), EPISODES), *((row, STEPS) for row in step_rows(trajectory))]
    return all(_fits(row[column.name], column.type) for row, schema in rows for column in schema)


def _fits(value: Any, kind: pa.DataType) -> bool:
    if value is None:
        return True
    if pa.types.is_list(kind):
        return isinstance(value, list) and all(one is not None and _fits(one, kind.value_type) for one in value)
    if pa.types.is_integer(kind):
        return type(value) is int and -(2 ** (kind.bit_width - 1)) <= value < 2 ** (kind.bit_width - 1)
    return type(value) in ((int, float) if pa.types.is_floating(kind) else (str,))


def _restored_steps(written: list[dict[str, Any]]) -> list[Step]:
    steps: list[Step] = []
    told: list[str] = []
    for one in written:
        if one["source"] == "user":
            told.append(one["message"])
            continue
        calls = [ToolCall(call["function_name"], call["arguments"]) for call in one.get("tool_calls", ())]
        extra, tokens = one["extra"], one.get("metrics", {}).get("completion_token_ids")
        admissible = extra.get("admissible_actions")
        action = one["message"]
        if calls or "reasoning_content" in one:
            action = write_action(action, calls, one.get("reasoning_content", ""))
        steps.append(
            Step(
                "\n".join(told),
                action,
                extra["reward"],
                None if admissible is None else tuple(admissible),
                None if tokens is None else tuple(tokens),
                extra.get("logprob"),
            )
        )
        told = [write_result(result["content"]) for result in one.get("observation", {}).get("results", ())]
    return steps


def content_of(trajectory: Trajectory) -> str:
    """Differs where anything of the trajectory does, but for where it was read and its split."""
    same = replace(trajectory, source="", task=replace(trajectory.task, split=""))
    return hashlib.sha256(json.dumps(document(same), sort_keys=True).encode()).hexdigest()


def _told(observation: str, open_calls: list[str]) -> tuple[str, list[dict[str, Any]]]:
    """What was said, and the results for the open calls; all of it is said where the two cannot be told apart."""
    found = RESULT.findall(observation)
    said = RESULT.sub("", observation).strip("\n")
    ordered = "\n".join([*map(write_result, found), *([said] if said else [])])
    if len(found) != len(open_calls) or ordered != observation:
        return observation, []
    return said, [{"source_call_id": id, "content": one} for id, one in zip(open_calls, found, strict=True)]


def _agent_step(t: int, step: Step) -> dict[str, Any]:
    said = read_action(step.action)
    written: dict[str, Any] = {"source": "agent", "message": step.action}
    if step.admissible_actions is None and write_action(said.text, said.calls, said.reasoning) == step.action:
        written["message"] = said.text
        if said.reasoning:
            written["reasoning_content"] = said.reasoning
        if said.calls:
            written["tool_calls"] = [
                {"tool_call_id": f"call-{t}-{n}", "function_name": call.name, "arguments": call.arguments}
                for n, call in enumerate(said.calls)
            ]
    if step.token_ids is not None:
        written["metrics"] = {"completion_token_ids": list(step.token_ids)}
    extra: dict[str, Any] = {"reward": step.reward}
    if step.logprob is not None:
        extra["logprob"] = step.logprob
    if step.admissible_actions is not None:
        extra["admissible_actions"] = list(step.admissible_actions)
    return {**written, "extra": extra}
