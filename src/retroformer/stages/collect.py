"""Play episodes and record them, or import logs."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from retroformer.config import CollectConfig, TasksConfig
from retroformer.environments.splits import of_instance, seeds
from retroformer.errors import DataError
from retroformer.files import check_replaceable, replacing, resume_folder, write_json
from retroformer.pins import read_pins, verify
from retroformer.progress import progress
from retroformer.rollouts.episodes import Conditions, Episode
from retroformer.rollouts.shards import merge
from retroformer.rollouts.trial import try_all
from retroformer.rollouts.workers import Player, play_all
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
    in error with its message; such an episode is tried again up to `retries` times, and every try is recorded.
    Environments live in processes of their own: one that hangs, dies or leaks is ended and replaced, and the others go
    on. What is played is on disk in shards; a run that was killed goes on to the same trajectories, on as many workers
    as there are then. With `source` import nothing is played: the logs are read, and what cannot be believed
    goes to quarantine with its reason. What a tombstone names is left out, and counted.

    Returns counts. Raises EnvironmentFault for an unknown task or where too many episodes end in error, PinMismatch
    where the policy is not the pinned one, ContractBroken where too much of the logs went to quarantine.
    """
    pins = read_pins(champion)
    forgotten = forgotten_ids(tombstones)
    if config.source == "import":
        return import_into(out, logs, config, pins.round, forgotten)
    root = champion.parent.parent
    pin = pins.train_from or pins.champion if config.policy == "train_from" else pins.champion
    verify(pin, root)
    check_replaceable(out)
    conditions = Conditions.of(config, tasks, seed)
    code = try_all((*tasks.train, *tasks.held_out), conditions)
    plan = episodes_of(config, tasks, seed, pins.round)
    player = Player(pin.policy if pin.scripted else str(root / pin.policy), config.temperature)
    # What changes no trajectory may be changed before a killed collection goes on.
    elsewhere = config.model_copy(update={"workers": 0, "cluster": "", "max_errors": 0.0})
    resume = resume_folder("collect", [champion, *code], [elsewhere, tasks, seed], root)
    around: Counter[str] = Counter()
    broke: Counter[str] = Counter()
    replaced: Counter[str] = Counter()

    def arriving() -> Iterator[Trajectory]:
        solved = judged = 0
        with progress("collect", len(plan), "episodes") as shown:
            work = [(player, plan)]
            options = {"cluster": config.cluster, "folder": resume, "replaced": replaced}
            for _, played in play_all(work, conditions, config.workers, config.max_errors, **options):
                for one in played:
                    around.update(cut_actions=one.cut, retries=len(one.earlier))
                    broke.update(kind_of(failed) for failed in (*one.earlier, one.trajectory) if failed.error)
                    solved += one.trajectory.outcome is Outcome.SUCCESS
                    judged += one.trajectory.outcome in (Outcome.SUCCESS, Outcome.FAILURE)
                    if one.trajectory.id in forgotten:
                        around.update(forgotten=1)
                    else:
                        yield one.trajectory
                shown.advance(len(played), f"success {solved / judged:.2f}" if judged else "")

    report = describe(arriving(), pins.round, pin.version) | {
        "cut_actions": around["cut_actions"],
        "retries": around["retries"],
        "errors": dict(sorted(broke.items())),
        "replaced": dict(sorted(replaced.items())),
    }
    if around["forgotten"]:
        report["forgotten"] = around["forgotten"]
    with replacing(out) as folder:
        merge(resume, folder, without=forgotten)
        write_json(folder / "collect.json", report)
    shutil.rmtree(resume, ignore_errors=True)
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
        Rules(parse_rule(config.outcome, *config.reward_range), of_instance),
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


def kind_of(trajectory: Trajectory) -> str:
    """What an error was: the exception's name, or what happened to the environment's process (Hung, Died, Grew)."""
    return (trajectory.error or "").partition(":")[0]


def describe(trajectories: Iterable[Trajectory], round_number: int, policy: str) -> dict[str, Any]:
    """The small report: counts, and success among the episodes whose tasks ended."""
    outcomes: Counter[str] = Counter()
    per_task: dict[str, dict[str, Any]] = {}
    steps = 0
    for one in trajectories:
        steps += len(one.steps)
        outcomes[one.outcome.value] += 1
        task = per_task.setdefault(one.task.label, {"episodes": 0, "family": "", "success": 0, "n": 0})
        task["episodes"] += 1
        task["family"] = task["family"] or one.task.family  # one that was lost before it began has none
        task["n"] += one.learnable
        task["success"] += one.outcome is Outcome.SUCCESS
    if not per_task:
        raise DataError("no episode was played")
    for task in per_task.values():
        task["success"] = task["success"] / task["n"] if task["n"] else None
    rates = [task["success"] for _, task in sorted(per_task.items()) if task["success"] is not None]
    return {
        "round": round_number,
        "policy": policy,
        "episodes": outcomes.total(),
        "steps": steps,
        "success": sum(rates) / len(rates) if rates else None,
        "outcomes": dict(sorted(outcomes.items())),
        "tasks": per_task,
    }
