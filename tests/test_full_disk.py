"""A disk that is really full, under every command of a round: a small file system in memory, where one may be mounted.

The short form, without one, is in tests/stages/test_kills.py and tests/test_rounds.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from project import make_project, run
from retroformer.files import hash_directory
from retroformer.pins import read_pins
from retroformer.stages import STAGES
from tiny_round import BOT, pin, tiny_config

LEFT = {"close": (0, 20, 200, 700, 1500, 3000)}
"""Kilobytes that are left, in turn, before all is; of the stages only the first."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("no file system in memory may be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, left: int) -> None:
    """Take all of the disk but `left` kilobytes."""
    free = os.statvfs(disk)
    with (disk / "filler").open("wb") as file:
        file.write(bytes(max(0, free.f_bavail * free.f_frsize - left * 1024)))


def tell(root: Path, name: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "retroformer", name]
    return subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)


def prepared(root: Path) -> Path:
    make_project(root)
    (root / "params.yaml").write_text(yaml.safe_dump(tiny_config().model_dump(mode="json", by_alias=True)))
    pin(root, BOT)
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "--quiet", "--message", "start")
    return root


def outputs(root: Path) -> dict[str, str]:
    return {path.name: hash_directory(path) for path in sorted((root / "data").iterdir()) if path.is_dir()}


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_at_every_command_and_the_round_ends_the_same(
    small_disk: Path, tmp_path: Path
) -> None:
    whole, disturbed = prepared(tmp_path / "whole"), prepared(small_disk / "project")
    met = dict.fromkeys((*STAGES, "close"), 0)
    for name in met:
        if name == "close":
            for root in (whole, disturbed):  # DVC learns of what the commands have made
                run(root, sys.executable, "-m", "dvc", "commit", "--force", "--quiet")
        before = outputs(disturbed)
        for left in LEFT.get(name, (0,)):
            fill(small_disk, left)
            done = tell(disturbed, name)
            (small_disk / "filler").unlink()
            if name == "close" and done.returncode == 0:
                break
            errors = [line for line in done.stderr.splitlines() if line.startswith("retroformer: error: ")]
            assert (done.returncode, len(errors)) == (2, 1), f"{name}, {left} kB left: {done.stderr}"
            assert "Traceback" not in done.stderr
            words = errors[0].lower()
            assert any(said in words for said in ("no space left", "disk is full", "disk i/o", "quota")), words
            assert {**outputs(disturbed), "history": ""} == {**before, "history": ""}, f"{name} has left something"
            assert read_pins(disturbed / "data/champion.json").closed_rounds == 0
            met[name] += 1
        assert tell(disturbed, name).returncode == tell(whole, name).returncode == 0
    assert min(met.values()) >= 1
    found, expected = outputs(disturbed), outputs(whole)
    assert len({found.pop("history"), expected.pop("history")}) == 2  # it knows how long everything took
    assert found == expected
    pins = [read_pins(root / "data/champion.json") for root in (whole, disturbed)]
    assert pins[0] == pins[1]
    assert not list(disturbed.rglob(".*.writing-*"))
