import math
from dataclasses import replace

import pytest

from builders import make_error, make_trajectory
from retroformer.quality.predicates import PREDICATES, Limits, judge, judge_together
from retroformer.types import Outcome, StopReason

LIMITS = Limits(min_reward=-1, max_reward=1, max_steps=4)


def with_step(**overrides):
    """A sound trajectory whose second step is changed."""
    trajectory = make_trajectory()
    steps = list(trajectory.steps)
    steps[1] = replace(steps[1], **overrides)
    return replace(trajectory, steps=tuple(steps))


SOUND = {
    "success": make_trajectory(),
    "failure": make_trajectory((0.0, 0.0)),
    "step limit": make_trajectory((0.0, 0.0), stop_reason=StopReason.STEP_LIMIT),
    "error": make_error(),
    "error before the first action": make_error(steps=()),
    "truncated": make_trajectory((0.0,), outcome=Outcome.TRUNCATED, stop_reason=StopReason.TIME_LIMIT),
    "unknown": make_trajectory((0.0,), outcome=Outcome.UNKNOWN, stop_reason=StopReason.LOG_END),
    "at the limits": make_trajectory((-1.0, 0.0, 0.0, 1.0)),
    "no log-probability": with_step(logprob=None),
    "certain action": with_step(logprob=0.0),
    "generated text": with_step(admissible_actions=None, token_ids=(4, 2), action="anything"),
    "text of a log": with_step(admissible_actions=None, logprob=None, action="anything"),
    "second attempt": make_trajectory(attempt=1, previous_id="0" * 16),
}
FAULTS = {
    "no steps": (make_trajectory(steps=()), "no_steps"),
    "too many": (make_trajectory((0.0,) * 5), "too_many_steps"),
    "nan": (with_step(reward=math.nan), "reward_not_finite"),
    "infinite": (with_step(reward=-math.inf), "reward_not_finite"),
    "reward too large": (with_step(reward=1.01), "reward_out_of_range"),
    "reward too small": (with_step(reward=-1.01), "reward_out_of_range"),
    "probability above 1": (with_step(logprob=0.01), "invalid_logprob"),
    "log-probability nan": (with_step(logprob=math.nan), "invalid_logprob"),
    "probability 0": (with_step(logprob=-math.inf), "invalid_logprob"),
    "other action": (with_step(action="jump"), "inadmissible_action"),
    "nothing admissible": (with_step(admissible_actions=()), "inadmissible_action"),
    "no tokens": (with_step(admissible_actions=None, token_ids=()), "malformed_tokens"),
    "a negative token": (with_step(admissible_actions=None, token_ids=(4, -1)), "malformed_tokens"),
    "a null token": (with_step(admissible_actions=None, token_ids=(4, None)), "malformed_tokens"),
    "repeated choice": (with_step(admissible_actions=("right", "left", "right")), "malformed_choice"),
    "null choice": (with_step(admissible_actions=("right", None)), "malformed_choice"),
    "empty choice": (with_step(admissible_actions=("", "right")), "malformed_choice"),
    "reward beyond a sum": (make_trajectory((1e308, 1e308)), "reward_out_of_range"),
    "blank observation": (with_step(observation=" "), "empty_text"),
    "blank action": (with_step(action="", admissible_actions=None, token_ids=(4,)), "empty_text"),
    "error without message": (make_error(error=None), "contradicted_outcome"),
    "error that terminated": (make_error(stop_reason=StopReason.TERMINATED), "contradicted_outcome"),
    "solved error": (make_trajectory(outcome=Outcome.ERROR, error="x"), "contradicted_outcome"),
    "success with a message": (make_trajectory(error="x"), "contradicted_outcome"),
    "success by step limit": (make_trajectory(stop_reason=StopReason.STEP_LIMIT), "contradicted_outcome"),
    "failure by time limit": (
        make_trajectory((0.0,), stop_reason=StopReason.TIME_LIMIT),
        "contradicted_outcome",
    ),
    "unrewarded success": (make_trajectory((0.0,), outcome=Outcome.SUCCESS), "contradicted_outcome"),
    "attempt without previous": (make_trajectory(attempt=1), "invalid_attempt"),
    "first attempt with previous": (make_trajectory(previous_id="0" * 16), "invalid_attempt"),
    "negative attempt": (make_trajectory(attempt=-1), "invalid_attempt"),
    "its own previous": (make_trajectory(attempt=1, id="a", previous_id="a"), "invalid_attempt"),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound(name):
    assert judge(SOUND[name], LIMITS) == []


@pytest.mark.parametrize("name", FAULTS)
def test_one_fault_gives_one_reason(name):
    trajectory, expected = FAULTS[name]
    assert [reason.name for reason in judge(trajectory, LIMITS)] == [expected]


def test_every_predicate_is_tried():
    assert {expected for _, expected in FAULTS.values()} == set(PREDICATES)


def test_the_detail_says_which_step_and_what_was_expected():
    assert judge(with_step(reward=2.0), LIMITS)[0].detail == "reward 2 at step 1, expected -1 to 1"


def test_the_first_of_an_id_is_kept_and_other_content_told_apart_from_the_same():
    first, other = make_trajectory(), make_trajectory(seed=1)
    reasons = judge_together([first, other, make_trajectory(), replace(first, steps=first.steps[:1])])
    assert [[reason.name for reason in mine] for mine in reasons] == [[], [], ["duplicate_id"], ["conflicting_id"]]


def test_a_previous_attempt_must_be_of_the_same_task_and_the_one_before():
    first = make_trajectory(seed=0)
    second = make_trajectory(seed=0, attempt=1, previous_id=first.id)
    skipping = make_trajectory(seed=0, attempt=2, previous_id=first.id)
    elsewhere = make_trajectory(seed=1, attempt=1, previous_id=first.id)
    from_earlier_round = make_trajectory(seed=2, attempt=1, previous_id="f" * 16)
    reasons = judge_together([first, second, skipping, elsewhere, from_earlier_round])
    assert [[reason.name for reason in mine] for mine in reasons] == [
        [],
        [],
        ["invalid_attempt"],
        ["invalid_attempt"],
        [],
    ]
