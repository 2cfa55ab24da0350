"""Off-policy estimates beside the truth: logs with recorded probabilities, policies near and far, played to know.

Unlike an arm, what is done here is kept under ``.resume/studies/off-policy-KEY``, KEY from params.yaml and the
constants below alone: delete that folder to start anew after a change of code.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retroformer.config import Config, load_config
from retroformer.environments.splits import seeds
from retroformer.evaluation.off_policy import assessment, evidence, improvement
from retroformer.evaluation.off_policy.logs import Logs, Scored, score
from retroformer.files import read_json, write_json, write_text
from retroformer.progress import progress
from retroformer.rollouts.engine import Conditions, Episode
from retroformer.rollouts.workers import Player, play_all
from retroformer.storage import read_trajectories, write_trajectories
from retroformer.types import Trajectory
from studies.arms import FIRST_AGENT, ONCE, ROOT, configure, history
from studies.tables import table

SEEDS = 20
"""Independent logs of the usual size for each pair."""
DEFAULT = 1320
"""The evaluation share, a fifth, of 6,600 episodes."""
SIZES = {330: 20, 2640: 8, 5280: 4}
"""Other sizes of logs, and how many disjoint ones."""
TRUTH = {"bot": 8_000, "model": 4_800}
"""Episodes that each kind of policy plays to know its value; the first seeds are the same for all."""
TRAINED = {
    "topr": (("train.updates", 1400),),
    "imitation": (("train.updates", 900), ("train.objective", "imitation"), ("train.curriculum", False)),
    "successes": (("train.updates", 900), ("train.objective", "imitation_of_successes")),
}
LOGS = 91
"""Run seed of the logs. Those of 90 are what the estimator and its interval were chosen on, so not for measuring."""
TRUTHS = 90
"""Run seed of the episodes that are played to know the truth."""
NEAR = 0.8
"""Overlap, the mean of sum_a min(pi, mu) over logged decisions, from which a pair is called near."""
CONFIDENCE = 0.95


class Agent(NamedTuple):
    """A scripted bot with noise, or a trained policy at a temperature."""

    name: str
    setting: float

    @property
    def label(self) -> str:
        """As the page shows it."""
        return f"bot, noise {self.setting:g}" if self.name == "bot" else f"{self.name}, temperature {self.setting:g}"


BOT, SERVED = Agent("bot", 0.7), Agent("topr", 2.0)
PAIRS: tuple[tuple[Agent, Agent], ...] = (
    *((BOT, Agent("bot", noise)) for noise in (0.6, 0.5, 0.3, 0.8)),
    *((BOT, Agent(name, 1.0)) for name in ("imitation", "successes", "topr")),
    (BOT, SERVED),
    *((SERVED, Agent("topr", temperature)) for temperature in (1.5, 1.0, 3.0)),
    *((SERVED, Agent(name, 1.0)) for name in ("successes", "imitation")),
)
BY_SIZE = ((BOT, Agent("bot", 0.5)), (BOT, SERVED), (SERVED, Agent("topr", 1.0)))
"""Pairs whose error is shown against the size of the logs."""
PAGE, FIGURE = Path("docs/off-policy.md"), Path("docs/off-policy.png")
BEGIN, END = "<!-- python -m studies off_policy -->", "<!-- until here -->"
Result = dict[str, Any]
Probabilities = tuple[tuple[float, ...], ...]
"""Of every action of every step."""


@cache
def parameters() -> Config:
    """params.yaml, as it was when the study began."""
    return load_config()


@cache
def folder() -> Path:
    """Where the study's pieces lie."""
    values = (parameters().tasks, parameters().train, LOGS, SEEDS, DEFAULT, TRUTH, TRAINED)
    return ROOT / f"off-policy-{hashlib.sha256(repr(values).encode()).hexdigest()[:16]}"


def trained(name: str) -> Path:
    """The checkpoint of a policy trained on the first agent's history."""
    from retroformer.stages.train import train

    out = folder() / "policies" / name
    if not out.is_dir():
        config, past, work = configure(TRAINED[name], 0), history(0, ONCE), folder() / "work" / name
        (work / "data").mkdir(parents=True, exist_ok=True)
        shutil.copy(past / "data/champion.json", work / "data/champion.json")
        alone = config.train.model_copy(update={"baselines": ()})
        pins, made = work / "data/champion.json", work / "data/challenger"
        train(alone, config.policy, 0, batches=past / "batches", champion=pins, out=made, training=work / "training")
        out.parent.mkdir(parents=True, exist_ok=True)
        made.rename(out)
        shutil.rmtree(work)
    return out


def player(agent: Agent) -> Player:
    """Who plays."""
    if agent.name == "bot":
        return Player(FIRST_AGENT.replace("0.7", f"{agent.setting:g}"))
    return Player(str(trained(agent.name)), agent.setting)


