import dataclasses
import math

import pytest

from builders import make_error, make_task, make_trajectory
from retroformer.types import Outcome, trajectory_id


def test_a_trajectory_says_what_was_earned_exactly():
    trajectory = make_trajectory((0.1,) * 10)
    assert trajectory.rewards == (0.1,) * 10
    assert trajectory.total_reward == 1.0
    assert trajectory.task.id == "babyai:P6N3#0"


def test_a_return_beyond_a_float_is_infinite():
    assert make_trajectory((1e308, 1e308)).total_reward == math.inf
    assert math.isnan(make_trajectory((math.inf, -math.inf)).total_reward)


@pytest.mark.parametrize("outcome", Outcome)
def test_only_a_task_that_ended_teaches(outcome):
    trajectory = make_trajectory(outcome=outcome)
    assert trajectory.learnable == (outcome in (Outcome.SUCCESS, Outcome.FAILURE))


def test_records_cannot_be_changed():
    for record in (make_trajectory(), make_task(), make_trajectory().steps[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, dataclasses.fields(record)[0].name, "x")


def test_an_id_depends_on_each_thing_that_was_run_and_on_nothing_else():
    task = make_task()
    base = trajectory_id(task, "p")
    assert base == trajectory_id(make_task(), "p", 0, "")
    assert len(base) == 16
    assert int(base, 16) >= 0
    others = {
        trajectory_id(make_task(seed=1), "p"),
        trajectory_id(make_task(name="P5N2"), "p"),
        trajectory_id(make_task(description="x"), "p"),
        trajectory_id(make_task(split="train"), "p"),
        trajectory_id(task, "q"),
        trajectory_id(task, "p", 1),
        trajectory_id(task, "p", 0, "shuffled"),
    }
    assert len(others | {base}) == 8


def test_what_is_printed_fits_a_line():
    assert repr(make_error(id="e1")) == "Trajectory(e1 babyai:P6N3#0 steps=1 error/exception return=0)"
