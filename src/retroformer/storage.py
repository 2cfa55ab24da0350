"""Trajectories on disk: two flat Parquet tables, ``episodes`` and ``steps``, keyed by (trajectory_id, t).

Two writes of the same trajectories give the same bytes, which is what content hashes rest on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from retroformer.errors import DataError
from retroformer.types import Outcome, Step, StopReason, Task, Trajectory

SCHEMA_VERSION = 1
ROWS = 4096
"""Rows that a stream over a table holds."""

EPISODES = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("environment", pa.string()),
        ("family", pa.string()),
        ("task", pa.string()),
        ("description", pa.string()),
        ("seed", pa.int64()),
        ("split", pa.string()),
        ("outcome", pa.string()),
        ("stop_reason", pa.string()),
        ("steps", pa.int32()),
        ("total_reward", pa.float64()),
        ("policy", pa.string()),
        ("temperature", pa.float64()),
        ("attempt", pa.int32()),
        ("previous_id", pa.string()),
        ("source", pa.string()),
        ("error", pa.string()),
    ],
    metadata={"retroformer_schema": str(SCHEMA_VERSION)},
)
STEPS = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("t", pa.int32()),
        ("observation", pa.string()),
        ("action", pa.string()),
        ("reward", pa.float64()),
        ("admissible_actions", pa.list_(pa.string())),
        ("token_ids", pa.list_(pa.int32())),
        ("logprob", pa.float64()),
    ],
    metadata={"retroformer_schema": str(SCHEMA_VERSION)},
)

PACKED: dict[str, Any] = {"compression": "zstd", "compression_level": 1}
"""How every table is packed: half the size of Parquet's default (snappy) for logs, and written as fast (measured)."""
ROW_GROUP = 4 * 2**20
"""Characters of text in a row group that is written as trajectories arrive."""


class EpisodeRow(NamedTuple):
    """A row of ``episodes``."""

    trajectory_id: str
    environment: str
    family: str
    task: str
    description: str
    seed: int
    split: str
    outcome: str
    stop_reason: str
    steps: int
    total_reward: float
    policy: str
    temperature: float
    attempt: int
    previous_id: str | None
    source: str
    error: str | None


StepRow = tuple[str, str, float, tuple[str, ...] | None, tuple[int, ...] | None, float | None]
"""The fields of a `Step` in their order, which is that of ``steps`` after the id and t."""


def row_of(trajectory: Trajectory) -> EpisodeRow:
    """The row of ``episodes`` that stands for a trajectory."""
    task = trajectory.task
    return EpisodeRow(
        trajectory_id=trajectory.id,
        environment=task.environment,
        family=task.family,
        task=task.name,
        description=task.description,
        seed=task.seed,
        split=task.split,
        outcome=trajectory.outcome.value,
        stop_reason=trajectory.stop_reason.value,
        steps=len(trajectory.steps),
        total_reward=trajectory.total_reward,
        policy=trajectory.policy,
        temperature=trajectory.temperature,
        attempt=trajectory.attempt,
        previous_id=trajectory.previous_id,
        source=trajectory.source,
        error=trajectory.error,
    )


def row_of_step(step: Step) -> StepRow:
    """The row of ``steps`` that stands for a step, without its id and t."""
    return step.observation, step.action, step.reward, step.admissible_actions, step.token_ids, step.logprob


def episode_row(trajectory: Trajectory) -> dict[str, Any]:
    """`row_of` by the columns' names."""
    return row_of(trajectory)._asdict()


def step_rows(trajectory: Trajectory) -> list[dict[str, Any]]:
    """The rows of ``steps`` of a trajectory, in order."""
    return [
        {
            "trajectory_id": trajectory.id,
            "t": t,
            "observation": step.observation,
            "action": step.action,
            "reward": step.reward,
            "admissible_actions": None if step.admissible_actions is None else list(step.admissible_actions),
            "token_ids": None if step.token_ids is None else list(step.token_ids),
            "logprob": step.logprob,
        }
        for t, step in enumerate(trajectory.steps)
    ]


def write_tables(directory: Path, episodes: Iterable[dict[str, Any]], steps: Iterable[dict[str, Any]]) -> None:
    """Write rows as ``episodes.parquet`` and ``steps.parquet`` into an existing folder."""
    tables = []
    for rows, schema in ((iter(episodes), EPISODES), (iter(steps), STEPS)):
        # Some at a time: a row as a dictionary takes many times what it takes in a table.
        parts = [pa.Table.from_pylist([], schema)]
        while some := list(islice(rows, ROWS)):
            parts.append(pa.Table.from_pylist(some, schema))
        tables.append(pa.concat_tables(parts))
    write_parquet(directory, *tables)


