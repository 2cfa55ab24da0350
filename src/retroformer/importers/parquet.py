"""The project's own two tables, from this project or written by someone else's: each episode a record.

Ids, rewards, outcomes and policies stay, unless the user's own function judges: then its reward is all, at the last
step. The split is that of the task instance, as for every log.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from retroformer.errors import DataError
from retroformer.importers.conversation import Found, Rules, found_of
from retroformer.importers.records import Advance, Record, Rejected
from retroformer.importers.redaction import Redactor
from retroformer.storage import EPISODES, STEPS, stream_table, trajectory_from_row
from retroformer.types import Outcome, Step, Trajectory

SUFFIXES = ("episodes.parquet",)
OPTIONAL = ("previous_id", "error", "total_reward")


def read(files: list[Path], advance: Advance) -> Iterator[Record | Rejected]:
    """The episodes of each folder with their steps. A file that is not what it should be is one record, rejected."""
    for path in files:
        number = 0
        try:
            for number, (episode, steps) in enumerate(_episodes(path), 1):
                yield Record(f"{path}:{number}", {"episode": episode, "steps": steps})
        except DataError as error:
            yield Rejected("unreadable_file", str(error), f"{path}:{number + 1}")
        advance(path.stat().st_size)


def _episodes(path: Path) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Rows of ``episodes`` and the rows of ``steps`` under their id; held is what comes before its episode."""
    batches = stream_table(path.with_name("steps.parquet"), STEPS)
    runs = groupby((row for batch in batches for row in batch.to_pylist()), key=itemgetter("trajectory_id"))
    waiting: dict[Any, list[dict[str, Any]]] = {}
    for batch in stream_table(path, EPISODES):
        for episode in batch.to_pylist():
            id, count = episode["trajectory_id"], episode["steps"] or 0
            while len(waiting.get(id, ())) < count and (run := next(runs, None)) is not None:
                waiting.setdefault(run[0], []).extend(run[1])
            # An id that is there twice finds the steps of both where they stand together.
            mine = waiting.pop(id, [])
            if len(mine) > count:
                waiting[id] = mine[count:]
            yield episode, mine[:count]


def trajectories(record: Record, rules: Rules, redactor: Redactor) -> list[Found]:
    """The trajectory of a record. Raises Rejected."""
    episode, steps = record.value["episode"], record.value["steps"]
    if missing := [name for name, value in episode.items() if value is None and name not in OPTIONAL]:
        raise Rejected("missing_value", f"no {', '.join(missing)}")
    if len(steps) != episode["steps"]:
        raise Rejected("step_count_mismatch", f"{len(steps)} steps, the episode says {episode['steps']}")
    if not steps and episode["outcome"] != Outcome.ERROR.value:
        raise Rejected("no_agent_step", "the episode has no step")
    if [step["t"] for step in steps] != list(range(len(steps))):
        raise Rejected("steps_out_of_order", f"t is {[step['t'] for step in steps][:8]}")
    try:
        trajectory = trajectory_from_row(episode, [_step(step) for step in steps])
    except DataError as error:
        raise Rejected("unknown_value", str(error)) from None
    if not 0 < trajectory.temperature < math.inf:
        raise Rejected("invalid_temperature", f"temperature {trajectory.temperature}")
    if trajectory.attempt < 0 or trajectory.task.seed < 0:
        raise Rejected("invalid_attempt", f"attempt {trajectory.attempt} at seed {trajectory.task.seed}")
    if rules.outcome.function and trajectory.outcome not in (Outcome.ERROR, Outcome.TRUNCATED):
        trajectory = _judged(trajectory, rules)
    if not rules.outcome.lowest <= trajectory.total_reward <= rules.outcome.highest:
        raise Rejected("reward_out_of_range", f"the episode's return is {trajectory.total_reward:g}")
    content = hashlib.sha256(repr(replace(trajectory, source="")).encode() + repr(trajectory.steps).encode())
    task = replace(trajectory.task, split=rules.split_of(trajectory.task.id))
    source = f"{record.source} {trajectory.source}".rstrip()
    kept = replace(trajectory, task=task, source=source)
    return [found_of(trajectory.id, content.hexdigest(), redactor.trajectory(kept))]


def _judged(trajectory: Trajectory, rules: Rules) -> Trajectory:
    verdict = rules.outcome.judge({}, {}, lambda: trajectory)
    *before, last = (replace(step, reward=0.0) for step in trajectory.steps)
    steps = (*before, replace(last, reward=verdict.reward))
    return replace(trajectory, outcome=verdict.outcome, steps=steps)


def _step(row: dict[str, Any]) -> Step:
    t, reward, logprob = row["t"], row["reward"], row["logprob"]
    admissible, tokens = row["admissible_actions"], row["token_ids"]
    if not (row["observation"] or "").strip() or not (row["action"] or "").strip():
        raise Rejected("empty_text", f"no observation or no action at step {t}")
    if reward is None or not math.isfinite(reward):
        raise Rejected("reward_not_finite", f"reward {reward} at step {t}")
    if logprob is not None and not -math.inf < logprob <= 0:
        raise Rejected("invalid_logprob", f"log-probability {logprob} at step {t}")
    if admissible is not None and row["action"] not in admissible:
        raise Rejected("inadmissible_action", f"step {t} took none of the {len(admissible)} admissible actions")
    if tokens is not None and any(one is None or one < 0 for one in tokens):
        raise Rejected("invalid_token_ids", f"token ids of step {t} are no ids")
    return Step(
        row["observation"],
        row["action"],
        reward,
        None if admissible is None else tuple(admissible),
        None if tokens is None else tuple(tokens),
        logprob,
    )
