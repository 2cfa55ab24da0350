"""The engine against environments that do what a script says, and an agent that writes down what it is asked."""

from __future__ import annotations

import math

import pytest

from retroformer.chat import describe_tools
from retroformer.environments.protocol import MOST_TEXT
from retroformer.errors import PolicyError
from retroformer.policies.agent import Choice
from retroformer.rollouts import lanes
from retroformer.rollouts.engine import Conditions, Episode, play
from retroformer.types import Outcome, StopReason


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def broken(error):
    def step(result):
        raise error

    return step


WRONG = {
    "vast": lambda result: (result[0], 10**400, *result[2:]),
    "void": lambda result: None,
    "five": lambda result: result[:4],
    "bare": lambda result: (*result[:4], None),
    "flag": lambda result: (*result[:2], "no", *result[3:]),
    "bytes": lambda result: (b"seen", *result[1:]),
    "surrogate": lambda result: ("caf\udce9", *result[1:]),
    "huge": lambda result: ("x" * (MOST_TEXT + 1), *result[1:]),
    "letters": lambda result: (*result[:4], {"admissible_actions": "ab"}),
    "twice": lambda result: (*result[:4], {"admissible_actions": ["a", "b", "a"]}),
    "quit": broken(SystemExit(3)),
    "mute": broken(Mute()),
}
"""What an environment says instead of a sound result."""


class FakeEnvironment:
    """Lasts as many steps as its name's number says, then ends in success; a word before it says what breaks."""

    family = "fake"

    def __init__(self, name, log):
        self.kind, _, length = name.removeprefix("fake:").partition("-")
        self.length, self.log = int(length or 2), log
        log.append(("made", name))

    def reset(self, *, seed, options=None):
        self.t, self.seed = 0, seed
        self.log.append(("reset", seed, (options or {})["mission"]))
        if self.kind == "reset":
            raise ConnectionError("no answer")
        if self.kind == "number":
            return 3, {"task": "go", "admissible_actions": ("a", "b")}
        if self.kind == "untold":
            return "o", {"admissible_actions": ("a",)}
        actions = () if self.kind == "nothing" else ("a", "b")
        told = {"task": f"go {seed}", "mission": (options or {})["mission"]}
        return f"{seed}.0", {**told, "admissible_actions": actions}

    def step(self, action):
        self.t += 1
        if self.kind == "step" and self.t == 2:
            raise RuntimeError("fell over")
        last = self.t == self.length
        reward = {"nan": math.nan, "inf": math.inf, "word": "much"}.get(self.kind, float(last)) if self.t == 2 else 0.0
        observation = None if self.kind == "none" and self.t == 2 else f"{self.seed}.{self.t}"
        info = {"admissible_actions": ("a", "b")} if not last else {"success": self.kind != "lost"}
        if self.kind == "stuck" and self.t == 2:
            info = {}
        if self.kind == "unsure" and last:
            info = {}
        if self.kind in WRONG and self.t == 2:
            return WRONG[self.kind]((observation, reward, False, False, info))
        return observation, reward, last and self.kind != "limit", last and self.kind == "limit", info

    def close(self):
        self.log.append(("closed", self.kind))


class FakeAgent:
    """Takes the first action below .5 and the second above; remembers every call."""

    version, temperature = "fake:1", 0.7

    def __init__(self):
        self.calls, self.released = [], []

    def act(self, decisions):
        self.calls.append([(d.slot, d.observation, d.t) for d in decisions])
        self.decisions = getattr(self, "decisions", []) + list(decisions)
        return [Choice(d.admissible_actions[int(d.uniform >= 0.5)], math.log(0.5), (0.5, 0.5)) for d in decisions]

    def release(self, slot):
        self.released.append(slot)


@pytest.fixture
def log(monkeypatch):
    log = []
    monkeypatch.setattr(lanes, "make", lambda name, text, actions: FakeEnvironment(name, log))
    return log


def run(names, environments=2, agent=None, **conditions):
    agent = agent or FakeAgent()
    episodes = [Episode(f"fake:{name}", seed, "train") for seed, name in enumerate(names)]
    played = list(play(agent, episodes, Conditions(5, "compact", "token", environments, **conditions)))
    return agent, played


