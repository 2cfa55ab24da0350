import json
from enum import StrEnum

import pytest

from retroformer.chat import ToolCall, read_action, write_action
from retroformer.environments.tools import Tool, ToolEnvironment
from retroformer.errors import EnvironmentFault


class Size(StrEnum):
    SMALL = "small"
    LARGE = "large"


class Counter:
    """Count up to the number that you are told.

    This paragraph is for people.
    """

    max_steps = 4

    def reset(self, seed: int) -> str:
        self.goal, self.count, self.reward, self.done = 2 + seed % 3, 0, 0.0, False
        return f"count to {self.goal}"

    def add(self, number: int, size: Size = Size.SMALL) -> int:
        """Add to the count.

        Args:
            number: What to add, which may be
                less than nothing.
            size (Size): Tenfold if large.

        Returns:
            The count.
        """
        if number == 0:
            raise ValueError("nothing to add")
        self.count += number * (10 if size is Size.LARGE else 1)
        self.done = self.count >= self.goal
        self.reward = 1.0 if self.count == self.goal else self.count / 10
        return self.count

    def reach(self) -> None:
        """Lose the connection."""
        raise ConnectionError("no route")

    def _hidden(self) -> None: ...


def call(name: str, **arguments: object) -> str:
    return write_action(calls=[ToolCall(name, arguments)])


@pytest.fixture
def counter() -> ToolEnvironment:
    environment = ToolEnvironment(Counter, "default")
    environment.reset(seed=1)  # count to 3
    return environment


def test_methods_become_tools_with_schemas_from_types_and_docstrings() -> None:
    observation, info = ToolEnvironment(Counter, "default").reset(seed=1)
    assert observation == "count to 3"
    assert info["task"] == "Count up to the number that you are told."
    add, reach = info["tools"]
    assert add["name"] == "add"
    assert add["description"] == "Add to the count."
    properties = add["parameters"]["properties"]
    assert properties["number"] == {"type": "integer", "description": "What to add, which may be less than nothing."}
    assert properties["size"]["description"] == "Tenfold if large."
    assert add["parameters"]["required"] == ["number"]
    assert add["parameters"]["additionalProperties"] is False
    assert (reach["name"], reach["parameters"]["properties"]) == ("reach", {})
    assert json.loads(json.dumps(info["tools"])) == info["tools"]


def test_rewards_are_what_the_reward_grew_by_and_done_ends(counter: ToolEnvironment) -> None:
    first = counter.step(call("add", number=1))
    assert first == ("<tool_response>\n1\n</tool_response>", pytest.approx(0.1), False, False, {})
    second = counter.step(call("add", number=2))
    assert second == ("<tool_response>\n3\n</tool_response>", pytest.approx(0.9), True, False, {"success": True})
    with pytest.raises(EnvironmentFault, match="Counter is not running: reset it before a step"):
        counter.step(call("add", number=1))


def test_several_calls_are_answered_in_order_until_the_end(counter: ToolEnvironment) -> None:
    calls = [ToolCall("add", {"number": n}) for n in (1, 2, 5)]
    observation, reward, terminated, _, info = counter.step(write_action("Let me.", calls, "I think"))
    assert observation == "<tool_response>\n1\n</tool_response>\n<tool_response>\n3\n</tool_response>"
    assert (reward, terminated, info) == (1.0, True, {"success": True})


@pytest.mark.parametrize(
    ("action", "told"),
    [
        (call("add", number="3"), "error: number: input should be a valid integer"),
        (call("add"), "error: number: field required"),
        (call("add", number=1, more=2), "error: more: extra inputs are not permitted"),
        (call("add", number=1, size="huge"), "error: size: input should be 'small' or 'large'"),
        (call("add", number=0), "error: nothing to add"),
        (call("ad", number=1), "error: there is no tool ad; there are add, reach"),
        (call("_hidden"), "error: there is no tool _hidden; there are add, reach"),
        ("<tool_call>\n{nonsense\n</tool_call>", "error: the tool call is not JSON"),
        (call("add", number=float("nan")), "error: the tool call is not JSON: NaN is no finite number"),
        (
            r'<tool_call>{"name": "add", "arguments": {"number": 1e999}}</tool_call>',
            "error: the tool call is not JSON: 1e",
        ),
        (r'<tool_call>{"name": "\ud800", "arguments": {}}</tool_call>', "error: the tool call is not JSON: surrogates"),
        (
            r'<tool_call>{"name": "add", "arguments": {"\ud800": 1}}</tool_call>',
            "error: the tool call is not JSON: surr",
        ),
        (call("say", what="\\ud800"), "error: there is no tool say"),
    ],
)
def test_what_the_agent_did_wrong_is_told_to_it(counter: ToolEnvironment, action: str, told: str) -> None:
    observation, reward, terminated, truncated, _ = counter.step(action)
    assert observation.startswith(f"<tool_response>\n{told}")
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert counter.inner.count == 0


def test_json_types_reach_the_method_as_its_own(counter: ToolEnvironment) -> None:
    counter.step(call("add", number=1, size="large"))
    assert counter.inner.count == 10


def test_an_action_without_a_call_is_the_last_word(counter: ToolEnvironment) -> None:
    observation, _, terminated, _, info = counter.step("I give up.")
    assert observation
    assert terminated
    assert info == {"success": False}


def test_the_step_limit_is_the_tasks_own(counter: ToolEnvironment) -> None:
    ends = [counter.step(call("add", number=-1))[2:] for _ in range(4)]
    assert ends == [(False, False, {})] * 3 + [(False, True, {"success": False})]


def test_part_of_the_reward_at_the_step_limit_is_no_success(counter: ToolEnvironment) -> None:
    for number in (1, -1, 1):
        counter.step(call("add", number=number))
    assert counter.step(call("add", number=1))[1:] == (pytest.approx(0.1), False, True, {"success": False})


def test_a_broken_connection_is_no_answer_to_the_agent(counter: ToolEnvironment) -> None:
    with pytest.raises(ConnectionError, match="no route"):
        counter.step(call("reach"))


def test_a_class_that_says_nothing_on_reset_has_its_instruction_observed() -> None:
    class Quiet:
        """Say it."""

        def reset(self, **kwargs: object) -> None:
            self.seed = kwargs["seed"]

        def say(self, word: str) -> str:
            """Say a word."""
            return word

    environment = ToolEnvironment(Quiet, "default")
    assert environment.reset(seed=7)[0] == "Say it."
    assert environment.inner.seed == 7
    said = environment.step(call("say", word="</tool_call>"))[0]
    assert read_action(said).calls == ()


def untyped(word) -> str:
    """Say."""
    return word


def silent(word: str) -> str:
    return word


def starred(*words: str) -> str:
    """Say."""
    return "".join(words)


def odd(word: object, other: type) -> None:
    """Say."""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (untyped, "tool untyped: parameter word has no type"),
        (silent, "tool silent has no docstring"),
        (starred, r"tool starred: \*words.* cannot be described"),
        (odd, "tool odd: its parameters have no JSON schema"),
    ],
)
def test_a_method_that_cannot_be_a_tool_is_told(function, message: str) -> None:
    with pytest.raises(EnvironmentFault, match=message):
        Tool(function)
