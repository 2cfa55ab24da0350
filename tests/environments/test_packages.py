"""Environments of packages that this project has never named."""

import sys
import textwrap
from pathlib import Path

import pytest

from retroformer.environments import known, lexicon, make, packages, start
from retroformer.errors import EnvironmentFault

PARROT = '''
class Parrot:
    """Repeat the word."""

    family = "birds"
    tasks = ("short", "long")

    def __init__(self, task):
        self.words = {"short": ("a", "b"), "long": ("alpha", "beta", "gamma")}[task]

    def reset(self, *, seed, options=None):
        self.word = self.words[seed % len(self.words)]
        return f"it says {self.word}", {"task": f"say {self.word}", "admissible_actions": self.words}

    def step(self, action):
        return "it nods", float(action == self.word), True, False, {"success": action == self.word}

    def close(self):
        pass
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which modules are imported, and forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("zoo"):
            del sys.modules[name]
    packages.import_path.cache_clear()


def install(folder: Path, **points: str) -> None:
    """What installing a distribution with these entry points leaves behind."""
    lines = "\n".join(f"{name} = {value}" for name, value in points.items())
    place = folder / "zoo-1.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: zoo\nVersion: 1.0\n")
    (place / "entry_points.txt").write_text(f"[{packages.GROUP}]\n{lines}\n")
    sys.path.append(str(folder))


def test_a_class_by_its_import_path(folder: Path) -> None:
    (folder / "zoo_class.py").write_text(PARROT)
    assert known("zoo_class.Parrot") == ("long", "short")
    environment = make("zoo_class.Parrot:long")
    assert start(environment, 1)[1]["task"] == "say beta"
    assert environment.step("beta")[1:] == (1.0, True, False, {"success": True})
    observation, info = start(environment, 1, "shuffled")
    assert observation == "it says beta"
    assert info["task"] in ("say alpha", "say gamma")
    with pytest.raises(EnvironmentFault, match=r"zoo_class.Parrot has no task 'lung'; nearest: long"):
        make("zoo_class.Parrot:lung")


def test_a_class_without_tasks_has_one(folder: Path) -> None:
    text = PARROT.replace('tasks = ("short", "long")', "").replace("self, task", "self").replace("[task]", '["short"]')
    (folder / "zoo_single.py").write_text(text)
    assert known("zoo_single.Parrot") == ("default",)
    assert start(make("zoo_single.Parrot:default"), 0)[0] == "it says a"


@pytest.mark.parametrize("tasks", ["()", "(1, 2)", '("",)'])
def test_tasks_that_are_no_names_are_told(folder: Path, tasks: str) -> None:
    (folder / "zoo_tasks.py").write_text(PARROT.replace('("short", "long")', tasks, 1))
    with pytest.raises(EnvironmentFault, match=r"zoo_tasks.Parrot.tasks is \(.*, expected at least one task name"):
        known("zoo_tasks.Parrot")


def test_an_entry_point_may_have_a_dot(folder: Path) -> None:
    (folder / "zoo_dotted.py").write_text(PARROT)
    install(folder, **{"my.zoo": "zoo_dotted:Parrot"})
    assert known("my.zoo") == ("long", "short")


def test_an_entry_point_is_named_without_its_module(folder: Path) -> None:
    (folder / "zoo_installed.py").write_text(PARROT)
    install(folder, zoo="zoo_installed:Parrot")
    assert known("zoo") == ("long", "short")
    assert start(make("zoo:short"), 1)[0] == "it says b"
    with pytest.raises(EnvironmentFault, match="no environment package 'zo'; nearest: zoo"):
        make("zo:short")


def test_a_module_may_list_its_words_and_is_told_what_it_asks_for(folder: Path) -> None:
    module = PARROT + textwrap.dedent("""
        def make(task, actions):
            made = Parrot(task)
            made.actions = actions
            return made

        def known():
            return Parrot.tasks

        def lexicon(text):
            return [text, "it", "says"]
    """)
    (folder / "zoo_module.py").write_text(module)
    install(folder, zoo="zoo_module")
    assert make("zoo:long", actions="words").actions == "words"
    assert lexicon(["zoo:long"], text="plain") == ("it", "plain", "says")
    assert "left" in lexicon(["zoo:long", "babyai:P6N3"])


def test_a_lexicon_imports_nothing_that_a_log_may_name(folder: Path) -> None:
    (folder / "zoo_trap.py").write_text("raise SystemExit")
    assert lexicon(["zoo_trap.Parrot:long"]) == ()


def test_a_module_whose_tasks_cannot_be_listed_says_which_it_accepts(folder: Path) -> None:
    (folder / "zoo_open").mkdir()
    (folder / "zoo_open/tasks.py").write_text(
        textwrap.dedent("""
        from retroformer.errors import EnvironmentFault

        class Parrot:
            family, reset, step, close = "birds", None, None, None

            def __init__(self, task):
                self.task = task

        make = Parrot

        def known():
            return ()

        def accept(task):
            if not task.isdigit():
                raise EnvironmentFault(f"zoo_open.tasks has no task {task!r}, expected a number")
        """)
    )
    assert make("zoo_open.tasks:17").task == "17"
    with pytest.raises(EnvironmentFault, match=r"zoo_open\.tasks has no task 'seven', expected a number"):
        make("zoo_open.tasks:seven")


BROKEN = {
    "zoo_none.Parrot:x": (None, "package zoo_none.Parrot cannot be imported: ModuleNotFoundError: No module named"),
    "zoo_error.Parrot:x": (
        "import nothing_of_that_name",
        "ModuleNotFoundError: No module named 'nothing_of_that_name'",
    ),
    "zoo_near.Parot:x": ("Parrot = 1", "module zoo_near has no Parot; nearest: Parrot"),
    "zoo_value.Parrot:x": ("Parrot = 1", "neither a class nor a module with make.task. and known"),
    "zoo_text.Parrot:x": ("class Parrot:\n  tasks = 'x'\n  def step(self): ...", "tasks is the text 'x'"),
    "zoo_raises.Parrot:default": (
        "class Parrot:\n  def __init__(self): self.x = 1 / 0\n  def step(self): ...",
        "zoo_raises.Parrot:default cannot start: ZeroDivisionError",
    ),
    "zoo_lacks.Parrot:default": (
        "class Parrot:\n  family = 'x'\n  def step(self): ...",
        "zoo_lacks.Parrot:default is a Parrot without reset, close; docs/environments.md",
    ),
    "zoo_empty.Parrot:default": ("class Parrot: ...", "neither step nor a public method that could be a tool"),
    "zoo-bad.Parrot:x": (None, "'zoo-bad.Parrot' is not an import path"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_used_is_told_in_one_sentence(folder: Path, name: str) -> None:
    source, message = BROKEN[name]
    if source is not None:
        (folder / f"{name.partition('.')[0]}.py").write_text(source)
    with pytest.raises(EnvironmentFault, match=message):
        make(name)


def test_a_misspelt_module_of_the_working_folder_is_told_its_nearest(folder: Path) -> None:
    (folder / "zoo_birds.py").write_text("Parrot = 1")
    with pytest.raises(EnvironmentFault, match=r"No module named 'zoo_brids'; nearest in this folder: zoo_birds"):
        make("zoo_brids.Parrot:x")


def test_an_extra_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packages.ADAPTERS, "absent", "package_that_is_absent")
    monkeypatch.setitem(packages.EXTRAS, "absent", "pip install 'retroformer[absent]'")
    with pytest.raises(
        EnvironmentFault, match=r"absent needs package_that_is_absent, .*: pip install 'retroformer\[ab"
    ):
        make("absent:task")
