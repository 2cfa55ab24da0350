"""ATIF, the Agent Trajectory Interchange Format, v1.0 to v1.8: one JSON document a run, in and out.

Specification: harbor-framework/harbor, rfcs/0001-trajectory-format.md. A run's outcome is not part of the format: it
is read from a field named at import, such as ``extra.reward`` or ``final_metrics.extra.reward``, which are also where
it is looked for by default.

``session_id`` is the run's, which segments and siblings share: it keeps apart runs that say the same, and with
``trajectory_id``, the document's own, it is the name by which a second import knows it again. What this project wrote
(`atif_export`) and nobody changed is the trajectory that it was: its id, instance, outcome and rewards stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from retroformer.importers import parquet
from retroformer.importers.atif_export import OWN, content_of, restored
from retroformer.importers.conversation import Found, LoggedCall, Rules, Run, Turn, name_in_log
from retroformer.importers.messages import text_of, tokens_of, tools_of
from retroformer.importers.openai_chat import name_of
from retroformer.importers.outcomes import MISSING, OutcomeRule, finite, look_up
from retroformer.importers.records import Record, Rejected, check_exact
from retroformer.importers.redaction import Redactor
from retroformer.importers.times import check_order, seconds
from retroformer.storage import episode_row, step_rows, trajectory_from_row
from retroformer.types import Outcome, Step

VERSIONS = tuple(f"ATIF-v1.{minor}" for minor in range(9))
ROLES = {"system": "system", "user": "user", "agent": "agent"}
OUTCOMES = ("extra", "final_metrics.extra")
"""Where a reward and a success are looked for by default."""
MAX_SEED = 2**63


def exported(record: Record, rules: Rules, redactor: Redactor) -> list[Found]:
    """The trajectory that this project wrote; none where another made the document, or it was changed. Raises Rejected.

    A field or function that is to judge it now and comes to another outcome makes it another trajectory.
    """
    one = restored(record.value)
    if one is None:
        return []
    rule = rules.outcome
    if str(rule) and one.outcome not in (Outcome.ERROR, Outcome.TRUNCATED):
        verdict = rule.judge(_with_outcome(record.value), {}, lambda: one)
        if verdict.outcome is not one.outcome:
            return []
    for reward in one.rewards:
        rule.check(reward, "the reward of a step")
    rows = Record(record.source, {"episode": episode_row(one), "steps": step_rows(one)})
    [found] = parquet.trajectories(rows, Rules(OutcomeRule(), rules.split_of), redactor)
    written = trajectory_from_row(found.episode._asdict(), [Step(*step) for step in found.steps])
    return [found._replace(name=name_in_log(one.id, one.attempt), content=content_of(written))]


def runs(value: Any, parent: Run | None = None, segment: int = 0) -> Iterator[Run]:
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
    own = name_of(value, "trajectory_id")
    log_id = "/".join(filter(None, (parent.log_id if parent else name_of(value, "session_id"), own)))
    seed = look_up(extra, f"{OWN}.seed")
    models = [step["model_name"] for step in steps if isinstance(step.get("model_name"), str)]
    run = Run(
        [turn for place, step in enumerate(steps) for turn in _turns(step, place)],
        fields=_with_outcome(value),
        tools=tools_of(agent.get("tool_definitions")),
        log_id=log_id,
        shared=parent.shared if parent else not own,
        segment=segment,
        task=name_of(extra, "task"),
        instance=name_of(extra, "task_id"),
        seed=seed if type(seed) is int and 0 <= seed < MAX_SEED else None,
        policy=name_of(agent, "model_name") or (models[0] if models else "") or name_of(agent, "name"),
        temperature=None if temperature in (MISSING, None) else finite(temperature, "temperature", "temperature"),
        attempt=attempt,
        error=name_of(extra, "error") or None,
    )
    yield run
    embedded = value.get("subagent_trajectories") or []
    if not isinstance(embedded, list):
        raise Rejected("not_this_format", "subagent_trajectories is no list")
    for place, one in enumerate(embedded, 1):
        yield from runs(one, run, segment + place)


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
        check_exact(call["arguments"])
        found.append(LoggedCall(str(call.get("tool_call_id", "")), name, call["arguments"]))
    return found
