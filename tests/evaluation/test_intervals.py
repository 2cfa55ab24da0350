import pytest

from retroformer.errors import DataError
from retroformer.evaluation.intervals import stratified_mean, wilson


def test_wilson_by_hand():
    # z = 1.96: centre (.8 + z^2 / 20) / (1 + z^2 / 10) = .7168, half z / (1 + z^2 / 10) sqrt(.016 + z^2 / 400) = .2266
    assert wilson(8, 10, 0.95) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_wilson_at_the_ends():
    # z^2 / (n + z^2) = 3.8415 / 13.8415
    assert wilson(0, 10, 0.95) == (0.0, pytest.approx(0.27753, abs=1e-5))
    assert wilson(10, 10, 0.95) == (pytest.approx(0.72247, abs=1e-5), 1.0)
    assert wilson(0, 0, 0.95) == (0.0, 1.0)


def test_wilson_refuses_more_successes_than_episodes():
    with pytest.raises(ValueError, match="between 0 and n = 10, got 11"):
        wilson(11, 10, 0.95)


def test_one_task_is_wilson():
    found = stratified_mean({"a": [1] * 8 + [0] * 2}, 0.95)
    assert found == pytest.approx((0.8, *wilson(8, 10, 0.95), 10))


def test_equal_tasks_count_together():
    found = stratified_mean({"a": [1, 1, 1, 0], "b": [1, 1, 1, 0]}, 0.95)
    assert found == pytest.approx((0.75, *wilson(6, 8, 0.95), 8))
    assert stratified_mean({"a": [1] * 5, "b": [1] * 5}, 0.95) == pytest.approx((1, *wilson(10, 10, 0.95), 10))


def test_tasks_are_weighted_equally_and_lost_episodes_left_out():
    found = stratified_mean({"a": [1, None, 1, 1, 1], "b": [0, None], "c": [None]}, 0.95)
    assert (found.mean, found.n) == (0.5, 5)
    # b rests on one episode, so five episodes say less than five of one task would
    lower, upper = wilson(2.5, 5, 0.95)
    assert found.lower < lower < upper < found.upper


def test_without_any_outcome():
    with pytest.raises(DataError, match="no episode has an outcome"):
        stratified_mean({"a": [None]}, 0.95)
