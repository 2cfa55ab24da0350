"""The command, on logs that a built model made itself, so that every ratio is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from builders import make_error
from retroformer.cli import main
from retroformer.config import PolicyConfig
from retroformer.evaluation.off_policy.assessment import evaluate_on_logs
from retroformer.evaluation.off_policy.logs import KINDS, WIDTH, Logs, numbered, projected, score
from retroformer.policies.checkpoints import build
from retroformer.policies.layout import Layout
from retroformer.storage import write_trajectories
from retroformer.types import Outcome, Step, StopReason, Task, Trajectory

ACTIONS = ("left", "right", "stay")
WORDS = [*ACTIONS, "red", "blue", "go", "home"]


SIZE = {"model": "", "width": 16, "layers": 1, "heads": 2}


def built(seed=0, **layout):
    return build(PolicyConfig(**SIZE), WORDS, seed=seed, layout=Layout(**layout))


def made_by(policy, n=60, temperature=1.0, split="evaluation"):
    """Episodes of one or two steps, drawn from the policy's own probabilities: success is to go right at last."""
    generator, blank = np.random.default_rng(0), []
    for place in range(n):
        seen = [str(word) for word in generator.choice(["red", "blue"], size=1 + place % 2)]
        steps = tuple(Step(word, "stay", 0.0, ACTIONS, logprob=0.0) for word in seen)
        task = Task("far", "far", f"T{place % 3}", "go home", place, split)
        blank.append(Trajectory(f"{place:03d}", task, steps, StopReason.TERMINATED, Outcome.FAILURE, "agent"))
    for t in range(2):  # what is chosen at the first step is part of the history of the second
        pi_sa = np.exp(score(policy, blank, temperature).logprobs_sa)
        row = t
        for place, one in enumerate(blank):
            if t < len(one.steps):
                index = int(generator.choice(3, p=pi_sa[row] / pi_sa[row].sum()))
                logprob = float(np.log(pi_sa[row, index]))
                won = float(t + 1 == len(one.steps) and ACTIONS[index] == "right")
                step = replace(one.steps[t], action=ACTIONS[index], logprob=logprob, reward=won)
                outcome = Outcome.SUCCESS if won else Outcome.FAILURE
                steps = (*one.steps[:t], step, *one.steps[t + 1 :])
                blank[place] = replace(one, steps=steps, outcome=outcome, temperature=temperature)
            row += len(one.steps)
    return blank


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("policy") / "policy"
    built().save(folder)
    return folder


@pytest.fixture(scope="module")
def trajectories():
    return made_by(built(), n=80)


@pytest.fixture
def logs(tmp_path, trajectories):
    folder = tmp_path / "logs"
    folder.mkdir()
    write_trajectories(folder, [*trajectories, make_error(split="evaluation")])
    return folder


