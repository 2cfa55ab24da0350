from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from project import FIRST_PINS, HERE, make_project, run
from retroformer.files import read_json, write_json, write_text


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(HERE))  # the studies are no part of the installed package
    return importlib.import_module("studies.rounds")


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose first round is closed and committed; its data lies elsewhere."""
    root = make_project(tmp_path / "project")
    write_json(root / "data/champion.json", {**FIRST_PINS, "closed_rounds": 1})
    for name in ("data/rounds.csv", "data/history/round-0001.dvc", "dvc.lock"):
        write_text(root / name, "")
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "--quiet", "--message", "start")
    monkeypatch.chdir(root)
    return root


def test_every_arm_can_be_configured_and_says_who_plays(rounds: ModuleType) -> None:
    arms, pages = (importlib.import_module(f"studies.{name}") for name in ("arms", "pages"))
    for study in pages.STUDIES.values():
        made = study.arms(1)
        assert len({arms.key_of(arm) for arm in made}) == len(made)
        assert all(arm.policy is None or arm.policy.startswith("scripted:") for arm in made)


def test_updates_saved_by_the_curriculum_by_hand(rounds: ModuleType) -> None:
    pages = importlib.import_module("studies.pages")
    curves = {"curriculum": (40, 60, 80, 90), "uniform": (20, 40, 60, 80)}
    results = [
        {"arm": f"{name}, {passes}", "seed": seed, "sampled": {"P5N2": [solved, 100], "GoToDoor": [solved, 100]}}
        for seed in (0, 1)
        for name, curve in curves.items()
        for passes, solved in zip(pages.PASSES, curve, strict=True)
    ]
    text, _ = pages.curriculum_answer(results)
    # .8 is what every run reaches: after 4 passes of 371 updates, and after 8; .72 at 2 + .6 * 2 passes and 4 + .6 * 4.
    assert "| 0.800 | 1484 ± 0 | 2968 ± 0 | 1484 ± 0 |" in text
    assert "| 0.720 | 1187 ± 0 | 2374 ± 0 | 1187 ± 0 |" in text
    assert "(2 seeds)" in text


def test_a_clone_has_its_seed_and_no_rounds(rounds: ModuleType, committed: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    rounds.clone(clone, 7)
    assert "\nseed: 7\n" in (clone / "params.yaml").read_text()
    assert read_json(clone / "data/champion.json") == FIRST_PINS
    assert not (clone / "data/rounds.csv").exists()
    assert sorted(path.name for path in (clone / "data/history").iterdir()) == ["README.md", "tombstones.jsonl"]


def test_what_is_not_committed_is_refused(rounds: ModuleType, committed: Path, tmp_path: Path) -> None:
    write_text(committed / "src/retroformer/new.py", "")
    with pytest.raises(SystemExit, match=r"commit these first: \?\? src/retroformer/new.py"):
        rounds.clone(tmp_path / "clone", 7)
    assert not (tmp_path / "clone").exists()


def test_a_task_may_be_told_what_another_one_tells():
    from studies import arms, told

    from retroformer.environments import make

    other = arms.next_task("toy_text:Lake4", ["babyai:P6N3", "toy_text:Taxi", "toy_text:Lake4"])
    name = told.named("toy_text:Lake4", other)
    assert (name, told.true_name(name.partition(":")[2]), told.true_name("P6N3")) == (
        "studies.told:toy_text:Lake4/Taxi",
        "Lake4",
        "P6N3",
    )
    swapped, true = make(name), make("toy_text:Lake4")
    (seen, info), (expected, told_of) = swapped.reset(seed=5), true.reset(seed=5)
    assert seen == expected
    assert info["task"].startswith("drive the passenger")
    assert info["admissible_actions"] == told_of["admissible_actions"]
    assert swapped.step(info["admissible_actions"][0]) == true.step(info["admissible_actions"][0])
