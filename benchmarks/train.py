"""Training: one forward and backward for whole trajectories, beside TRL's GRPO and lamorel's algorithm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.measure import CLOCK, MEMORY, QUICK_REPS, REPS, Report, Run, interleave, peak_megabytes
from benchmarks.peers import TRL, naive, one_sequence, trl_inputs, trl_trainer
from benchmarks.workload import build_policy, describe, random_trajectory, totals
from retroformer.objectives.losses import OBJECTIVES, Batch
from retroformer.policies.language_model import LanguageModelPolicy
from retroformer.policies.tree import Tokens, Window
from retroformer.types import Trajectory

OBJECTIVE = "topr"
AGAINST_TRL = (8, 6)
ROWS = 4
"""Trajectories of an update against TRL, which pads them to one length; one elsewhere, as lamorel's takes minutes."""
SHAPES = ((8, 5), (12, 10), (20, 5), (20, 20))
QUICK_SHAPES = ((8, 5), (12, 10), (20, 5))
QUICK_ROWS = 2
LAMOREL = ((8, 5), (12, 10), (20, 20))
LAMOREL_QUICK = ((8, 5),)
NOTES = [
    f"Forward of the log-probabilities, the objective ({OBJECTIVE}) and backward; no optimiser. The project's time "
    "includes laying its batch out (`collate`), the peers' inputs are made before.",
    "trl: GRPOTrainer's own loss (its defaults but fp32 and no gradient checkpointing), one row per trajectory, "
    "observations masked as tool output. Unfair to it: on a CPU it sends every position, observations too, through "
    "the output layer, computes the entropy of each, pads rows to the longest, and does its logging. Unfair to the "
    "project: `tree` scores all K actions where GRPO scores the one taken.",
    "lamorel: its algorithm, not its package; one sequence for every action of every step, a step's K as one batch "
    "with a backward of its own, output layer over all positions as in its code; probabilities by the project's "
    "definition, so that the losses can be compared.",
    "one sequence per step: the action taken alone, output layer at its tokens; a lower bound for lamorel's "
    "`pre_encode_inputs`, which encodes each step's prefix once.",
    "`tokens` are those that a forward needs, `tokens_per_second` counts the trajectory's alone. `loss` is the same "
    "for tree and lamorel, and for chosen and one sequence per step; trl's is its own.",
    f"Time: {CLOCK}. Memory: {MEMORY}.",
]


class Update:
    """Some trajectories of one shape, laid out. Each method is an update up to the gradient and returns the loss.

    Rewards stand for advantages, and all behaviour probabilities are 1/e.
    """

    def __init__(self, policy: LanguageModelPolicy, steps: int, actions: int, rows: int):
        vocabulary = policy.model.config.vocab_size
        trajectories = [random_trajectory(steps, actions, vocabulary, seed) for seed in range(rows)]
        self.policy = policy
        self.branched = [policy.windows(one)[0] for one in trajectories]
        self.trunks = [policy.windows(generated(one))[0] for one in trajectories]
        advantages_bt = torch.tensor([one.rewards for one in trajectories])
        ones_bt = torch.ones_like(advantages_bt)
        self.batch = Batch(-ones_bt, -ones_bt, advantages_bt, advantages_bt, ones_bt[:, 0] > 0, ones_bt > 0)

    def tree(self) -> torch.Tensor:
        """The project's: every admissible action of every step."""
        return self._project(self.branched)

    def chosen(self) -> torch.Tensor:
        """The project's: the actions taken alone, as if they had been generated."""
        return self._project(self.trunks)

    def _project(self, windows: Sequence[Window]) -> torch.Tensor:
        self.policy.model.zero_grad(set_to_none=True)
        tree = self.policy.collate(windows)
        logprobs_bta = self.policy.score(tree)
        return self.backward(
            self.batch._replace(logprobs_bt=logprobs_bta.gather(-1, tree.chosen_bt[..., None])[..., 0])
        )

    def lamorel(self) -> torch.Tensor:
        """One sequence for every action, step by step."""
        return self._step_by_step(lambda prefix, actions, chosen: naive(self.policy.model, prefix, actions)[chosen])

    def sequence_per_step(self) -> torch.Tensor:
        """One sequence for the action taken, step by step."""
        return self._step_by_step(
            lambda prefix, actions, chosen: one_sequence(self.policy.model, prefix, actions[chosen])
        )

    def _step_by_step(self, score: Callable[[list[int], Sequence[Tokens], int], torch.Tensor]) -> torch.Tensor:
        """Each step with a backward of its own, as memory allows no more; the gradients add up to the same."""
        self.policy.model.zero_grad(set_to_none=True)
        total, steps = torch.zeros(()), self.batch.mask_bt.numel()
        for b, window in enumerate(self.branched):
            for t, (root, actions, chosen) in enumerate(zip(window.roots, window.actions, window.chosen, strict=True)):
                logprob = score(window.tokens[: root + 1], actions, chosen)
                here = (slice(b, b + 1), slice(t, t + 1))
                of_step = Batch(
                    logprobs_bt=logprob.view(1, 1),
                    behaviour_logprobs_bt=self.batch.behaviour_logprobs_bt[here],
                    advantages_bt=self.batch.advantages_bt[here],
                    returns_bt=self.batch.returns_bt[here],
                    success_b=self.batch.success_b[b : b + 1],
                    mask_bt=self.batch.mask_bt[here],
                )
                total += self.backward(of_step, 1 / steps)
        return total

    def backward(self, batch: Batch, weight: float = 1.0) -> torch.Tensor:
        """The objective and its gradient, both times `weight`; returns the loss."""
        loss = OBJECTIVES[OBJECTIVE](batch).loss * weight
        loss.backward()
        return loss.detach()


