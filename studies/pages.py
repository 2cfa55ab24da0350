"""Which studies there are, and the page, table and figure that each one leaves in docs/studies/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from retroformer.config import load_config
from retroformer.files import write_text
from studies import desk, kinds
from studies.arms import AGENTS, FIRST_AGENT, FOLLOWS, GREEDY, ONCE, SAMPLED, TRANSFER, Arm, Play
from studies.tables import Result, by_arm, half_width, over_seeds, success, table

DOCS = Path("docs/studies")
STRICT = ("P5N2", "P6N3", "P6N4", "D6N4", "P7N3", "P8N5")
UPDATES_A_PASS = 371
"""Nine in ten of ONCE's trajectories, the others choose checkpoints, in batches of 16."""
PASSES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Study:
    """A question, the arms that answer it, and how the answer is shown."""

    question: str
    seeds: int
    arms: Callable[[int], list[Arm]]
    answer: Callable[[Sequence[Result]], tuple[str, Callable[[Any], None] | None]]
    agents: Sequence[str] = (FIRST_AGENT,)
    """Who made the history."""


def rates(result: Result, play: str, family: str) -> float | None:
    """Mean success over a family's tasks."""
    return success(result, play, lambda task: (task in STRICT) == (family == "strict"))


def overall(result: Result) -> float | None:
    """Mean success over both families, sampled."""
    both = [rates(result, "sampled", family) for family in ("strict", "babyai")]
    known = [value for value in both if value is not None]
    return sum(known) / 2 if len(known) == 2 else None


def comparison(results: Sequence[Result], plays: Sequence[str], labels: dict[str, str]) -> str:
    """A row for each arm: success of each way of playing, by family, over seeds."""
    found = by_arm(results)
    header = ["", "seeds", *(f"{family}, {play}" for family in ("strict", "babyai") for play in plays)]
    rows = []
    for arm, label in labels.items():
        own = found.get(arm, [])
        cells = [
            over_seeds(rates(one, play, family) for one in own) for family in ("strict", "babyai") for play in plays
        ]
        rows.append([label, str(len(own)), *cells])
    return table(header, rows)


def differences(results: Sequence[Result], one: str, other: str, plays: Sequence[str]) -> str:
    """Paired by seed: `one` minus `other`."""
    found = by_arm(results)
    lines = []
    for family in ("strict", "babyai"):
        for play in plays:
            right = {result["seed"]: rates(result, play, family) for result in found.get(other, [])}
            pairs = [
                (rates(result, play, family) or 0.0) - (right[result["seed"]] or 0.0)
                for result in found.get(one, [])
                if result["seed"] in right
            ]
            lines.append(f"- {family}, {play}: {over_seeds(pairs)} ({len(pairs)} seeds)")
    return "\n".join(lines) + "\n"


def bars(axes: Any, labels: Sequence[str], groups: dict[str, list[list[float | None]]], what: str) -> None:
    """A bar for each label and group: the mean over seeds, with its 95% Student interval where there are several."""
    height = 0.8 / len(groups)
    for place, (name, rows) in enumerate(groups.items()):
        known = [[value for value in values if value is not None] for values in rows]
        shown = [row for row, values in enumerate(known) if values]
        axes.barh(
            [row + height * place for row in shown],
            [np.mean(known[row]) for row in shown],
            0.95 * height,
            xerr=[half_width(known[row]) if len(known[row]) > 1 else 0.0 for row in shown],
            label=name,
        )
    axes.set_yticks([row + height * (len(groups) - 1) / 2 for row in range(len(labels))], labels)
    axes.set_xlabel(what)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(labels) - 0.3 * height, -0.7 * height)
    axes.figure.legend(loc="outside upper center", ncols=2)


def bars_by_family(results: Sequence[Result], plays: dict[str, str], labels: dict[str, str]) -> Callable[[Any], None]:
    """What `comparison` tabulates, as bars; `plays` names each way of playing for the legend."""
    found = by_arm(results)
    groups = {
        f"{family}, {said}": [[rates(one, play, family) for one in found.get(arm, [])] for arm in labels]
        for family in ("strict", "babyai")
        for play, said in plays.items()
    }
    return lambda axes: bars(axes, list(labels.values()), groups, "success, on seeds that no gate uses")


