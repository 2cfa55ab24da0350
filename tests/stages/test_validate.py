import csv
import errno
import logging
import math
from collections import Counter
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from builders import make_error, make_trajectory
from retroformer.config import ValidateConfig
from retroformer.errors import ContractBroken, DataError
from retroformer.files import hash_directory, read_json
from retroformer.stages.validate import validate
from retroformer.storage import EPISODES, STEPS, episode_row, read_trajectories, step_rows, write_tables

CONFIG = ValidateConfig(max_quarantined=0.9, min_reward=-1, max_reward=1, max_steps=64)


def write(folder, trajectories):
    """As the storage would, but also with rewards that cannot be added up."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(
        folder,
        [episode_row(one) for one in trajectories],
        [row for one in trajectories for row in step_rows(one)],
    )
    return folder


def reasons_in(out):
    with (out / "quarantine" / "reasons.csv").open() as file:
        return {(row["trajectory_id"], row["reason"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Ten episodes: five sound, five with one fault each; and steps that nobody claims."""
    base = tmp_path_factory.mktemp("mixed")
    sound = [make_trajectory(seed=1), make_trajectory((0.0, 0.0), seed=2), make_error(seed=3), make_error(seed=4)]
    sound[3] = replace(sound[3], steps=())
    first = make_trajectory(seed=5)
    nan = make_trajectory((0.0, math.nan), seed=6)
    infinite = make_trajectory((0.0, math.inf), seed=7)
    twin = make_trajectory(seed=5)
    impostor = make_trajectory((1.0,), seed=5)
    short = make_trajectory(seed=8)
    episodes = [episode_row(one) for one in (*sound, first, nan, infinite, twin, impostor, short)]
    steps = [row for one in (*sound, first, nan, infinite, twin, impostor) for row in step_rows(one)]
    steps += step_rows(short)[:2] + step_rows(make_trajectory(seed=9))
    (base / "rollouts").mkdir()
    write_tables(base / "rollouts", episodes, steps)
    result = validate(CONFIG, rollouts=base / "rollouts", out=base / "validated")
    return base, result, [*sound, first]


def test_each_fault_is_quarantined_with_its_reason_and_the_rest_accepted(mixed):
    base, result, kept = mixed
    assert result == {"read": 11, "accepted": 5, "quarantined": 6}
    assert read_trajectories(base / "validated") == kept
    ids = {seed: make_trajectory(seed=seed).id for seed in range(10)}
    assert reasons_in(base / "validated") == {
        (ids[5], "duplicate_id"),
        (ids[5], "conflicting_id"),
        (ids[6], "reward_not_finite"),
        (ids[7], "reward_not_finite"),
        (ids[7], "reward_out_of_range"),
        (ids[8], "step_count_mismatch"),
        (ids[9], "steps_without_episode"),
    }


def test_no_row_is_lost_or_changed(mixed):
    base, _, _ = mixed
    for name in ("episodes.parquet", "steps.parquet"):
        rows = Counter(map(repr, pq.read_table(base / "rollouts" / name).to_pylist()))
        kept = Counter(map(repr, pq.read_table(base / "validated" / name).to_pylist()))
        aside = Counter(map(repr, pq.read_table(base / "validated" / "quarantine" / name).to_pylist()))
        assert kept + aside == rows


def test_the_report_counts_trajectories_and_says_what_the_contract_found(mixed):
    base, _, _ = mixed
    report = read_json(base / "validated" / "validate.json")
    assert report["outcomes"] == {"success": 2, "failure": 1, "error": 2}
    assert report["reasons"]["reward_not_finite"] == 2
    found = {one["name"]: (one["success"], one["unexpected"]) for one in report["expectations"]}
    assert found["steps.reward column values to not be null (reward_not_finite)"] == (False, 1)
    assert found["steps.reward column values to be between (reward_out_of_range)"] == (False, 1)
    assert found["episodes.trajectory_id column values to be unique (duplicate_id)"] == (False, 2)
    assert found["episodes.steps column values to be between (no_steps)"] == (True, 0)


def test_data_docs_open_without_a_server_or_a_network(mixed):
    base, _, _ = mixed
    docs = base / "validated" / "docs"
    index = (docs / "index.html").read_text()
    assert "http" not in index
    assert "episodes.trajectory_id column values to be unique" in index
    links = [part.split('"')[0] for part in index.split('href="')[1:]]
    assert len(links) == 2
    assert all((docs / link).is_file() for link in links)


