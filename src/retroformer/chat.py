"""How messages and tool calls are written as the text of a step: one form for importers, environments and policies.

The form is that of Hermes' and Qwen's chat templates, which a person can read and most tool-calling models know::

    <think>                                          an action: reasoning, words, calls
    I need the order.
    </think>
    Let me look.
    <tool_call>
    {"name": "find", "arguments": {"id": 7}}
    </tool_call>

    <tool_response>                                  the observation that answers it
    {"status": "open"}
    </tool_response>

Plain text is a plain message: a user's in an observation, the agent's own in an action. Roles and turns are the
layout's business (`policies.layout`), so the same text serves every model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any

CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
ENCODER = json.JSONEncoder(ensure_ascii=False)
THOUGHT = re.compile(r"\A\s*<think>(.*?)(?:</think>|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by name, with JSON arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """What an agent said, taken apart."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    malformed: tuple[str, ...] = ()
    """What is wrong with each call that could not be read, one sentence each. Data, not a crash."""


def write_action(text: str = "", calls: Sequence[ToolCall] = (), reasoning: str = "") -> str:
    """The action's text. Arguments are compact JSON with the keys in the order given."""
    parts = [f"<think>\n{reasoning}\n</think>"] if reasoning else []
    parts += [text] if text else []
    parts += [write_call(one.name, one.arguments) for one in calls]
    return "\n".join(parts)


def write_call(name: str, arguments: dict[str, Any] | str) -> str:
    """One call of an action's text; arguments that are text stand as they are, JSON or not."""
    written = arguments if isinstance(arguments, str) else _encoded(arguments)
    body = f'{{"name": {encode_basestring(name)}, "arguments": {written}}}'.replace("</", "<\\/")
    return f"<tool_call>\n{body}\n</tool_call>"


def read_action(action: str) -> Message:
    """The action's text taken apart; inverse of `write_action`, and total: what cannot be read is in `malformed`."""
    thought = THOUGHT.match(action)
    rest = action[thought.end() :] if thought else action
    calls, malformed = [], []
    for match in CALL.finditer(rest):
        try:
            calls.append(_call(match))
        except (ValueError, RecursionError) as error:
            malformed.append(str(error) or type(error).__name__)
    text = CALL.sub("", rest).strip()
    return Message(text, tuple(calls), thought.group(1).strip() if thought else "", tuple(malformed))


def _call(match: re.Match[str]) -> ToolCall:
    body = match.group(1).strip()
    if not match.group(0).endswith("</tool_call>"):
        raise ValueError("the tool call is not closed by </tool_call>")
    try:
        value = json.loads(body, parse_constant=_finite, parse_float=_finite)
        # Half of a character, which JSON can spell and no text can hold.
        if "\\u" in body:
            ENCODER.encode(value).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the tool call is not JSON: {error.reason}") from None
    except ValueError as error:
        raise ValueError(f"the tool call is not JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise ValueError('the tool call must be an object {"name": text, "arguments": object}')
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of {value['name']} must be an object, got {type(arguments).__name__}")
    return ToolCall(value["name"], arguments)


def _finite(number: str) -> float:
    """A number that JSON has. Python's reader takes NaN and infinities too."""
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is no finite number")
    return value


def write_result(content: str) -> str:
    """The observation's text for what a tool gave back."""
    return f"<tool_response>\n{content}\n</tool_response>"


def describe_tools(tools: Sequence[dict[str, Any]]) -> str:
    """The part of a task's description that offers tools.

    Each is ``{"name", "description", "parameters"}``, the parameters a JSON schema.
    """
    if not tools:
        return ""
    listed = "\n".join(_json(tool) for tool in tools)
    return (
        f"Tools, one JSON schema a line:\n<tools>\n{listed}\n</tools>\n"
        'Call a tool with\n<tool_call>\n{"name": NAME, "arguments": {...}}\n</tool_call>'
    )


def _json(value: Any) -> str:
    # A value that speaks of the form's own tags must not end it; "\/" is "/" in JSON.
    return _encoded(value).replace("</", "<\\/")


def _encoded(value: Any) -> str:
    # What ENCODER gives, which builds another encoder each time: that was half of an import's time.
    if isinstance(value, dict) and set(map(type, value)) <= {str}:
        return "{" + ", ".join([f"{encode_basestring(key)}: {_encoded(one)}" for key, one in value.items()]) + "}"
    if isinstance(value, list):
        return "[" + ", ".join([_encoded(one) for one in value]) + "]"
    if isinstance(value, str):
        return encode_basestring(value)
    return repr(value) if type(value) is int else ENCODER.encode(value)
