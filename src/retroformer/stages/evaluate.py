"""Play champion and challenger on the same held-out seeds, or ask the logs where nothing can be played."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

from retroformer.config import CollectConfig, DecideConfig, EvaluateConfig, TasksConfig
from retroformer.environments.protocol import Mission
from retroformer.environments.splits import seeds
from retroformer.errors import DataError
from retroformer.evaluation.comparison import Difference, decided, paired_difference, planned_looks
from retroformer.evaluation.episodes import COLUMNS
from retroformer.evaluation.intervals import stratified_mean
from retroformer.files import check_replaceable, replacing, resume_folder, write_json
from retroformer.pins import Pins, policy_hash, read_pins, verify
from retroformer.progress import Progress, progress
from retroformer.rollouts.episodes import Conditions, Episode, Played
from retroformer.rollouts.trial import played_at_random, swappable, try_all
from retroformer.rollouts.workers import Player, play_all
from retroformer.storage import read_trajectories
from retroformer.types import Outcome, Trajectory, label

SAMPLES = 8
"""Whole trajectories kept for people to read, with the probability of every action."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """Some episodes that are played alike."""

    policy: str
    """champion, challenger, random or a baseline's name."""
    player: Player
    range: str
    mission: Mission
    names: tuple[str, ...]
    first: int
    count: int


