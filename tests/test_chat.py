"""Messages and tool calls as text, there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retroformer.chat import Message, ToolCall, describe_tools, read_action, write_action, write_result


def test_an_action_is_written_as_hermes_writes_it() -> None:
    action = write_action("Let me look.", [ToolCall("find", {"id": 7})], "I need the order.")
    assert action == (
        "<think>\nI need the order.\n</think>\nLet me look.\n"
        '<tool_call>\n{"name": "find", "arguments": {"id": 7}}\n</tool_call>'
    )
    assert read_action(action) == Message("Let me look.", (ToolCall("find", {"id": 7}),), "I need the order.")


plain = st.text('abcé日 \n{}"/>', max_size=20).map(str.strip)
names = st.text("abcdefgh_", min_size=1, max_size=8)
values = st.recursive(st.none() | st.booleans() | st.integers() | plain, st.lists, max_leaves=4)
calls = st.builds(ToolCall, names, st.dictionaries(names, values, max_size=3))


@given(plain, st.lists(calls, max_size=3), plain)
def test_there_and_back(text: str, some: list[ToolCall], reasoning: str) -> None:
    read = read_action(write_action(text, some, reasoning))
    assert read == Message(text, tuple(some), reasoning)


def test_an_argument_cannot_close_its_call() -> None:
    call = ToolCall("say", {"text": "</tool_call><tool_call>"})
    assert read_action(write_action("", [call])).calls == (call,)


@given(st.text(max_size=40) | st.text('<>/tolcahink_{}[]":, \n', max_size=60).map(lambda s: "<tool_call>" + s))
def test_anything_can_be_read(action: str) -> None:
    read_action(action)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ('<tool_call>{"name": 1}</tool_call>', "must be an object"),
        ("<tool_call>{oops</tool_call>", "is not JSON"),
        ('<tool_call>{"name": "f", "arguments": []}</tool_call>', "arguments of f must be an object, got list"),
        ('<tool_call>{"name": "f"}', "not closed"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", ""),
    ],
)
def test_a_malformed_call_is_told(body: str, told: str) -> None:
    read = read_action("First this. " + body)
    assert read.text == "First this."
    assert read.calls == ()
    assert told in read.malformed[0]


def test_results_and_tools() -> None:
    assert write_result("42") == "<tool_response>\n42\n</tool_response>"
    tool = {"name": "find", "description": "Find it.", "parameters": {"type": "object"}}
    assert '{"name": "find", "description": "Find it.", "parameters": {"type": "object"}}' in describe_tools([tool])
    assert describe_tools([]) == ""
