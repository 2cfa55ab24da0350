"""A running OpenEnv server as an environment in text mode, played over its WebSocket by OpenEnv's generic client.

``openenv:HOST:PORT`` is the server at http://HOST:PORT, ``openenv:HOST`` the one at https://HOST. A subclass of
`OpenEnv`, named by its import path, says more about a server: its attributes and methods have the defaults.

**Actions** follow the server's schema. Where it has one field, a text, or `OpenEnv.text` names a field, the action is
that text, without the reasoning. A server that speaks MCP offers its own tools, listed at every reset. Any other has
one tool, ``act``, whose parameters are the schema's fields. Arguments are held against the schema before anything is
sent. What does not fit is told to the agent and not sent. Several calls are done in order, until the episode ends. An
action without a call is the agent's last word, which the server is not told.

**Observations** are told as text by `OpenEnv.told`. A step's **reward** is the server's, 0 where it gives none, and of
several calls the sum. The server's ``done`` is `terminated`: it does not say truncated. `max_steps` steps without it
are `truncated`. **Success** is a field of the last observation that is true (`OpenEnv.success`) or, where none is
named, a total reward above `OpenEnv.threshold`. Truncated is never a success.

**Faults** are raised, so that the episode is an ``error``: a server that is not there, is full, takes too long, goes
away, or whose environment raises. A lost session is never taken up by another in the middle of an episode.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
import urllib.request
from contextlib import suppress
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from jsonschema.validators import validator_for

from retroformer.chat import THOUGHT, read_action, write_result
from retroformer.environments.packages import EXTRAS
from retroformer.errors import EnvironmentFault

try:
    from openenv.core import GenericEnvClient  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"no {error.name}, which OpenEnv needs: {EXTRAS['openenv']}", name=error.name) from None

ADDRESS = re.compile(r"(?=.{1,255}\Z)(\[[0-9a-fA-F:]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)(:[0-9]{1,5})?")
ACT = "act"
"""The tool of a server whose actions have fields."""
LOOK = 10.0
"""Seconds that a server may take to describe itself."""
FULL, AGAIN = 5.0, 0.1
"""Seconds that a full server is asked, as a session is free only a moment after it was closed; and between tries."""
NOTHING = "(nothing)"


def known() -> tuple[str, ...]:
    """Servers cannot be listed; raises EnvironmentFault that says so."""
    raise EnvironmentFault("openenv cannot list its servers, one is named by its address: openenv:HOST:PORT")


def accept(task: str) -> None:
    """Raise EnvironmentFault for what cannot be a server's address."""
    if not ADDRESS.fullmatch(task):
        raise EnvironmentFault(
            f"openenv has no task {task!r}: expected HOST:PORT for a server at http, or HOST for one at https, e.g. "
            "openenv:localhost:8000"
        )


def make(task: str) -> Server:
    """The server at that address. Raises EnvironmentFault where none answers."""
    return Server(task)


