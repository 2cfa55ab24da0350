"""What docs/environments.md says to do works, done to the letter."""

import re
import sys
from pathlib import Path

import pytest

from retroformer.environments import packages
from retroformer.environments.checker import check_environment
from retroformer.policies.scripted import load_scripted
from retroformer.rollouts.checking import check_package
from retroformer.rollouts.engine import Conditions, Episode, play
from retroformer.types import Outcome

GUIDE = Path(__file__).parents[2] / "docs/environments.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The guide's modules in a working folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for name, block in zip(("towers", "till", "guess"), BLOCKS, strict=True):
        (tmp_path / f"{name}.py").write_text(block)
    yield tmp_path
    packages.import_path.cache_clear()
    for name in ("towers", "till"):
        sys.modules.pop(name, None)


def test_the_template_is_short_and_keeps_the_contract(written: Path) -> None:
    assert len(BLOCKS[0].splitlines()) < 40
    reports = list(check_package("towers.Towers", 30.0))
    assert [report.name for report in reports] == ["towers.Towers:high", "towers.Towers:low"]
    assert all(report.problems == {} for report in reports), [line for one in reports for line in one.lines()]


def test_its_episodes_are_collected_with_swapped_missions_too(written: Path) -> None:
    episodes = [
        Episode("towers.Towers:low", seed, "history", mission) for seed in range(9) for mission in ("true", "shuffled")
    ]
    agent = load_scripted("scripted:random")
    played = list(play(agent, episodes, Conditions(0, "compact", "token", environments=4)))
    assert {one.trajectory.outcome for one in played} == {Outcome.SUCCESS, Outcome.FAILURE}
    assert {one.trajectory.task.family for one in played} == {"towers"}
    told = {(one.episode.seed, one.episode.mission): one.trajectory.task.description for one in played}
    assert told[1, "true"] == "build a tower of 2"
    assert all(told[seed, "true"] != told[seed, "shuffled"] for seed in range(9))


def test_the_tools_keep_the_contract(written: Path) -> None:
    report = check_environment("till.Till:default")
    assert report.problems == {}, list(report.lines())
    assert "tools give" in report.facts[1]


def test_an_installed_package_is_named_by_its_entry_point(written: Path) -> None:
    place = written / "towers-1.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: towers\nVersion: 1.0\n")
    table = re.search(r'entry-points\."(.*?)"\]\n(\w+) = "(.*?)"', GUIDE.read_text(encoding="utf-8"))
    assert table is not None
    (place / "entry_points.txt").write_text(f"[{table[1]}]\n{table[2]} = {table[3]}\n")
    sys.path.append(str(written))
    assert packages.find("towers").make("low").family == "towers"


def test_every_package_that_ships_here_is_in_the_guide_with_its_install_line() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    for name in packages.ADAPTERS:
        assert f"| `{name}` |" in text
        if line := packages.EXTRAS.get(name):
            assert re.findall(r"pip install '[^']*'", line)[0] in text
    assert set(packages.EXTRAS) <= set(packages.ADAPTERS)
