"""The history as the trainer sees it: windows of tokens, and beside each its returns and recorded probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from retroformer.errors import DataError
from retroformer.objectives.baselines import constant_baselines
from retroformer.objectives.returns import returns_to_go
from retroformer.policies.language_model import LanguageModelPolicy
from retroformer.policies.tree import TreeBatch, Window
from retroformer.types import Outcome, Trajectory


@dataclass(frozen=True, slots=True)
class Minibatch:
    """W windows of some trajectories, and for each step what the objective needs. All [W, T] unless named."""

    tree: TreeBatch
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


class Replay:
    """Trajectories laid out once, drawn many times."""

    def __init__(self, policy: LanguageModelPolicy, trajectories: Sequence[Trajectory], discount: float, baseline: str):
        self.policy = policy
        self.trajectories = list(trajectories)
        self.place = {trajectory.id: place for place, trajectory in enumerate(self.trajectories)}
        self.windows = [policy.windows(trajectory, place) for place, trajectory in enumerate(self.trajectories)]
        longest = max(len(trajectory.steps) for trajectory in self.trajectories)
        shape = (len(self.trajectories), longest)
        rewards, mask = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        self.behaviour = torch.full(shape, float("nan"))
        for place, trajectory in enumerate(self.trajectories):
            count = len(trajectory.steps)
            mask[place, :count] = True
            rewards[place, :count] = torch.tensor(trajectory.rewards)
            self.behaviour[place, :count] = torch.tensor(
                [float("nan") if step.logprob is None else step.logprob for step in trajectory.steps]
            )
        self.mask = mask
        self.returns = returns_to_go(rewards, mask, discount)
        kind = "none" if baseline == "value" else baseline
        tasks, instances = self._labels(lambda one: one.task.name), self._labels(lambda one: one.task.id)
        self.baseline = constant_baselines(self.returns, mask, kind, task_b=tasks, instance_b=instances)  # type: ignore[arg-type]
        self.task_baseline = constant_baselines(self.returns, mask, "task", task_b=tasks)
        self.success = torch.tensor([one.outcome is Outcome.SUCCESS for one in self.trajectories])
        self.temperature = torch.tensor([one.temperature for one in self.trajectories])

    def _labels(self, of) -> torch.Tensor:
        names: dict[str, int] = {}
        return torch.tensor([names.setdefault(of(one), len(names)) for one in self.trajectories])

    def require_behaviour(self, objective: str) -> None:
        """Raise DataError where a step lacks the behaviour's log-probability, which `objective` cannot do without."""
        missing = (self.behaviour.isnan() & self.mask).any(1)
        if bool(missing.any()):
            first = self.trajectories[int(missing.int().argmax())]
            raise DataError(
                f"the objective {objective} needs behaviour log-probabilities, which {int(missing.sum())} of "
                f"{len(self.trajectories)} trajectories lack (first: {first.id}); "
                "use asymmetric or imitation_of_successes"
            )

    def tokens(self, id: str) -> int:
        """Length of a trajectory in tokens."""
        return sum(len(window.tokens) for window in self.windows[self.place[id]])

    def minibatch(self, ids: Iterable[str], weights: Iterable[float]) -> Minibatch:
        """The windows of these trajectories, padded to one shape."""
        chosen: list[Window] = []
        of_window: list[float] = []
        for id, weight in zip(ids, weights, strict=True):
            own = self.windows[self.place[id]]
            chosen.extend(own)
            of_window.extend([weight] * len(own))
        tree = self.policy.collate(chosen)
        device, (w, t, _) = tree.mask_bt.device, tree.shape
        rows = torch.tensor([window.trajectory for window in chosen])
        columns = torch.tensor([window.first_step for window in chosen])[:, None] + torch.arange(t)
        columns = columns.clamp(max=self.mask.shape[1] - 1)
        return Minibatch(
            tree=tree,
            returns_bt=self.returns[rows[:, None], columns].to(device),
            behaviour_logprobs_bt=self.behaviour[rows[:, None], columns].to(device),
            baselines_bt=self.baseline[rows][:, None].expand(w, t).to(device),
            task_baselines_bt=self.task_baseline[rows][:, None].expand(w, t).to(device),
            success_b=self.success[rows].to(device),
            temperature_b=self.temperature[rows].to(device),
            weights_b=torch.tensor(of_window, device=device),
        )

    def per_task(self, ids: Iterable[str]) -> dict[str, float]:
        """Share of successes of each task among these trajectories."""
        counts: dict[str, list[bool]] = {}
        for id in ids:
            one = self.trajectories[self.place[id]]
            counts.setdefault(one.task.name, []).append(one.outcome is Outcome.SUCCESS)
        return {task: sum(solved) / len(solved) for task, solved in sorted(counts.items())}
