"""One sound environment, and one fault at a time: the checker names the paragraph that each of them breaks."""

import re
import sys
from pathlib import Path

import pytest

from retroformer import cli
from retroformer.environments import packages
from retroformer.environments.checker import Report, check_environment
from retroformer.environments.protocol import TextEnvironment, __doc__, section

SOUND = '''
import math


class Ladder:
    """Climb to the top."""

    family = "ladders"

    def __init__(self):
        self.left = 0

    def reset(self, *, seed, options=None):
        self.left, self.t = 3 + seed % 2, 0
        return self.see(), {"task": f"climb {self.left} rungs", "admissible_actions": self.can()}

    def can(self):
        return ("up", "wait")

    def see(self):
        return f"{self.left} to go"

    def step(self, action):
        if not self.left or action not in self.can():
            raise ValueError(f"cannot {action}")
        self.left -= action == "up"
        self.t += 1
        over, late = self.left == 0, self.t == 9
        if over or late:
            self.left = 0
            return self.see(), float(over), over, not over and late, {"success": over}
        return self.see(), 0.0, False, False, {"admissible_actions": self.can()}

    def expert_action(self):
        return "up"

    def close(self):
        pass
'''

FAULTS = {
    "an int for a text": ('f"{self.left} to go"', "self.left", "Texts", "the observation is 4, expected a str"),
    "no task": ('"task": f"climb {self.left} rungs", ', "", "Task", r"info\['task'\] is None"),
    "reset fails for some seeds": (
        "self.left, self.t = ",
        "1 / (seed - 3)\n        self.left, self.t = ",
        "Episode",
        r"reset fails for 1 of 12 seeds \(3\), first with ZeroDivisionError",
    ),
    "a step without reset": ("if not self.left or", "if", "Episode", "a step after the end does not raise"),
    "a tuple too short": (
        "0.0, False, False, {",
        "0.0, False, {",
        "Episode",
        r"seed 0, step 0: step gave a tuple of 4, expected \(observation, reward, terminated, truncated, info\)",
    ),
    "admissible and yet not": (
        'rungs", "admissible_actions": self.can()',
        'rungs", "admissible_actions": (*self.can(), "jump")',
        "Actions",
        "the admissible action 'jump' raised ValueError: cannot jump",
    ),
    "everything is admissible": ("or action not in self.can()", "", "Actions", "not admissible does not raise"),
    "twice": ('("up", "wait")', '("up", "wait", "up")', "Actions", "'up' is admissible twice"),
    "white space alone": (
        '("up", "wait")',
        '("up", "up ", "wait")',
        "Actions",
        "'up' and 'up ' differ in white space alone",
    ),
    "nothing to read": ('("up", "wait")', '(" ", "up", "wait")', "Actions", "is ' ', expected a str with words"),
    "nothing to choose": ('("up", "wait")', "()", "Actions", "no action is admissible and the episode goes on"),
    "no longer there": ('{"admissible_actions": self.can()}', "{}", "Actions", "is None, expected a tuple of str"),
    "infinite": ("0.0, False, False", "math.inf, False, False", "Reward", "the reward is inf, expected a finite"),
    "no success": ('{"success": over}', "{}", "End", r"the episode ends and info\['success'\] is None"),
    "a late success": ('{"success": over}', '{"success": True}', "End", "the episode is truncated and a success"),
    "never over": (
        "over, late = self.left == 0, self.t == 9",
        "over = late = False; self.left = 3",
        "End",
        "50 steps and no end",
    ),
    "a number for an end": ("0.0, False, False", "0.0, 0, False", "End", "terminated is 0, expected true or false"),
    "chance from outside": ('f"{self.left} to go"', 'f"{id(self)} to go"', "Determinism", "observation was '"),
    "the order of a set": (
        '("up", "wait")',
        'tuple({"up", "wait", *"abcdefgh"})',
        "Determinism",
        "reset|admissible was",
    ),
    "the mission that is told does not differ": (
        '"task": ',
        '"mission": (options or {}).get("mission"), "task": ',
        "Mission",
        "the agent is told the true one",
    ),
    "an expert beside the point": ('return "up"', 'return "fly"', "Expert", "says 'fly', which is not admissible"),
}


