"""Drift: does the champion still do what it did when it was promoted? `python flows/evaluate_champion.py`.

It plays the very seeds of its final figure again. The same policy, environments and seeds give the same episodes, so
any change comes from what surrounds the policy, and one below the interval of then is an alarm.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import improve  # first: it sets what Prefect reads when it is imported

# isort: split
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from retroformer.config import load_config
from retroformer.errors import DataError
from retroformer.files import read_json
from retroformer.pins import read_pins, verify


@task(cache_policy=NO_CACHE, persist_result=False)
def play_champion(policy: str) -> dict[str, Any]:
    """Success of the champion on the seeds of the final figure, sampled, with its interval."""
    from retroformer.progress import progress
    from retroformer.rollouts.episodes import Conditions
    from retroformer.rollouts.workers import Player
    from retroformer.stages.evaluate import Part, play_parts, summarise

    config = load_config()
    tasks, collect = config.tasks, config.collect
    conditions = Conditions.of(collect, tasks, config.seed)
    part = Part("champion", Player(policy, collect.temperature), "final", "true", tasks.train, 0, config.evaluate.final)
    with progress("drift", part.count, "episodes") as shown:
        rows = play_parts([part], conditions, collect, config.seed, 1, shown)
    return summarise(rows, config.evaluate.confidence)[0]


@flow
def evaluate_champion() -> State[Any]:
    """Play the champion again and compare with the figure of its promotion."""
    pin = read_pins(improve.PINS).champion
    if pin.scripted:
        return Completed(message=f"{pin.policy} was never evaluated by a round; nothing to compare with")
    try:
        verify(pin)
    except DataError as error:
        return Failed(message=f"drift: {error}")
    summary = read_json(Path(pin.policy).parent / "evaluation/evaluation.json")["summary"]
    wanted = {"policy": "challenger", "range": "final", "mission": "true", "decoding": "sampled", "family": None}
    then = next((line for line in summary if wanted.items() <= line.items()), None)
    if then is None:
        return Completed(message=f"{pin.policy} was judged by logs alone; there is nothing to play again")
    now = play_champion(pin.policy)
    told = f"{pin.policy}: success {now['success']:.3f} (n {now['n']}), at its promotion {then['success']:.3f} "
    told += f"[{then['lower']:.3f}, {then['upper']:.3f}] (n {then['n']})"
    create_markdown_artifact(f"# Drift of the champion\n\n{told}", key="drift")
    return Failed(message=f"drift: {told}") if now["success"] < then["lower"] else Completed(message=told)


if __name__ == "__main__":
    outcome = evaluate_champion(return_state=True)
    print(outcome.message)
    sys.exit(0 if outcome.is_completed() else 1)
