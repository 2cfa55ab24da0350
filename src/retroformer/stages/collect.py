"""Play episodes and record them, or import logs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from retroformer.config import CollectConfig, TasksConfig
from retroformer.environments import make
from retroformer.environments.splits import of_instance, seeds
from retroformer.errors import DataError
from retroformer.pins import read_pins, verify
from retroformer.progress import progress
from retroformer.rollouts.engine import Conditions, Episode
from retroformer.rollouts.workers import Player, play_all
from retroformer.storage import check_replaceable, replacing, write_json, write_trajectories
from retroformer.tombstones import TOMBSTONES, forgotten_ids
from retroformer.types import Outcome, Trajectory


def collect(
    config: CollectConfig,
    tasks: TasksConfig,
    seed: int,
    *,
    champion: Path = Path("data/champion.json"),
    logs: Path = Path("data/logs"),
    tombstones: Path = TOMBSTONES,
    out: Path = Path("data/rollouts"),
) -> dict[str, Any]:
    """Play episodes with a pinned policy and record them, or import logs.

    Many environments advance together, a finished one is replaced at once; actions are sampled from the policy's
    probabilities over the admissible actions, which are recorded. An environment that lists none is played in text
    mode: the policy writes its actions, sampled token by token; one that max_new_tokens cuts is given to the
    environment as it is. A task's own step limit ends in failure, a limit of the collector in truncated, what breaks
    in error with its message. With `source` import nothing is played: the logs are read, and what cannot be believed
    goes to quarantine with its reason. What a tombstone names is left out, and counted.

    Returns counts. Raises EnvironmentFault for an unknown task or where too many episodes end in error, PinMismatch
    where the policy is not the pinned one, ContractBroken where too much of the logs went to quarantine.
    """
    pins = read_pins(champion)
    forgotten = forgotten_ids(tombstones)
    if config.source == "import":
        return import_into(out, logs, config, pins.round, forgotten)
    pin = pins.train_from or pins.champion if config.policy == "train_from" else pins.champion
    verify(pin, champion.parent.parent)
    check_replaceable(out)
    for name in (*tasks.train, *tasks.held_out):
        make(name, text=tasks.text, actions=tasks.actions).close()
    plan = episodes_of(config, tasks, seed, pins.round)
    conditions = Conditions(
        seed, tasks.text, tasks.actions, config.environments, config.max_seconds, config.max_new_tokens
    )
    policy = pin.policy if pin.scripted else str(champion.parent.parent / pin.policy)
    player = Player(policy, config.temperature)
    trajectories: list[Trajectory] = []
    cut = 0
    with progress("collect", len(plan), "episodes") as shown:
        for _, played in play_all([(player, plan)], conditions, config.workers, config.max_errors):
            trajectories += [one.trajectory for one in played]
            cut += sum(one.cut for one in played)
            solved = sum(one.outcome is Outcome.SUCCESS for one in trajectories)
            shown.advance(len(played), f"success {solved / len(trajectories):.2f}")
    kept = [one for one in trajectories if one.id not in forgotten]
    report = describe(kept, pins.round, pin.version) | {"cut_actions": cut}
    if len(kept) < len(trajectories):
        report["forgotten"] = len(trajectories) - len(kept)
    with replacing(out) as folder:
        write_trajectories(folder, kept)
        write_json(folder / "collect.json", report)
    return {name: report[name] for name in ("episodes", "steps", "success")}


def import_into(
    out: Path, logs: Path, config: CollectConfig, round_number: int, forgotten: frozenset[str]
) -> dict[str, Any]:
    """Import the logs as this round's trajectories."""
    from retroformer.importers.conversation import Rules
    from retroformer.importers.importing import import_logs
    from retroformer.importers.outcomes import parse_rule

    report = import_logs(
        [logs],
        config.format,
        out,
        Rules(parse_rule(config.outcome), of_instance),
        redact=config.redact,
        max_quarantined=config.max_errors,
        extra={"round": round_number},
        afresh=True,
        workers=config.workers,
        forgotten=forgotten,
    )
    open_ = ("open",) if report["open"] else ()
    shown = ("read", "accepted", *open_, "quarantined", "episodes", "steps", "success")
    return {name: report[name] for name in shown}


def episodes_of(config: CollectConfig, tasks: TasksConfig, seed: int, round_number: int) -> list[Episode]:
    """The episodes of a round, tasks in turn; those for checkpoint choice have seeds of their own."""
    aside = round(config.episodes * config.checkpoint_share)
    learned = "history" if round_number == 1 else "train"
    plan = []
    for split, count in ((learned, config.episodes - aside), ("checkpoint", aside)):
        numbers = seeds(split, run_seed=seed, round_number=round_number, count=count)
        plan += [Episode(tasks.train[place % len(tasks.train)], number, split) for place, number in enumerate(numbers)]
    return plan


def describe(trajectories: list[Trajectory], round_number: int, policy: str) -> dict[str, Any]:
    """The small report: counts, and success among the episodes whose tasks ended."""
    if not trajectories:
        raise DataError("no episode was played")
    per_task: dict[str, dict[str, Any]] = {}
    for name in sorted({one.task.name for one in trajectories}):
        own = [one for one in trajectories if one.task.name == name]
        ended = [one for one in own if one.learnable]
        solved = sum(one.outcome is Outcome.SUCCESS for one in ended)
        per_task[name] = {
            "episodes": len(own),
            "family": own[0].task.family,
            "success": solved / len(ended) if ended else None,
            "n": len(ended),
        }
    rates = [one["success"] for one in per_task.values() if one["success"] is not None]
    return {
        "round": round_number,
        "policy": policy,
        "episodes": len(trajectories),
        "steps": sum(len(one.steps) for one in trajectories),
        "success": sum(rates) / len(rates) if rates else None,
        "outcomes": dict(sorted(Counter(one.outcome.value for one in trajectories).items())),
        "tasks": per_task,
    }
