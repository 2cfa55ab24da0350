"""A chain small enough to write down every trajectory: two states, two actions, at most three steps.

From state 0, ``right`` goes to state 1 with probability .8 (else it stays), ``left`` ends the episode with reward .5.
From state 1, ``right`` ends it with reward 1 with probability .6 (else back to 0), ``left`` goes back to 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEFT, RIGHT = 0, 1
HORIZON = 3
MU = np.array([[0.3, 0.7], [0.5, 0.5]])
"""Probability of left and right in states 0 and 1."""
PI = np.array([[0.1, 0.9], [0.2, 0.8]])
DISCOUNT = 0.9


def moves(state: int, action: int) -> list[tuple[float, float, int | None]]:
    """(probability, reward, next state or None at the end)."""
    if state == 0:
        return [(1.0, 0.5, None)] if action == LEFT else [(0.8, 0.0, 1), (0.2, 0.0, 0)]
    return [(1.0, 0.0, 0)] if action == LEFT else [(0.6, 1.0, None), (0.4, 0.0, 0)]


@dataclass(frozen=True)
class Path:
    """A whole trajectory and its probability under mu."""

    states: tuple[int, ...]
    actions: tuple[int, ...]
    rewards: tuple[float, ...]
    probability: float


def paths(policy: np.ndarray = MU) -> list[Path]:
    """Every trajectory that `policy` can make from state 0."""
    found: list[Path] = []

    def grow(state: int, so_far: Path) -> None:
        for action in (LEFT, RIGHT):
            for chance, reward, following in moves(state, action):
                one = Path(
                    (*so_far.states, state),
                    (*so_far.actions, action),
                    (*so_far.rewards, reward),
                    so_far.probability * policy[state, action] * chance,
                )
                if following is None or len(one.states) == HORIZON:
                    found.append(one)
                else:
                    grow(following, one)

    grow(0, Path((), (), (), 1.0))
    return found


def action_values(policy: np.ndarray, discount: float = DISCOUNT) -> np.ndarray:
    """Q of `policy` at step t, state, action, by dynamic programming, [HORIZON, 2, 2]."""
    values = np.zeros((HORIZON + 1, 2))
    q = np.zeros((HORIZON, 2, 2))
    for t in reversed(range(HORIZON)):
        for state in (0, 1):
            for action in (LEFT, RIGHT):
                q[t, state, action] = sum(
                    chance * (reward + (0.0 if following is None else discount * values[t + 1, following]))
                    for chance, reward, following in moves(state, action)
                )
            values[t, state] = policy[state] @ q[t, state]
    return q


def arrays(of: list[Path], target: np.ndarray, q: np.ndarray, logged: np.ndarray = MU) -> dict[str, np.ndarray]:
    """What the estimators take: ratios 1 and values 0 after the end. `q` is [HORIZON, 2, 2]."""
    ratios, q_nt, v_nt = np.ones((len(of), HORIZON)), np.zeros((len(of), HORIZON)), np.zeros((len(of), HORIZON))
    rewards = np.zeros((len(of), HORIZON))
    for n, one in enumerate(of):
        rewards[n, : len(one.rewards)] = one.rewards
        for t, (state, action) in enumerate(zip(one.states, one.actions, strict=True)):
            ratios[n, t] = target[state, action] / logged[state, action]
            q_nt[n, t] = q[t, state, action]
            v_nt[n, t] = target[state] @ q[t, state]
    return {"ratios_nt": ratios, "rewards_nt": rewards, "q_nt": q_nt, "v_nt": v_nt}
