"""The estimators beside SCOPE-RL's (Kiyohara et al. 2023, arXiv 2311.18206) on the chain of tests/evaluation/chain.py.

SCOPE-RL is no dependency; run this in an environment of its own, from the project's root:

    python -m venv /tmp/scope && /tmp/scope/bin/pip install scope-rl==0.2.1
    PYTHONPATH=src:tests/evaluation /tmp/scope/bin/python studies/peer_off_policy.py

Prints both, their difference, and the exact value; fails where the two differ by more than 1e-6.
"""

from __future__ import annotations

import numpy as np
from chain import DISCOUNT, HORIZON, MU, PI, action_values, arrays, paths
from scope_rl.ope.discrete import (
    DirectMethod,
    DoublyRobust,
    PerDecisionImportanceSampling,
    SelfNormalizedDR,
    SelfNormalizedPDIS,
)

from retroformer.evaluation.off_policy import estimators

N = 500


def main() -> None:
    """Both implementations on the same N trajectories, with an action value that is off by noise."""
    generator = np.random.default_rng(0)
    every = paths()
    of = [every[place] for place in generator.choice(len(every), N, p=[one.probability for one in every])]
    q = action_values(PI) + generator.normal(scale=0.2, size=(HORIZON, 2, 2))
    ours = arrays(of, PI, q)
    weights = {name: ours[name] for name in ("ratios_nt", "rewards_nt")}
    # SCOPE-RL's trajectories are all of one length: after the end both policies do the same, for nothing.
    actions = np.zeros((N, HORIZON), dtype=int)
    likely, target = np.ones((N, HORIZON)), np.tile([1.0, 0.0], (N, HORIZON, 1))
    values = np.zeros((N, HORIZON, 2))
    for n, one in enumerate(of):
        for t, (state, action) in enumerate(zip(one.states, one.actions, strict=True)):
            actions[n, t], likely[n, t], target[n, t] = action, MU[state, action], PI[state]
            values[n, t] = q[t, state]
    theirs = {
        "step_per_trajectory": HORIZON,
        "action": actions.reshape(-1),
        "reward": ours["rewards_nt"].reshape(-1),
        "pscore": likely.reshape(-1),
        "evaluation_policy_action_dist": target.reshape(-1, 2),
        "state_action_value_prediction": values.reshape(-1, 2),
        "gamma": DISCOUNT,
    }
    pairs = {
        "per-decision": (estimators.per_decision(**weights, discount=DISCOUNT), PerDecisionImportanceSampling()),
        "weighted per-decision": (
            estimators.weighted_per_decision(**weights, discount=DISCOUNT),
            SelfNormalizedPDIS(),
        ),
        "doubly robust": (estimators.doubly_robust(**ours, discount=DISCOUNT), DoublyRobust()),
        "weighted doubly robust": (estimators.weighted_doubly_robust(**ours, discount=DISCOUNT), SelfNormalizedDR()),
        "direct method": (estimators.direct(ours["v_nt"]), DirectMethod()),
    }
    print(f"exact value {PI[0] @ action_values(PI)[0, 0]:.8f}, behaviour {MU[0] @ action_values(MU)[0, 0]:.8f}")
    for name, (mine, peer) in pairs.items():
        other = float(peer.estimate_policy_value(**theirs))
        print(f"{name:<24} {mine.value:.8f}  SCOPE-RL {other:.8f}  difference {mine.value - other:+.1e}")
        assert abs(mine.value - other) < 1e-6, name


if __name__ == "__main__":
    main()
