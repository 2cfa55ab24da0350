from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders import make_trajectory
from retroformer.environments.splits import of_instance
from retroformer.errors import ConfigError
from retroformer.importers.conversation import Rules
from retroformer.importers.importing import import_logs
from retroformer.importers.outcomes import OutcomeRule
from retroformer.storage import EPISODES, STEPS, episode_row, read_trajectories, step_rows
from retroformer.types import Outcome, Trajectory
from tiny_logs import quarantined, rules

GOOD = [make_trajectory(seed=n) for n in range(3)]


def load(tmp_path: Path, episodes: list[dict[str, Any]], steps: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(episodes, EPISODES), folder / "episodes.parquet")
    pq.write_table(pa.Table.from_pylist(steps, STEPS), folder / "steps.parquet")
    return import_logs([folder], "parquet", tmp_path / "out", rules(1.0), max_quarantined=1.0, afresh=True, **options)


def rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return [episode_row(one) for one in GOOD], [row for one in GOOD for row in step_rows(one)]


def test_what_was_recorded_stays_but_the_split(tmp_path: Path) -> None:
    report = load(tmp_path, *rows())
    assert (report["read"], report["accepted"], report["with_logprobs"]) == (3, 3, 3)
    for before, after in zip(GOOD, read_trajectories(tmp_path / "out"), strict=True):
        assert (after.id, after.steps, after.outcome, after.policy) == (
            before.id,
            before.steps,
            before.outcome,
            before.policy,
        )
        assert after.task.id == before.task.id
        assert after.task.split in ("train", "checkpoint", "evaluation")
        assert after.source.endswith("rollout")


def test_steps_in_another_order_than_the_episodes(tmp_path: Path) -> None:
    episodes, steps = rows()
    assert load(tmp_path, episodes, steps[3:] + steps[:3])["accepted"] == 3


CHANGES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "missing_value": ("episodes", 1, {"policy": None}),
    "unknown_value": ("episodes", 1, {"outcome": "great"}),
    "step_count_mismatch": ("episodes", 2, {"steps": 7}),
    "steps_out_of_order": ("steps", 4, {"t": 5}),
    "invalid_temperature": ("episodes", 1, {"temperature": 0.0}),
    "invalid_attempt": ("episodes", 1, {"attempt": -1}),
    "reward_not_finite": ("steps", 4, {"reward": float("nan")}),
    "reward_out_of_range": ("steps", 4, {"reward": 7.0}),
    "invalid_logprob": ("steps", 4, {"logprob": 0.1}),
    "inadmissible_action": ("steps", 4, {"action": "fly"}),
    "empty_text": ("steps", 4, {"observation": " "}),
    "invalid_token_ids": ("steps", 4, {"token_ids": [-1]}),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_one_bad_episode_is_refused_alone(reason: str, tmp_path: Path) -> None:
    table, place, change = CHANGES[reason]
    episodes, steps = rows()
    {"episodes": episodes, "steps": steps}[table][place] |= change
    report = load(tmp_path, episodes, steps)
    assert report["reasons"] == {reason: 1}
    assert report["accepted"] == 2
    assert quarantined(tmp_path / "out")[0]["source"].startswith(f"{tmp_path}/in/episodes.parquet:")


def fails(trajectory: Trajectory) -> bool:
    """A user's own judge, for whom two steps are too many."""
    return len(trajectory.steps) < 2


def test_a_users_own_function_judges_and_its_reward_is_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    load(tmp_path, *rows())
    named = Rules(OutcomeRule(function="test_parquet:fails"), of_instance)
    report = import_logs([tmp_path / "in"], "parquet", tmp_path / "judged", named)
    found = read_trajectories(tmp_path / "judged")
    assert {one.outcome for one in found} == {Outcome.SUCCESS if len(GOOD[0].steps) < 2 else Outcome.FAILURE}
    assert [one.total_reward for one in found] == [float(len(one.steps) < 2) for one in found]
    assert report["outcome"] == "test_parquet:fails"
    assert import_logs([tmp_path / "in"], "parquet", tmp_path / "own", rules())["outcome"] == "the tables' own"
    with pytest.raises(ConfigError, match="reward:score is no column of the project's tables"):
        import_logs([tmp_path / "in"], "parquet", tmp_path / "x", Rules(OutcomeRule("score"), of_instance))


def test_nothing_of_a_table_that_is_redacted_keeps_its_secret(tmp_path: Path) -> None:
    episodes, steps = rows()
    for row in (*episodes, *steps):
        row["trajectory_id"] += "@example.org"
    named = {
        "family": "x@example.org",
        "source": "ann@example.org.jsonl:3",
        "previous_id": "no@example.org",
        "attempt": 1,
    }
    load(tmp_path, [{**row, **named} for row in episodes], steps, redact=["email"])
    found = read_trajectories(tmp_path / "out")
    assert len({one.id for one in found}) == len(found) == 3
    for path in (tmp_path / "out").rglob("*.parquet"):
        assert b"example.org" not in path.read_bytes(), path


def test_the_same_id_twice(tmp_path: Path) -> None:
    episodes, steps = rows()
    again = [{**row, "observation": "other"} for row in steps[:3]]
    report = load(tmp_path, [*episodes, episodes[0], episodes[0]], [*steps, *again, *steps[:3]])
    assert (report["read"], report["accepted"], report["repeated"]) == (5, 4, 1)
    assert report["reasons"] == {"conflicting_id": 1}


def test_a_damaged_file_is_one_record(tmp_path: Path) -> None:
    load(tmp_path, *rows())
    path = tmp_path / "in/steps.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    report = import_logs([tmp_path / "in"], "parquet", tmp_path / "out", rules(), max_quarantined=1.0, afresh=True)
    assert report["reasons"] == {"unreadable_file": 1}
    assert "damaged" in quarantined(tmp_path / "out")[0]["detail"]
