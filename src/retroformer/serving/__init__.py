"""The champion in production: it chooses actions inside anyone's application, and its episodes are data for `collect`.

agent.py acts, recording.py writes, outcomes.py takes reports; importers/recorded.py reads what was written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from retroformer.serving.outcomes import report

if TYPE_CHECKING:
    from retroformer.serving.agent import ServingAgent

__all__ = ["load_agent", "report"]
MODELS = "models:/"


def load_agent(
    policy: str | Path,
    *,
    record: str | Path | None = None,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    slots: int = 8,
    seed: int | None = None,
    fsync: bool = False,
) -> ServingAgent:
    """Open a policy to act inside an application, and record what it does below the folder `record`.

    `policy` is ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` in MLflow's registry (that of MLFLOW_TRACKING_URI, or
    of the project around the working folder), a lockfile such as ``data/champion.json``, a checkpoint folder or hub id,
    or ``scripted:NAME``.

    Actions are sampled at `temperature`; at 0 the likeliest is taken, and no log-probability is recorded, since nothing
    was drawn. An action that the policy writes has at most `max_new_tokens` tokens. Any number of episodes may be open;
    the keys and values of `slots` of them are held, others are read anew when they go on. `seed` is for tests: without
    it, chance is the system's. With `fsync`, an action is on the disk itself before it is returned.

    Raises ConfigError, DataError (PinMismatch where a policy is not what was registered or pinned) or PolicyError.
    """
    from retroformer.errors import PolicyError
    from retroformer.pins import SCRIPTED, read_pins, verify
    from retroformer.policies import open_agent
    from retroformer.serving.agent import ServingAgent, check_settings
    from retroformer.serving.recording import Recorder

    check_settings(temperature, max_new_tokens, slots)
    name = str(policy)
    recorder = None if record is None else Recorder(Path(record), fsync=fsync)
    how = {"slots": slots, "temperature": temperature or 1.0, "greedy": temperature == 0}
    if name.startswith(MODELS):
        from retroformer.tracking.checkpoints import checkpoint

        with checkpoint(name) as folder:
            agent = open_agent(str(folder), **how)
    else:
        if name.endswith(".json"):
            root = Path(name).resolve().parent.parent
            pin = verify(read_pins(Path(name)).champion, root)
            name = pin.policy if pin.scripted else str(root / pin.policy)
        if name.startswith(SCRIPTED) and temperature != 1:
            raise PolicyError(f"{name} has no temperature, got {temperature:g}")
        agent = open_agent(name, **how)
    return ServingAgent(
        agent, slots=slots, recorder=recorder, greedy=temperature == 0, max_new_tokens=max_new_tokens, seed=seed
    )
