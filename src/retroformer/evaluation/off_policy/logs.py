"""Logs as arrays: what was done, how likely it was, and what a language model says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroformer.evaluation.off_policy.action_value import FOLDS, Array, Decisions, Integers
from retroformer.types import Trajectory

WIDTH = 64
"""Features of a history at most; a wider hidden state is projected at random, which keeps distances (Johnson and
Lindenstrauss 1984)."""
KINDS = 16
"""Action texts with coefficients of their own, the most frequent ones; the others share one."""
BATCH_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Scored:
    """A language model's view of S decisions, those of a trajectory together and in order."""

    logprobs_sa: Array
    """log pi(a | h), -inf where there is no action; a generated action is the only one of its step."""
    states_sd: Array
    """Hidden state that the decision is made from, `projected`."""


class Logs:
    """N trajectories whose outcome is known, as arrays; S decisions in all, A actions at most, T steps at most."""

    def __init__(self, trajectories: Sequence[Trajectory]):
        self.trajectories = list(trajectories)
        steps = [step for one in self.trajectories for step in one.steps]
        lengths = np.array([len(one.steps) for one in self.trajectories])
        self.mask_nt: NDArray[np.bool_] = np.arange(lengths.max()) < lengths[:, None]
        self.trajectory_s: Integers = np.repeat(np.arange(len(lengths)), lengths)
        self.rewards_nt = self.padded(np.array([step.reward for step in steps]))
        self.behaviour_s: Array = np.array([np.nan if step.logprob is None else step.logprob for step in steps])
        self.generated_s: NDArray[np.bool_] = np.array([step.admissible_actions is None for step in steps], dtype=bool)
        frequent = Counter(step.action for step in steps if step.admissible_actions is not None).most_common(KINDS)
        kind = {action: number for number, (action, _) in enumerate(sorted(frequent))}
        choices = [step.admissible_actions or (step.action,) for step in steps]
        self.chosen_s: Integers = np.array(
            [actions.index(step.action) for actions, step in zip(choices, steps, strict=True)]
        )
        self.kinds_sa: Integers = np.zeros((len(steps), max(map(len, choices))), dtype=np.int64)
        for row, actions in zip(self.kinds_sa, choices, strict=True):
            row[: len(actions)] = [kind.get(action, len(kind)) for action in actions]
        self.tasks: list[str] = [one.task.label for one in self.trajectories]
        self.instance_n = numbered([one.task.id for one in self.trajectories])

    @property
    def generated(self) -> bool:
        """Whether an action was written, and not chosen."""
        return bool(self.generated_s.any())

    @property
    def fold_n(self) -> Integers:
        """The fold of each trajectory; all attempts at a task instance are in the same."""
        return self.instance_n % FOLDS

    def padded(self, values_s: Array, fill: float = 0.0) -> Array:
        """[S] -> [N, T]."""
        values_nt = np.full(self.mask_nt.shape, fill)
        values_nt[self.mask_nt] = values_s
        return values_nt

    def chosen(self, scored: Scored) -> Array:
        """log pi of the actions taken, [S]."""
        return np.take_along_axis(scored.logprobs_sa, self.chosen_s[:, None], 1)[:, 0]

    def decisions(self, scored: Scored) -> Decisions:
        """What the action value is fitted to.

        Other texts than the generated one cannot be listed; Q is the history's alone there and V = Q, as though the
        action were the only one, which leaves doubly robust estimates unbiased.
        """
        width = scored.logprobs_sa.shape[1]
        probabilities_sa = np.exp(scored.logprobs_sa)
        probabilities_sa[self.generated_s, self.chosen_s[self.generated_s]] = 1.0
        depth_s = self.mask_nt.cumsum(1)[self.mask_nt]
        features = (scored.states_sd, depth_s[:, None], np.isfinite(scored.logprobs_sa).sum(1)[:, None])
        return Decisions(
            trajectory_s=self.trajectory_s,
            states_sd=np.concatenate(features, 1),
            probabilities_sa=probabilities_sa,
            kinds_sa=self.kinds_sa[:, :width],
            chosen_s=self.chosen_s,
            rewards_s=self.rewards_nt[self.mask_nt],
        )


def numbered(labels: Sequence[str]) -> Integers:
    """Labels as 0, 1, ... in sorted order, so that the order of the trajectories does not matter."""
    place = {label: number for number, label in enumerate(sorted(set(labels)))}
    return np.array([place[label] for label in labels])


def projected(states_sd: Array) -> Array:
    """At most WIDTH features, by a fixed random projection."""
    width = states_sd.shape[1]
    return states_sd if width <= WIDTH else states_sd @ projection(width)


@lru_cache(maxsize=2)
def projection(width: int) -> Array:
    """The same for the same width, [width, WIDTH]."""
    return np.random.default_rng(0).standard_normal((width, WIDTH)) / np.sqrt(WIDTH)


def score(policy: Any, trajectories: Sequence[Trajectory], temperature: float | None) -> Scored:
    """A language model's log-probabilities and hidden states at every decision; one forward a window.

    `policy` is a `policies.language_model.LanguageModelPolicy`; `temperature` None is each trajectory's own. A policy
    that is conditioned on the return is asked for the one it is asked for when acting, never for the one achieved.
    Raises PolicyError that names the trajectory and step which cannot be laid out.
    """
    import torch

    asked = [told_target(policy, one) for one in trajectories]
    windows = [window for place, one in enumerate(asked) for window in policy.windows(one, place)]
    starts = np.concatenate([[0], np.cumsum([len(one.steps) for one in trajectories])])
    widest = max(len(actions) for window in windows for actions in window.actions)
    logprobs_sa = np.full((starts[-1], widest), -np.inf)
    states_sd: Any = None
    windows.sort(key=lambda window: len(window.tokens))
    policy.model.eval()
    while windows:
        # From the longest down, so that what does not fit into memory shows at once.
        size = max(1, BATCH_TOKENS // len(windows[-1].tokens))
        batch, windows = windows[-size:], windows[:-size]
        tree = policy.collate(batch)
        b, t, a = tree.shape
        if temperature is not None:
            heat: Any = float(temperature)
        else:
            own = [asked[window.trajectory].temperature for window in batch]
            heat = torch.tensor(own, device=tree.mask_bt.device)[:, None, None]
        with torch.inference_mode():
            hidden = policy.hidden(tree)
            logprobs = policy.logprobs(hidden, tree, heat).double().cpu().numpy()
            states = projected(hidden[: b * t].float().cpu().numpy()).reshape(b, t, -1)
        if states_sd is None:
            states_sd = np.zeros((starts[-1], states.shape[-1]), dtype=np.float32)
        for row, window in enumerate(batch):
            steps = len(window.roots)
            at = starts[window.trajectory] + window.first_step
            logprobs_sa[at : at + steps, :a] = logprobs[row, :steps]
            states_sd[at : at + steps] = states[row, :steps]
    return Scored(logprobs_sa, states_sd)


def told_target(policy: Any, trajectory: Trajectory) -> Trajectory:
    """For a policy conditioned on the return: the same trajectory with the return that the policy is to reach."""
    if not policy.layout.condition_on_return:
        return trajectory
    first, *others = trajectory.steps
    asked = [replace(first, reward=policy.layout.target_return), *(replace(step, reward=0.0) for step in others)]
    return replace(trajectory, steps=tuple(asked))