# S1: what the policy gradient adds to imitation.

BASELINES = {
    "behaviour": "the agent that made the logs",
    "random": "random admissible",
    "imitation": "imitation of everything",
    "imitation_of_successes": "imitation of successes, early-stopped",
    "reward_weighted": "reward-weighted imitation",
    "topr": "TOPR with a learned value (the default)",
}


def baseline_arms(seeds: int) -> list[Arm]:
    """Equal data, updates and checkpoint choice.

    The curriculum draws good trajectories more often, so it is on for all but the imitation of everything: it makes
    the imitation of successes a stronger rival.
    """
    arms = []
    for seed in range(seeds):
        plays = (SAMPLED, *FOLLOWS, *TRANSFER)
        arms += [
            Arm("behaviour", seed, plays=(SAMPLED,), policy=FIRST_AGENT),
            Arm("random", seed, plays=(SAMPLED, TRANSFER[0]), policy="scripted:random"),
            Arm("topr", seed, plays=(SAMPLED, GREEDY, *plays[1:])),
        ]
        for name in ("imitation", "imitation_of_successes", "reward_weighted"):
            changed = (("train.objective", name), ("train.curriculum", name != "imitation"))
            arms.append(Arm(name, seed, changed, (SAMPLED, GREEDY, *FOLLOWS)))
    return arms


def baseline_answer(results: Sequence[Result]) -> tuple[str, Callable[[Any], None]]:
    """Table, and the paired differences that matter."""
    text = comparison(results, ("sampled", "greedy", "shuffled", "other"), BASELINES)
    text += "\nTOPR minus imitation of successes:\n\n"
    text += differences(results, "topr", "imitation_of_successes", ("sampled", "greedy"))
    text += "\nTOPR minus the behaviour:\n\n" + differences(results, "topr", "behaviour", ("sampled",))
    text += "\nHeld-out tasks, never trained on:\n\n"
    text += comparison(results, ("held out", "held out, shuffled"), {k: BASELINES[k] for k in ("random", "topr")})

    return text, bars_by_family(results, {"sampled": "sampled"}, BASELINES)


# S4: how often history can be used.


UNGUARDED = (("train.max_kl", 1e9), ("train.min_ess", 0.0), ("train.checkpoints", 1), ("train.curriculum", False))
"""No threshold and no choice of checkpoints: the guards of a round would hide a collapse, or stop at it."""


def replay_arms(seeds: int) -> list[Arm]:
    """Three objectives after 1, 2, 4 and 8 passes, each with its own learning-rate schedule, unguarded."""
    return [
        Arm(
            f"{objective}, {passes}",
            seed,
            (("train.objective", objective), ("train.updates", passes * UPDATES_A_PASS), *UNGUARDED),
            (SAMPLED,),
            data=ONCE,
        )
        for seed in range(seeds)
        for passes in PASSES
        for objective in ("symmetric", "truncated", "topr")
    ]


