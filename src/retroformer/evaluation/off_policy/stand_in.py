"""Whether what stands in for the behaviour fits the logs: a rival that merely counts must not predict them better.

Ratios to a stand-in are those to the behaviour only if it is the behaviour. Two policies that hardly learned are near
each other and far from what made the logs: their ratios are near 1, the effective sample size is that of all the logs,
and the estimate is of nothing. What such ratios cannot show the logged actions do. By Gibbs' inequality no rival has a
higher expected log-likelihood than the behaviour itself, and what one has over the stand-in is a lower bound of the
divergence KL(behaviour || stand-in). That the estimate is as good as the fitted behaviour is in Raghu et al. 2018
("Behaviour policy estimation in off-policy policy evaluation"); a likelihood ratio to a rival that was fitted to other
data is the split test of Wasserman, Ramdas and Balakrishnan 2020 ("Universal inference").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroformer.evaluation.off_policy.action_value import Array
from retroformer.evaluation.off_policy.evidence import ERRORS
from retroformer.evaluation.off_policy.logs import Logs, Scored
from retroformer.types import Step

STRENGTH = 10.0
"""Decisions' worth of the coarser prediction that the finer one begins with."""
SHARE = 0.5
"""Of the counts in the rival, the rest is the stand-in's: what the counts lack costs at most log 2 a decision."""
MAX_MISFIT = 0.1
"""Nats a trajectory that the rival may be proven to have over the stand-in: a bias of the weights' logarithms."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How much better the rival predicts what was logged; negative where the stand-in is the better."""

    gain: float
    """Nats a trajectory in which it stands in for something, a lower bound of the divergence."""
    gain_error: float
    """Its standard error; attempts at a task instance are not independent."""

    def to_dict(self) -> dict[str, Any]:
        """As evaluation.json holds it."""
        return asdict(self)


def fit(logs: Logs, scored: Scored, silent_s: NDArray[np.bool_]) -> Fit:
    """What the rival has over the stand-in, whose view is `scored`, where it stands in, at `silent_s`."""
    own_s = logs.chosen(scored)
    with np.errstate(divide="ignore"):  # a long text's probability may be below the least number
        counts_s = np.log(counted(logs, scored))
    rival_s = np.logaddexp(np.log(1 - SHARE) + own_s, np.log(SHARE) + counts_s)
    gain_n = np.bincount(logs.trajectory_s, np.where(silent_s, rival_s - own_s, 0.0))
    stands_n = np.bincount(logs.trajectory_s, silent_s) > 0
    if not (count := int(stands_n.sum())):
        return Fit(0.0, 0.0)
    gain = float(gain_n.sum()) / count
    residual_c = np.bincount(logs.instance_n, np.where(stands_n, gain_n - gain, 0.0))
    return Fit(gain, float(np.sqrt(residual_c @ residual_c)) / count)


def counted(logs: Logs, scored: Scored) -> Array:
    """Probability of the actions taken, [S], by how often each was taken at that depth and after that observation.

    Counted on the other folds of the task instances. The counts of a depth begin with the stand-in's probabilities,
    those of an observation with the depth's (a Dirichlet prior each, as in MacKay and Peto 1995), so that an action
    never seen, of which generated ones are without number, has a probability too and all sum to 1.
    """
    steps = [step for one in logs.trajectories for step in one.steps]
    folds = logs.fold_n[logs.trajectory_s].tolist()
    depths = [t for one in logs.trajectories for t in range(len(one.steps))]
    contexts: tuple[Sequence[Hashable], ...] = (depths, [step.observation for step in steps])
    rival_sa = np.exp(scored.logprobs_sa)
    for context in contexts:
        seen: Counter[Hashable] = Counter()
        for step, where, fold in zip(steps, context, folds, strict=True):
            taken = said(step)
            seen.update([(where, taken), (where, taken, fold), where, (where, fold)])
        for row, step, where, fold in zip(rival_sa, steps, context, folds, strict=True):
            listed = step.admissible_actions
            taken_a = np.array([seen[where, one] - seen[where, one, fold] for one in listed or (said(step),)])
            # Of what can be chosen now; generated actions are all there.
            total = taken_a.sum() if listed else seen[where] - seen[where, fold]
            row[: len(taken_a)] = (taken_a + STRENGTH * row[: len(taken_a)]) / (total + STRENGTH)
    return np.take_along_axis(rival_sa, logs.chosen_s[:, None], 1)[:, 0]


def said(step: Step) -> Hashable:
    """What was done, as the stand-in tells it apart: several token sequences may read as one text."""
    return step.action if step.admissible_actions is not None else (step.action, step.token_ids)


def refusal(found: Fit) -> str | None:
    """Why ratios to the stand-in say nothing of the behaviour, and what would change it; None where it fits."""
    if found.gain - ERRORS * found.gain_error <= MAX_MISFIT:
        return None
    return (
        "the stand-in for the behaviour does not fit the logs: merely counting how often each action was taken "
        f"predicts them better by {found.gain:.2f} nats a trajectory (at most {MAX_MISFIT:g} may be proven), so ratios "
        "to it are not those to the behaviour; train it longer, or on more logs"
    )
