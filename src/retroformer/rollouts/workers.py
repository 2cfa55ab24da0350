"""Episodes over worker processes: fixed shards, so that the result does not depend on how many workers there are.

A shard is the unit of everything: what a worker plays, what is written to disk as soon as it is finished, and what is
played again from its start where it was not. So a killed collection goes on to the very trajectories of one that was
not, batch shapes and their rounding included.
"""

from __future__ import annotations

import os
import platform
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from retroformer.errors import EnvironmentFault
from retroformer.policies import open_agent
from retroformer.policies.agent import Agent
from retroformer.rollouts.apart import Apart
from retroformer.rollouts.clusters import spread
from retroformer.rollouts.engine import play, questions_of
from retroformer.rollouts.episodes import Conditions, Episode, Played
from retroformer.rollouts.shards import Shards
from retroformer.rollouts.trial import try_all
from retroformer.types import Outcome, Trajectory

SHARD = 4
"""Episodes of a shard, as a multiple of those that advance together."""
RESTARTS = 3
"""How often workers may die, one time after the other, without a shard being finished in between."""


@dataclass(frozen=True, slots=True)
class Player:
    """Which policy plays, and how it decodes."""

    policy: str
    temperature: float = 1.0
    greedy: bool = False


Work = tuple[Player, list[Episode]]
Shard = tuple[list[Played], Counter[str]]
"""What came of a shard's episodes in their order, and how many processes of environments had to be replaced, by why."""


@lru_cache(maxsize=8)
def _agent(player: Player, slots: int, _folder: tuple[int, int] | None, _thread: int) -> Agent:
    if not player.policy.startswith("scripted:"):
        import torch

        torch.set_num_threads(1)
    return open_agent(player.policy, slots=slots, temperature=player.temperature, greedy=player.greedy)


def play_shard(number: int, work: Work, conditions: Conditions, parent: int = 0) -> tuple[int, Shard]:
    """Play one shard; in a worker, which leaves when its `parent` is gone. Returns its number too."""
    player, episodes = work
    # A worker outlives a call: a checkpoint that was replaced meanwhile is another folder under the same name.
    folder = os.stat(player.policy) if os.path.isdir(player.policy) else None
    stamp = folder and (folder.st_ino, folder.st_mtime_ns)
    agent = _agent(player, conditions.environments, stamp, threading.get_ident())
    lanes = Apart(conditions, questions_of(agent), dict.fromkeys(episode.name for episode in episodes))
    played: dict[Episode, Played] = {}
    try:
        again: dict[Episode, Episode] = {episode: episode for episode in episodes}
        for _ in range(conditions.retries + 1):
            for one in play(agent, list(again), conditions, lanes):
                if parent and os.getppid() != parent:
                    os._exit(1)
                first = again[one.episode]
                played[first] = following(played[first], one) if first in played else one
            again = {
                replace(first, attempt=one.trajectory.attempt + 1): first
                for first, one in played.items()
                if may_pass(one.trajectory)
            }
    finally:
        lanes.close()
    return number, ([played[episode] for episode in episodes], lanes.replaced)


def play_there(number: int, work: Work, conditions: Conditions) -> tuple[int, Shard]:
    """Play one shard on a worker of a cluster, which tries the tasks first, as they were tried where they come from.

    Raises EnvironmentFault where they cannot be played there.
    """
    try:
        _try_once(tuple(dict.fromkeys(episode.name for episode in work[1])), conditions)
    except EnvironmentFault as error:
        raise EnvironmentFault(
            f"on the cluster's worker {platform.node()}: {error}; environments have to be importable on every worker: "
            "install their packages there"
        ) from None
    return play_shard(number, work, conditions)


@lru_cache
def _try_once(names: tuple[str, ...], conditions: Conditions) -> None:
    try_all(names, conditions)


def following(before: Played, now: Played) -> Played:
    """Another try of an episode that had ended in error."""
    trajectory = replace(now.trajectory, previous_id=before.trajectory.id)
    return replace(now, episode=before.episode, trajectory=trajectory, earlier=(*before.earlier, before.trajectory))


def may_pass(trajectory: Trajectory) -> bool:
    """Whether another try may end otherwise: the infrastructure broke, and it was not the policy."""
    return trajectory.outcome is Outcome.ERROR and not (trajectory.error or "").startswith("PolicyError")


def play_all(
    work: Sequence[tuple[Player, Sequence[Episode]]],
    conditions: Conditions,
    workers: int = 0,
    max_errors: float = 1.0,
    *,
    cluster: str = "",
    folder: Path | None = None,
    replaced: Counter[str] | None = None,
) -> Iterator[tuple[Player, list[Played]]]:
    """Play each player's episodes in shards; yields (player, what came of the shard's episodes) in order.

    `workers` 0 means one a core. Workers are processes of a pool (`pools`), which stay for the next call; this process
    imports no model unless it is the only one. Or they are those of a `cluster`, see `clusters`. With a `folder`, each
    shard is written there as soon as it is finished, and what lies there is not played again: it must be one for this
    very work, see `files.resume_folder`. `replaced` counts processes of environments that had to be replaced.

    Raises EnvironmentFault as soon as more than the share `max_errors` of all episodes have ended in error, where
    workers die again and again, and where a cluster's cannot play the tasks; ConfigError where the cluster is lost.
    """
    size = SHARD * conditions.environments
    shards = [
        (player, list(episodes[at : at + size])) for player, episodes in work for at in range(0, len(episodes), size)
    ]
    total = sum(len(episodes) for _, episodes in shards)
    kept = Shards(folder, [episodes for _, episodes in shards])
    errors = seen = turn = 0

    def arriving() -> Iterator[tuple[int, Shard]]:
        yield from kept.there()
        missing = [number for number in range(len(shards)) if number not in kept]
        for number, shard in _finished(missing, shards, conditions, workers or os.cpu_count() or 1, cluster):
            kept.keep(number, shard)
            yield number, shard

    for number, (played, ended) in arriving():
        failed = [one.trajectory for one in played if one.trajectory.outcome is Outcome.ERROR]
        errors, seen = errors + len(failed), seen + len(played)
        if replaced is not None:
            replaced.update(ended)
        if failed and errors > max_errors * total:
            kept.forget_errors()
            raise EnvironmentFault(
                f"{errors} of {seen} episodes ended in error, more than the share collect.max_errors = "
                f"{max_errors:g} of {total} allows; the last, {failed[-1].task.label} at seed {failed[-1].task.seed}: "
                f"{failed[-1].error}"
            )
        while turn < len(shards) and turn in kept:
            yield shards[turn][0], played if turn == number and folder else kept.take(turn)
            turn += 1


def _finished(
    missing: list[int], shards: Sequence[Work], conditions: Conditions, count: int, cluster: str
) -> Iterator[tuple[int, Shard]]:
    """Each missing shard as it is finished, however often workers die meanwhile."""
    if count == 1 and not cluster:
        for number in missing:
            yield play_shard(number, shards[number], conditions)
        return
    deaths = 0
    left = dict.fromkeys(missing)
    while left:
        watched = () if cluster else (os.getpid(),)
        jobs = [(number, shards[number], conditions, *watched) for number in left]
        try:
            for number, shard in spread(play_there if cluster else play_shard, jobs, count, cluster):
                del left[number]
                deaths = 0
                yield number, shard
        except BrokenExecutor as error:
            deaths += 1
            if deaths > RESTARTS:
                raise EnvironmentFault(
                    f"worker processes were ended at least {deaths} times without finishing a shard between; "
                    "where the system ended them for their memory, set collect.workers or collect.environments lower "
                    f"({error})"
                ) from error
