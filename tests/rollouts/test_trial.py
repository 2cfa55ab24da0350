"""Which files an environment is of: a collection that was killed goes on only where none of them has changed."""

from pathlib import Path

import pytest

from retroformer.rollouts.episodes import Conditions
from retroformer.rollouts.trial import played_at_random, swappable, try_all

PARROT = """
from zoo_rules import WORDS


class Parrot:
    family = "birds"

    def reset(self, *, seed, options=None):
        return "it listens", {"task": "speak", "admissible_actions": WORDS}

    def step(self, action):
        return "it nods", 1.0, True, False, {"success": True}

    def close(self):
        pass
"""


def test_what_a_class_imports_is_of_it_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zoo_trial.py").write_text(PARROT)
    (tmp_path / "zoo_rules.py").write_text("WORDS = ('a', 'b')")
    monkeypatch.chdir(tmp_path)
    found = try_all(["zoo_trial.Parrot:default"], Conditions(0, "compact", "token", 1))
    assert {tmp_path / "zoo_trial.py", tmp_path / "zoo_rules.py"} <= set(found)
    assert not [path for path in found if "site-packages" in path.parts]


def test_what_an_environment_says_to_its_end_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zoo_last.py").write_text(PARROT.replace("pass", "raise OSError('gone')"))
    (tmp_path / "zoo_rules.py").write_text("WORDS = ('a', 'b')")
    monkeypatch.chdir(tmp_path)
    told = ["zoo_last.Parrot:default"], Conditions(0, "compact", "token", 1)
    assert tmp_path / "zoo_last.py" in try_all(*told)
    assert swappable(*told) == ()
    assert played_at_random(*told)


def test_what_ships_here_is_known_without(tmp_path: Path) -> None:
    assert not [
        path for path in try_all(["babyai:P6N3"], Conditions(0, "compact", "token", 1)) if path.parts[-1] == "babyai.py"
    ]
