"""The history as the trainer sees it: windows of tokens, and beside each its returns and recorded probabilities.

Memory holds a few numbers a step and an id a trajectory; the tokens lie on disk (`training.windows`) and the texts are
not kept, so a history may be larger than memory.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from retroformer.errors import DataError
from retroformer.objectives.baselines import baselines_of_sums
from retroformer.objectives.returns import returns_to_go
from retroformer.policies.batch import TreeBatch, moved, observed_places
from retroformer.policies.language_model import LanguageModelPolicy
from retroformer.policies.tree import Window
from retroformer.training.memory import shape
from retroformer.training.suspects import REMEDY, breaking, first_broken
from retroformer.training.windows import WindowStore
from retroformer.types import Outcome, Trajectory

Split = Callable[[list[Window]], list[list[Window]]]
ESTIMATED_TOKENS = 8192
"""Tokens of a forward that only estimates probabilities."""
CHUNK = 1 << 22
"""Steps, padding included, whose returns are computed together."""


@dataclass(frozen=True, slots=True)
class Minibatch:
    """W windows of some trajectories, and for each step what the objective needs. All [W, T] unless named."""

    trees: list[TreeBatch]
    """The windows in parts, in order, each of which goes through the model at once."""
    mask_bt: torch.Tensor
    chosen_bt: torch.Tensor
    action_mask_bta: torch.Tensor
    """[W, T, A]"""
    generated_bt: torch.Tensor
    """Whether the action was generated, and so has no alternatives."""
    returns_bt: torch.Tensor
    behaviour_logprobs_bt: torch.Tensor
    """NaN where the log does not have it."""
    baselines_bt: torch.Tensor
    """The constant baseline; a learned value is the trainer's."""
    task_baselines_bt: torch.Tensor
    """The mean return of the task, which checkpoints are compared by."""
    success_b: torch.Tensor
    temperature_b: torch.Tensor
    weights_b: torch.Tensor
    """Inverse sampling probability of the window's trajectory, up to a factor."""
    windows: list[tuple[str, int]]
    """Of each window its trajectory's id and its first step."""


def stacked(parts: list[torch.Tensor], fill: float = 0) -> torch.Tensor:
    """Tensors one below the other, each padded with `fill` to the largest in all other dimensions."""
    if len(parts) == 1:
        return parts[0]
    widths = [max(part.shape[dimension] for part in parts) for dimension in range(1, parts[0].dim())]
    whole = parts[0].new_full((sum(map(len, parts)), *widths), fill)
    start = 0
    for part in parts:
        whole[(slice(start, start + len(part)), *(slice(width) for width in part.shape[1:]))] = part
        start += len(part)
    return whole


