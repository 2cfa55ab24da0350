"""Chat messages in OpenAI's form as turns, for every format that carries them.

Content is text or a list of text parts; calls are ``tool_calls`` or the older ``function_call``. Log-probabilities are
``logprobs`` of an assistant's message: a list of numbers, or the API's ``{"content": [{"logprob": ...}]}``; the sampled
ids are ``token_ids``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from retroformer.importers.conversation import MAX_TOKEN_ID, LoggedCall, Turn
from retroformer.importers.outcomes import finite
from retroformer.importers.records import Rejected, check_exact, decoded
from retroformer.importers.times import check_order, seconds

ROLES: dict[str, Literal["system", "user", "agent", "result"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "agent",
    "model": "agent",
    "tool": "result",
    "function": "result",
}
PLAIN = frozenset({"role", "content", "tool_calls", "function_call", "name", "timestamp"})
"""What is read of every message of the agent's."""

_VALUE = r'(?:"[^"\\\x00-\x1f]*"|0|-?[1-9]\d{0,17}|true|false|null)'
AS_WRITTEN = re.compile(rf'\{{"[^"\\\x00-\x1f]*": {_VALUE}(?:, "[^"\\\x00-\x1f]*": {_VALUE})*\}}', re.ASCII)
"""A flat object just as `chat.write_call` would write it; most are, and reading them again would be for nothing."""


def turns_of(messages: Any) -> list[Turn]:
    """The turns of a list of messages. Raises Rejected."""
    if not isinstance(messages, list):
        raise Rejected("not_this_format", f"messages is {type(messages).__name__}, expected a list")
    turns, times = [], []
    for place, message in enumerate(messages):
        turns.append(turn_of(message, place))
        if "timestamp" in message:
            times.append(seconds(message["timestamp"]))
    check_order(times)
    return turns


def turn_of(message: Any, place: int) -> Turn:
    """One message. Raises Rejected."""
    if not isinstance(message, dict):
        raise Rejected("malformed_message", f"message {place} is {type(message).__name__}, expected an object")
    role = message.get("role")
    kind = ROLES.get(role) if isinstance(role, str) else None
    content = message.get("content")
    text = content if isinstance(content, str) else text_of(content, place)
    if kind == "result":
        answers = message.get("tool_call_id")
        return Turn("result", text, (), "", answers if isinstance(answers, str) else "")
    if kind == "system" or kind == "user":
        return Turn(kind, text)
    if kind is None:
        raise Rejected("unknown_role", f"message {place} has role {str(role)[:80]!r}")
    turn = Turn("agent", text, calls_of(message, place))
    if message.keys() <= PLAIN:
        return turn
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(reasoning, str):
        turn.reasoning = reasoning
    refusal = message.get("refusal")
    if isinstance(refusal, str) and not text:
        turn.text = refusal
    if "logprobs" in message or "token_ids" in message:
        turn.token_ids, turn.logprob = tokens_of(message.get("token_ids"), message.get("logprobs"), place)
    if (reward := message.get("reward")) is not None:
        turn.reward = finite(reward, "reward", f"the reward of message {place}")
    return turn


def text_of(content: Any, place: int) -> str:
    """The text of a content that is None or a list of parts. Raises Rejected for pictures, sound and files."""
    if content is None:
        return ""
    if not isinstance(content, list):
        raise Rejected("malformed_message", f"the content of message {place} is {type(content).__name__}")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise Rejected(
                "not_text", f"message {place} has a part of type {str(kind)[:40]!r}, only text can be learned"
            )
        texts.append(text)
    return "\n".join(texts)


def calls_of(message: dict[str, Any], place: int) -> Sequence[LoggedCall]:
    """The calls of an assistant's message. Raises Rejected where one has no name."""
    listed = message.get("tool_calls")
    if not listed:
        old = message.get("function_call")
        if not old:
            return ()
        listed = [{"function": old}]
    if not isinstance(listed, list):
        raise Rejected("malformed_message", f"tool_calls of message {place} is {type(listed).__name__}")
    found = []
    for call in listed:
        function = None
        if isinstance(call, dict) and (function := call.get("function")) is None and "function" not in call:
            function = call.get("custom")
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name:
            raise Rejected("malformed_message", f"a call of message {place} has no name")
        id, arguments = call.get("id"), function.get("arguments")
        if arguments is None and "arguments" not in function:
            arguments = function.get("input")
        if not isinstance(arguments, str) or not AS_WRITTEN.fullmatch(arguments):
            arguments = arguments_of(arguments)
        found.append(LoggedCall(id if isinstance(id, str) else "", name, arguments))
    return found


def arguments_of(value: Any) -> dict[str, Any] | str:
    """A call's arguments: the object, or text that is to stand as it is (see `AS_WRITTEN`, or no JSON object)."""
    if isinstance(value, dict):
        check_exact(value)
        return value
    if value is None or value == "":
        return {}
    if not isinstance(value, str):
        return json.dumps(value)
    if AS_WRITTEN.fullmatch(value):
        return value
    try:
        found = decoded(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, dict) else value


def tokens_of(ids: Any, logprobs: Any, place: int, count: Any = None) -> tuple[tuple[int, ...] | None, float | None]:
    """The sampled ids and the sum of their log-probabilities, each None where the log lacks it. Raises Rejected."""
    found = None
    if ids is not None:
        if not isinstance(ids, list) or not all(type(id) is int and 0 <= id <= MAX_TOKEN_ID for id in ids) or not ids:
            raise Rejected("invalid_token_ids", f"token ids of message {place} are no list of ids")
        found = tuple(ids)
    if isinstance(logprobs, dict):
        logprobs = logprobs.get("content")
        if isinstance(logprobs, list):
            logprobs = [entry.get("logprob") if isinstance(entry, dict) else entry for entry in logprobs]
    if logprobs is None or logprobs == []:
        return found, None
    if not isinstance(logprobs, list):
        raise Rejected("invalid_logprob", f"log-probabilities of message {place} are {type(logprobs).__name__}")
    expected = len(found) if found is not None else count
    if expected is not None and expected != len(logprobs):
        raise Rejected("logprobs_of_wrong_length", f"message {place} has {expected} tokens, {len(logprobs)} numbers")
    total = 0.0
    for one in logprobs:
        if isinstance(one, bool) or not isinstance(one, (int, float)) or not -1e30 < one <= 0:
            raise Rejected("invalid_logprob", f"message {place} has log-probability {str(one)[:40]}")
        total += one
    return found, total


def tools_of(tools: Any) -> list[dict[str, Any]]:
    """Tools in the project's form, from OpenAI's nested or flat one. Raises Rejected where one has no name."""
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise Rejected("malformed_tools", f"tools is {type(tools).__name__}, expected a list")
    found = []
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Rejected("malformed_tools", "a tool has no name")
        parameters = function.get("parameters", function.get("inputSchema", function.get("input_schema")))
        found.append(
            {
                "name": function["name"],
                "description": function.get("description") or "",
                "parameters": parameters or {"type": "object", "properties": {}},
            }
        )
    return found