def evaluate(
    config: EvaluateConfig,
    tasks: TasksConfig,
    collect: CollectConfig,
    decide: DecideConfig,
    seed: int,
    *,
    champion: Path = Path("data/champion.json"),
    challenger: Path = Path("data/challenger"),
    training: Path = Path("data/training"),
    batches: Path = Path("data/batches"),
    history: Path = Path("data/history"),
    out: Path = Path("data/evaluation"),
) -> dict[str, Any]:
    """Play champion and challenger on the same held-out seeds until it is decided which is better.

    The number of episodes doubles from look to look; the interval of the paired difference holds at each of them, so
    stopping early is sound. Beside that: the same seeds with the mission swapped for another of the level and for
    another of the same room, greedy decoding, the random admissible agent, seeds that no gate uses (final) and tasks
    that nothing trains on (transfer). A task with one mission has none to swap. Where train left baselines, they, the
    champion and the random agent play the final seeds too. Actions are sampled unless said. Where actions are written
    and the environment names none, nobody plays at random.

    Imported logs of other tasks than `tasks.train` cannot be played. Then the challenger is compared with what made
    them, or with a champion that is a checkpoint, by off-policy evaluation on those of their task instances that
    neither training nor checkpoint choice saw.

    Returns the difference and its interval. Raises EnvironmentFault for an unknown task or where too many episodes
    end in error, DataError where none can be paired.
    """
    pins = read_pins(champion)
    root = champion.parent.parent
    pin = verify(pins.champion, root)
    challenger_version = policy_hash(str(challenger))[:16]
    check_replaceable(out)
    if collect.source == "import":
        logged = read_trajectories(batches / "evaluation") if (batches / "evaluation").is_dir() else []
        if not {f"{one.task.environment}:{one.task.name}" for one in logged} <= set(tasks.train) or not logged:
            return on_logs(logged, config, collect, pins, root, challenger, training, history, out)
    conditions = Conditions.of(collect, tasks, seed)
    names = (*tasks.train, *tasks.held_out)
    code, able = try_all(names, conditions), swappable(names, conditions)
    swapped = tuple(name for name in tasks.train if name in able)
    players = {
        "champion": Player(pin.policy if pin.scripted else str(root / pin.policy), collect.temperature),
        "challenger": Player(str(challenger), collect.temperature),
    }
    looks = planned_looks(config.first_look, config.looks)
    rows: list[Row] = []
    looked: list[dict[str, Any]] = []
    greedy = Player(str(challenger), collect.temperature, greedy=True)
    around = [
        Part("challenger", players["challenger"], "gate", "shuffled", swapped, 0, config.first_look),
        Part("challenger", players["challenger"], "gate", "other", swapped, 0, config.first_look),
        Part("champion", players["champion"], "gate", "shuffled", swapped, 0, config.first_look),
        Part("challenger", greedy, "gate", "true", tasks.train, 0, config.first_look),
        Part("random", Player("scripted:random"), "gate", "true", tasks.train, 0, config.first_look),
        Part("challenger", players["challenger"], "final", "true", tasks.train, 0, config.final),
        Part("challenger", greedy, "final", "true", tasks.train, 0, config.final),
    ]
    if tasks.held_out:
        ways: tuple[tuple[str, Mission], ...] = (
            ("challenger", "true"),
            ("challenger", "shuffled"),
            ("champion", "true"),
        )
        for name, mission in ways:
            names = tuple(one for one in tasks.held_out if mission == "true" or one in able)
            around.append(Part(name, players[name], "transfer", mission, names, 0, config.transfer))
    around += beside_baselines(training / "baselines", players["champion"], tasks.train, config.final)
    if not played_at_random(tasks.train, conditions):
        around = [part for part in around if part.policy != "random"]
    around = [part for part in around if part.names]
    baselines = training / "baselines"
    inputs = [champion, challenger, *([baselines] if baselines.is_dir() else []), *code]
    elsewhere = collect.model_copy(update={"workers": 0, "cluster": "", "max_errors": 0.0})
    resume = resume_folder("evaluate", inputs, [config, tasks, elsewhere, decide, seed], root)
    most = 2 * looks[-1] + sum(part.count for part in around)
    with progress("evaluate", most, "episodes") as shown:
        parts = around  # played with the first look, so that workers wait for the last of them once
        for before, n in zip([0, *looks], looks, strict=False):
            parts += [
                Part(name, player, "gate", "true", tasks.train, before, n - before) for name, player in players.items()
            ]
            rows += play_parts(parts, conditions, collect, seed, pins.round, shown, resume / f"to-{n}")
            parts = []
            difference = compare(rows, config)
            looked.append({"n": n, **{key: getattr(difference, key) for key in ("mean", "lower", "upper")}})
            looked[-1]["difference"] = looked[-1].pop("mean")
            if decided(difference, decide.min_improvement, decide.max_regression):
                break
    report = {
        "round": pins.round,
        "confidence": config.confidence,
        "champion": pin.version,
        "challenger": challenger_version,
        "looks": looked,
        "summary": summarise(rows, config.confidence),
        "errors": sum(row["success"] is None for row in rows),
        "one_mission": [label(*name.split(":", 1)) for name in tasks.train if name not in able],
    }
    samples = read_samples(players["challenger"], tasks, able, conditions, collect.workers, seed, pins.round)
    with replacing(out) as folder:
        with (folder / "episodes.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for row in rows:
                writer.writerow(row | {"success": "" if row["success"] is None else int(row["success"])})
        write_json(folder / "evaluation.json", report)
        (folder / "samples").mkdir()
        write_json(folder / "samples" / "trajectories.json", samples)
    shutil.rmtree(resume, ignore_errors=True)
    return looked[-1]


def on_logs(
    logged: list[Trajectory],
    config: EvaluateConfig,
    collect: CollectConfig,
    pins: Pins,
    root: Path,
    challenger: Path,
    training: Path,
    history: Path,
    out: Path,
) -> dict[str, Any]:
    """Write evaluation.json with an off-policy report, and an episodes.csv that has no episode.

    The same logs may be judged in every round, so a round spends a part of 1 - confidence: over all rounds together
    the chance of an interval that misses is at most that.
    """
    from retroformer.evaluation.off_policy.assessment import evaluate_on_logs
    from retroformer.evaluation.off_policy.improvement import spent
    from retroformer.policies.checkpoints import load

    # What made the logs needs no estimate: its returns are there.
    itself = pins.champion.scripted or {one.policy for one in logged} == {pins.champion.version}
    silent = any(step.logprob is None for one in logged for step in one.steps)
    imitation = imitation_of_logs(training, history, pins.round) if silent else None
    ask = partial(
        evaluate_on_logs,
        logged,
        temperature=collect.temperature,
        confidence=spent(config.confidence, pins.round),
        behaviour=None if imitation is None else load(imitation),
    )
    baselines = baselines_on_logs(training, history, pins.round)
    with progress("evaluate on logs", len(logged) * (1 + len(baselines)), "trajectories") as shown:
        found = ask(load(challenger), champion=None if itself else load(root / pins.champion.policy))
        shown.advance(len(logged))
        found["baselines"] = {}
        for path in baselines:
            told = ask(load(path))
            found["baselines"][path.name] = {key: told.get(key) for key in ("refused", "evidence", "difference")}
            shown.advance(len(logged))
    report = {
        "round": pins.round,
        "confidence": found["confidence"],
        "champion": pins.champion.version,
        "challenger": policy_hash(str(challenger))[:16],
        "looks": [],
        "summary": [],
        "errors": sum(found["left_out"].values()),
        "off_policy": found,
    }
    with replacing(out) as folder:
        (folder / "episodes.csv").write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
        write_json(folder / "evaluation.json", report)
    difference = found.get("difference") or dict.fromkeys(("mean", "lower", "upper"))
    return {"n": found["trajectories"], "refused": found["refused"], **difference}


def imitation_of_logs(training: Path, history: Path, number: int) -> Path | None:
    """The newest imitation of everything that was trained on logs up to round `number`; it saw their split train."""
    found = (path for path in baselines_trained(training, history, number) if path.name == "imitation")
    return next(found, None)


def baselines_on_logs(training: Path, history: Path, number: int) -> list[Path]:
    """The newest checkpoint of each baseline, by name."""
    newest: dict[str, Path] = {}
    for path in baselines_trained(training, history, number):
        newest.setdefault(path.name, path)
    return [newest[name] for name in sorted(newest)]


def baselines_trained(training: Path, history: Path, number: int) -> Iterator[Path]:
    """Checkpoints of the baselines that this round and the closed ones before it trained, from the newest on."""
    closed = [history / f"round-{earlier:04d}" / "training" for earlier in range(number - 1, 0, -1)]
    for folder in (training, *closed):
        yield from sorted((folder / "baselines").glob("*/"))


def beside_baselines(folder: Path, champion: Player, names: tuple[str, ...], count: int) -> list[Part]:
    """The final seeds for each baseline, sampled and greedy, and for what they are compared with; nothing without."""
    found = sorted(folder.glob("*/"))
    if not found:
        return []
    parts = [
        Part(path.name, Player(str(path), champion.temperature, greedy), "final", "true", names, 0, count)
        for path in found
        for greedy in (False, True)
    ]
    alone = (("champion", champion), ("random", Player("scripted:random")))
    return parts + [Part(name, player, "final", "true", names, 0, count) for name, player in alone]


def play_parts(
    parts: Iterable[Part],
    conditions: Conditions,
    collect: CollectConfig,
    run_seed: int,
    round_number: int,
    shown: Progress,
    folder: Path | None = None,
) -> list[Row]:
    """Play the parts, spread over the workers; a row per episode, in the order of the parts. `folder` as in `play_all`.

    Raises EnvironmentFault where more than the share `collect.max_errors` of them end in error.
    """
    work: list[tuple[Player, list[Episode]]] = []
    owners: list[Part] = []
    for part in parts:
        numbers = seeds(part.range, run_seed=run_seed, round_number=round_number, count=part.count, offset=part.first)
        names = part.names
        plan = [
            Episode(names[(part.first + place) % len(names)], number, part.range, part.mission)
            for place, number in enumerate(numbers)
        ]
        work.append((part.player, plan))
        owners += [part] * len(plan)
    rows: list[Row] = []
    options: dict[str, Any] = {"cluster": collect.cluster, "folder": folder}
    for _, played in play_all(work, conditions, collect.workers, collect.max_errors, **options):
        # They come in the order of the work.
        rows += [row_of(part, one) for part, one in zip(owners[len(rows) :], played, strict=False)]
        shown.advance(len(played))
    return rows


def row_of(part: Part, one: Played) -> Row:
    """What a played episode says; its success is None where the infrastructure, not the agent, ended it."""
    trajectory = one.trajectory
    return {
        "policy": part.policy,
        "range": part.range,
        "mission": part.mission,
        "decoding": "greedy" if part.player.greedy else "sampled",
        "family": trajectory.task.family,
        "task": trajectory.task.label,
        "seed": one.episode.seed,
        "success": trajectory.outcome is Outcome.SUCCESS if trajectory.learnable else None,
        "outcome": trajectory.outcome.value,
        "steps": len(trajectory.steps),
    }


def scores(rows: Iterable[Row], **wanted: str) -> dict[str, list[float | None]]:
    """Task -> successes of the rows that match, in the order of their seeds."""
    found: dict[str, list[float | None]] = {}
    matching = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    for row in sorted(matching, key=lambda row: (row["task"], row["seed"])):
        found.setdefault(row["task"], []).append(None if row["success"] is None else float(row["success"]))
    return found


def compare(rows: list[Row], config: EvaluateConfig) -> Difference:
    """Challenger minus champion on the gate's seeds, sampled, told the true mission."""
    alike = {"range": "gate", "mission": "true", "decoding": "sampled"}
    champion, challenger = (scores(rows, policy=name, **alike) for name in ("champion", "challenger"))
    return paired_difference(champion, challenger, config.confidence, config.looks)


def summarise(rows: list[Row], confidence: float) -> list[dict[str, Any]]:
    """Success with its interval for every way of playing: all tasks, each family, each task, tasks weighted equally."""
    summary = []
    ways = sorted({tuple(row[key] for key in COLUMNS[:4]) for row in rows})
    for way in ways:
        own = [row for row in rows if tuple(row[key] for key in COLUMNS[:4]) == way]
        families = sorted({row["family"] for row in own if row["family"]})
        names = sorted({(row["family"], row["task"]) for row in own if row["family"]})
        for family, task in [(None, None), *product(families, [None]), *names]:
            chosen = [row for row in own if family in (None, row["family"]) and task in (None, row["task"])]
            found = scores(chosen)
            if not any(score is not None for group in found.values() for score in group):
                continue
            estimate = stratified_mean(found, confidence)
            line = dict(zip(COLUMNS[:4], way, strict=True)) | {"family": family, "task": task}
            figures = {"n": estimate.n, "success": estimate.mean, "lower": estimate.lower, "upper": estimate.upper}
            summary.append(line | figures)
    if not summary:
        raise DataError("no episode of the evaluation ended: all were lost to errors or limits")
    return summary


def read_samples(
    player: Player,
    tasks: TasksConfig,
    able: Sequence[str],
    conditions: Conditions,
    workers: int,
    run_seed: int,
    round_number: int,
) -> list[dict[str, Any]]:
    """A few episodes of the challenger, told the true and another mission, with the probability of every action.

    `able`: the tasks that have another mission to tell.
    """
    numbers = seeds("final", run_seed=run_seed, round_number=round_number, count=SAMPLES)
    plan = [
        Episode(name, number, "final", mission)
        for place, (name, number) in enumerate(zip(cycle(tasks.train), numbers, strict=False))
        for mission in (("true", "other") if place < 2 and name in able else ("true",))
    ]
    few = replace(conditions, keep_probabilities=True)
    samples = []
    for _, played in play_all([(player, plan)], few, workers):
        for one in played:
            steps = [
                {
                    "observation": step.observation,
                    "action": step.action,
                    "reward": step.reward,
                    "probabilities": {a: round(p, 4) for a, p in zip(step.admissible_actions or (), pi, strict=True)},
                }
                for step, pi in zip(one.trajectory.steps, one.probabilities, strict=True)
            ]
            task = one.trajectory.task
            samples.append(
                {
                    "policy": "challenger",
                    "task": task.label,
                    "seed": task.seed,
                    "mission": one.episode.mission,
                    "description": task.description,
                    "outcome": one.trajectory.outcome.value,
                    "steps": steps,
                }
            )
    return samples
