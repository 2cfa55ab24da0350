"""A class whose public methods are the tools, as an environment in text mode.

The class is the duck type that TRL's trainers take as ``environment_factory``, so one class serves both; TRL is not
needed. It has ``reset(**kwargs)``, which may give the first message to the agent, and public methods with typed
parameters and a docstring, each a tool. Its attributes say the rest:

- ``instruction``: what the agent is told to do; else the first paragraph of the class's docstring;
- ``reward``: the reward so far, a number; a step's reward is what it grew by;
- ``done``: true ends the episode; so does an action without a call, which is the agent's last word;
- ``success``: whether the task is solved; else the final reward must be positive;
- ``max_steps``: the task's step limit, where an episode that is not done ends as a failure;
- ``tasks`` and ``family``, as in `retroformer.environments.packages`.

Two methods are no tools, and are for scripted agents: ``expert_action()``, what an expert would write now, or None, and
``possible_actions()``, what could be written, to draw from.

``reset`` is given ``seed=`` where it has a parameter for it. A tool's error goes to the agent as an observation, unless
it is one of `INFRASTRUCTURE`: then nobody knows whether the agent would have solved the task.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable
from typing import Any, NotRequired

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from retroformer.chat import ToolCall, read_action, write_result
from retroformer.errors import EnvironmentFault

MAX_STEPS = 20
"""The step limit of a class that does not say."""
INFRASTRUCTURE = (ConnectionError, TimeoutError, MemoryError, EnvironmentFault)
NOT_TOOLS = {"reset", "close", "expert_action", "possible_actions"}
PARAMETER = re.compile(r"^\s*(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")


class Tool:
    """A function with its JSON schema. Raises EnvironmentFault where the signature does not give one."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        name = function.__name__
        text, told = described(inspect.getdoc(function) or "")
        if not text:
            raise EnvironmentFault(f"tool {name} has no docstring, which is what the agent is told of it")
        if inspect.iscoroutinefunction(function):
            raise EnvironmentFault(f"tool {name} is a coroutine, expected a plain method")
        hints = typing.get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {}
        for one in inspect.signature(function).parameters.values():
            if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
                raise EnvironmentFault(f"tool {name}: {one} cannot be described, each parameter needs its own name")
            if one.name not in hints:
                raise EnvironmentFault(f"tool {name}: parameter {one.name} has no type")
            fields[one.name] = hints[one.name] if one.default is one.empty else NotRequired[hints[one.name]]
        arguments = TypedDict(name, fields)  # pyright: ignore[reportArgumentType]
        # Strict: a model that writes "3" for 3 has to learn it, and what ran is what it wrote.
        arguments.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # pyright: ignore
        try:
            self._arguments = TypeAdapter(arguments)
            parameters = self._arguments.json_schema()
        except Exception as error:  # pydantic raises several kinds for types that JSON does not have
            first = str(error).partition("\n")[0]
            raise EnvironmentFault(f"tool {name}: its parameters have no JSON schema: {first}") from None
        for parameter, schema in parameters["properties"].items():
            schema.pop("title", None)
            if parameter in told:
                schema["description"] = told[parameter]
        parameters.pop("title", None)
        self.schema = {"name": name, "description": text, "parameters": parameters}

    def __call__(self, arguments: dict[str, Any]) -> Any:
        """Call with JSON arguments. Raises ValueError that tells the agent which are wrong."""
        try:
            # As JSON, so that strictness means JSON's types: a list for a tuple, a string for an enum.
            checked: Any = self._arguments.validate_json(json.dumps(arguments))
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg'].lower()}" for one in error.errors()]
            raise ValueError("; ".join(wrong)) from None
        return self.function(**checked)