def by_passes(results: Sequence[Result], names: Sequence[str]) -> tuple[str, Callable[[Any], None]]:
    """Success over both families against passes, a line a name."""
    found = by_arm(results)

    def values(name: str, passes: int) -> list[float]:
        own = [overall(one) for one in found.get(f"{name}, {passes}", [])]
        return [value for value in own if value is not None]

    rows = [[name, *(over_seeds(values(name, passes)) for passes in PASSES)] for name in names]
    text = table(["", *(f"{passes} passes ({passes * UPDATES_A_PASS} updates)" for passes in PASSES)], rows)

    def draw(axes: Any) -> None:
        for name in names:
            points = [(p, values(name, p)) for p in PASSES if values(name, p)]
            errors = [half_width(v) if len(v) > 1 else 0.0 for _, v in points]
            axes.errorbar(
                [p for p, _ in points], [np.mean(v) for _, v in points], errors, marker="o", capsize=3, label=name
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(PASSES, [str(p) for p in PASSES])
        axes.set_xlabel("passes over the same history")
        axes.set_ylabel("success, sampled, both families")
        axes.legend()

    return text, draw


def replay_answer(results: Sequence[Result]) -> tuple[str, Callable[[Any], None]]:
    """Table and curve."""
    text, draw = by_passes(results, ("symmetric", "truncated", "topr"))
    return "Thresholds, choice of checkpoints and curriculum are off, so that a collapse shows.\n\n" + text, draw


# S8: with and without the curriculum.


def curriculum_arms(seeds: int) -> list[Arm]:
    """The default objective with and without the curriculum, at the same budgets."""
    arms = []
    for seed in range(seeds):
        for passes in PASSES:
            for name in ("curriculum", "uniform"):
                changed = (("train.updates", passes * UPDATES_A_PASS), ("train.curriculum", name == "curriculum"))
                arms.append(Arm(f"{name}, {passes}", seed, changed, (SAMPLED,), data=ONCE))
    return arms


def curriculum_answer(results: Sequence[Result]) -> tuple[str, Callable[[Any], None]]:
    """Success at each budget, and the updates that a level of success takes."""
    names = ("curriculum", "uniform")
    text, draw = by_passes(results, names)
    found = by_arm(results)
    curves: dict[int, dict[str, list[float]]] = {}
    for name in names:
        for passes in PASSES:
            for one in found.get(f"{name}, {passes}", []):
                curves.setdefault(one["seed"], {}).setdefault(name, []).append(overall(one) or 0.0)
    whole = [own for own in curves.values() if [len(own.get(name, [])) for name in names] == [len(PASSES)] * 2]
    if whole:
        budgets = [passes * UPDATES_A_PASS for passes in PASSES]
        level = min(max(curve) for own in whole for curve in own.values())
        rows = []
        for share in (0.9, 0.95, 1.0):
            updates = {name: [reached(own[name], budgets, share * level) for own in whole] for name in names}
            saved = np.subtract(updates["uniform"], updates["curriculum"])
            rows.append([f"{share * level:.3f}", *(over_seeds(one, 0) for one in (*updates.values(), saved))])
        text += "\nUpdates to a level of success that every run reaches, interpolated between budgets; "
        text += f"saved is paired by seed ({len(whole)} seeds):\n\n" + table(["success", *names, "saved"], rows)
    return text, draw


def reached(curve: Sequence[float], budgets: Sequence[int], target: float) -> float:
    """The budget at which a curve first reaches `target`, linear between points; NaN where it does not."""
    if curve[0] >= target:
        return budgets[0]
    for (low, high), (before, after) in zip(pairwise(curve), pairwise(budgets), strict=True):
        if high >= target:
            return before + (after - before) * (target - low) / (high - low)
    return float("nan")


# S3: conditioning on the return.


def return_arms(seeds: int) -> list[Arm]:
    """Imitation conditioned on the return, asked for the highest and the lowest."""
    changed = (("train.objective", "imitation"), ("train.condition_on_return", True), ("train.curriculum", False))
    plays = (Play("high", target_return=1.0), Play("low", target_return=0.0))
    return [Arm("conditioned", seed, changed, plays) for seed in range(seeds)]


def return_answer(results: Sequence[Result]) -> tuple[str, Callable[[Any], None]]:
    """Success under a high minus under a low target."""
    told = {"told to reach return 1": "high", "told to reach return 0": "low"}
    groups = {
        label: [[rates(one, play, family) for one in results] for family in ("strict", "babyai")]
        for label, play in told.items()
    }
    rows = []
    for family, high, low in zip(("strict", "babyai"), *groups.values(), strict=True):
        pairs = [(a or 0.0) - (b or 0.0) for a, b in zip(high, low, strict=True)]
        rows.append([family, over_seeds(high), over_seeds(low), over_seeds(pairs)])
    text = table(["", *(f"success, {label}" for label in told), "difference"], rows)
    text += f"\n{len(results)} seeds, paired.\n"
    return text, lambda axes: bars(axes, ["strict", "babyai"], groups, "success, sampled")


# S7: several families at once.

FAMILY_TASKS = {
    "strict": [name for name in load_config().tasks.train if name.partition(":")[2] in STRICT],
    "babyai": [name for name in load_config().tasks.train if name.partition(":")[2] not in STRICT],
}


def transfer_arms(seeds: int) -> list[Arm]:
    """One policy for both families against one for each, on equal updates."""
    plays = (SAMPLED, *FOLLOWS, *TRANSFER)
    arms = []
    for seed in range(seeds):
        arms.append(Arm("topr", seed, plays=(SAMPLED, GREEDY, *plays[1:])))
        arms += [Arm(f"{name} alone", seed, (("tasks.train", tasks),), plays) for name, tasks in FAMILY_TASKS.items()]
    return arms


def transfer_answer(results: Sequence[Result]) -> tuple[str, Callable[[Any], None]]:
    """Joint and single training on trained and held-out tasks."""
    labels = {"topr": "both families, one policy", "strict alone": "strict alone", "babyai alone": "babyai alone"}
    text = comparison(results, ("sampled", "shuffled", "held out", "held out, shuffled"), labels)
    plays = {"sampled": "trained levels", "held out": "levels never trained on"}
    return text, bars_by_family(results, plays, labels)


# Actions of several tokens.


def words_arms(seeds: int) -> list[Arm]:
    """One token an action against words (`turn left`, `pick up`)."""
    arms = []
    for seed in range(seeds):
        arms.append(Arm("topr", seed))
        arms.append(Arm("words", seed, data=(("tasks.actions", "words"),), plays=(SAMPLED, GREEDY, *FOLLOWS)))
    return arms


def words_answer(results: Sequence[Result]) -> tuple[str, Callable[[Any], None]]:
    """What several tokens cost."""
    labels = {"topr": "one token an action", "words": "words (turn left, pick up)"}
    text = comparison(results, ("sampled", "greedy", "other"), labels)
    text += "\nWords minus one token:\n\n" + differences(results, "words", "topr", ("sampled", "greedy"))
    return text, bars_by_family(results, {"sampled": "sampled", "greedy": "greedy"}, labels)


STUDIES = {
    "baselines": Study(
        "Does the policy learned from logs beat the agent that wrote them, and simple imitation (S1)?",
        5,
        baseline_arms,
        baseline_answer,
    ),
    "replay": Study("How often can the same history be used (S4)?", 3, replay_arms, replay_answer),
    "returns": Study("Does asking for a higher return change the behaviour (S3)?", 3, return_arms, return_answer),
    "transfer": Study("Does one policy for all tasks cost or gain (S7)?", 3, transfer_arms, transfer_answer),
    "curriculum": Study("Does the curriculum save updates (S8)?", 3, curriculum_arms, curriculum_answer),
    "kinds": Study(
        "Does one policy for families that differ in kind cost or gain (S7)?",
        3,
        kinds.arms,
        kinds.answer,
        [AGENTS[package] for package in kinds.KINDS],
    ),
    "desk": Study(
        "Do an agent's logs teach a better agent where nobody kept probabilities (S1)?",
        3,
        desk.arms,
        desk.answer,
        [AGENTS["desk"]],
    ),
    "words": Study("What do actions of several tokens cost?", 3, words_arms, words_answer),
}


def write_study(name: str, study: Study, results: Sequence[Result]) -> None:
    """The page of a study of arms."""
    config = load_config()
    runs = dict(study.arms(1)[0].data).get("collect.episodes", config.collect.episodes)
    played = f"{config.evaluate.final} episodes (final range), {config.evaluate.transfer} on held-out tasks"
    agents = ", ".join(f"`{one}`" for one in study.agents)
    how = (
        f"Offline, from {runs} episodes of {agents}; each policy played {played}. Success is the "
        "mean over a family's tasks, ± the 95% Student interval over seeds; sampled decoding unless said."
    )
    write(name, study.question, how, *study.answer(results))


def write(name: str, question: str, how: str, text: str, draw: Callable[[Any], None] | None) -> None:
    """docs/studies/NAME.md, and its figure where it has one."""
    figure = ""
    if draw is not None:
        from matplotlib.figure import Figure

        drawing = Figure(figsize=(8, 4), layout="constrained")
        draw(drawing.subplots())
        DOCS.mkdir(parents=True, exist_ok=True)
        drawing.savefig(DOCS / f"{name}.png", dpi=110, metadata={"Software": None})
        figure = f"\n![{question}]({name}.png)\n"
    write_text(DOCS / f"{name}.md", f"# {question}\n\nMade by `python -m studies {name}`. {how}\n\n{text}{figure}")
