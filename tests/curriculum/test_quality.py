import pandas as pd
import pytest

from retroformer.curriculum.quality import quality, rank_within, tiers_of
from retroformer.errors import ConfigError


def series(*values):
    return pd.Series(values)


def test_ranks_go_from_0_to_1_within_a_group_with_ties_at_their_mean():
    values = series(10.0, 30.0, 10.0, 20.0, -5.0, 7.0, 7.0)
    groups = series("a", "a", "a", "a", "b", "c", "c")
    # In a: 10 and 10 share places 0 and 1 of 0..3, so 1/6 each; 20 is 2/3; 30 is 1. Alone: 1/2. All equal: 1/2.
    assert rank_within(values, groups).tolist() == pytest.approx([1 / 6, 1, 1 / 6, 2 / 3, 0.5, 0.5, 0.5])


def test_quality_by_hand():
    outcome = series("success", "success", "failure", "success")
    total_reward = series(1.0, 0.5, 0.0, 0.2)
    steps = series(2, 4, 6, 9)
    task = series("a", "a", "a", "b")
    scores = quality(outcome, total_reward, steps, task, success_weight=6, return_weight=2, length_weight=2)
    # a: ranks of return 1, 1/2, 0 and shortness 1, 1/2, 0; alone in b both are 1/2.
    assert scores.tolist() == pytest.approx([1.0, 0.6 + 0.1 + 0.1, 0.0, 0.6 + 0.1 + 0.1])


def test_the_scale_of_the_weights_does_not_matter():
    data = (series("success", "failure"), series(1.0, 0.0), series(3, 2), series("a", "a"))
    small = quality(*data, success_weight=0.3, return_weight=0.1, length_weight=0.1)
    large = quality(*data, success_weight=3, return_weight=1, length_weight=1)
    assert small.tolist() == pytest.approx(large.tolist())
    assert large.tolist() == pytest.approx([0.8, 0.2])


def test_no_weight_at_all_is_refused():
    with pytest.raises(ConfigError, match="all 0"):
        quality(
            series("success"),
            series(1.0),
            series(1),
            series("a"),
            success_weight=0,
            return_weight=0,
            length_weight=0,
        )


def test_each_task_has_each_tier_whatever_its_scores():
    scores = series(0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.03, 0.02, 0.01)
    ids = series(*"abcdefghi")
    task = series(*"xxxxxx", *"yyy")
    assert tiers_of(scores, ids, task, 3).tolist() == [1, 1, 2, 2, 3, 3, 1, 2, 3]


def test_equal_scores_are_parted_by_id_and_few_trajectories_fill_the_best_tiers():
    scores = series(0.5, 0.5, 0.5, 0.2)
    assert tiers_of(scores, series("c", "a", "b", "z"), series("x", "x", "x", "y"), 3).tolist() == [3, 1, 2, 1]
    assert tiers_of(series(0.1, 0.2), series("a", "b"), series("x", "x"), 3).tolist() == [2, 1]