def described(docstring: str) -> tuple[str, dict[str, str]]:
    """A docstring's text before ``Args:``, and what it says of each parameter (Google's style)."""
    text, _, rest = docstring.partition("Args:")
    text = re.split(r"^(?:Returns|Raises|Yields):", text, maxsplit=1, flags=re.MULTILINE)[0]
    told: dict[str, str] = {}
    last = ""
    for line in re.split(r"^(?:Returns|Raises|Yields):", rest, maxsplit=1, flags=re.MULTILINE)[0].splitlines():
        if match := PARAMETER.match(line):
            last = match[1]
            told[last] = match[2].strip()
        elif last and line.strip():
            told[last] += f" {line.strip()}"
    return " ".join(text.split()), told


def tools_of(thing: Any) -> dict[str, Tool]:
    """The tools that an object's public methods are, by name."""
    methods = inspect.getmembers(thing, inspect.ismethod)
    return {name: Tool(method) for name, method in methods if not name.startswith("_") and name not in NOT_TOOLS}


class ToolEnvironment:
    """An instance of such a class as a TextEnvironment, see `retroformer.environments.protocol`."""

    def __init__(self, kind: type, task: str):
        self.inner = kind(task) if hasattr(kind, "tasks") else kind()
        self.family = getattr(kind, "family", kind.__name__)
        self.max_steps = getattr(kind, "max_steps", MAX_STEPS)
        self.tools = tools_of(self.inner)
        if not self.tools:
            raise EnvironmentFault(f"{kind.__name__} has neither step nor a public method that could be a tool")
        self._steps: int | None = None
        self._reward = 0.0
        # Only where the class has them: who asks looks whether they are there.
        for name in ("expert_action", "possible_actions"):
            if hasattr(self.inner, name):
                setattr(self, name, getattr(self.inner, name))

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start episode `seed`. Where the class's own reset says nothing, the first observation is the instruction."""
        wanted = inspect.signature(self.inner.reset).parameters.values()
        takes_seed = any(one.name == "seed" or one.kind is one.VAR_KEYWORD for one in wanted)
        said = self.inner.reset(**({"seed": seed} if takes_seed else {}))
        self._steps, self._reward = 0, self._reward_so_far()
        instruction = getattr(self.inner, "instruction", None)
        if instruction is None:
            instruction = " ".join((inspect.getdoc(type(self.inner)) or "").partition("\n\n")[0].split())
        if not instruction:
            raise EnvironmentFault(f"{type(self.inner).__name__} has neither an instruction nor a docstring to tell")
        return said or instruction, {"task": instruction, "tools": [tool.schema for tool in self.tools.values()]}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do the calls of an action, in order, until the episode ends; an action without any is the last word."""
        if self._steps is None:
            raise EnvironmentFault(f"{type(self.inner).__name__} is not running: reset it before a step")
        self._steps += 1
        said = read_action(action)
        results = [write_result(f"error: {problem}") for problem in said.malformed]
        for call in said.calls:
            results.append(write_result(self._do(call)))
            if self._done():
                break
        terminated = self._done() or not results
        truncated = not terminated and self._steps >= self.max_steps
        reward = self._reward_so_far()
        gained, self._reward = reward - self._reward, reward
        info: dict[str, Any] = {}
        if terminated or truncated:
            self._steps = None
            info["success"] = terminated and bool(getattr(self.inner, "success", reward > 0))
        return "\n".join(results) or "The end.", gained, terminated, truncated, info

    def close(self) -> None:
        """Close the object, where it can be closed."""
        getattr(self.inner, "close", lambda: None)()

    def _do(self, call: ToolCall) -> str:
        tool = self.tools.get(call.name)
        if tool is None:
            return f"error: there is no tool {call.name}; there are {', '.join(self.tools)}"
        try:
            result = tool(call.arguments)
            return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
        except INFRASTRUCTURE:
            raise
        except Exception as error:
            # In characters that can be stored, whatever the method says.
            return f"error: {str(error) or type(error).__name__}".encode(errors="replace").decode()

    def _done(self) -> bool:
        return bool(getattr(self.inner, "done", False))

    def _reward_so_far(self) -> float:
        reward = getattr(self.inner, "reward", 0.0)
        if isinstance(reward, types.MethodType):
            raise EnvironmentFault(f"{type(self.inner).__name__}.reward is a method, expected a number")
        return float(reward or 0.0)