def test_each_advances_at_its_own_step_and_a_finished_one_is_replaced_at_once(log):
    agent, played = run(["x-1", "x-3", "x-2", "x-1"])
    assert agent.calls == [
        [(0, "0.0", 0), (1, "1.0", 0)],
        [(1, "1.1", 1), (0, "2.0", 0)],
        [(1, "1.2", 2), (0, "2.1", 1)],
        [(0, "3.0", 0)],
    ]
    assert [one.episode.seed for one in played] == [0, 1, 2, 3]
    assert sorted(agent.released) == [0, 0, 0, 1]


def test_what_happened_is_recorded(log):
    _, (one,) = run(["x-2"], keep_probabilities=True)
    trajectory = one.trajectory
    assert [(s.observation, s.reward, s.admissible_actions) for s in trajectory.steps] == [
        ("0.0", 0.0, ("a", "b")),
        ("0.1", 1.0, ("a", "b")),
    ]
    assert {s.logprob for s in trajectory.steps} == {math.log(0.5)}
    assert (trajectory.task.environment, trajectory.task.name, trajectory.task.family) == ("fake", "x-2", "fake")
    assert (trajectory.task.description, trajectory.task.split, trajectory.task.seed) == ("go 0", "train", 0)
    assert (trajectory.policy, trajectory.temperature, trajectory.source) == ("fake:1", 0.7, "rollout")
    assert one.probabilities == ((0.5, 0.5), (0.5, 0.5))
    assert trajectory.error is None


def test_how_an_episode_ended(log):
    _, played = run(["x-2", "lost-2", "limit-2"], environments=3)
    assert [(one.trajectory.stop_reason, one.trajectory.outcome) for one in played] == [
        (StopReason.TERMINATED, Outcome.SUCCESS),
        (StopReason.TERMINATED, Outcome.FAILURE),
        (StopReason.EXCEPTION, Outcome.ERROR),
    ]
    assert played[2].trajectory.error.startswith("ValueError: the episode is truncated and a success: a step limit")


def test_the_tasks_own_step_limit_is_a_failure(log, monkeypatch):
    step = FakeEnvironment.step
    monkeypatch.setattr(
        FakeEnvironment, "step", lambda self, action: (*step(self, action)[:4], {"admissible_actions": ("a", "b")})
    )
    _, (one,) = run(["limit-2"])
    assert (one.trajectory.stop_reason, one.trajectory.outcome) == (StopReason.STEP_LIMIT, Outcome.FAILURE)


