"""Against a real server in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retroformer.chat import ToolCall, write_action
from retroformer.environments import known, make, packages
from retroformer.environments.checker import check_environment
from retroformer.errors import EnvironmentFault
from retroformer.files import read_json
from retroformer.policies.agent import Choice
from retroformer.rollouts.engine import Conditions, Episode, play
from retroformer.storage import read_trajectories
from retroformer.types import Outcome, StopReason
from tiny_round import pin, run_collect, run_to_batches, tiny_config

GUIDE = Path(__file__).parents[3] / "docs/environments.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
(EXAMPLE,) = (block for block in BLOCKS if "(OpenEnv)" in block)
POSSIBLE = """
    def possible_actions(self):
        from retroformer.chat import ToolCall, write_action

        return tuple(write_action(calls=[ToolCall("act", {"number": one})]) for one in (1, 2, 3, 4, 5, 6))
"""
"""What scripted agents draw from."""


def call(name: str = "act", **arguments: Any) -> str:
    return write_action(calls=[ToolCall(name, arguments)])


def spoken(text: str) -> str:
    return f"<tool_response>\n{text}\n</tool_response>"


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., tuple[subprocess.Popen, int]]]:
    """Starts servers, and ends those that are left."""
    pytest.importorskip("openenv.core", reason=f"OpenEnv is missing: {packages.EXTRAS['openenv']}")
    started: list[subprocess.Popen] = []

    def start(sessions: int = 8, port: int = 0) -> tuple[subprocess.Popen, int]:
        arguments = [str(Path(__file__).with_name("openenv_server.py")), str(sessions), str(port)]
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def port(serve) -> int:
    return serve()[1]


@pytest.fixture
def at(port: int):
    """An environment of a subclass with these attributes, at a path of the server."""
    from retroformer.environments.openenv import OpenEnv

    made = []

    def build(path: str = "", **attributes: Any) -> Any:
        kind = type("Own", (OpenEnv,), {"url": f"http://127.0.0.1:{port}/{path}", **attributes})
        made.append(kind())
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The guide's subclass in a module of the working folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)

    def write(name: str, url: str, more: str = "") -> str:
        (tmp_path / f"{name}.py").write_text(EXAMPLE.replace("http://localhost:8000", url) + POSSIBLE + more)
        return f"{name}.Guess:default"

    yield write
    packages.import_path.cache_clear()


class Caller:
    """Guesses in turn, from its random number on; with its own number of steps before it does `then`."""

    version, temperature = "caller:1", 1.0

    def __init__(self, then: Callable[[], None] = lambda: None, after: int = -1):
        self.then, self.left = then, after

    def act(self, decisions):
        if self.left == 0:
            self.then()
        self.left -= 1
        return [Choice(call(number=1 + (int(6 * one.uniform) + one.t) % 6), None) for one in decisions]

    def release(self, slot):
        pass


def test_a_server_is_named_by_its_address_and_keeps_the_contract(port: int) -> None:
    report = check_environment(f"openenv:127.0.0.1:{port}")
    assert report.problems == {}, list(report.lines())
    assert "text mode, tools act" in report.facts


def test_actions_with_fields_are_the_arguments_of_one_tool(port: int, made) -> None:
    environment = made(f"openenv:127.0.0.1:{port}")
    observation, info = environment.reset(seed=0)
    assert observation == "hint: guess\nleft: 4\nsolved: false"
    assert info["task"] == "Find the number from 1 to 9."
    (tool,) = info["tools"]
    assert (tool["name"], tool["description"]) == ("act", "Guess the number.")
    assert set(tool["parameters"]["properties"]) == {"number", "tone"}
    assert tool["parameters"]["required"] == ["number"]
    assert environment.family == "guessing"
    secret, over = 0, False
    while not over:
        secret += 1
        said, reward, over, truncated, info = environment.step(call(number=secret))
    assert said == spoken(f"hint: right\nleft: {4 - secret}\nsolved: true")
    assert (reward, truncated, info) == (1.0, False, {"success": True})
    with pytest.raises(EnvironmentFault, match="is not running: reset it before a step"):
        environment.step(call(number=1))


@pytest.mark.parametrize(
    ("action", "told"),
    [
        (call(number=12), "error: number: 12 is greater than the maximum of 9"),
        (call(number="3"), "error: number: '3' is not of type 'integer'"),
        (call(), "error: 'number' is a required property"),
        (call(number=1, tone="shy"), "error: tone: 'shy' is not one of ['sure', 'unsure']"),
        (call(number=1, metadata={}), "error: Additional properties are not allowed ('metadata' was unexpected)"),
        (call("guess", number=1), "error: there is no tool guess; there are act"),
        (call(number=7), "error: the environment does not take this action"),
        ("<tool_call>\n{nonsense\n</tool_call>", "error: the tool call is not JSON"),
    ],
)
def test_what_the_agent_did_wrong_is_told_to_it(at, action: str, told: str) -> None:
    environment = at()
    environment.reset(seed=0)
    said, *rest = environment.step(action)
    assert said.startswith(spoken(told).removesuffix("\n</tool_response>"))
    assert rest == [0.0, False, False, {}]
    assert "left: 3" in environment.step(call(number=1))[0]  # it cost no step of the server


def test_several_calls_are_done_in_order_and_words_alone_are_the_last(at) -> None:
    environment = at()
    environment.reset(seed=0)
    said, reward, over, *_ = environment.step(write_action("I see.", [ToolCall("act", {"number": 2})] * 2, "Hm"))
    assert said.count("left: ") == 2
    assert (reward, over) == (0.0, False)
    assert environment.step("I give up.") == ("The end.", 0.0, True, False, {"success": False})


def test_the_seed_reaches_the_server(at) -> None:
    environment = at()
    traces = [(environment.reset(seed=seed), environment.step(call(number=5))) for seed in (3, 4, 5, 6, 3)]
    assert traces[0] == traces[-1]
    assert len({str(one) for one in traces}) > 1
    environment = at(asked=lambda self, seed: {"seed": seed % 2})
    same = [(environment.reset(seed=seed), environment.step(call(number=5))) for seed in (2, 6_000_000_000)]
    assert same[0] == same[1]


def test_success_is_what_the_class_says(at) -> None:
    def end(environment: Any, *actions: str) -> Any:
        environment.reset(seed=0)
        return [environment.step(action) for action in actions][-1][2:]

    words = [f"{letter}ord" for letter in "abc"]
    limit = {"path": "words", "max_steps": 3}
    assert end(at(**limit), *words) == (False, True, {"success": False})  # truncated, whatever the reward
    four = [call(number=n) for n in (2, 2, 2, 2)]
    assert end(at(success="solved"), *four) == (True, False, {"success": False})
    assert end(at(success="solved"), call(number=1)) == (True, False, {"success": True})
    assert end(at(threshold=1.0), call(number=1)) == (True, False, {"success": False})
    assert end(at(threshold=0.5), call(number=1)) == (True, False, {"success": True})
    with pytest.raises(EnvironmentFault, match=r"won of its last observation is None, expected true or false"):
        end(at(success="won"), call(number=1))


def test_a_text_field_takes_the_text_without_the_reasoning(at) -> None:
    environment = at("words", instruction="Say a word.", max_steps=2)
    observation, info = environment.reset(seed=0)
    assert (observation, info) == ("a", {"task": "Say a word.\nYour action is word: One word."})
    assert environment.step("<think>\nx\n</think>\nan apple") == ("an apple", 0.25, False, False, {})
    assert environment.step("") == ("(nothing)", 0.0, False, True, {"success": False})


def test_a_text_field_can_be_named_where_there_are_others(at) -> None:
    with pytest.raises(EnvironmentFault, match="has no field 'word' in its actions, but number, tone"):
        at(text="word")
    environment = at(text="tone")
    assert "tools" not in environment.reset(seed=0)[1]
    assert environment.step("loud") == ("error: the environment does not take this action", 0.0, False, False, {})


def test_the_tools_of_mcp_are_called_by_their_names(at) -> None:
    environment = at("till")
    observation, info = environment.reset(seed=0)
    assert observation == "(nothing)"
    (tool,) = info["tools"]
    assert (tool["name"], tool["description"]) == ("give", "Give a coin.")
    assert tool["parameters"]["properties"]["coin"]["type"] == "integer"
    assert environment.step(call("give", coin=2))[0] == spoken("given 2")
    assert "there is no coin of 3" in environment.step(call("give", coin=3))[0]
    assert environment.step(call("give", coin="2"))[0] == spoken("error: coin: '2' is not of type 'integer'")
    assert environment.step("Done.")[2:] == (True, False, {"success": False})


def test_its_episodes_are_collected_and_curated(port: int, module, tmp_path: Path) -> None:
    name = module("own_guessing", f"http://127.0.0.1:{port}")
    pin(tmp_path, "scripted:random")
    config = tiny_config(
        tasks__train=[name], tasks__held_out=[], collect__episodes=24, collect__environments=4, tasks__text="plain"
    )
    run_to_batches(tmp_path, config)
    found = read_trajectories(tmp_path / "data/rollouts")
    assert Counter(one.outcome for one in found).keys() == {Outcome.SUCCESS, Outcome.FAILURE}
    assert all(one.stop_reason is StopReason.TERMINATED for one in found)
    for one in found:
        assert (one.outcome is Outcome.SUCCESS) == (sum(step.reward for step in one.steps) > 0)
    assert read_json(tmp_path / "data/rollouts/collect.json")["errors"] == {}


def test_a_server_named_by_address_is_collected_too(port: int) -> None:
    episodes = [Episode(f"openenv:127.0.0.1:{port}", seed, "train") for seed in range(12)]
    played = list(play(Caller(), episodes, Conditions(0, "compact", "token", environments=4)))
    assert {one.trajectory.outcome for one in played} == {Outcome.SUCCESS, Outcome.FAILURE}
    task = played[0].trajectory.task
    assert (task.environment, task.name, task.family) == ("openenv", f"127.0.0.1:{port}", "guessing")


def test_a_server_killed_in_the_middle_leaves_error_episodes(serve) -> None:
    process, port = serve()
    episodes = [Episode(f"openenv:127.0.0.1:{port}", seed, "train") for seed in range(12)]

    def kill() -> None:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    played = list(play(Caller(kill, after=5), episodes, Conditions(0, "compact", "token", environments=3)))
    assert len(played) == 12
    broken = [one.trajectory for one in played if one.trajectory.outcome is Outcome.ERROR]
    sound = [one.trajectory for one in played if one.trajectory.outcome is not Outcome.ERROR]
    assert sound
    assert {one.outcome for one in sound} <= {Outcome.SUCCESS, Outcome.FAILURE}
    middle = [one.error for one in broken if "(at step " in one.error]
    start = [one.error for one in broken if "(at step " not in one.error]
    assert middle
    assert all("the session was lost in the middle of the episode" in error for error in middle)
    assert start
    assert all(f"no OpenEnv server answers at http://127.0.0.1:{port}, start it there" in error for error in start)
    assert not any(one.learnable for one in broken)


def test_a_server_killed_in_a_round_leaves_error_episodes(serve, module, tmp_path: Path) -> None:
    process, port = serve()
    # The environment itself ends the server, in the step that it is told to.
    bomb = f"""
    def step(self, action):
        import os, signal
        if self._seed % 8 == 5:
            os.kill({process.pid}, signal.SIGKILL)
        return super().step(action)

    def asked(self, seed):
        self._seed = seed
        return {{"seed": seed}}
