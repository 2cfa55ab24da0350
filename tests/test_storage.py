import errno
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import make_error, make_trajectory
from retroformer.errors import DataError
from retroformer.storage import (
    EPISODES,
    STEPS,
    count_trajectories,
    hash_directory,
    read_json,
    read_trajectories,
    replacing,
    resume_folder,
    stream_trajectories,
    write_json,
    write_text,
    write_trajectories,
)
from retroformer.types import Outcome, Step, StopReason, Task, Trajectory

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
NUMBERS = st.floats(allow_nan=False)
STEP = st.builds(
    Step,
    observation=TEXTS,
    action=TEXTS,
    reward=NUMBERS,
    admissible_actions=st.none() | st.lists(TEXTS, max_size=3).map(tuple),
    token_ids=st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=3).map(tuple),
    logprob=st.none() | NUMBERS,
)
TRAJECTORY = st.builds(
    Trajectory,
    id=TEXTS,
    task=st.builds(Task, TEXTS, TEXTS, TEXTS, TEXTS, st.integers(-(2**63), 2**63 - 1), TEXTS),
    steps=st.lists(STEP, max_size=3).map(tuple),
    stop_reason=st.sampled_from(StopReason),
    outcome=st.sampled_from(Outcome),
    policy=TEXTS,
    temperature=NUMBERS,
    attempt=st.integers(0, 2**31 - 1),
    previous_id=st.none() | TEXTS,
    source=TEXTS,
    error=st.none() | TEXTS,
).filter(lambda one: not {math.inf, -math.inf} & set(one.rewards) and abs(sum(one.rewards)) < math.inf)


@settings(max_examples=40, deadline=None)
@given(trajectories=st.lists(TRAJECTORY, max_size=4, unique_by=lambda one: one.id))
def test_trajectories_come_back_as_they_were_written(trajectories, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    write_trajectories(folder, trajectories)
    assert read_trajectories(folder) == sorted(trajectories, key=lambda one: one.id)


SOME = [make_trajectory(seed=0), make_trajectory((0.0,), seed=1), make_error(seed=2)]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "rollouts"
    made.mkdir()
    write_trajectories(made, SOME)
    return made


def test_the_same_trajectories_give_the_same_bytes_in_any_order(folder, tmp_path):
    other = tmp_path / "again"
    other.mkdir()
    write_trajectories(other, SOME[::-1])
    assert hash_directory(folder) == hash_directory(other)
    write_trajectories(other, [replace(SOME[0], policy="q"), *SOME[1:]])
    assert hash_directory(folder) != hash_directory(other)


@pytest.mark.parametrize("table", ["episodes.parquet", "steps.parquet"])
@pytest.mark.parametrize("kept", [0, 3, 0.5, 0.99])
def test_a_table_that_is_cut_short_is_named(folder, table, kept):
    path = folder / table
    content = path.read_bytes()
    path.write_bytes(content[: kept if kept in (0, 3) else int(len(content) * kept)])
    with pytest.raises(DataError, match=f"{table} is damaged: it cannot be read as Parquet"):
        read_trajectories(folder)


def test_bytes_that_are_wrong_inside_a_table_are_told(folder):
    path = folder / "steps.parquet"
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"steps\.parquet"):
        read_trajectories(folder)


def edit(path, change):
    table = pq.read_table(path)
    pq.write_table(change(table), path)


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("episodes", lambda t: t.drop_columns(["outcome", "seed"]), "lacks the columns seed, outcome; it has"),
        ("episodes", lambda t: t.set_column(5, "seed", pa.array(["a"] * 3)), "column of another type than expected"),
        ("episodes", lambda t: t.set_column(7, "outcome", pa.array(["won"] * 3)), "'won' is not a valid Outcome"),
        ("episodes", lambda t: t.slice(1), "has steps of an episode that is not there"),
        ("steps", lambda t: t.slice(0, len(t) - 1), r"has \d steps of .* episodes.parquet says"),
        ("steps", lambda t: t.take(list(range(len(t)))[::-1]), r"step \d of .* where step 0 was due"),
    ],
)
def test_tables_that_do_not_fit_are_told(folder, table, change, message):
    edit(folder / f"{table}.parquet", change)
    with pytest.raises(DataError, match=message):
        read_trajectories(folder)


def test_a_missing_table_is_named(folder):
    (folder / "steps.parquet").unlink()
    with pytest.raises(DataError, match=r"steps\.parquet does not exist"):
        read_trajectories(folder)


def test_the_schema_says_its_version(folder):
    for name, schema in (("episodes", EPISODES), ("steps", STEPS)):
        assert pq.read_schema(folder / f"{name}.parquet").metadata[b"retroformer_schema"] == b"1"
        assert schema.metadata == {b"retroformer_schema": b"1"}


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
from builders import make_trajectory
from retroformer.storage import replacing, write_text, write_trajectories
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


def test_a_stream_reads_no_further_than_it_must(tmp_path, monkeypatch):
    monkeypatch.setattr("retroformer.storage.ROWS", 4)
    written = sorted((make_trajectory((0.0, 1.0), seed=seed) for seed in range(50)), key=lambda one: one.id)
    write_trajectories(tmp_path, written)
    assert count_trajectories(tmp_path) == 50
    read = []
    monkeypatch.setattr("retroformer.storage._cast", lambda path, batch, schema: read.append(len(batch)) or batch)
    arriving = stream_trajectories(tmp_path)
    assert [next(arriving) for _ in range(3)] == written[:3]
    assert sum(read) < 20
    assert list(arriving) == written[3:]
    assert sum(read) == 50 + 100


def test_steps_that_lie_in_another_order_find_their_episode(tmp_path):
    written = sorted((make_trajectory((0.0, 1.0), seed=seed) for seed in range(9)), key=lambda one: one.id)
    write_trajectories(tmp_path, written)
    # All first steps before all second ones.
    edit(tmp_path / "steps.parquet", lambda t: t.take([*range(0, 18, 2), *range(1, 18, 2)]))
    assert list(stream_trajectories(tmp_path)) == written


def test_counting_tells_what_it_cannot_read(tmp_path):
    with pytest.raises(DataError, match=r"episodes\.parquet does not exist"):
        count_trajectories(tmp_path)
    (tmp_path / "episodes.parquet").write_text("no table")
    with pytest.raises(DataError, match=r"episodes\.parquet is damaged"):
        count_trajectories(tmp_path)
