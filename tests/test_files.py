import errno
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from builders import make_error, make_trajectory
from retroformer.errors import DataError
from retroformer.files import hash_directory, read_json, replacing, resume_folder, write_json, write_text
from retroformer.storage import read_trajectories, write_trajectories


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "rollouts"
    made.mkdir()
    write_trajectories(made, [make_trajectory(seed=0), make_trajectory((0.0,), seed=1), make_error(seed=2)])
    return made


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "deep" / "out"
    for text in ("train.json", "round.json"):
        with replacing(target) as made:
            write_text(made / text, text)
            assert names(tmp_path / "deep") != ["out"]
    assert names(target) == ["round.json"]
    assert names(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_folder_stays_as_it_was_where_the_writing_breaks(tmp_path, error):
    target = tmp_path / "out"
    with replacing(target) as made:
        write_text(made / "train.json", "as it was")

    def breaks():
        with replacing(target) as made:
            write_text(made / "half", "x")
            raise error

    with pytest.raises(type(error)):
        breaks()
    assert names(tmp_path) == ["out"]
    assert (target / "train.json").read_text() == "as it was"


def test_a_folder_stays_as_it_was_where_the_last_renaming_breaks(tmp_path, monkeypatch):
    target = tmp_path / "out"
    with replacing(target) as made:
        write_text(made / "train.json", "as it was")
    rename = os.rename

    def failing(source, destination):
        if str(destination) == str(target) and not str(source).endswith(".old"):
            raise OSError(errno.EIO, "broken")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="broken"):
        with replacing(target) as made:
            write_text(made / "new", "x")
    assert names(tmp_path) == ["out"]
    assert names(target) == ["train.json"]


@pytest.mark.parametrize("name", ["file", "link", ".", "..", "mine", "hidden"])
def test_what_is_no_output_is_not_replaced(tmp_path, monkeypatch, name):
    (tmp_path / "file").write_text("mine")
    for folder, file in (("mine", "thesis.tex"), ("hidden", ".git"), ("out", "train.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("mine")
    (tmp_path / "link").symlink_to("out")
    monkeypatch.chdir(tmp_path / "out")
    target = Path(name) if name.startswith(".") else tmp_path / name
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=f"^{re.escape(str(target))} (is|holds)"), replacing(target):
        pytest.fail("it was begun")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    with replacing(tmp_path / "out") as made:
        (made / "anything").touch()
    assert names(tmp_path / "out") == ["anything"]


FULL = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from builders import make_error, make_trajectory
from retroformer.files import replacing, write_text
from retroformer.storage import write_trajectories
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
out = Path({out!r})
try:
    with replacing(out) as made:
        write_trajectories(made, [make_trajectory((0.0,) * 50, seed=s, description="x" * s) for s in range(200)])
    print("written")
except OSError as error:
    print(error.__class__.__name__)
"""


def test_a_full_disk_leaves_the_old_tables(folder):
    write_json(folder / "collect.json", {})
    before = hash_directory(folder)
    code = FULL.format(tests=os.path.dirname(__file__), out=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "OSError"
    assert hash_directory(folder) == before
    assert names(folder.parent) == ["rollouts"]
    assert read_trajectories(folder)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_json(path, {"b": 1, "a": [None, 0.5]})
    assert path.read_text() == '{\n  "a": [\n    null,\n    0.5\n  ],\n  "b": 1\n}\n'
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": math.nan})

    def failing(source, destination):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="full"):
        write_json(path, {})
    assert json.loads(path.read_text())["b"] == 1
    assert names(tmp_path) == ["report.json"]


def test_json_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.json does not exist"):
        read_json(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"a": 1,\n "b"')
    with pytest.raises(DataError, match=r"cut\.json is not JSON: .* line 2"):
        read_json(tmp_path / "cut.json")


def test_a_folder_is_its_names_and_contents(tmp_path):
    def made(name, **files):
        for path, text in files.items():
            write_text(tmp_path / name / path.replace("__", "/"), text)
        return hash_directory(tmp_path / name)

    first = made("a", x="1", y__z="2")
    assert first == made("b", y__z="2", x="1")
    assert len({first, made("c", x="2", y__z="1"), made("d", x="12"), made("e", x="1", y__w="2")}) == 4
    (tmp_path / "a" / ".hidden").write_text("x")
    assert hash_directory(tmp_path / "a") == first
    with pytest.raises(DataError, match="nothing does not exist"):
        hash_directory(tmp_path / "nothing")


def test_what_is_resumed_depends_on_inputs_and_values(tmp_path):
    write_text(tmp_path / "in" / "a", "1")
    first = resume_folder("train", [tmp_path / "in"], [{"updates": 1}], tmp_path)
    assert first.parent == tmp_path / ".resume"
    assert first.name.startswith("train-")
    assert resume_folder("train", [tmp_path / "in"], [{"updates": 1}], tmp_path) == first
    assert resume_folder("train", [tmp_path / "in"], [{"updates": 2}], tmp_path) != first
    write_text(tmp_path / "in" / "a", "2")
    assert resume_folder("train", [tmp_path / "in"], [{"updates": 1}], tmp_path) != first
    with pytest.raises(DataError, match="nothing does not exist"):
        resume_folder("train", [tmp_path / "nothing"], [], tmp_path)