"""
    name = module("own_bomb", f"http://127.0.0.1:{port}", bomb)
    pin(tmp_path, "scripted:random")
    config = tiny_config(
        tasks__train=[name],
        tasks__held_out=[],
        tasks__text="plain",
        collect__episodes=24,
        collect__environments=2,
        collect__max_errors=1.0,
        collect__retries=0,
    )
    run_collect(tmp_path, config)
    found = read_trajectories(tmp_path / "data/rollouts")
    outcomes = Counter(one.outcome for one in found)
    assert len(found) == 24
    assert outcomes[Outcome.ERROR] >= 10
    assert outcomes[Outcome.SUCCESS] + outcomes[Outcome.FAILURE] == 24 - outcomes[Outcome.ERROR] > 0
    assert sum(read_json(tmp_path / "data/rollouts/collect.json")["errors"].values()) == outcomes[Outcome.ERROR]


def test_a_session_lost_in_the_middle_is_not_taken_up_by_another(serve, at) -> None:
    process, port = serve()
    environment = at(url=f"http://127.0.0.1:{port}/till")
    environment.reset(seed=0)
    environment.step(call("give", coin=2))
    process.kill()
    process.wait()
    serve(port=port)
    # The client would connect again by itself, and a tool be called that knows nothing of the coin before.
    with pytest.raises(EnvironmentFault, match="the session was lost in the middle of the episode"):
        environment.step(call("give", coin=2))
    with pytest.raises(EnvironmentFault, match="reset it before a step"):
        environment.step(call("give", coin=2))
    environment.reset(seed=0)
    assert environment.step(call("give", coin=2))[0] == spoken("given 2")


def test_a_session_lost_between_episodes_is_replaced(at) -> None:
    environment = at()
    environment.reset(seed=0)
    client = environment._client
    client.disconnect()
    assert environment.reset(seed=1)[0].startswith("hint: guess")
    environment.close()
    assert environment.reset(seed=1)[0].startswith("hint: guess")


def test_an_environment_that_raises_is_no_answer_to_the_agent(at) -> None:
    environment = at()
    environment.reset(seed=0)
    with pytest.raises(EnvironmentFault, match="step: Server error: the table fell over"):
        environment.step(call(number=8, tone="unsure"))
    with pytest.raises(EnvironmentFault, match="reset: Server error: the level is missing"):
        environment.reset(seed=666)
    with pytest.raises(EnvironmentFault, match="the episode of seed 13 is over at its start"):
        environment.reset(seed=13)
    assert environment.reset(seed=0)[0].startswith("hint: guess")


def test_an_answer_that_takes_too_long_is_told(at) -> None:
    environment = at(seconds=0.5)
    environment.reset(seed=0)
    with pytest.raises(EnvironmentFault, match=r"no answer to step within 0.5 s"):
        environment.step(call(number=9, tone="unsure"))
    assert environment.reset(seed=0)[0].startswith("hint: guess")


def test_a_full_server_is_waited_for_and_then_told(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from retroformer.environments import openenv

    _, port = serve(sessions=1)
    name = f"openenv:127.0.0.1:{port}"
    first, second = make(name), make(name)
    for _ in range(3):  # a session that was closed is there for the next one
        first.reset(seed=0)
        first.close()
        second.reset(seed=0)
        second.close()
    first.reset(seed=0)
    monkeypatch.setattr(openenv, "FULL", 0.5)
    with pytest.raises(EnvironmentFault, match=r"has no session left: .*max_concurrent_envs.*collect.environments"):
        second.reset(seed=0)
    assert first.step(call(number=2))[0].startswith("<tool_response>\nhint: ")
    first.close()


def test_a_server_that_is_not_there_is_told(serve) -> None:
    with pytest.raises(EnvironmentFault, match=r"no OpenEnv server answers at http://127\.0\.0\.1:9, start it there: "):
        make("openenv:127.0.0.1:9")


def test_a_server_of_something_else_is_told(port: int, at) -> None:
    with pytest.raises(EnvironmentFault, match=r"/nothing/schema says 404: is it an OpenEnv server\?"):
        at("nothing")


@pytest.mark.parametrize("task", ["", "a b", "http://localhost:8000", "localhost:port", "-x", "../x", "host/path"])
def test_what_is_no_address_is_told(serve, task: str) -> None:
    with pytest.raises(EnvironmentFault, match=r"openenv has no task '.*': expected HOST:PORT"):
        make(f"openenv:{task}")


def test_the_addresses_scheme(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from retroformer.environments.openenv import OpenEnv, Server

    monkeypatch.setattr(OpenEnv, "__init__", lambda self, task: None)
    urls = {"localhost:8000": "http", "[::1]:8000": "http", "[::1]": "https", "who-what.hf.space": "https"}
    assert {task: Server(task).url for task in urls} == {task: f"{one}://{task}" for task, one in urls.items()}


def test_servers_cannot_be_listed(serve) -> None:
    with pytest.raises(EnvironmentFault, match="one is named by its address: openenv:HOST:PORT"):
        known("openenv")