def play(agent: Agent, split: str, count: int, run_seed: int) -> Iterator[tuple[Trajectory, Probabilities]]:
    """Episodes of the tasks in turn, with the probability of every action."""
    config = parameters()
    names = config.tasks.train
    numbers = seeds(split, run_seed=run_seed, round_number=1, count=count)
    plan = [Episode(names[place % len(names)], number, split) for place, number in enumerate(numbers)]
    conditions = Conditions(run_seed, config.tasks.text, config.tasks.actions, 64, keep_probabilities=True)
    with progress(f"{agent.label}, {split}", count, "episodes") as shown:
        for _, played in play_all([(player(agent), plan)], conditions, workers=1):
            yield from ((one.trajectory, one.probabilities) for one in played)
            shown.advance(len(played))


def truth(agent: Agent) -> np.ndarray:
    """The policy's return on each of the same fresh seeds."""
    path = folder() / "truth" / f"{agent.name}-{agent.setting:g}.json"
    if not path.is_file():
        count = TRUTH["bot" if agent.name == "bot" else "model"]
        write_json(path, [trajectory.total_reward for trajectory, _ in play(agent, "gate", count, TRUTHS)])
    return np.array(read_json(path))


@cache
def pool(behaviour: Agent) -> tuple[list[Trajectory], list[int], np.ndarray]:
    """The behaviour's logs in the order of their seeds, where each trajectory's steps begin, and mu of every action."""
    place = folder() / "logs" / f"{behaviour.name}-{behaviour.setting:g}"
    if not place.is_dir():
        played = sorted(play(behaviour, "history", SEEDS * DEFAULT, LOGS), key=lambda one: one[0].task.seed)
        rows = [row for _, probabilities in played for row in probabilities]
        mu_sa = np.zeros((len(rows), max(map(len, rows))), dtype=np.float32)
        for to, row in zip(mu_sa, rows, strict=True):
            to[: len(row)] = row
        place.with_suffix(".new").mkdir(parents=True, exist_ok=True)
        write_trajectories(place.with_suffix(".new"), [trajectory for trajectory, _ in played])
        np.save(place.with_suffix(".new") / "mu.npy", mu_sa)
        place.with_suffix(".new").rename(place)
    trajectories = sorted(read_trajectories(place), key=lambda one: one.task.seed)
    starts = [0, *np.cumsum([len(one.steps) for one in trajectories]).tolist()]
    return trajectories, starts, np.load(place / "mu.npy")


@cache
def plain_scores(behaviour: Agent, name: str) -> Scored:
    """A trained policy at temperature 1 on all of the behaviour's logs."""
    path = folder() / "scores" / f"{behaviour.name}-{behaviour.setting:g}-{name}.npz"
    if not path.is_file():
        import torch

        from retroformer.policies.checkpoints import load

        torch.set_num_threads(1)
        trajectories, policy, parts = pool(behaviour)[0], load(trained(name)), []
        with progress(f"score {name}", len(trajectories), "trajectories") as shown:
            for at in range(0, len(trajectories), DEFAULT):
                parts.append(score(policy, trajectories[at : at + DEFAULT], 1.0))
                shown.advance(DEFAULT)
        widest = max(part.logprobs_sa.shape[1] for part in parts)
        wide = [
            np.pad(one.logprobs_sa, ((0, 0), (0, widest - one.logprobs_sa.shape[1])), constant_values=-np.inf)
            for one in parts
        ]
        states = np.concatenate([one.states_sd for one in parts]).astype(np.float16)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".new").open("wb") as file:
            np.savez(file, logprobs_sa=np.concatenate(wide).astype(np.float32), states_sd=states)
        path.with_suffix(".new").rename(path)
    with np.load(path) as found:
        return Scored(found["logprobs_sa"], found["states_sd"])


def scored(behaviour: Agent, target: Agent, rows: slice) -> Scored:
    """The target's probabilities of every action at some of the logged decisions.

    A bot's are those of the behaviour with another noise: the expert's action is the one that the behaviour, itself the
    bot, gives most. Its features are the trained policy's.
    """
    if target.name == "bot":
        mu_sa = pool(behaviour)[2][rows].astype(float)
        there_sa = mu_sa > 0
        count_s = there_sa.sum(1, keepdims=True)
        expert_sa = there_sa & (mu_sa > 1.0001 / count_s)
        knows_s = expert_sa.any(1, keepdims=True)
        pi_sa = np.where(knows_s, target.setting / count_s + (1 - target.setting) * expert_sa, 1 / count_s) * there_sa
        with np.errstate(divide="ignore"):
            return Scored(np.log(pi_sa), plain_scores(behaviour, "topr").states_sd[rows].astype(float))
    found = plain_scores(behaviour, target.name)
    logits_sa = found.logprobs_sa[rows].astype(float) / target.setting
    logits_sa -= logits_sa.max(1, keepdims=True)
    logprobs_sa = logits_sa - np.log(np.exp(logits_sa).sum(1, keepdims=True))
    return Scored(logprobs_sa, found.states_sd[rows].astype(float))


