import pandas as pd
import pyarrow as pa
import pytest

from browser import PAYLOADS, inspect, needs_browser
from builders import make_error, make_trajectory
from retroformer.errors import DataError
from retroformer.quality.contract import check
from retroformer.quality.predicates import Limits
from retroformer.storage import EPISODES, STEPS, episode_row, step_rows

LIMITS = Limits(min_reward=-1, max_reward=1, max_steps=8)


def tables(trajectories) -> tuple[pd.DataFrame, pd.DataFrame]:
    episodes = pa.Table.from_pylist([episode_row(one) for one in trajectories], EPISODES).to_pandas()
    steps = pa.Table.from_pylist([row for one in trajectories for row in step_rows(one)], STEPS).to_pandas()
    return episodes, steps


def names(failures):
    return {row: [reason.name for reason in reasons] for row, reasons in failures.items()}


def test_sound_tables_meet_every_expectation():
    report = check(*tables([make_trajectory(seed=0), make_error(seed=1, steps=())]), LIMITS)
    assert all(one["success"] for one in report.expectations)
    assert report.failures == {"episodes": {}, "steps": {}}
    assert len({one["name"] for one in report.expectations}) == len(report.expectations)


def test_each_failing_row_is_named_with_its_reason():
    episodes, steps = tables([make_trajectory(seed=seed) for seed in range(8)])
    episodes.loc[0, "outcome"] = "victory"
    episodes.loc[1, "stop_reason"] = "bored"
    episodes.loc[2, "steps"] = 0
    episodes.loc[3, "steps"] = 9
    episodes.loc[4, "policy"] = None
    episodes.loc[5, "temperature"] = 0.0
    episodes.loc[7, "trajectory_id"] = episodes.loc[6, "trajectory_id"]
    steps.loc[1, "reward"] = 1.5
    steps.loc[2, "reward"] = float("nan")
    steps.loc[3, "logprob"] = 0.1
    steps.loc[4, "logprob"] = float("-inf")
    steps.loc[5, "action"] = ""
    steps.loc[6, "observation"] = None
    report = check(episodes, steps, LIMITS)
    assert names(report.failures["episodes"]) == {
        0: ["unknown_value"],
        1: ["unknown_value"],
        2: ["no_steps"],
        3: ["too_many_steps"],
        4: ["missing_value"],
        5: ["invalid_temperature"],
        7: ["duplicate_id"],
    }
    assert names(report.failures["steps"]) == {
        1: ["reward_out_of_range"],
        2: ["reward_not_finite"],
        3: ["invalid_logprob"],
        4: ["invalid_logprob"],
        5: ["empty_text"],
        6: ["empty_text"],
    }
    assert report.failures["steps"][1][0].detail == "reward = 1.5 at step 1"
    unexpected = {one["name"]: one["unexpected"] for one in report.expectations}
    assert unexpected["steps.logprob column values to be between (invalid_logprob)"] == 2


def test_rows_are_numbered_by_place_whatever_the_index():
    episodes, steps = tables([make_trajectory(seed=seed) for seed in range(3)])
    episodes.loc[2, "outcome"] = "victory"
    report = check(episodes.set_axis([7, 7, 7]), steps, LIMITS)
    assert list(report.failures["episodes"]) == [2]


def test_a_table_with_other_columns_is_refused():
    episodes, steps = tables([make_trajectory()])
    with pytest.raises(DataError, match="episodes breaks the contract"):
        check(episodes.assign(mood="good"), steps, LIMITS)


def test_text_from_environments_is_escaped_in_data_docs(tmp_path):
    episodes, steps = tables([make_trajectory()])
    episodes.loc[0, "outcome"] = "<script>alert(1)</script>"
    check(episodes, steps, LIMITS, tmp_path / "docs")
    pages = list((tmp_path / "docs").rglob("*.html"))
    assert any("alert(1)" in page.read_text() for page in pages)
    assert not any("<script>alert(1)" in page.read_text() for page in pages)


@needs_browser
def test_no_text_of_environments_runs_in_data_docs(tmp_path):
    made = [make_trajectory(seed=seed) for seed in range(len(PAYLOADS))]
    episodes, steps = tables(made)
    for column in ("outcome", "stop_reason", "trajectory_id"):
        episodes[column] = list(PAYLOADS)
    steps["action"] = ""
    steps["observation"] = [PAYLOADS[place % len(PAYLOADS)] for place in range(len(steps))]
    check(episodes, steps, LIMITS, tmp_path / "docs")
    pages = [page.read_text() for page in sorted((tmp_path / "docs").rglob("*.html"))]
    assert len(pages) >= 3
    assert any("dataset.run" in page for page in pages)
    *found, ran = inspect([*pages, f"<p>{PAYLOADS[0]}</p>"], tmp_path)
    assert ran["ran"] == "1"
    assert [page["ran"] for page in found] == [None] * len(pages)
    # The pages have scripts and links of their own, but none made of what was shown.
    assert all(page["links"] == 0 for page in found)