def write_trajectories(directory: Path, trajectories: Iterable[Trajectory]) -> None:
    """Write the two tables into an existing folder, sorted by id, so that order of arrival does not show."""
    ordered = sorted(trajectories, key=lambda trajectory: trajectory.id)
    write_tables(directory, map(episode_row, ordered), (row for one in ordered for row in step_rows(one)))


def write_parquet(directory: Path, episodes: pa.Table, steps: pa.Table) -> None:
    """Write the two tables into an existing folder."""
    for name, table in (("episodes", episodes), ("steps", steps)):
        pq.write_table(table.combine_chunks(), Path(directory) / f"{name}.parquet", **PACKED)


def merge_tables(parts: Sequence[Path], directory: Path, without: Collection[str] = ()) -> None:
    """Write the tables of these folders as one, sorted by id: the bytes that `write_trajectories` writes.

    `without` names trajectories that are left out.
    """
    order = [("trajectory_id", "ascending")]
    tables = []
    for name, schema, more in (("episodes", EPISODES, []), ("steps", STEPS, [("t", "ascending")])):
        read = [pq.read_table(Path(part) / f"{name}.parquet", schema=schema) for part in parts]
        table = pa.concat_tables([schema.empty_table(), *read])
        if without:
            table = table.filter(pa.array([name not in without for name in table["trajectory_id"].to_pylist()]))
        tables.append(table.sort_by(order + more))
    write_parquet(directory, *tables)


def tables_of(trajectories: Sequence[Trajectory]) -> tuple[pa.Table, pa.Table]:
    """The rows of both tables that stand for the trajectories, in their order."""
    return tables_of_rows(
        [row_of(one) for one in trajectories], [[row_of_step(step) for step in one.steps] for one in trajectories]
    )


def tables_of_rows(episodes: Sequence[EpisodeRow], steps: Sequence[Sequence[StepRow]]) -> tuple[pa.Table, pa.Table]:
    """Both tables from rows: of each episode its own, and those of its steps."""
    ids: list[str] = []
    times: list[int] = []
    for episode, own in zip(episodes, steps, strict=True):
        ids += [episode.trajectory_id] * len(own)
        times += range(len(own))
    told = zip(*chain.from_iterable(steps), strict=True) if ids else [()] * (len(STEPS) - 2)
    return _table(zip(*episodes, strict=True) if episodes else [()] * len(EPISODES), EPISODES), _table(
        (ids, times, *told), STEPS
    )