@pytest.fixture
def ladder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a module of the sound environment, with one text in it replaced, and gives its name."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)

    def write(old: str = "", new: str = "") -> str:
        assert old in SOUND
        name = f"ladder_{abs(hash((old, new)))}"
        (tmp_path / f"{name}.py").write_text(SOUND.replace(old, new) if old else SOUND)
        return f"{name}.Ladder:default"

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("ladder_"):
            del sys.modules[name]
    packages.import_path.cache_clear()


def test_a_sound_environment_has_facts_and_no_problems(ladder) -> None:
    report = check_environment(ladder())
    assert report.problems == {}
    lines = list(report.lines())
    assert "12 episodes of" in lines[0]
    assert "2 to 2 admissible actions" in lines[0]
    assert "its expert solves 4 of 4" in lines[0]
    assert lines[1] == "  nothing was found that breaks the contract"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_with_the_paragraph_that_it_breaks(ladder, fault: str, monkeypatch) -> None:
    old, new, paragraph, message = FAULTS[fault]
    monkeypatch.setattr("retroformer.environments.checker.MAX_STEPS", 50)
    if paragraph != "Determinism":  # saves a process for each
        monkeypatch.setattr("retroformer.environments.checker.check_determinism", lambda *_: None)
    report = check_environment(ladder(old, new))
    found = "\n".join(report.problems[paragraph])
    assert re.search(message, found), list(report.lines())
    assert any(section(paragraph) in line for line in report.lines())


@pytest.mark.parametrize("kept", ["random.random()", "len(SEEN)"])
def test_what_the_instances_of_a_process_share_is_told(ladder, kept: str) -> None:
    name = ladder("class Ladder:", "import random\nSEEN = []\n\n\nclass Ladder:")
    path = Path(f"{name.partition('.')[0]}.py")
    text = path.read_text()
    for old, new in (
        ("self.left, self.t = ", "random.seed(seed); SEEN.clear(); self.left, self.t = "),
        ("self.t += 1", "self.t += 1; SEEN.append(action)"),
        ("{self.left} to go", f"{{self.left}} {{{kept}}}"),
    ):
        text = text.replace(old, new)
    path.write_text(text)
    (found, *_) = check_environment(name).problems["Determinism"]
    assert re.search("played while another instance plays in the same process, step [12]: observation was", found)


def test_tools_are_checked_in_text_mode(ladder) -> None:
    name = ladder('"admissible_actions": self.can()', '"tools": [{"name": "up"}]')
    report = check_environment(name)
    assert report.problems["Tools"][0] == "seed 0, reset: a tool is {'name': 'up'}"
    assert "text mode" in report.facts[1]
    # What an agent writes never raises in text mode, and this environment raises for all but two words.
    assert "the written action" in report.problems["Actions"][0]


def test_a_report_does_not_drown_the_reader() -> None:
    report = Report("x:y")
    for place in range(50):
        report.add("Reward", f"step {place}: nan")
        report.add("Reward", f"step {place}: nan")
    lines = list(report.lines())
    assert [line for line in lines if "more of this kind" in line] == ["  Reward: and 47 more of this kind"]
    assert len(lines) == 1 + 3 + 1 + 1


def test_the_command_ends_with_an_exit_code(ladder, capsys: pytest.CaptureFixture[str]) -> None:
    sound, broken = ladder(), ladder("0.0, False, False", "'much', False, False")
    assert cli.main(["check-environment", sound.partition(":")[0]]) == 0
    assert "nothing was found that breaks the contract" in capsys.readouterr().out
    assert cli.main(["check-environment", broken]) == 2
    told = capsys.readouterr()
    assert "the reward is 'much', expected a finite number" in told.out
    assert section("Reward") in told.out
    assert told.err.strip().endswith("break the contract, see above")


def test_every_paragraph_of_the_contract_can_be_quoted() -> None:
    assert __doc__ is not None
    for name in ("Episode", "Texts", "Task", "Actions", "Tools", "Reward", "End", "Determinism", "Mission", "Expert"):
        assert f"**{name}.**" in __doc__
        assert len(section(name)) > 20
    assert {"reset", "step", "close"} <= set(dir(TextEnvironment))