@pytest.mark.parametrize(
    ("kind", "steps", "message"),
    [
        ("reset", 0, "ConnectionError: no answer"),
        ("number", 0, "TypeError: the observation must be a str, got int"),
        ("untold", 0, "KeyError: 'task'"),
        ("nothing", 0, "ValueError: info['admissible_actions'] must hold at least one action: end the episode instead"),
        ("step", 1, "RuntimeError: fell over"),
        ("none", 2, "TypeError: the observation must be a str, got NoneType"),
        ("stuck", 2, r"ValueError: info['admissible_actions'] must hold at least one action: end the episode instead"),
        ("nan", 1, "ValueError: the reward must be finite, got nan"),
        ("inf", 1, "ValueError: the reward must be finite, got inf"),
        ("word", 1, "TypeError: the reward must be a number, got 'much'"),
        ("vast", 1, "OverflowError: int too large to convert to float"),
        ("void", 1, "TypeError: step gave a NoneType, expected (observation, reward, terminated, truncated, info)"),
        ("five", 1, "TypeError: step gave a tuple of 4, expected (observation, reward, terminated, truncated, info)"),
        ("bare", 1, "TypeError: step's info must be a dict, got NoneType"),
        ("flag", 2, "TypeError: terminated must be true or false, got 'no'"),
        ("bytes", 2, "TypeError: the observation must be a str, got bytes"),
        ("surrogate", 2, "ValueError: the observation is no text that UTF-8 can hold: surrogates not allowed at 3"),
        ("huge", 2, "ValueError: the observation has 1,048,577 characters, at most 1,048,576 are allowed"),
        ("letters", 2, "TypeError: info['admissible_actions'] must be a tuple of str, got str"),
        ("twice", 2, "ValueError: info['admissible_actions'] has 'a' twice: name every action once"),
        ("unsure", 4, "TypeError: the episode ends and info['success'] must be true or false, got None"),
        ("quit", 1, "SystemExit: 3"),
        ("mute", 1, "Mute: its message cannot be read"),
    ],
)
def test_what_breaks_is_an_error_with_its_message_and_disturbs_nobody(log, kind, steps, message):
    names = ["x-3", f"{kind}-4", "x-2", f"{kind}-4", "x-1"]
    _, played = run(names, keep_probabilities=True)
    by_seed = {one.episode.seed: one for one in played}
    assert sorted(by_seed) == [0, 1, 2, 3, 4]
    for seed, name in enumerate(names):
        one = by_seed[seed]
        broken = name.startswith(kind)
        assert one.trajectory.outcome is (Outcome.ERROR if broken else Outcome.SUCCESS)
        assert one.trajectory.stop_reason is (StopReason.EXCEPTION if broken else StopReason.TERMINATED)
        assert (one.trajectory.error or "").partition(" (at step ")[0] == (message if broken else "")
        assert (" (at step " in (one.trajectory.error or "")) == (broken and steps > 0)
        assert len(one.trajectory.steps) == len(one.probabilities) == (steps if broken else int(name[2:]))
    assert len({one.trajectory.id for one in played}) == 5


def test_a_policy_that_cannot_choose_ends_that_episode_alone(log):
    class Refusing(FakeAgent):
        def act(self, decisions):
            choices = super().act(decisions)
            return [
                PolicyError("too long") if d.observation == "7.1" else c
                for d, c in zip(decisions, choices, strict=True)
            ]

    episodes = [Episode("fake:good-3", seed, "train") for seed in (6, 7, 8)]
    found = {
        one.episode.seed: one.trajectory for one in play(Refusing(), episodes, Conditions(0, "compact", "token", 3))
    }
    assert {seed: one.outcome for seed, one in found.items()} == {
        6: Outcome.SUCCESS,
        7: Outcome.ERROR,
        8: Outcome.SUCCESS,
    }
    assert found[7].error == "PolicyError: too long"
    assert len(found[7].steps) == 1


def test_an_environment_that_broke_is_not_used_again_and_a_sound_one_is(log):
    run(["x-1", "x-1", "step-4", "step-4"], environments=1)
    assert [entry for entry in log if entry[0] == "made"] == [
        ("made", "fake:x-1"),
        ("made", "fake:step-4"),
        ("made", "fake:step-4"),
    ]
    assert [entry for entry in log if entry[0] == "closed"] == [("closed", "step"), ("closed", "step"), ("closed", "x")]


def test_environments_are_closed_where_the_reader_stops_early(log):
    played = play(FakeAgent(), [Episode("fake:x-1", 0, "train")] * 3, Conditions(0, "compact", "token", 1))
    next(played)
    played.close()
    assert ("closed", "x") in log


def test_a_limit_of_time_is_truncated(log):
    _, played = run(["x-3", "x-1"], max_seconds=1e-9)
    assert [(one.trajectory.outcome, one.trajectory.stop_reason, len(one.trajectory.steps)) for one in played] == [
        (Outcome.TRUNCATED, StopReason.TIME_LIMIT, 1),
        (Outcome.SUCCESS, StopReason.TERMINATED, 1),
    ]


def chances(agent):
    found = {}
    for decision in agent.decisions:
        found.setdefault(decision.description, []).append(decision.uniform)
    return found


def test_chance_depends_on_the_episode_alone(log):
    names = ["x-3", "x-1", "x-4", "step-3"]
    together, wide, narrow = (chances(run(names, environments=n)[0]) for n in (2, 4, 1))
    assert together == wide == narrow
    assert len({number for numbers in together.values() for number in numbers}) == 10
    assert all(0 <= number < 1 for numbers in together.values() for number in numbers)
    other_run = list(
        play(agent := FakeAgent(), [Episode("fake:x-3", 0, "train")], Conditions(6, "compact", "token", 1))
    )
    assert other_run
    assert chances(agent)["go 0"] != together["go 0"]