def _table(columns: Iterable[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_arrays(
        [pa.array(c, kind) for c, kind in zip(columns, schema.types, strict=True)], schema=schema
    )


class TrajectoryWriter:
    """Writes the two tables into an existing folder as trajectories arrive, in that order; a context manager.

    Memory is bounded by one row group of about `ROW_GROUP` characters. The same trajectories give the same bytes.
    """

    def __init__(self, directory: Path):
        self.episodes = pq.ParquetWriter(Path(directory) / "episodes.parquet", EPISODES, **PACKED)
        self.steps = pq.ParquetWriter(Path(directory) / "steps.parquet", STEPS, **PACKED)
        self.waiting: list[Trajectory] = []
        self.size = 0

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._flush()
        self.episodes.close()
        self.steps.close()

    def add(self, trajectory: Trajectory) -> None:
        """Write one trajectory."""
        self.waiting.append(trajectory)
        self.size += sum(len(step.observation) + len(step.action) for step in trajectory.steps)
        self.size += 100 * len(trajectory.steps) + len(trajectory.task.description)
        if self.size > ROW_GROUP:
            self._flush()

    def write(self, episodes: pa.Table, steps: pa.Table) -> None:
        """Write what `tables_of` made, as a row group of its own."""
        self._flush()
        if len(episodes):
            self.episodes.write_table(episodes)
        if len(steps):
            self.steps.write_table(steps)

    def _flush(self) -> None:
        if self.waiting:
            waiting, self.waiting, self.size = self.waiting, [], 0
            self.write(*tables_of(waiting))


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read one table. Raises DataError where it is missing, cut short, or has other columns."""
    return pa.Table.from_batches(stream_table(path, schema, rows=1 << 20), schema.remove_metadata())


def stream_table(path: Path, schema: pa.Schema, rows: int | None = None) -> Iterator[pa.RecordBatch]:
    """One table, `rows` rows (or `ROWS`) at a time.

    Raises DataError where it is missing, cut short, or has other columns.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        with pq.ParquetFile(path) as file:
            found = file.schema_arrow.names
            missing = [name for name in schema.names if name not in found]
            if missing:
                raise DataError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(found)}")
            for batch in file.iter_batches(rows or ROWS, columns=schema.names):
                yield _cast(path, batch, schema)
    except (pa.ArrowException, OSError) as error:
        first_line = str(error).splitlines()[0]
        raise DataError(f"{path} is damaged: it cannot be read as Parquet ({first_line})") from None


def _cast(path: Path, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    try:
        return batch.select(schema.names).cast(schema.remove_metadata())
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{path} has a column of another type than expected: {error}") from None


def count_trajectories(directory: Path) -> int:
    """How many trajectories a folder holds, from the tables' footer alone."""
    path = Path(directory) / "episodes.parquet"
    try:
        return pq.read_metadata(path).num_rows
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged: it cannot be read as Parquet ({str(error).splitlines()[0]})") from None


def read_trajectories(directory: Path) -> list[Trajectory]:
    """Read the two tables of a folder back into trajectories, see `stream_trajectories`."""
    return list(stream_trajectories(directory))


def stream_trajectories(directory: Path) -> Iterator[Trajectory]:
    """The trajectories of a folder one by one, in the order of ``episodes``.

    Holds some rows of both tables, however long they are, where the steps come in the order of the episodes (as
    everything here writes them); else also the steps whose episode is still to come. Raises DataError where an
    episode's steps are not there, are counted wrongly or are out of order.
    """
    directory = Path(directory)
    waiting: dict[str, list[Step]] = {}
    arriving = _runs_of_steps(directory)
    for batch in stream_table(directory / "episodes.parquet", EPISODES):
        for row in batch.to_pylist():
            id, count = row["trajectory_id"], row["steps"]
            while len(waiting.get(id, ())) < count:
                if (run := next(arriving, None)) is None:
                    break
                _append(waiting.setdefault(run[0], []), *run, directory)
            own = waiting.pop(id, [])
            if len(own) != count:
                raise DataError(
                    f"{directory}/steps.parquet has {len(own)} steps of {id}, episodes.parquet says {count}"
                )
            yield trajectory_from_row(row, own)
    if left := [*waiting, *(id for id, _ in islice(arriving, 1))]:
        raise DataError(f"{directory}/steps.parquet has steps of an episode that is not there: {left[0]}")


def _runs_of_steps(directory: Path) -> Iterator[tuple[str, list[tuple[int, Step]]]]:
    """Steps that stand together under one id, each with its t, in the order of the table."""
    path = directory / "steps.parquet"
    batches = stream_table(path, STEPS)
    rows = (row for batch in batches for row in zip(*(column.to_pylist() for column in batch.columns), strict=True))
    for id, run in groupby(rows, key=itemgetter(0)):
        yield (
            id,
            [
                (
                    t,
                    Step(
                        observation=observation,
                        action=action,
                        reward=reward,
                        admissible_actions=None if admissible is None else _one_of_alike(tuple(admissible)),
                        token_ids=None if tokens is None else tuple(tokens),
                        logprob=logprob,
                    ),
                )
                for _, t, observation, action, reward, admissible, tokens, logprob in run
            ],
        )


@lru_cache(maxsize=1 << 8)
def _one_of_alike(actions: tuple[str, ...]) -> tuple[str, ...]:
    """The same actions as one object: they repeat from step to step, and many steps may be held."""
    return actions


def _append(mine: list[Step], id: str, run: list[tuple[int, Step]], directory: Path) -> None:
    for t, step in run:
        if t != len(mine):
            raise DataError(f"{directory}/steps.parquet: step {t} of {id} where step {len(mine)} was due")
        mine.append(step)


def trajectory_from_row(row: dict[str, Any], steps: Iterable[Step]) -> Trajectory:
    """A row of ``episodes`` and its steps, as one record."""
    try:
        outcome, stop_reason = Outcome(row["outcome"]), StopReason(row["stop_reason"])
    except ValueError as error:
        raise DataError(f"trajectory {row['trajectory_id']}: {error}") from None
    return Trajectory(
        id=row["trajectory_id"],
        task=Task(row["environment"], row["family"], row["task"], row["description"], row["seed"], row["split"]),
        steps=tuple(steps),
        stop_reason=stop_reason,
        outcome=outcome,
        policy=row["policy"],
        temperature=row["temperature"],
        attempt=row["attempt"],
        previous_id=row["previous_id"],
        source=row["source"],
        error=row["error"],
    )
