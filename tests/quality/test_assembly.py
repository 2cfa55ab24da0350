from collections import Counter

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import make_error, make_trajectory
from retroformer.quality.assembly import assemble
from retroformer.storage import EPISODES, STEPS, episode_row, step_rows


def tables(episodes, steps):
    return pa.Table.from_pylist(episodes, EPISODES), pa.Table.from_pylist(steps, STEPS)


def reasons(records):
    return [[reason.name for reason in record.reasons] for record in records]


FIRST, SECOND = make_trajectory(seed=1), make_trajectory((0.0,), seed=2)


def test_sound_rows_come_back_as_the_trajectories_that_were_written():
    records = assemble(*tables(map_rows(FIRST, SECOND), [*step_rows(FIRST), *step_rows(SECOND)]))
    assert [record.trajectory for record in records] == [FIRST, SECOND]
    assert [record.steps for record in records] == [[0, 1, 2], [3]]
    assert reasons(records) == [[], []]


def map_rows(*trajectories):
    return [episode_row(one) for one in trajectories]


def test_interleaved_steps_are_told_apart_by_id():
    a, b = step_rows(FIRST), step_rows(make_trajectory(seed=2))
    steps = [row for pair in zip(a, b, strict=True) for row in pair]
    records = assemble(*tables(map_rows(FIRST, make_trajectory(seed=2)), steps))
    assert [record.steps for record in records] == [[0, 2, 4], [1, 3, 5]]
    assert reasons(records) == [[], []]


def test_a_return_that_is_not_the_sum_of_the_rewards():
    row = episode_row(FIRST) | {"total_reward": 0.5}
    assert reasons(assemble(*tables([row], step_rows(FIRST)))) == [["return_mismatch"]]


def test_a_return_beyond_a_float_is_left_to_the_range_of_rewards():
    huge = make_trajectory((1e308, 1e308))
    records = assemble(*tables(map_rows(huge), step_rows(huge)))
    assert [record.trajectory for record in records] == [huge]
    assert reasons(records) == [[]]


def test_a_hole_in_the_steps():
    records = assemble(*tables(map_rows(FIRST), step_rows(FIRST)[::2]))
    assert reasons(records) == [["step_count_mismatch", "steps_out_of_order"]]
    assert records[0].reasons[1].detail == "step 2 where step 1 was due"


def test_repeated_ids_share_their_steps_one_by_one_where_they_can_be_told_apart():
    twin = make_trajectory((1.0,), seed=1)
    records = assemble(*tables(map_rows(FIRST, twin), [*step_rows(FIRST), *step_rows(twin)]))
    assert [record.trajectory for record in records] == [FIRST, twin]
    lost = assemble(*tables(map_rows(FIRST, twin), step_rows(FIRST)))
    assert reasons(lost) == [["inseparable_steps"], ["inseparable_steps"]]


def test_steps_without_an_id_belong_to_nobody():
    nameless = episode_row(FIRST) | {"trajectory_id": None}
    steps = [row | {"trajectory_id": None} for row in step_rows(FIRST)]
    records = assemble(*tables([nameless], steps))
    assert reasons(records) == [["missing_value"], ["steps_without_episode"]]
    assert records[1].steps == [0, 1, 2]


def test_an_error_before_the_first_step_has_no_rows_and_no_fault():
    records = assemble(*tables(map_rows(make_error(steps=())), []))
    assert reasons(records) == [[]]


ID = st.sampled_from([FIRST.id, SECOND.id, "other", None])
EPISODE = st.fixed_dictionaries({"trajectory_id": ID, "steps": st.sampled_from([0, 1, 2, None])})
STEP = st.fixed_dictionaries({"trajectory_id": ID, "t": st.sampled_from([0, 1, 2, None])})


@settings(max_examples=100, deadline=None)
@given(st.lists(EPISODE, min_size=1, max_size=5), st.lists(STEP, max_size=8))
def test_every_row_belongs_to_exactly_one_record(episodes, steps):
    records = assemble(
        *tables(
            [episode_row(FIRST) | row for row in episodes],
            [step_rows(FIRST)[0] | row for row in steps],
        )
    )
    claimed = Counter(record.episode for record in records if record.episode is not None)
    assert claimed == Counter(range(len(episodes)))
    assert Counter(row for record in records for row in record.steps) == Counter(range(len(steps)))
    for record in records:
        if not record.reasons:
            times = [steps[row]["t"] for row in record.steps]
            assert times == list(range(episodes[record.episode]["steps"]))
