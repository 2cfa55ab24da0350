"""Rounds of imported logs whose tasks cannot be played: evaluate asks the logs, decide believes them or does not."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from retroformer.evaluation.episodes import read_episodes
from retroformer.files import read_json
from retroformer.stages.decide import decide
from retroformer.storage import read_trajectories, write_trajectories
from retroformer.types import Outcome
from tiny_round import pin, run_collect, run_evaluate, tiny_config

CONFIG = tiny_config(collect__source="import", collect__episodes=240, collect__checkpoint_share=0)


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """What a bot did in an environment that is not here."""
    root = tmp_path_factory.mktemp("logged")
    pin(root, "scripted:random")
    run_collect(root, tiny_config(collect__episodes=240, collect__checkpoint_share=0))
    return [told_elsewhere(one) for one in read_trajectories(root / "data/rollouts")]


def told_elsewhere(trajectory):
    task = replace(trajectory.task, environment="production", family="production", split="evaluation")
    return replace(trajectory, task=task, policy="agent-7")


def on_logs(root, trajectories, config=CONFIG):
    if trajectories:
        (root / "data/batches/evaluation").mkdir(parents=True)
        write_trajectories(root / "data/batches/evaluation", trajectories)
    told = run_evaluate(root, config)
    names = ("evaluation", "training", "batches", "validated", "rollouts", "history")
    folders = {name: root / "data" / name for name in names}
    decide(config.decide, config.evaluate, **folders, out=root / "data/decision")
    return told, read_json(root / "data/evaluation/evaluation.json"), read_json(root / "data/decision/verdict.json")


def test_the_logs_answer_where_nothing_can_be_played(challenger, logged):
    told, report, verdict = on_logs(challenger, logged)
    found = report["off_policy"]
    assert found["refused"] is None
    assert (found["trajectories"], found["mode"], found["behaviour"]) == (240, "choice", ["agent-7"])
    assert found["compared_with"] == "behaviour"
    # Of 5% the first round spends half.
    assert report["confidence"] == found["confidence"] == pytest.approx(0.975)
    assert read_episodes(challenger / "data/evaluation/episodes.csv") == []
    assert told["mean"] == verdict["difference"] == found["difference"]["mean"]
    assert verdict["lower"] < verdict["difference"] < verdict["upper"]
    assert verdict["n"] == 240
    assert "estimated from 240 logged trajectories" in verdict["reason"]
    # A policy after twelve updates is still near the random agent that made the logs.
    assert found["evidence"]["overlap"] > 0.6
    assert abs(verdict["difference"]) < 0.2
    assert verdict["reason"].split("(")[0].strip() in (challenger / "data/decision/report.html").read_text()


def test_without_logs_apart_there_is_no_evidence(challenger):
    told, _, verdict = on_logs(challenger, [])
    assert verdict["verdict"] == "not_enough_evidence"
    assert verdict["difference"] is verdict["lower"] is verdict["upper"] is None
    assert not verdict["judged_worse"]
    assert "none of the 0 trajectories that are kept for evaluation ended" in told["refused"]


def test_a_missing_log_probability_needs_a_fitted_behaviour(challenger, logged):
    silent = [replace(one, steps=tuple(replace(step, logprob=None) for step in one.steps)) for one in logged]
    _, _, verdict = on_logs(Path(shutil.copytree(challenger, challenger.with_name("alone"))), silent)
    assert verdict["verdict"] == "not_enough_evidence"
    assert "100% of the decisions were logged without a log-probability" in verdict["reason"]

    # The challenger itself as the fitted behaviour: every ratio is 1, so the difference is exactly 0.
    shutil.copytree(challenger / "data/challenger", challenger / "data/training/baselines/imitation")
    _, report, verdict = on_logs(challenger, silent)
    assert report["off_policy"]["difference"]["mean"] == pytest.approx(0, abs=1e-9)
    assert report["off_policy"]["evidence"]["ess"] == pytest.approx(240)
    assert verdict["verdict"] == "not_enough_evidence" or verdict["verdict"] == "keep"
    assert "assumed: the behaviour's log-probabilities of 100% of the decisions" in verdict["reason"]


def test_the_baselines_stand_beside_the_challenger(challenger, logged):
    for name in ("imitation_of_successes", "reward_weighted"):
        shutil.copytree(challenger / "data/challenger", challenger / "data/training/baselines" / name)
    _, report, _ = on_logs(challenger, logged)
    found = report["off_policy"]
    # The same weights as the challenger's, so the same answer.
    assert list(found["baselines"]) == ["imitation_of_successes", "reward_weighted"]
    for one in found["baselines"].values():
        assert one == {"refused": None, "evidence": found["evidence"], "difference": found["difference"]}
    page = (challenger / "data/decision/report.html").read_text()
    assert "<h4>Baselines</h4>" in page
    assert "reward weighted" in page


def test_a_champion_that_is_a_checkpoint_is_estimated_on_the_same_logs(challenger, logged):
    shutil.copytree(challenger / "data/challenger", challenger / "data/champion")
    pin(challenger, "data/champion", closed=1)
    _, report, _ = on_logs(challenger, logged)
    found = report["off_policy"]
    assert found["compared_with"] == "champion"
    assert found["difference"]["mean"] == pytest.approx(0, abs=1e-9), "the same weights"
    assert found["confidence"] == pytest.approx(1 - 0.05 / 6)


def test_logs_of_tasks_that_can_be_played_are_no_reason_not_to_play(challenger, logged):
    here = [replace(one, task=replace(one.task, environment="babyai", family="strict")) for one in logged]
    _, report, _ = on_logs(challenger, here)
    assert "off_policy" not in report
    assert len(report["looks"]) > 0


def test_errors_beyond_a_tenth_leave_a_selection(challenger, logged):
    broken = [replace(one, outcome=Outcome.ERROR) if place < 30 else one for place, one in enumerate(logged)]
    _, _, verdict = on_logs(challenger, broken)
    assert "30 of 240 trajectories were lost to errors and limits" in verdict["reason"]
