from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retroformer.environments.splits import SAME_EVERY_ROUND, SHARES, SPLITS, of_instance, seeds
from retroformer.errors import ConfigError

ranges = st.tuples(
    st.sampled_from(SPLITS), st.integers(0, 99), st.integers(1, 99), st.integers(0, 99_000), st.integers(1, 1000)
)


@given(ranges, ranges)
def test_two_ranges_meet_only_where_split_run_and_round_are_the_same(one, other):
    def place(split, run_seed, round_number, *_):
        return split, run_seed, None if split in SAME_EVERY_ROUND else round_number

    def drawn(split, run_seed, round_number, offset, count):
        return seeds(split, run_seed=run_seed, round_number=round_number, count=count, offset=offset)

    a, b = drawn(*one), drawn(*other)
    meet = max(a.start, b.start) < min(a.stop, b.stop)
    offsets_meet = max(one[3], other[3]) < min(one[3] + one[4], other[3] + other[4])
    assert meet == (place(*one) == place(*other) and offsets_meet)


def test_numbers_worked_out_by_hand():
    assert seeds("history", run_seed=0, round_number=1, count=2) == range(100_000, 100_002)
    assert seeds("gate", run_seed=7, round_number=12, count=1, offset=5) == range(3_071_200_005, 3_071_200_006)
    assert seeds("final", run_seed=7, round_number=3, count=1) == range(4_070_000_000, 4_070_000_001)
    assert seeds("final", run_seed=7, round_number=9, count=1) == seeds("final", run_seed=7, round_number=3, count=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "split is 'test', allowed: history, train"),
        ({"run_seed": 100}, "seed is 100, allowed: 0 to 99"),
        ({"round_number": 0}, "round is 0, allowed: 1 to 99"),
        ({"count": 100_001}, "do not fit"),
        ({"offset": 99_999, "count": 2}, "do not fit"),
        ({"offset": -1}, "do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"split": "train", "run_seed": 0, "round_number": 1, "count": 1} | change
    with pytest.raises(ConfigError, match=message):
        seeds(arguments.pop("split"), **arguments)


def test_logs_are_split_by_their_instance_in_the_stated_shares():
    counts = Counter(of_instance(f"desk:refund#{number}") for number in range(10_000))
    assert {name: pytest.approx(share, abs=0.015) for name, share in SHARES.items()} == {
        name: count / 10_000 for name, count in counts.items()
    }
    assert sum(SHARES.values()) == pytest.approx(1)
    # Their SHA-256 begins with 00fb, 4818 and ff9d: .004, .282 and .998 of the range.
    assert [of_instance(name) for name in ("a#131", "a#25", "a#31")] == ["evaluation", "checkpoint", "train"]
