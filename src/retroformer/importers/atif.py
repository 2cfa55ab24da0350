"""ATIF, the Agent Trajectory Interchange Format, v1.0 to v1.8: one JSON document a run, in and out.

Specification: harbor-framework/harbor, rfcs/0001-trajectory-format.md. A run's outcome is not part of the format: it
is read from a field named at import, such as ``extra.reward`` or ``final_metrics.extra.reward``, which are also where
it is looked for by default; `document` writes ``extra.reward`` and ``extra.success``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from retroformer.chat import read_action, write_action
from retroformer.importers.conversation import LoggedCall, Run, Turn
from retroformer.importers.messages import text_of, tokens_of, tools_of
from retroformer.importers.openai_chat import name_of
from retroformer.importers.outcomes import MISSING, finite, look_up
from retroformer.importers.records import Rejected
from retroformer.importers.times import check_order, seconds
from retroformer.types import Outcome, Step, Trajectory

VERSIONS = tuple(f"ATIF-v1.{minor}" for minor in range(9))
ROLES = {"system": "system", "user": "user", "agent": "agent"}
OUTCOMES = ("extra", "final_metrics.extra")
"""Where a reward and a success are looked for by default."""
RESULT = re.compile(r"<tool_response>\n(.*?)\n</tool_response>", re.DOTALL)


def runs(value: Any, parent: str = "", segment: int = 0) -> Iterator[Run]:
    """The run of a document and those of its embedded subagents, whose outcomes are their own. Raises Rejected."""
    if not isinstance(value, dict) or "schema_version" not in value:
        raise Rejected("not_this_format", "no object with schema_version")
    if value["schema_version"] not in VERSIONS:
        seen = str(value["schema_version"])[:40]
        raise Rejected("unknown_schema_version", f"{seen!r}, known: {VERSIONS[0]} to {VERSIONS[-1]}")
    steps = value.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise Rejected("not_this_format", "steps is no list of objects")
    agent, extra = _object(value, "agent"), _object(value, "extra")
    if times := [step["timestamp"] for step in steps if step.get("timestamp") is not None]:
        check_order([seconds(time) for time in times])
    temperature = look_up(extra, "temperature")
    attempt = extra.get("attempt", 0)
    if type(attempt) is not int or not 0 <= attempt < 2**31:
        raise Rejected("invalid_attempt", f"attempt {str(attempt)[:40]!r}, expected a whole number from 0")
    log_id = "/".join(filter(None, (parent, name_of(value, "trajectory_id"))))
    models = [step["model_name"] for step in steps if isinstance(step.get("model_name"), str)]
    yield Run(
        [turn for place, step in enumerate(steps) for turn in _turns(step, place)],
        fields=_with_outcome(value),
        tools=tools_of(agent.get("tool_definitions")),
        log_id=log_id,
        segment=segment,
        task=name_of(extra, "task"),
        instance=name_of(extra, "task_id"),
        policy=name_of(agent, "model_name") or (models[0] if models else "") or name_of(agent, "name"),
        temperature=None if temperature in (MISSING, None) else finite(temperature, "temperature", "temperature"),
        attempt=attempt,
        error=name_of(extra, "error") or None,
    )
    embedded = value.get("subagent_trajectories") or []
    if not isinstance(embedded, list):
        raise Rejected("not_this_format", "subagent_trajectories is no list")
    for place, one in enumerate(embedded, 1):
        yield from runs(one, log_id, segment + place)


def _object(value: dict[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Rejected("malformed_field", f"{key} is {type(found).__name__}, expected an object")
    return found


def _with_outcome(value: dict[str, Any]) -> dict[str, Any]:
    """The document's fields, with reward and success at the top where one of `OUTCOMES` has them."""
    fields = dict(value)
    for key in ("reward", "success"):
        for place in OUTCOMES:
            found = look_up(value, f"{place}.{key}")
            if found is not MISSING:
                fields.setdefault(key, found)
    return fields


def _turns(step: dict[str, Any], place: int) -> Iterator[Turn]:
    """A step's message, then the results in its observation."""
    source = step.get("source")
    role = ROLES.get(source) if isinstance(source, str) else None
    if role is None:
        raise Rejected("unknown_role", f"step {place} has source {str(source)[:80]!r}")
    message = step.get("message")
    text = message if isinstance(message, str) else text_of(message, place)
    if role == "agent":
        metrics, extra = _object(step, "metrics"), _object(step, "extra")
        reward = extra.get("reward")
        reasoning = step.get("reasoning_content")
        token_ids, logprob = tokens_of(
            metrics.get("completion_token_ids"), metrics.get("logprobs"), place, metrics.get("completion_tokens")
        )
        if logprob is None and extra.get("logprob") is not None:
            _, logprob = tokens_of(None, [extra["logprob"]], place)
        yield Turn(
            "agent",
            text,
            _calls(step, place),
            reasoning if isinstance(reasoning, str) else "",
            token_ids=token_ids,
            logprob=logprob,
            reward=None if reward is None else finite(reward, "reward", f"the reward of step {place}"),
            # A fixed reply (no call of a model) is not the policy's either.
            copied=step.get("is_copied_context") is True or step.get("llm_call_count") == 0,
        )
    elif text:
        yield Turn("system" if role == "system" else "user", text)
    results = _object(step, "observation").get("results") or []
    if not isinstance(results, list):
        raise Rejected("malformed_message", f"the results of step {place} are {type(results).__name__}")
    for result in results:
        if not isinstance(result, dict):
            raise Rejected("malformed_message", f"a result of step {place} is {type(result).__name__}")
        content = result.get("content")
        text = content if isinstance(content, str) else text_of(content, place)
        id = result.get("source_call_id")
        if isinstance(id, str) and id:
            yield Turn("result", text, answers=id)
        elif text:
            yield Turn("user", text)  # what the environment says unasked


def _calls(step: dict[str, Any], place: int) -> Sequence[LoggedCall]:
    calls = step.get("tool_calls") or []
    if not isinstance(calls, list):
        raise Rejected("malformed_message", f"tool_calls of step {place} is {type(calls).__name__}")
    found = []
    for call in calls:
        name = call.get("function_name") if isinstance(call, dict) else None
        if not isinstance(name, str) or not name or not isinstance(call.get("arguments"), dict):
            raise Rejected("malformed_message", f"a call of step {place} has no function_name or no arguments object")
        found.append(LoggedCall(str(call.get("tool_call_id", "")), name, call["arguments"]))
    return found


def document(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as an ATIF v1.8 document, which `runs` reads back to the same description, steps and outcome.

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
    }
    if trajectory.learnable:
        extra |= {"reward": trajectory.total_reward, "success": trajectory.outcome is Outcome.SUCCESS}
    if trajectory.error:
        extra["error"] = trajectory.error
    return {
        "schema_version": VERSIONS[-1],
        "trajectory_id": trajectory.id,
        "agent": {"name": "retroformer", "version": trajectory.policy, "model_name": trajectory.policy},
        "steps": [{"step_id": number, **step} for number, step in enumerate(steps, 1)],
        "extra": extra,
    }


def _told(observation: str, open_calls: list[str]) -> tuple[str, list[dict[str, Any]]]:
    """What was said, and the results for the open calls; all of it is said where the two cannot be told apart."""
    found = RESULT.findall(observation)
    said = RESULT.sub("", observation).strip("\n")
    ordered = "\n".join([*(f"<tool_response>\n{one}\n</tool_response>" for one in found), *([said] if said else [])])
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
