"""A round in text mode, stage by stage: logs without log-probabilities first, then those of a model that speaks."""

from shutil import copytree

import pytest

from retroformer.config import Config
from retroformer.errors import DataError
from retroformer.files import read_json
from retroformer.policies.checkpoints import load
from retroformer.policies.layout import END
from retroformer.storage import read_trajectories
from tiny_round import pin, run_evaluate, run_to_batches, run_train, tiny_config

DESK = {
    "tasks__train": ["desk:refund", "desk:undo"],
    "tasks__held_out": ["desk:cancel"],
    "collect__max_new_tokens": 12,
    "train__baseline": "mean",
}


def desk_config(**overrides) -> Config:
    return tiny_config(**{**DESK, **overrides})


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Collected from the noisy desk, validated and curated. Do not touch it."""
    root = tmp_path_factory.mktemp("logged")
    pin(root, "scripted:desk?noise=0.3")
    run_to_batches(root, desk_config())
    return root


@pytest.fixture(scope="module")
def trained(logged):
    """The same, trained by imitation of successes. Do not touch it."""
    run_train(logged, desk_config(train__objective="imitation_of_successes"))
    return logged


def test_logs_of_text_pass_the_contract(logged):
    assert read_json(logged / "data/validated/validate.json")["quarantined"] == 0
    steps = [step for one in read_trajectories(logged / "data/batches") for step in one.steps]
    assert {(step.admissible_actions, step.token_ids, step.logprob) for step in steps} == {(None, None, None)}


def test_the_policy_has_the_words_of_the_desk_and_an_end(trained):
    policy = load(trained / "data/challenger")
    assert policy.layout.action == f"{{action}} {END}"
    report = read_json(trained / "data/training/train.json")
    assert report["layout"] == {"task": "{task}", "observation": "{observation}", "action": f"{{action}} {END}"}
    # There is nothing to choose among, and nothing is known of the behaviour.
    diagnostics = report["diagnostics"]
    assert {name for name, value in diagnostics.items() if value is None} == {"entropy", "kl", "ess", "clipped"}


@pytest.mark.parametrize("objective", ["asymmetric", "reward_weighted"])
def test_other_objectives_that_need_no_log_probabilities_train_on_text(logged, tmp_path, objective):
    root = copytree(logged, tmp_path / "root")
    assert run_train(root, desk_config(train__objective=objective, train__updates=4))["updates"] == 4


def test_an_objective_that_needs_log_probabilities_says_so(logged):
    with pytest.raises(DataError, match="the objective topr needs behaviour log-probabilities, which 24 of 24"):
        run_train(logged, desk_config(train__objective="topr"))


def test_with_estimated_propensities_it_trains_and_says_what_it_assumes(logged, tmp_path):
    root = copytree(logged, tmp_path / "root")
    config = desk_config(train__objective="topr", train__propensities="estimated", train__max_kl=1e6, train__updates=8)
    told = run_train(root, config)
    report = read_json(root / "data/training/train.json")
    [assumption] = report["assumptions"]
    assert assumption == told["assumed"]
    assert "log-probabilities of 100% of the steps, estimated by an imitation fitted to the same logs" in assumption
    assert report["diagnostics"]["kl"] is not None
    # What stood in for the behaviour stays, to be shown beside the challenger and to be asked again.
    assert report["baselines"]["imitation"]["updates"] == 8
    assert (root / "data/training/baselines/imitation/config.json").is_file()


def test_probabilities_that_are_recorded_are_not_estimated(trained, tmp_path):
    root = copytree(trained, tmp_path / "root")
    copytree(root / "data/challenger", root / "data/speaker")
    pin(root, "data/speaker")
    config = desk_config(train__propensities="estimated", train__max_kl=1e6, train__min_ess=0.0, train__updates=4)
    run_to_batches(root, config)
    run_train(root, config)
    report = read_json(root / "data/training/train.json")
    assert (report["assumptions"], report["baselines"]) == ([], {})


def test_champion_and_challenger_are_compared_in_text_mode(trained):
    assert run_evaluate(trained, desk_config())["n"] >= 4
    report = read_json(trained / "data/evaluation/evaluation.json")
    ways = {(line["policy"], line["mission"]) for line in report["summary"]}
    assert {("champion", "true"), ("challenger", "other"), ("challenger", "shuffled"), ("random", "true")} <= ways
    assert report["errors"] == 0
    for sample in read_json(trained / "data/evaluation/samples/trajectories.json"):
        assert all(step["action"] and step["probabilities"] == {} for step in sample["steps"])


def test_what_a_speaking_policy_collects_trains_the_next_by_topr(trained, tmp_path):
    root = copytree(trained, tmp_path / "root")
    copytree(root / "data/challenger", root / "data/speaker")
    pin(root, "data/speaker")
    config = desk_config(train__objective="topr", train__max_kl=1e6, train__min_ess=0.0)
    run_to_batches(root, config)
    collected = read_trajectories(root / "data/validated")
    assert len(collected) == config.collect.episodes
    steps = [step for one in collected for step in one.steps]
    assert all(step.logprob < 0 and step.action and 1 <= len(step.token_ids) <= 12 for step in steps)
    end = load(root / "data/speaker").text.terminator
    cut = sum(step.token_ids[-1:] != end for step in steps)
    assert read_json(root / "data/rollouts/collect.json")["cut_actions"] == cut > 0
    run_train(root, config)
    report = read_json(root / "data/training/train.json")
    # The first updates are on-policy: what was recorded while acting is what training computes.
    assert report["diagnostics"]["kl"] is not None
    assert report["updates"] == config.train.updates
