"""The checker apart from the environments that would end it."""

import re
from pathlib import Path

import pytest

from retroformer import cli
from retroformer.rollouts.checking import check_apart, check_package

SOUND = """
class One:
    family = "one"
    def reset(self, *, seed, options=None):
        self.over = print(f"reset to {seed}")
        return "a", {"task": "go", "admissible_actions": ("on",)}
    def step(self, action):
        if self.over or action != "on":
            raise ValueError(action)
        self.over = True
        return "b", 1.0, True, False, {"success": True}
    def close(self):
        pass
"""


@pytest.mark.parametrize(
    ("task", "paragraph", "message"),
    [
        ("hang_in_make", "Episode", r"its start: no answer within 1 s, in __init__ at chaos\.py:\d+"),
        ("hang_in_reset", "Episode", r"reset\(seed=1, .*\): no answer within 1 s, in reset at chaos\.py:\d+"),
        ("hang_in_close", "Episode", r"close\(\): no answer within 1 s, in close at chaos\.py:\d+"),
        ("exit_in_reset", "Episode", r"reset\(seed=0, .*\): its process exited with code 7"),
        ("segfault", "Episode", r"step\('\w+'\): its process was ended by SIG(SEGV|ABRT)"),
        ("forks", "Episode", r"step\('\w+'\): an os\.fork\(\) of an environment returned twice"),
        (
            "interrupts",
            "Actions",
            r"seed 1, step 1: the .* '\w+' raised RuntimeError: step raised KeyboardInterrupt: stop",
        ),
        ("quits", "Actions", r"seed 1, step 1: the admissible action '\w+' raised RuntimeError: step called sys\.exit"),
    ],
)
def test_what_hangs_or_ends_its_process_is_told(task: str, paragraph: str, message: str) -> None:
    report = check_apart(f"chaos.One:{task}", 1.0)
    assert re.match(message, report.problems[paragraph][0]), list(report.lines())


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("alarm", r"step leaves a timer running \(signal\.alarm, signal\.setitimer\)"),
        ("moves", r"step changes the working folder, from .* to /"),
        ("raises_in_close", r"close raised RuntimeError: cannot close"),
    ],
)
def test_what_others_in_its_process_would_suffer_from_is_told(task: str, message: str) -> None:
    report = check_apart(f"chaos.One:{task}", 5.0)
    assert any(re.fullmatch(message, one) for one in report.problems["Episode"]), list(report.lines())


def test_what_it_prints_is_not_in_the_report(tmp_path: Path, monkeypatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talker.py").write_text(SOUND)
    assert cli.main(["check-environment", "talker.One"]) == 0
    told = capfd.readouterr().out
    assert "nothing was found" in told
    assert "reset to" not in told


def test_a_module_that_exits_when_it_is_imported_is_told(
    tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leaver.py").write_text("import sys\nsys.exit(0)\n")
    assert cli.main(["check-environment", "leaver.One"]) == 2
    assert "environment package leaver.One cannot be imported: it called sys.exit(0)" in capsys.readouterr().err


def test_a_call_cannot_take_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-environment", "babyai:P5N2", "--max-step-seconds", "0"]) == 2
    assert "--max-step-seconds is 0, expected" in capsys.readouterr().err


def test_one_that_is_gone_after_another_is_looked_at_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pair.py").write_text(
        SOUND.replace(
            '"one"', '"one"\n    tasks = ("a", "b")\n    def __init__(self, task):\n        self.task = task'
        ).replace("self.over = print", "self.over = self.task == 'a' and __import__('os')._exit(0) or print")
    )
    first, second = check_package("pair.One", 5.0)
    assert first.problems["Episode"][0].endswith("its process exited with code 0")
    assert second.problems == {}