class Grpo:
    """The same trajectories through TRL."""

    def __init__(self, trainer: Any, update: Update):
        self.trainer = trainer
        self.inputs = trl_inputs(update.branched, update.batch.advantages_bt.mean(1).tolist())

    def __call__(self) -> torch.Tensor:
        """GRPO's loss and its gradient."""
        self.trainer.model.zero_grad(set_to_none=True)
        loss = self.trainer.compute_loss(self.trainer.model, self.inputs)
        loss.backward()
        return loss.detach()


def generated(trajectory: Trajectory) -> Trajectory:
    """The same trajectory as if its actions had been generated: none but those taken are scored."""
    return replace(trajectory, steps=tuple(replace(step, admissible_actions=None) for step in trajectory.steps))


def measure(quick: bool, width: int = 128, vocabulary: int = 4096) -> Report:
    """All cases; with `quick` 3 repetitions, and lamorel's algorithm at the smallest shape alone."""
    reps, shapes = (QUICK_REPS, QUICK_SHAPES) if quick else (REPS, SHAPES)
    policy = build_policy(width, vocabulary=vocabulary)
    report = Report("train", reps, describe(policy), notes=list(NOTES))
    trainer = trl_trainer(policy.model, policy.tokenizer)
    if trainer is None:
        report.skipped.append(TRL)
    if quick:
        report.skipped.append(
            "one sequence per step, lamorel but for T, K = 8, 5, its memory, and of an update against TRL "
            f"{ROWS - QUICK_ROWS} trajectories: left out by --quick"
        )
    for shape in (AGAINST_TRL, *shapes):
        rows = (QUICK_ROWS if quick else ROWS) if shape == AGAINST_TRL else 1
        update = Update(policy, *shape, rows)
        variants: dict[str, Run] = {"chosen": update.chosen, "tree": update.tree}
        if shape == AGAINST_TRL and trainer is not None:
            variants["trl"] = Grpo(trainer, update)
        if shape != AGAINST_TRL and not quick:
            variants["one sequence per step"] = update.sequence_per_step
        if shape in (LAMOREL_QUICK if quick else LAMOREL):
            variants["lamorel"] = update.lamorel
        taken = interleave(variants, reps)
        tokens: dict[str, int] = dict(zip(("chosen", "tree"), totals(update.branched), strict=True))
        for name, one in taken.items():
            report.cases.append(
                {
                    "case": f"{shape[0]}_{shape[1]}",
                    "variant": name,
                    "trajectories": rows,
                    "tokens": tokens.get(name),
                    "tokens_per_second": tokens["chosen"] / one.median,
                    "seconds": one.as_json(),
                    "peak_mb": None if quick and name == "lamorel" else peak_megabytes(variants[name]),
                    "loss": float(one.result),
                }
            )
        add_ratios(report, shape, {name: one.median for name, one in taken.items()}, tokens)
    return report


def add_ratios(report: Report, shape: tuple[int, int], seconds: dict[str, float], tokens: dict[str, int]) -> None:
    """The ratios that are claimed, where their variants were measured."""
    name = f"{shape[0]}_{shape[1]}"
    for variant in ("chosen", "tree"):
        if "trl" in seconds:
            report.ratios[f"{variant}_vs_trl"] = seconds["trl"] / seconds[variant]
    if "lamorel" in seconds:
        report.ratios[f"tree_vs_lamorel_{name}"] = seconds["lamorel"] / seconds["tree"]
    if shape in ((12, 10), (20, 5)):
        over = seconds["tree"] / seconds["chosen"]
        report.ratios[f"tree_overhead_{name}"] = over / (tokens["tree"] / tokens["chosen"])
