import math
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import make_error, make_trajectory
from retroformer.errors import DataError
from retroformer.files import hash_directory
from retroformer.storage import (
    EPISODES,
    STEPS,
    count_trajectories,
    read_trajectories,
    stream_trajectories,
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