class Replay:
    """Trajectories laid out once, as they arrive, and drawn many times."""

    def __init__(
        self,
        policy: LanguageModelPolicy,
        trajectories: Iterable[Trajectory],
        discount: float,
        baseline: str,
        *,
        folder: Path | None = None,
        advance: Callable[[int], None] = lambda count: None,
    ):
        """`folder`: where the file of tokens lies. Raises DataError where no trajectory arrives."""
        self.policy = policy
        self.windows = WindowStore(folder)
        self.largest = (0, 0)
        """Rows and tokens a row of the window that takes most."""
        self.place: dict[str, int] = {}
        names: tuple[dict[str, int], dict[str, int]] = ({}, {})
        tasks, instances, counts, success = array("q"), array("q"), array("q"), array("b")
        rewards, behaviour, temperature = array("f"), array("f"), array("f")
        for place, trajectory in enumerate(trajectories):
            self.place[trajectory.id] = place
            laid_out = policy.windows(trajectory, place)
            self.windows.add(laid_out)
            self.largest = max([self.largest, *(shape(window, policy) for window in laid_out)], key=math.prod)
            counts.append(len(trajectory.steps))
            rewards.extend(trajectory.rewards)
            behaviour.extend(math.nan if step.logprob is None else step.logprob for step in trajectory.steps)
            success.append(trajectory.outcome is Outcome.SUCCESS)
            temperature.append(trajectory.temperature)
            tasks.append(names[0].setdefault(trajectory.task.label, len(names[0])))
            instances.append(names[1].setdefault(trajectory.task.id, len(names[1])))
            advance(1)
        if not counts:
            raise DataError("there is no trajectory to learn from")
        self.tasks = list(names[0])
        self.task = torch.from_numpy(np.asarray(tasks))
        self.counts = torch.from_numpy(np.asarray(counts))
        self.starts = self.counts.cumsum(0) - self.counts
        self.longest = int(self.counts.max())
        self.behaviour = torch.from_numpy(np.asarray(behaviour))
        """Of each step, one trajectory after the other; so are `returns`."""
        self.estimated = 0.0
        """Share of the steps whose behaviour log-probability is `estimate_behaviour`'s."""
        self.success = torch.from_numpy(np.asarray(success)).bool()
        self.temperature = torch.from_numpy(np.asarray(temperature))
        self.returns = torch.from_numpy(np.asarray(rewards))
        sum_b = torch.zeros(len(counts))
        for rows in torch.arange(len(counts)).split(max(1, CHUNK // max(1, self.longest))):
            places_bt, mask_bt = self._places(rows, torch.zeros_like(rows), self.longest)
            returns_bt = returns_to_go(self.returns[places_bt], mask_bt, discount)
            self.returns[places_bt[mask_bt]] = returns_bt[mask_bt]
            sum_b[rows] = returns_bt.sum(1)
        labels = {"task_b": self.task, "instance_b": torch.from_numpy(np.asarray(instances))}
        kind = "none" if baseline == "value" else baseline
        self.baseline = baselines_of_sums(sum_b, self.counts, kind, **labels)  # type: ignore[arg-type]
        self.task_baseline = baselines_of_sums(sum_b, self.counts, "task", **labels)

    def _places(self, rows: torch.Tensor, first: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where `width` steps of some trajectories lie from step `first` on, and which of these there are, [B, T]."""
        steps_bt = first[:, None] + torch.arange(width)
        mask_bt = steps_bt < self.counts[rows][:, None]
        return (self.starts[rows][:, None] + steps_bt).clamp(max=len(self.returns) - 1), mask_bt

    def require_behaviour(self, objective: str) -> None:
        """Raise DataError where a step lacks the behaviour's log-probability, which `objective` cannot do without."""
        of_step = torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)
        missing = of_step[self.behaviour.isnan()].unique()
        if len(missing):
            first = list(self.place)[int(missing[0])]
            raise DataError(
                f"the objective {objective} needs behaviour log-probabilities, which {len(missing)} of "
                f"{len(self.counts)} trajectories lack (first: {first}); "
                "use asymmetric or imitation_of_successes, or set train.propensities to estimated"
            )

    @torch.inference_mode()
    def estimate_behaviour(self, fitted: LanguageModelPolicy) -> None:
        """Where the log lacks the behaviour's log-probability, take that of a policy fitted to the log.

        `fitted` has the tokens and the layout of the policy that is trained, as one has that was made from the same
        start on the same history. That it is the behaviour is an assumption.
        """
        silent = self.behaviour.isnan()
        self.estimated = float(silent.float().mean())
        of_step = torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)
        rows = sorted(of_step[silent].unique().tolist(), key=lambda row: self.windows.lengths[row])
        fitted.model.eval()
        ids = list(self.place)
        while rows:
            # From the longest down, so that what does not fit into memory shows at once.
            size = max(1, ESTIMATED_TOKENS // max(1, self.windows.lengths[rows[-1]]))
            some, rows = rows[-size:], rows[:-size]
            windows = [window for row in some for window in self.windows[row]]
            owners = torch.tensor([window.trajectory for window in windows])
            tree = fitted.collate(windows)
            device, mask_bt = tree.mask_bt.device, tree.mask_bt.cpu()
            logprobs_bta = fitted.score(tree, self.temperature[owners].to(device)[:, None, None])
            chosen_bt = logprobs_bta.gather(-1, tree.chosen_bt[..., None])[..., 0].float().cpu()
            first = torch.tensor([window.first_step for window in windows])
            places = self._places(owners, first, mask_bt.shape[1])[0][mask_bt]
            missing = silent[places]
            self.behaviour[places[missing]] = chosen_bt[mask_bt][missing]
            named = [(ids[window.trajectory], window.first_step) for window in windows]
            if broken := first_broken(torch.where(mask_bt, chosen_bt, 0.0), named, self.breaking(fitted)):
                raise DataError(f"{broken}, of the policy fitted to the log that stands in for the behaviour: {REMEDY}")

    def breaking(self, policy: LanguageModelPolicy) -> Callable[[str, int], int | None]:
        """`suspects.breaking` of the window of a trajectory that begins at a step."""
        return lambda id, first: next(
            breaking(policy, window) for window in self.windows[self.place[id]] if window.first_step == first
        )

    def tokens(self, id: str) -> int:
        """Length of a trajectory in tokens."""
        return self.windows.lengths[self.place[id]]

    def minibatch(
        self,
        ids: Iterable[str],
        weights: Iterable[float],
        split: Split = lambda all: [all],
        *,
        observations: float | None = None,
    ) -> Minibatch:
        """The windows of these trajectories, padded to one shape; `split` parts what memory cannot hold at once.

        With `observations` tokens of observations are asked for too; it is their phase, see `observed_places`.
        """
        chosen: list[Window] = []
        of_window: list[float] = []
        named: list[tuple[str, int]] = []
        for id, weight in zip(ids, weights, strict=True):
            own = self.windows[self.place[id]]
            chosen.extend(own)
            of_window.extend([weight] * len(own))
            named.extend((id, window.first_step) for window in own)
        parts = split(chosen)
        asked = iter(observed_places(chosen, observations) if observations is not None else ())
        trees = [self.policy.collate(part, list(islice(asked, len(part))) or None) for part in parts]
        mask_bt, chosen_bt, action_mask_bta = (
            stacked([getattr(tree, name) for tree in trees]) for name in ("mask_bt", "chosen_bt", "action_mask_bta")
        )
        generated_bt = stacked(
            [torch.zeros_like(one.mask_bt) if one.generated_bt is None else one.generated_bt for one in trees]
        )
        device, (w, t) = mask_bt.device, mask_bt.shape
        rows = torch.tensor([window.trajectory for window in chosen])
        places_bt, there_bt = self._places(rows, torch.tensor([window.first_step for window in chosen]), t)
        return Minibatch(
            trees=trees,
            mask_bt=mask_bt,
            chosen_bt=chosen_bt,
            action_mask_bta=action_mask_bta,
            generated_bt=generated_bt,
            returns_bt=moved(torch.where(there_bt, self.returns[places_bt], 0.0), device),
            behaviour_logprobs_bt=moved(torch.where(there_bt, self.behaviour[places_bt], torch.nan), device),
            baselines_bt=moved(self.baseline[rows], device)[:, None].expand(w, t),
            task_baselines_bt=moved(self.task_baseline[rows], device)[:, None].expand(w, t),
            success_b=moved(self.success[rows], device),
            temperature_b=moved(self.temperature[rows], device),
            weights_b=moved(torch.tensor(of_window), device),
            windows=named,
        )

    def per_task(self, ids: Iterable[str]) -> dict[str, float]:
        """Share of successes of each task among these trajectories."""
        rows = torch.tensor([self.place[id] for id in ids], dtype=torch.long)
        count = torch.bincount(self.task[rows], minlength=len(self.tasks)).tolist()
        solved = torch.bincount(self.task[rows[self.success[rows]]], minlength=len(self.tasks)).tolist()
        return {name: good / n for name, good, n in sorted(zip(self.tasks, solved, count, strict=True)) if n}