def estimates(behaviour: Agent, target: Agent, size: int, count: int) -> list[Result]:
    """The answer on `count` disjoint logs of `size` trajectories, with the difference that is true."""
    name = f"{behaviour.name}-{behaviour.setting:g}-{target.name}-{target.setting:g}-{size}.json"
    path = folder() / "estimates" / name
    if not path.is_file():
        trajectories, starts, _ = pool(behaviour)
        found = []
        with progress(f"{behaviour.label} to {target.label}, n {size}", count, "logs") as shown:
            for at in range(0, count * size, size):
                logs = Logs(trajectories[at : at + size])
                own = scored(behaviour, target, slice(starts[at], starts[at + size]))
                found.append(answer_of(logs, assessment.view(logs, own, logs.behaviour_s)))
                shown.advance(1)
        write_json(path, found)
    return read_json(path)


def answer_of(logs: Logs, view: assessment.View) -> Result:
    """Evidence, refusal and the interval of the improvement; the interval also where it would not be given."""
    found = improvement.improvement([view.ratios], logs.instance_n, CONFIDENCE, view.evidence.ess)
    sizes = {"all": (view.evidence.trajectories, view.evidence.ess)}
    reference = improvement.reference_of([view.ratios])
    methods = {name: of(view.ratios).value for name, of in improvement.METHODS.items()}
    methods[improvement.ANSWER] = improvement.answer(view.ratios, reference).value
    refused = evidence.refusal(view.evidence, sizes)
    return {**view.evidence.to_dict(), **found._asdict(), "refused": refused, "methods": methods}


def summary(behaviour: Agent, target: Agent, size: int, count: int) -> Result:
    """A row of the page.

    The truth is played too, so its standard error is added, in quadrature, to each interval's reach.
    """
    value_n, before_n = truth(target), truth(behaviour)
    common = min(len(value_n), len(before_n))
    gain_n, value = value_n[:common] - before_n[:common], float(value_n.mean())
    true, noise = float(gain_n.mean()), 1.96 * float(gain_n.std()) / math.sqrt(common)
    found = estimates(behaviour, target, size, count)
    answered = [one for one in found if one["refused"] is None]
    covered = 0
    for one in answered:
        nearer = one["lower"] if one["mean"] > true else one["upper"]
        covered += abs(one["mean"] - true) <= math.hypot(one["mean"] - nearer, noise)
    errors = [one["mean"] - true for one in answered]
    overlap = float(np.mean([one["overlap"] for one in found]))
    return {
        "behaviour": behaviour.label,
        "target": target.label,
        "size": size,
        "near": overlap >= NEAR,
        "overlap": overlap,
        "ess": float(np.median([one["ess"] for one in found])),
        "true": true,
        "noise": noise,
        "logs": found,
        "n": len(found),
        "answered": len(answered),
        "covered": covered,
        "bias": float(np.mean(errors)) if errors else math.nan,
        "rmse": root_mean_square(errors),
        "width": float(np.mean([one["upper"] - one["lower"] for one in answered])) if answered else math.nan,
        "promoted": sum(one["lower"] > 0 for one in answered),
        "methods": {
            name: root_mean_square([one["methods"][name] - value for one in answered])
            for name in (*improvement.METHODS, improvement.ANSWER)
        },
    }


def root_mean_square(errors: Sequence[float]) -> float:
    """Nan where there are none."""
    return math.sqrt(sum(error**2 for error in errors) / len(errors)) if errors else math.nan


def run() -> None:
    """Whatever is not done yet, then the page."""
    rows = [summary(*pair, DEFAULT, SEEDS) for pair in PAIRS]
    by_size = [[summary(*pair, size, count) for size, count in sorted(SIZES.items())] for pair in BY_SIZE]
    by_size = [
        sorted([*own, next(row for row in rows if same(row, own[0]))], key=lambda row: row["size"]) for own in by_size
    ]
    before, mark, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise SystemExit(f"{PAGE} lacks the lines {BEGIN} and {END}, between which the figures go")
    write_text(PAGE, f"{before}{BEGIN}\n{page(rows, by_size)}{END}{after}")
    draw(rows, by_size)


FIGURES = ("answered", "covered", "bias", "RMSE", "width", "lower end above 0")


def same(one: Result, other: Result) -> bool:
    """Whether two rows are of the same pair."""
    return (one["behaviour"], one["target"]) == (other["behaviour"], other["target"])