def test_the_same_rollouts_give_the_same_bytes(mixed):
    base, _, _ = mixed
    validate(CONFIG, rollouts=base / "rollouts", out=base / "again")
    assert hash_directory(base / "again") == hash_directory(base / "validated")


def test_rows_that_cannot_be_read_as_a_trajectory_go_to_quarantine(tmp_path):
    good, strange, nameless, jumbled = (make_trajectory(seed=seed) for seed in range(4))
    episodes = [episode_row(one) for one in (good, strange, nameless, jumbled)]
    episodes[1]["outcome"] = "victory"
    episodes[2]["description"] = None
    steps = [row for one in (good, strange, nameless) for row in step_rows(one)] + step_rows(jumbled)[::-1]
    (tmp_path / "rollouts").mkdir()
    write_tables(tmp_path / "rollouts", episodes, steps)
    validate(CONFIG, rollouts=tmp_path / "rollouts", out=tmp_path / "out")
    assert reasons_in(tmp_path / "out") == {
        (strange.id, "unknown_value"),
        (nameless.id, "missing_value"),
        (jumbled.id, "steps_out_of_order"),
    }
    assert read_trajectories(tmp_path / "out") == [good]


def test_pages_that_cannot_be_written_stop_the_stage_in_one_sentence(tmp_path, monkeypatch, caplog):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    store = "great_expectations.data_context.store.html_site_store.HtmlSiteStore"
    monkeypatch.setattr(f"{store}.set", full)
    rollouts = write(tmp_path / "rollouts", [make_trajectory()])
    with pytest.raises(DataError, match=r"Data Docs, .* cannot be written: \[Errno 28\] No space left on device"):
        validate(CONFIG, rollouts=rollouts, out=tmp_path / "out")
    assert all(entry.levelno < logging.ERROR for entry in caplog.records)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rollouts"]


def test_a_page_that_is_not_there_after_all_stops_the_stage(tmp_path, monkeypatch):
    store = "great_expectations.data_context.store.html_site_store.HtmlSiteStore"
    monkeypatch.setattr(f"{store}.set", lambda *arguments, **options: None)
    rollouts = write(tmp_path / "rollouts", [make_trajectory()])
    with pytest.raises(DataError, match="Data Docs have 0 pages of the contract, expected one a table"):
        validate(CONFIG, rollouts=rollouts, out=tmp_path / "out")


def test_too_large_a_share_breaks_the_contract_and_leaves_everything_as_it_was(tmp_path):
    rollouts = write(tmp_path / "rollouts", [make_trajectory((math.nan,), seed=1), make_trajectory(seed=2)])
    before = hash_directory(rollouts)
    strict = CONFIG.model_copy(update={"max_quarantined": 0.4})
    with pytest.raises(ContractBroken, match=r"1 of 2 trajectories.*reward_not_finite 1.*lie in .*rollouts"):
        validate(strict, rollouts=rollouts, out=tmp_path / "out")
    assert hash_directory(rollouts) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rollouts"]


def test_a_share_at_the_limit_is_allowed(tmp_path):
    rollouts = write(tmp_path / "rollouts", [make_trajectory((math.nan,), seed=1), make_trajectory(seed=2)])
    at_limit = CONFIG.model_copy(update={"max_quarantined": 0.5})
    assert validate(at_limit, rollouts=rollouts, out=tmp_path / "out")["quarantined"] == 1


def test_nothing_collected_is_said(tmp_path):
    with pytest.raises(DataError, match="no trajectories were read"):
        validate(CONFIG, rollouts=write(tmp_path / "rollouts", []), out=tmp_path / "out")


def test_a_file_cut_short_is_named(tmp_path):
    rollouts = write(tmp_path / "rollouts", [make_trajectory()])
    steps = rollouts / "steps.parquet"
    steps.write_bytes(steps.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"steps\.parquet is damaged"):
        validate(CONFIG, rollouts=rollouts, out=tmp_path / "out")


def test_only_steps_of_nobody_is_still_no_trajectory(tmp_path):
    (tmp_path / "rollouts").mkdir()
    write_tables(tmp_path / "rollouts", [], step_rows(make_trajectory()))
    with pytest.raises(DataError, match="no trajectories were read"):
        validate(CONFIG, rollouts=tmp_path / "rollouts", out=tmp_path / "out")


def test_the_written_tables_keep_their_schema(mixed):
    base, _, _ = mixed
    for name, schema in (("episodes.parquet", EPISODES), ("steps.parquet", STEPS)):
        for folder in (base / "validated", base / "validated" / "quarantine"):
            found = pq.read_schema(folder / name)
            assert found.names == schema.names
            assert found.metadata == schema.metadata
