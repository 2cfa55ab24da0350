"""An order desk's agent that logs no probabilities: what its logs alone teach, played on customers that no log has.

The logs are chat JSONL, imported like anyone's; the policy writes its tool calls token by token and learns to from
nothing but these logs. `scripted:desk` is the agent that wrote them, at work with the same share of errors.
"""

from __future__ import annotations

from collections.abc import Sequence

from studies.arms import AGENTS, GREEDY, SAMPLED, SWAPPED, Arm
from studies.tables import Result, by_arm, over_seeds, success, table

RUNS = 4000
DATA = (
    ("collect.source", "import"),
    ("collect.episodes", RUNS),
    ("tasks.train", ["desk:refund", "desk:cancel"]),
    ("tasks.held_out", ["desk:undo"]),
)
OBJECTIVES = ("imitation_of_successes", "reward_weighted", "imitation")
"""Those that need no log-probabilities of the behaviour and learn from nothing."""


def arms(seeds: int) -> list[Arm]:
    """The agent, and one policy for each objective on equal logs and updates."""
    found = []
    for seed in range(seeds):
        found.append(Arm("agent", seed, plays=(SAMPLED,), policy=AGENTS["desk"], data=DATA))
        for objective in OBJECTIVES:
            changed = (("train.objective", objective), ("train.curriculum", objective != "imitation"))
            found.append(Arm(objective, seed, changed, (SAMPLED, GREEDY, SWAPPED), data=DATA))
    return found


def answer(results: Sequence[Result]) -> tuple[str, None]:
    """Success of each, and what it has over the agent of the same seed, on the same customers."""
    found = by_arm(results)
    agent = {one["seed"]: success(one, "sampled") for one in found.get("agent", [])}
    rows = [["the agent that wrote the logs", str(len(agent)), over_seeds(agent.values()), "", "", ""]]
    for name in OBJECTIVES:
        own = found.get(name, [])
        more = [
            mine - agent[one["seed"]]
            for one in own
            if one["seed"] in agent and (mine := success(one, "sampled")) is not None
        ]
        cells = [over_seeds(success(one, play) for one in own) for play in ("sampled", "greedy", "swapped")]
        rows.append([name, str(len(own)), cells[0], over_seeds(more), *cells[1:]])
    header = ["", "seeds", "sampled", "minus the agent", "greedy", "told another wish"]
    logged = "\nThe logs are imported chat JSONL without log-probabilities, of desk:refund and desk:cancel.\n"
    return table(header, rows) + logged, None