def page(rows: Sequence[Result], by_size: Sequence[Sequence[Result]]) -> str:
    """What was found, in Markdown."""
    near, far = [row for row in rows if row["near"]], [row for row in rows if not row["near"]]
    everything = [*rows, *(row for own in by_size for row in own if row["size"] != DEFAULT)]
    answered, covered = (sum(row[key] for row in rows) for key in ("answered", "covered"))
    all_answered, all_covered = (sum(row[key] for row in everything) for key in ("answered", "covered"))

    def share(of: Sequence[Result]) -> str:
        done, asked = sum(row["answered"] for row in of), sum(row["n"] for row in of)
        return f"{done} of {asked} ({done / max(asked, 1):.0%})"

    main = [
        [
            row["behaviour"],
            row["target"],
            f"{'near' if row['near'] else 'far'}, {row['overlap']:.2f}",
            f"{row['ess']:.0f}",
            f"{row['true']:+.3f} ± {row['noise']:.3f}",
            f"{row['answered']} of {row['n']}",
            f"{row['covered']}",
            f"{row['bias']:+.3f}",
            f"{row['rmse']:.3f}",
            f"{row['width']:.3f}",
            f"{row['promoted']}",
        ]
        for row in rows
    ]
    reasons = Counter(kind_of(one["refused"]) for row in rows for one in row["logs"] if one["refused"])
    methods = list(rows[0]["methods"])
    return (
        f"\nOf {sum(row['n'] for row in rows)} logs of {DEFAULT:,} trajectories, {answered} were "
        f"answered, and {covered} of these intervals ({covered / answered:.1%}) hold the truth. Near pairs: "
        f"{share(near)} answered; far pairs: {share(far)}. With the other sizes below, {all_covered} of "
        f"{all_answered} ({all_covered / all_answered:.1%}).\n\n"
        + table(
            ["behaviour", "policy", "overlap", "worth", "true improvement", *FIGURES],
            main,
        )
        + "\nRefused: "
        + (", ".join(f"{reason} {count}" for reason, count in reasons.most_common()) or "none")
        + ".\n\nRoot mean square error of each estimator, of the policy's value, on the logs that were answered:\n\n"
        + table(
            ["behaviour", "policy", *methods],
            [[row["behaviour"], row["target"], *(f"{row['methods'][name]:.3f}" for name in methods)] for row in rows],
        )
        + "\nError of the improvement against the size of the logs:\n\n"
        + table(
            ["behaviour", "policy", "trajectories", "answered", "covered", "RMSE", "width"],
            [
                [
                    row["behaviour"],
                    row["target"],
                    f"{row['size']:,}",
                    f"{row['answered']} of {row['n']}",
                    f"{row['covered']}",
                    f"{row['rmse']:.3f}",
                    f"{row['width']:.3f}",
                ]
                for own in by_size
                for row in own
            ],
        )
        + f"\n![Estimates beside the truth; error against the size of the logs]({FIGURE.name})\n\n"
    )


def kind_of(reason: str) -> str:
    """Which threshold a refusal was for."""
    kinds = {"worth": "effective sample size", "never acts": "support", "have mean": "mean weight"}
    return next((kind for words, kind in kinds.items() if words in reason), "other")


def draw(rows: Sequence[Result], by_size: Sequence[Sequence[Result]]) -> None:
    """Left each answer with its interval beside the truth, right the error against the size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, row in enumerate(rows):
        for number, one in enumerate(row["logs"]):
            at = place + (number / len(row["logs"]) - 0.5) * 0.8
            if one["refused"]:
                left.plot([one["mean"]], [at], "x", color="0.7", markersize=3)
            else:
                reach = [[one["mean"] - one["lower"]], [one["upper"] - one["mean"]]]
                left.errorbar(
                    [one["mean"]], [at], xerr=reach, fmt=".", color="C0" if row["near"] else "C1", lw=0.7, ms=3
                )
        left.plot([row["true"]] * 2, [place - 0.45, place + 0.45], "k-", lw=1.2)
    left.set_yticks(range(len(rows)), [f"{row['behaviour']} → {row['target']}" for row in rows], fontsize=7)
    left.invert_yaxis()
    left.set_xlabel("improvement: answers with intervals, the truth in black, refused estimates in grey")
    for own in by_size:
        known = [row for row in own if row["answered"]]
        label = f"{own[0]['behaviour']} → {own[0]['target']}"
        right.loglog([row["size"] for row in known], [row["rmse"] for row in known], "o-", label=label)
    right.set_xlabel("trajectories")
    right.set_ylabel("root mean square error of the improvement")
    right.legend(fontsize=7)
    figure.savefig(FIGURE, dpi=110, metadata={"Software": None})