def test_the_policy_that_made_the_logs_is_worth_their_returns(logs, checkpoint, trajectories, capsys):
    assert main(["off-policy", "--logs", str(logs), "--policy", str(checkpoint), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["refused"] is None
    assert report["evidence"]["ess"] == pytest.approx(80, abs=0.1)
    assert report["difference"]["mean"] == pytest.approx(0, abs=1e-5)
    assert report["reference"]["mean"] == pytest.approx(np.mean([one.total_reward for one in trajectories]))
    assert report["left_out"] == {"error": 1}
    assert [one["task"] for one in report["per_task"]] == ["T0", "T1", "T2"]
    assert len(report["estimates"]) == 6


def test_the_table_says_the_same(logs, checkpoint, capsys):
    assert main(["off-policy", "--logs", str(logs), "--policy", str(checkpoint)]) == 0
    told = capsys.readouterr().out
    assert "effective sample size" in told
    assert "weighted doubly robust, least variance" in told
    assert "These logs do not show whether the policy is better than the behaviour" in told


def test_a_distant_policy_is_refused_in_a_sentence(tmp_path, trajectories, checkpoint, capsys):
    folder = tmp_path / "few"
    folder.mkdir()
    write_trajectories(folder, trajectories[:40])
    assert main(["off-policy", "--logs", str(folder), "--policy", str(checkpoint)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Not enough evidence: the 40 trajectories are worth 40 of the policy's own" in told


def test_what_training_may_have_seen_is_not_used(tmp_path, checkpoint, trajectories, capsys):
    folder = tmp_path / "seen"
    folder.mkdir()
    seen = [replace(one, task=replace(one.task, split="train")) for one in trajectories]
    write_trajectories(folder, seen)
    command = ["off-policy", "--logs", str(folder), "--policy", str(checkpoint)]
    assert main(command) == 2
    assert "has 80 trajectories, none of split evaluation" in capsys.readouterr().err
    assert main([*command, "--unseen"]) == 0


@pytest.mark.parametrize(("flag", "value"), [("--confidence", "95"), ("--temperature", "0")])
def test_numbers_out_of_range(logs, checkpoint, capsys, flag, value):
    assert main(["off-policy", "--logs", str(logs), "--policy", str(checkpoint), flag, value]) == 2
    assert f"{flag} is {value}, allowed" in capsys.readouterr().err


def test_a_fitted_behaviour_stands_in_and_is_an_assumption(trajectories):
    policy = built()
    silent = [replace(one, steps=tuple(replace(step, logprob=None) for step in one.steps)) for one in trajectories]
    assert "without a log-probability" in evaluate_on_logs(silent, policy, temperature=1, confidence=0.95)["refused"]
    report = evaluate_on_logs(silent, policy, temperature=1, confidence=0.95, behaviour=built())
    assert report["difference"]["mean"] == pytest.approx(0, abs=1e-6)
    assert "100% of the decisions" in report["assumptions"][0]


def test_a_fitted_behaviour_is_asked_at_the_temperature_of_the_logs():
    policy = built()
    warm = made_by(policy, n=80, temperature=2.0)
    silent = [replace(one, steps=tuple(replace(step, logprob=None) for step in one.steps)) for one in warm]
    told = evaluate_on_logs(warm, policy, temperature=1, confidence=0.95)
    fitted = evaluate_on_logs(silent, policy, temperature=1, confidence=0.95, behaviour=policy)
    assert fitted["difference"] == pytest.approx(told["difference"], abs=1e-5)


def test_unknown_outcomes_are_an_assumption(trajectories):
    more = [*trajectories, replace(trajectories[0], id="u", outcome=Outcome.UNKNOWN)]
    report = evaluate_on_logs(more, built(), temperature=1, confidence=0.95)
    assert report["left_out"] == {"unknown": 1}
    assert "the 1 trajectories of unknown outcome" in report["assumptions"][0]


def test_a_conditioned_policy_is_asked_for_its_target_and_not_told_what_came_of_it(trajectories):
    policy = built(condition_on_return=True, target_return=1.0)
    lost = [replace(one, steps=tuple(replace(step, reward=0.0) for step in one.steps)) for one in trajectories]
    assert score(policy, lost, 1.0).logprobs_sa == pytest.approx(score(policy, trajectories, 1.0).logprobs_sa)


def test_generated_actions_are_one_ratio_each_and_have_no_direct_method(trajectories):
    written = [
        replace(one, steps=tuple(replace(step, admissible_actions=None, logprob=-3.0) for step in one.steps))
        for one in trajectories
    ]
    logs, policy = Logs(written), build(PolicyConfig(**SIZE), WORDS, seed=0, layout=Layout.words(ended=True))
    assert logs.generated
    scored = score(policy, written, 1.0)
    assert scored.logprobs_sa.shape[1] == 1
    behaviour_s = logs.chosen(scored)
    exact = [
        replace(
            one,
            steps=tuple(
                replace(step, logprob=float(behaviour_s[row]))
                for row, step in zip(np.flatnonzero(logs.trajectory_s == place), one.steps, strict=True)
            ),
        )
        for place, one in enumerate(written)
    ]
    report = evaluate_on_logs(exact, policy, temperature=1, confidence=0.95)
    assert report["mode"] == "text"
    assert report["difference"]["mean"] == pytest.approx(0, abs=1e-6)
    assert "direct method" not in {one["method"] for one in report["estimates"]}
    # On its own logs every ratio is 1, and what a doubly robust estimate adds to the mean return cancels step by step.
    returns = logs.rewards_nt.sum(1).mean()
    for one in report["estimates"]:
        assert one["mean"] == pytest.approx(returns, abs=1e-5), one["method"]


def test_logs_as_arrays_by_hand():
    steps = (Step("a", "x", 0.0, ("x", "y"), logprob=-0.5), Step("b", "z", 1.0, ("y", "z", "x")))
    task = Task("far", "far", "T", "go", 1, "evaluation")
    one = Trajectory("1", task, steps, StopReason.TERMINATED, Outcome.SUCCESS, "agent")
    logs = Logs([one, replace(one, id="2", steps=steps[:1]), replace(one, id="3", task=replace(task, seed=0))])
    assert logs.mask_nt.tolist() == [[True, True], [True, False], [True, True]]
    assert logs.trajectory_s.tolist() == [0, 0, 1, 2, 2]
    assert logs.rewards_nt.tolist() == [[0, 1], [0, 0], [0, 1]]
    assert logs.chosen_s.tolist() == [0, 1, 0, 0, 1]
    # x and z were taken, so they have a kind of their own; y, never taken, has the one of all others.
    assert logs.kinds_sa.tolist()[:2] == [[0, 2, 0], [2, 1, 0]]
    assert logs.instance_n.tolist() == [1, 1, 0]
    assert np.isnan(logs.behaviour_s[[1, 4]]).all()
    assert numbered(["b", "a", "b"]).tolist() == [1, 0, 1]


def test_wide_states_are_projected_and_keep_their_distances():
    wide = np.random.default_rng(0).normal(size=(20, 512))
    narrow = projected(wide)
    assert narrow.shape == (20, WIDTH)
    ratio = np.linalg.norm(narrow[0] - narrow[1:], axis=1) / np.linalg.norm(wide[0] - wide[1:], axis=1)
    assert ratio == pytest.approx(np.ones(19), abs=0.4)
    assert KINDS > 6
    assert projected(narrow) is narrow
