"""Episodes over worker processes: fixed shards, so that the result does not depend on how many workers there are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from retroformer.errors import EnvironmentFault
from retroformer.policies import open_agent
from retroformer.rollouts.engine import Conditions, Episode, Played, play
from retroformer.types import Outcome

SHARD = 4
"""Episodes of a shard, as a multiple of those that advance together."""


@dataclass(frozen=True, slots=True)
class Player:
    """Which policy plays, and how it decodes."""

    policy: str
    temperature: float = 1.0
    greedy: bool = False


@lru_cache(maxsize=8)
def _agent(player: Player, slots: int, _folder: tuple[int, int] | None):
    if not player.policy.startswith("scripted:"):
        import torch

        torch.set_num_threads(1)
    return open_agent(player.policy, slots=slots, temperature=player.temperature, greedy=player.greedy)


def _play_shard(player: Player, shard: Sequence[Episode], conditions: Conditions) -> list[Played]:
    # A worker outlives a call: a checkpoint that was replaced meanwhile is another folder under the same name.
    folder = os.stat(player.policy) if os.path.isdir(player.policy) else None
    agent = _agent(player, conditions.environments, folder and (folder.st_ino, folder.st_mtime_ns))
    played = list(play(agent, shard, conditions))
    order = {episode: place for place, episode in enumerate(shard)}
    return sorted(played, key=lambda one: order[one.episode])


def play_all(
    work: Sequence[tuple[Player, Sequence[Episode]]],
    conditions: Conditions,
    workers: int = 0,
    max_errors: float = 1.0,
) -> Iterator[tuple[Player, list[Played]]]:
    """Play each player's episodes in shards; yields (player, what came of the shard's episodes) in order.

    `workers` 0 means one a core. Workers are processes of joblib's loky, which stay for the next call; this process
    imports no model unless it is the only one.

    Raises EnvironmentFault as soon as more than the share `max_errors` of all episodes have ended in error.
    """
    total = sum(len(episodes) for _, episodes in work)
    errors = seen = 0
    for player, played in _play_shards(work, conditions, workers or os.cpu_count() or 1):
        failed = [one.trajectory for one in played if one.trajectory.outcome is Outcome.ERROR]
        errors, seen = errors + len(failed), seen + len(played)
        if failed and errors > max_errors * total:
            raise EnvironmentFault(
                f"{errors} of {seen} episodes ended in error, more than the share collect.max_errors = "
                f"{max_errors:g} of {total} allows; the last: {failed[-1].error}"
            )
        yield player, played


def _play_shards(
    work: Sequence[tuple[Player, Sequence[Episode]]], conditions: Conditions, count: int
) -> Iterator[tuple[Player, list[Played]]]:
    from joblib import Parallel, delayed

    size = SHARD * conditions.environments
    shards = [
        (player, list(episodes[at : at + size])) for player, episodes in work for at in range(0, len(episodes), size)
    ]
    if count == 1:
        for player, shard in shards:
            yield player, _play_shard(player, shard, conditions)
        return
    with Parallel(n_jobs=count, return_as="generator", inner_max_num_threads=1, backend="loky") as pool:
        results = pool(delayed(_play_shard)(player, shard, conditions) for player, shard in shards)
        for (player, _), played in zip(shards, results, strict=True):
            assert played is not None  # for the type checker: joblib's stubs allow it
            yield player, played
