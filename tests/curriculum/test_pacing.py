import json
import math

from retroformer.curriculum.pacing import Pacing


def admitted(pacing, signals):
    return [pacing.observe(10 * number, signal) for number, signal in enumerate(signals)]


def test_a_plateau_admits_the_next_tier():
    # Best -1.0 at the third; two in a row without a gain of 0.1 admit the next.
    pacing = Pacing(tiers=3, patience=2, min_gain=0.1)
    assert admitted(pacing, [-2.0, -1.5, -1.0, -0.95, -0.92]) == [1, 1, 1, 1, 2]


def test_each_admission_starts_the_comparison_afresh():
    pacing = Pacing(tiers=3, patience=2, min_gain=0.1)
    # After the admission -3.0 is no loss but the new first; -2.0 is a gain.
    assert admitted(pacing, [-1.0, -1.0, -1.0, -3.0, -2.0, -2.0, -2.0]) == [1, 1, 2, 2, 2, 2, 3]


def test_the_threshold_admits_at_once():
    pacing = Pacing(tiers=3, patience=5, threshold=0.8)
    assert admitted(pacing, [0.2, 0.8, 0.5, 0.9, 0.9]) == [1, 2, 2, 3, 3]


def test_a_signal_that_never_stops_growing_does_not_keep_failures_out_for_ever():
    pacing = Pacing(tiers=3, patience=2, longest=4)
    assert admitted(pacing, [float(n) for n in range(10)]) == [1, 1, 1, 2, 2, 2, 2, 3, 3, 3]


def test_a_signal_that_is_not_finite_is_no_gain():
    pacing = Pacing(tiers=2, patience=2, threshold=5.0)
    assert admitted(pacing, [math.nan, math.inf]) == [1, 2]
    assert [row["signal"] for row in pacing.schedule] == [None, None]


def test_one_tier_is_all():
    assert admitted(Pacing(tiers=1), [0.0] * 5) == [1] * 5


def test_the_schedule_says_what_was_followed_and_the_state_goes_on_exactly():
    signals = [-2.0, -1.0, -1.0, -1.0, -4.0, -4.0, -4.0, -4.0]
    whole = Pacing(tiers=3, patience=2)
    admitted(whole, signals)
    broken = Pacing(tiers=3, patience=2)
    admitted(broken, signals[:5])
    again = Pacing(**json.loads(json.dumps(broken.state())))
    for number in range(5, 8):
        again.observe(10 * number, signals[number])
    assert again == whole
    assert whole.schedule[3] == {"update": 30, "tiers_admitted": 2, "signal": -1.0}
    assert whole.schedule[-1]["tiers_admitted"] == 3