def test_attempts_at_one_task_differ_and_missions_share_their_chance(log):
    def numbers(**options):
        agent = FakeAgent()
        (one,) = play(agent, [Episode("fake:x-2", 0, "train", **options)], Conditions(5, "compact", "token", 1))
        return one.trajectory.id, chances(agent)["go 0"]

    first, second, swapped = numbers(), numbers(attempt=1), numbers(mission="shuffled")
    assert first[1] != second[1]
    assert first[1] == swapped[1]
    assert len({first[0], second[0], swapped[0]}) == 3
    assert ("reset", 0, "shuffled") in log


def test_no_episodes_is_no_work(log):
    agent, played = run([])
    assert (agent.calls, played) == ([], [])


TOOLS = [{"name": "look", "description": "Look around.", "parameters": {"type": "object", "properties": {}}}]


class Talking(FakeEnvironment):
    """Lists no actions; told ``end`` it ends."""

    def reset(self, *, seed, options=None):
        observation, info = super().reset(seed=seed, options=options)
        return observation, {"task": info["task"], "mission": info["mission"], "tools": TOOLS}

    def step(self, action):
        observation, reward, *ends, info = super().step(action)
        return f"{observation} after {action}", reward, *ends, {name: info[name] for name in info if name == "success"}


class Writer(FakeAgent):
    """Chooses where it can; else writes, and the second time is cut."""

    def act(self, decisions):
        chosen = super().act([one for one in decisions if one.admissible_actions])
        written = [
            Choice(f"said {one.t} of {one.max_new_tokens}", -2.0, (), (7, one.t), cut=one.t == 1)
            for one in decisions
            if one.admissible_actions is None
        ]
        return [chosen.pop(0) if one.admissible_actions else written.pop(0) for one in decisions]


def test_an_environment_that_lists_no_actions_is_played_in_text_mode_beside_one_that_does(monkeypatch):
    kinds = {"talk": Talking}
    monkeypatch.setattr(
        lanes, "make", lambda name, text, actions: kinds.get(name[5:9], FakeEnvironment)(name.replace("talk", "x"), [])
    )
    _, played = run(["talk-3", "x-2", "talk-1"], agent=Writer(), max_new_tokens=9)
    by_seed = {one.episode.seed: one for one in played}
    spoken = by_seed[0].trajectory
    assert [(s.observation, s.action, s.admissible_actions, s.token_ids, s.logprob) for s in spoken.steps] == [
        ("0.0", "said 0 of 9", None, (7, 0), -2.0),
        ("0.1 after said 0 of 9", "said 1 of 9", None, (7, 1), -2.0),
        ("0.2 after said 1 of 9", "said 2 of 9", None, (7, 2), -2.0),
    ]
    assert spoken.task.description == f"go 0\n\n{describe_tools(TOOLS)}"
    assert (spoken.outcome, by_seed[0].cut, by_seed[2].cut) == (Outcome.SUCCESS, 1, 0)
    chosen = by_seed[1].trajectory
    assert {(s.admissible_actions, s.token_ids) for s in chosen.steps} == {(("a", "b"), None)}
    assert chosen.task.description == "go 1"


def test_a_mission_that_the_environment_cannot_swap_is_swapped_from_outside(monkeypatch):
    class Plain(Talking):
        def reset(self, *, seed, options=None):
            _, info = super().reset(seed=seed, options={"mission": "true"})
            return f"please {info['task']}", {"task": info["task"]}

    monkeypatch.setattr(lanes, "make", lambda name, text, actions: Plain(name, []))
    episode = Episode("fake:x-1", 4, "gate", "shuffled")
    (one,) = play(Writer(), [episode], Conditions(5, "compact", "token", 1))
    assert one.trajectory.task.description not in ("", "go 4")
    assert one.trajectory.steps[0].observation == f"please {one.trajectory.task.description}"
