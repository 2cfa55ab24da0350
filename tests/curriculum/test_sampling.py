import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chisquare

from retroformer.curriculum.sampling import TrajectorySampler, probabilities
from retroformer.errors import DataError


def catalogue(rows):
    """Rows of (id, task, tier, probability) of split train."""
    frame = pd.DataFrame(rows, columns=["trajectory_id", "task", "tier", "probability"])
    return frame.assign(split="train")


TWO_TASKS = catalogue(
    [("a", "x", 1, 0.5), ("b", "x", 2, 0.3), ("c", "x", 2, 0.2), ("d", "y", 1, 0.9), ("e", "y", 2, 0.1)]
)


def test_probabilities_by_hand():
    # e = 0.1: 0.9 * (4/8, 3/8, 1/8, 0) + 0.1 / 4
    scores = np.array([0.8, 0.6, 0.2, 0.0])
    assert probabilities(scores, 1.0) == pytest.approx([0.475, 0.3625, 0.1375, 0.025])
    # Temperature 1/2 squares: 64, 36, 4, 0 of 104.
    assert probabilities(scores, 0.5)[:2] == pytest.approx([0.9 * 64 / 104 + 0.025, 0.9 * 36 / 104 + 0.025])


@pytest.mark.parametrize("temperature", [1e-4, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("scores", [[0.9, 0.1, 0.0], [0.0, 0.0, 0.0], [1e-9, 1.0, 0.5], [0.3]])
def test_every_trajectory_has_a_positive_probability_and_they_sum_to_one(scores, temperature):
    found = probabilities(np.array(scores), temperature)
    assert found.sum() == pytest.approx(1)
    assert found.min() >= 0.1 / len(scores) * (1 - 1e-12)


def test_frequencies_are_the_stated_ones():
    sampler = TrajectorySampler(TWO_TASKS, seed=3, task_weights={"x": 3})
    stated = dict(zip("abcde", [0.375, 0.225, 0.15, 0.225, 0.025], strict=True))
    assert sampler.probability(list("abcde")) == pytest.approx(list(stated.values()))
    drawn = Counter(sampler.draw(20_000))
    assert chisquare([drawn[id] for id in stated], [20_000 * p for p in stated.values()]).pvalue > 0.01
    # The test has power: uniform sampling of the same rows is refused.
    uniform = Counter(TrajectorySampler(TWO_TASKS, seed=3, uniform=True).draw(20_000))
    assert chisquare([uniform[id] for id in stated], [20_000 * p for p in stated.values()]).pvalue < 1e-6


def test_uniform_draws_a_task_first_and_then_any_of_its_trajectories():
    sampler = TrajectorySampler(TWO_TASKS, seed=0, uniform=True)
    assert sampler.probability(list("abcde")) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 4, 1 / 4])


def test_only_admitted_tiers_are_drawn_and_each_with_a_positive_probability():
    sampler = TrajectorySampler(TWO_TASKS, seed=0, tiers_admitted=1)
    assert set(sampler.draw(200)) == {"a", "d"}
    assert sampler.probability(list("abd")) == pytest.approx([0.5, 0.0, 0.5])
    sampler.admit(2)
    assert sampler.probability(list("abcde")).min() > 0
    assert set(sampler.draw(2000)) == set("abcde")


def test_a_task_with_nothing_admitted_leaves_its_share_to_the_others():
    rows = catalogue([("a", "x", 1, 1.0), ("b", "y", 2, 1.0)])
    sampler = TrajectorySampler(rows, seed=0, tiers_admitted=1)
    assert sampler.probability(["a", "b"]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("tiers", [1, 2])
def test_inverse_weights_give_the_plain_mean_by_enumeration(tiers):
    sampler = TrajectorySampler(TWO_TASKS, seed=0, tiers_admitted=tiers, task_weights={"y": 5})
    values = {"a": 3.0, "b": -1.0, "c": 10.0, "d": 0.5, "e": 100.0}
    admitted = ["a", "d"] if tiers == 1 else list("abcde")
    x = np.array([values[id] for id in admitted])
    expectation = (sampler.probability(admitted) * sampler.inverse_weights(admitted) * x).sum()
    assert expectation == pytest.approx(x.mean())
    assert (sampler.probability(admitted) * x).sum() != pytest.approx(x.mean())


def test_inverse_weights_correct_the_mean_of_what_is_drawn():
    sampler = TrajectorySampler(TWO_TASKS, seed=1)
    values = dict(zip("abcde", [3.0, -1.0, 10.0, 0.5, 4.0], strict=True))
    drawn = sampler.draw(40_000)
    terms = sampler.inverse_weights(drawn) * np.array([values[id] for id in drawn])
    assert abs(terms.mean() - 3.3) < 4 * terms.std() / 200


def test_a_restored_sampler_goes_on_with_the_same_draws():
    first = TrajectorySampler(TWO_TASKS, seed=5, tiers_admitted=1)
    first.draw(7)
    first.admit(2)
    first.weigh({"y": 4.0})
    state = json.loads(json.dumps(first.state()))
    second = TrajectorySampler(TWO_TASKS, seed=99)
    second.restore(state)
    assert second.draw(50) == first.draw(50)
    assert second.probability(list("abcde")).tolist() == first.probability(list("abcde")).tolist()


def test_the_order_of_the_rows_does_not_matter():
    assert TrajectorySampler(TWO_TASKS[::-1], seed=2).draw(50) == TrajectorySampler(TWO_TASKS, seed=2).draw(50)


def test_what_is_kept_for_checkpoint_choice_is_never_drawn():
    rows = TWO_TASKS.assign(split=["checkpoint", "train", "train", "checkpoint", "checkpoint"])
    assert set(TrajectorySampler(rows, seed=0).draw(500)) == {"b", "c"}
    with pytest.raises(DataError, match="split train"):
        TrajectorySampler(TWO_TASKS.assign(split="checkpoint"), seed=0)


@pytest.mark.parametrize("weights", [{"z": 1.0}, {"x": 0.0}, {"x": float("nan")}])
def test_a_weight_that_means_nothing_is_refused(weights):
    with pytest.raises(ValueError, match="weight"):
        TrajectorySampler(TWO_TASKS, seed=0, task_weights=weights)
