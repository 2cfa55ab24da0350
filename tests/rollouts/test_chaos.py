"""A round's collection in an environment that breaks in eight ways, each on 5% of its steps."""

from __future__ import annotations

import csv
import re
from collections import Counter

import pytest

from chaos import ACTIONS, HARMLESS, fault_at
from retroformer.files import read_json
from retroformer.storage import read_trajectories
from retroformer.types import Outcome
from tiny_round import pin, run_collect, run_to_batches, tiny_config

WORDS = {
    "crash": "Died: its process was ended by SIG",  # SEGV, or ABRT where the C library notices first
    "hang": "Hung: ",
    "exit": "Died: its process exited with code 3",
    "type": "TypeError: ",
    "infinite": "",
    "surrogate": "ValueError: the observation is no text that UTF-8 can hold",
    "huge": "ValueError: the observation has 10,000,000 characters",
}
"""How each fault is to be told where it is not in the episode's last step."""


def collected(root, text, episodes, run, **overrides):
    pin(root, "scripted:random")
    options = {"collect__environments": 16, "collect__max_step_seconds": 2.0, "collect__max_errors": 1.0}
    tasks = {"tasks__train": ["chaos.Chaos:default"], "tasks__held_out": [], "tasks__text": text}
    config = tiny_config(**{**options, **tasks, **overrides}, collect__episodes=episodes)
    run(root, config)
    return read_trajectories(root / "data/rollouts"), read_json(root / "data/rollouts/collect.json")


def check_chaos(tmp_path, episodes, **overrides):
    calm, quiet = collected(tmp_path / "calm", "compact", episodes, run_collect)
    found, report = collected(tmp_path / "chaos", "plain", episodes, run_to_batches, **overrides)
    by_id = {one.id: one for one in found}
    again = {one.previous_id for one in found} - {None}
    final = [one for one in found if one.id not in again]
    # None is lost: what was planned is there once, and each try before ended in error.
    assert len(calm) == len(final) == report["episodes"] == episodes
    assert {one.task.id for one in final} == {one.task.id for one in calm}
    assert all(by_id[id].outcome is Outcome.ERROR for id in again)
    assert (quiet["retries"], quiet["errors"], quiet["replaced"]) == (0, {}, {})
    kinds = Counter()
    for one in found:
        faults = [fault_at(one.task.seed, t, step.action) for t, step in enumerate(one.steps)]
        if one.outcome is not Outcome.ERROR:
            # No error is a failure: nothing broke on the way, and the outcome is that of its last action.
            assert set(faults) <= {None, HARMLESS}
            assert one.outcome is (Outcome.SUCCESS if one.steps[-1].action == "right" else Outcome.FAILURE)
            continue
        at = re.search(rf"\(at step (\d), the (?:admissible )?action '({'|'.join(ACTIONS)})'\)", one.error)
        assert at is not None, one.error
        fault = fault_at(one.task.seed, int(at[1]), at[2])
        assert fault not in (None, HARMLESS), one.error
        assert set(faults[: int(at[1])]) <= {None, HARMLESS}
        kinds[fault] += 1
        if "must be true or false" not in one.error:
            assert one.error.startswith(WORDS[fault])
    # The healthy ones are unchanged.
    healthy = [one for one in calm if by_id.get(one.id) and by_id[one.id].outcome is not Outcome.ERROR]
    assert healthy == [by_id[one.id] for one in healthy]
    # Those that drew no fault are all among them.
    sound = [
        one
        for one in calm
        if {fault_at(one.task.seed, t, step.action) for t, step in enumerate(one.steps)} <= {None, HARMLESS}
    ]
    assert healthy == sound
    assert report["retries"] == len(again)
    assert sum(report["errors"].values()) == kinds.total()
    assert report["replaced"]["Hung"] == kinds["hang"]
    assert report["replaced"]["Died"] >= kinds["crash"] + kinds["exit"]
    # None is trained on.
    with (tmp_path / "chaos/data/batches/catalogue.csv").open(encoding="utf-8") as file:
        drawn = [row for row in csv.DictReader(file) if float(row["probability"]) > 0]
    assert drawn
    assert all(by_id[row["trajectory_id"]].learnable for row in drawn)
    return kinds, {"healthy at once": len(healthy), "final": Counter(one.outcome.value for one in final)}


@pytest.mark.long
def test_what_breaks_is_told_and_the_rest_is_as_if_nothing_had(tmp_path):
    kinds, _ = check_chaos(tmp_path, 100, collect__workers=2, collect__retries=0)
    assert {"hang", "crash", "exit"} <= set(kinds)


@pytest.mark.slow
def test_two_thousand_episodes_of_it(tmp_path):
    kinds, counts = check_chaos(tmp_path, 2000, collect__workers=4)  # most of its time is waiting
    print(dict(kinds), counts)
    assert set(kinds) == set(WORDS)