class OpenEnv:
    """A server as a TextEnvironment, see `retroformer.environments.protocol`. To be subclassed, with a `url`."""

    url = ""
    """Where it runs, e.g. http://localhost:8000."""
    family = ""
    """Else the name that the server gives itself."""
    instruction = ""
    """What the agent is told to do; else the server's description of itself."""
    text = ""
    """The field of an action that takes the agent's text, where there are others; these keep their defaults."""
    success = ""
    """The field of the last observation that says whether the task is solved, true or false."""
    threshold = 0.0
    """Without such a field, a total reward above this is success."""
    max_steps = 50
    """The task's step limit, which OpenEnv does not have."""
    seconds = 60.0
    """That one answer may take."""

    def __init__(self, task: str = "default"):
        self.task = task
        if not self.url:
            raise EnvironmentFault(f"{type(self).__name__}.url is empty, expected e.g. http://localhost:8000")
        self.url = self.url.rstrip("/")
        schema, about = self._described("schema").get("action"), self._described("metadata")
        if not isinstance(schema, dict):
            raise EnvironmentFault(f"{self.url}/schema has no schema of actions: is it an OpenEnv server?")
        self.family = self.family or str(about.get("name") or "openenv")
        self.instruction = self.instruction or str(about.get("description") or "")
        if not self.instruction:
            raise EnvironmentFault(f"{self.url} does not say what is to be done: set instruction in a subclass")
        fields = {name: one for name, one in schema.get("properties", {}).items() if name != "metadata"}
        self.speaks_mcp = fields.get("type", {}).get("const") == "call_tool" or schema.get("title") == "Action"
        if not self.text and len(fields) == 1:
            (name, one), *_ = fields.items()
            self.text = name if one.get("type") == "string" and not {"enum", "const"} & set(one) else ""
        if self.text and self.text not in fields:
            raise EnvironmentFault(f"{self.url} has no field {self.text!r} in its actions, but {', '.join(fields)}")
        said = " ".join(str(schema.get("description") or "Act in the environment.").split())
        parameters = {key: one for key, one in schema.items() if key not in ("title", "description")}
        self._act = {
            "name": ACT,
            "description": said,
            "parameters": {"type": "object", **parameters, "properties": fields},
        }
        self._saying = ""
        if self.text:
            self._saying = f"Your action is {self.text}: {fields[self.text].get('description') or 'a text'}"
        self._tools: dict[str, dict[str, Any]] = {}
        self._client: Any = None
        self._session: Any = None
        self._steps: int | None = None

    def connect(self) -> Any:
        """A client with a session of its own; another one may give it headers, or start what it connects to."""
        return GenericEnvClient(base_url=self.url, connect_timeout_s=LOOK, message_timeout_s=self.seconds).sync()

    def asked(self, seed: int) -> dict[str, Any]:
        """What the server's reset is given. Seeds go up to 6e9, also where it wants fewer bits or an index."""
        return {"seed": seed}

    def instructed(self, observation: dict[str, Any]) -> str:
        """What the agent is told to do in the episode that begins so."""
        return self.instruction

    def told(self, observation: dict[str, Any]) -> str:
        """An observation as the agent sees it: its fields, one a line, a single one alone; not its metadata."""
        fields = {name: one for name, one in observation.items() if name != "metadata" and one is not None}
        if len(fields) == 1:
            return written(*fields.values()) or NOTHING
        return "\n".join(f"{name}: {written(one)}" for name, one in fields.items()) or NOTHING

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start episode `seed`, in the session of the one before where there is one."""
        self._steps = None
        result = self._begin(seed)
        if result.done:
            raise EnvironmentFault(f"{self.url}: the episode of seed {seed} is over at its start")
        tools = [] if self.text else self._listed() if self.speaks_mcp else [self._act]
        self._tools = {tool["name"]: tool for tool in tools}
        self._steps, self._total = 0, 0.0
        told = "\n".join(part for part in (self.instructed(result.observation), self._saying) if part)
        info: dict[str, Any] = {"task": told}
        return self.told(result.observation), {**info, "tools": tools} if tools else info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Send the text, or the calls in their order."""
        if self._steps is None:
            raise EnvironmentFault(f"{self.url} is not running: reset it before a step")
        self._steps += 1
        self._last: dict[str, Any] = {}
        before, done = self._total, False
        if self.text:
            said, done = self._do({self.text: THOUGHT.sub("", action, count=1).strip()})
            terminated = done
        else:
            message = read_action(action)
            results = [f"error: {problem}" for problem in message.malformed]
            for call in message.calls:
                problem = self._wrong(call.name, call.arguments)
                if problem:
                    results.append(f"error: {problem}")
                    continue
                result, done = self._do(self._payload(call.name, call.arguments))
                results.append(result)
                if done:
                    break
            terminated = done or not results
            said = "\n".join(map(write_result, results)) or "The end."
        truncated = not terminated and self._steps >= self.max_steps
        info: dict[str, Any] = {}
        if terminated or truncated:
            self._steps = None
            info["success"] = terminated and self._solved(done)
        return said, self._total - before, terminated, truncated, info

    def close(self) -> None:
        """End the session; the server goes on."""
        client, self._client, self._steps = self._client, None, None
        if client is not None:
            with suppress(Exception):
                client.close()

    def _solved(self, done: bool) -> bool:
        if not self.success:
            return self._total > self.threshold
        solved = self._last.get(self.success)
        if done and not isinstance(solved, bool):
            raise EnvironmentFault(
                f"{self.url}: the episode is over and {self.success} of its last observation is {solved!r:.80}, "
                "expected true or false"
            )
        return solved is True

    def _do(self, payload: dict[str, Any]) -> tuple[str, bool]:
        """One step of the server: what it says, and whether it is done."""
        try:
            result = self._ask("step", payload)
        except EnvironmentFault as fault:
            if "VALIDATION_ERROR" not in str(fault):
                self._steps = None
                raise
            return "error: the environment does not take this action", False
        self._last = result.observation
        self._total += float(result.reward or 0.0)
        return self._answer(result.observation), bool(result.done)

    def _answer(self, observation: dict[str, Any]) -> str:
        if not self.speaks_mcp or "tool_name" not in observation:
            return self.told(observation)
        if fault := observation.get("error"):
            return f"error: {fault.get('message', fault) if isinstance(fault, dict) else fault}"
        result = observation.get("result")
        if isinstance(result, dict) and isinstance(result.get("content"), list):
            texts = [part["text"] for part in result["content"] if isinstance(part, dict) and "text" in part]
            return "error: " * bool(result.get("is_error")) + "\n".join(texts) or NOTHING
        return written(result) or NOTHING

    def _wrong(self, name: str, arguments: dict[str, Any]) -> str:
        """What is wrong with a call; nothing is the empty text."""
        if name not in self._tools:
            return f"there is no tool {name}; there are {', '.join(self._tools)}"
        schema = self._tools[name]["parameters"]
        found = validator_for(schema)(schema).iter_errors(arguments)
        return "; ".join(f"{'.'.join(map(str, one.path))}: {one.message}".lstrip(": ") for one in found)

    def _payload(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if self.speaks_mcp:
            return {"type": "call_tool", "tool_name": name, "arguments": arguments}
        return arguments

    def _listed(self) -> list[dict[str, Any]]:
        """The tools of a server that speaks MCP."""
        listed = self._ask("step", {"type": "list_tools"}).observation.get("tools") or []
        if not listed:
            raise EnvironmentFault(f"{self.url} has no tools")
        return [
            {
                "name": tool["name"],
                "description": tool.get("description") or tool["name"],
                "parameters": {"type": "object", **(tool.get("input_schema") or {})},
            }
            for tool in listed
        ]

    def _begin(self, seed: int) -> Any:
        """Reset, in a new session where the old one was lost between two episodes."""
        old, began = self._client is not None, time.monotonic()
        while True:
            try:
                if self._client is None:
                    self._open()
                self._session = None
                result = self._ask("reset", **self.asked(seed))
                self._session = session_of(self._client)
                return result
            except EnvironmentFault as fault:
                full = "CAPACITY_REACHED" in str(fault)
                if full and time.monotonic() - began < FULL:
                    time.sleep(AGAIN)
                elif full:
                    raise EnvironmentFault(
                        f"{self.url} has no session left: let it serve more (max_concurrent_envs), or play fewer at "
                        "once (collect.environments, collect.workers)"
                    ) from fault
                elif not old or self._client is not None:
                    raise
                old = False

    def _open(self) -> None:
        client = self.connect()
        try:
            client.connect()
        except Exception as error:
            with suppress(Exception):
                client.close()
            raise self._absent(error) from error
        self._client = client

    def _ask(self, what: str, *arguments: Any, **options: Any) -> Any:
        """The server's answer. Raises EnvironmentFault; the session stands where the server only refused."""
        answer, fault, refused = None, "", False
        try:
            answer = getattr(self._client, what)(*arguments, **options)
        except TimeoutError:
            fault = f"no answer to {what} within {self.seconds:g} s"
        except Exception as error:
            fault = f"{what}: {' '.join(str(error).split()) or type(error).__name__}"
            refused = re.search(r"\(code: (VALIDATION|EXECUTION)_ERROR\)$", fault) is not None
        # The client opens a new session where the old one is gone; its environment knows nothing of this episode.
        if self._session is not None and session_of(self._client) is not self._session:
            fault, refused = f"the session was lost in the middle of the episode{fault and f', {fault}'}", False
        if fault and not refused:
            self.close()
        if fault:
            raise EnvironmentFault(f"{self.url}: {fault}")
        return answer

    def _described(self, what: str) -> dict[str, Any]:
        """What the server says of itself under this path."""
        try:
            with opener(self.url).open(f"{self.url}/{what}", timeout=LOOK) as response:
                found = json.load(response)
        except HTTPError as error:
            raise EnvironmentFault(f"{self.url}/{what} says {error.code}: is it an OpenEnv server?") from error
        except (OSError, ValueError) as error:
            raise self._absent(error) from error
        return found if isinstance(found, dict) else {}

    def _absent(self, error: Exception) -> EnvironmentFault:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        return EnvironmentFault(f"no OpenEnv server answers at {self.url}, start it there: {reason}")


class Server(OpenEnv):
    """The server at an address."""

    def __init__(self, task: str):
        accept(task)
        self.url = f"http{'' if re.search(r':[0-9]+$', task) and task[-1] != ']' else 's'}://{task}"
        super().__init__(task)


def written(value: Any) -> str:
    """A field's value: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def session_of(client: Any) -> Any:
    """What tells a session from the next one of the same client: its socket, which is not public."""
    return getattr(getattr(client, "async_client", None), "_ws", None)


def opener(url: str) -> urllib.request.OpenerDirector:
    """Proxies are for servers elsewhere."""
    host = urlsplit(url).hostname or ""
    with suppress(ValueError):
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            return urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener()
