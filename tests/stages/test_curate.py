import pytest

from builders import make_error, make_trajectory
from retroformer.config import CurateConfig
from retroformer.curriculum.catalogue import read_catalogue
from retroformer.errors import ConfigError, DataError
from retroformer.files import hash_directory, read_json
from retroformer.pins import Pin, Pins, write_pins
from retroformer.stages.curate import curate
from retroformer.storage import read_trajectories, write_trajectories

CONFIG = CurateConfig(window=3, tiers=2, temperature=1, success_weight=0.6, return_weight=0.2, length_weight=0.2)
WON, LOST = (0.0, 1.0), (0.0, 0.0, 0.0)


def write(folder, trajectories):
    folder.mkdir(parents=True)
    write_trajectories(folder, trajectories)
    return folder


def run(base, config=CONFIG, closed=0):
    """Curate where `closed` rounds are closed."""
    write_pins(base / "champion.json", Pins(closed, Pin("scripted:random", ""), None))
    return curate(
        config,
        champion=base / "champion.json",
        validated=base / "validated",
        history=base / "history",
        out=base / "batches",
    )


@pytest.fixture
def base(tmp_path):
    """Two tasks, two won and two lost of each; one error; one episode of each kind kept for checkpoint choice."""
    played = [
        make_trajectory(rewards, name=name, seed=seed)
        for name in ("P5N2", "P6N3")
        for seed, rewards in enumerate((WON, WON, LOST, LOST))
    ]
    kept = [make_trajectory(rewards, seed=10 + n, split="checkpoint") for n, rewards in enumerate((WON, LOST))]
    write(tmp_path / "validated", [*played, *kept, make_error(seed=20)])
    return tmp_path


def test_the_catalogue_by_hand(base):
    assert run(base) == {"read": 11, "sampled": 8, "checkpoint": 2}
    rows = read_catalogue(base / "batches" / "catalogue.csv")
    assert len(rows) == 11
    assert rows["trajectory_id"].is_monotonic_increasing
    train = rows[rows["probability"] > 0]
    # Of four, two tie above: ranks 5/6 and 1/6 of return and of shortness.
    won, lost = 0.6 + 0.2 * 5 / 6 + 0.2 * 5 / 6, 0.2 / 6 + 0.2 / 6
    expected = {
        "success": (won, 1, 0.9 * won / (2 * won + 2 * lost) + 0.025),
        "failure": (lost, 2, 0.9 * lost / (2 * won + 2 * lost) + 0.025),
    }
    for _, row in train.iterrows():
        assert (row["quality"], row["tier"], row["probability"]) == pytest.approx(expected[row["outcome"]])
    assert train.groupby("task")["probability"].sum().tolist() == pytest.approx([1, 1])
    assert train.groupby(["task", "tier"]).size().tolist() == [2, 2, 2, 2]


def test_what_may_not_be_sampled_is_listed_and_only_what_is_learnable_is_kept(base):
    run(base)
    rows = read_catalogue(base / "batches" / "catalogue.csv").set_index("trajectory_id")
    error = rows.loc[make_error(seed=20).id]
    assert (error["quality"], error["tier"], error["probability"]) == (0, 0, 0)
    checkpoint = rows[rows["split"] == "checkpoint"]
    assert checkpoint["probability"].tolist() == [0, 0]
    assert sorted(checkpoint["quality"]) == pytest.approx([0, 1])
    kept = read_trajectories(base / "batches")
    assert {one.id for one in kept} == set(rows.index) - {make_error(seed=20).id}


def test_the_report_counts_everything(base):
    run(base)
    report = read_json(base / "batches" / "curate.json")
    assert report["outcomes"] == {"success": 5, "failure": 5, "error": 1}
    assert report["splits"] == {"train": 9, "checkpoint": 2}
    assert report["tiers"] == {"1": 4, "2": 4}
    assert report["tasks"] == {
        "P5N2": {"success": 2, "failure": 2},
        "P6N3": {"success": 3, "failure": 3, "error": 1},
    }
    assert (report["round"], report["rounds"], report["repeated"]) == (1, [1], 0)
    assert report["share_sampled"] == pytest.approx(8 / 11, abs=1e-6)


def test_the_same_input_gives_the_same_bytes(base):
    run(base)
    before = hash_directory(base / "batches")
    run(base)
    assert hash_directory(base / "batches") == before


def test_the_window_takes_the_newest_rounds_and_the_newest_of_an_id(tmp_path):
    def played(first):
        return [make_trajectory(WON, seed=first), make_trajectory(LOST, seed=first + 1)]

    for number in (1, 2, 3):
        write(tmp_path / "history" / f"round-{number:04d}" / "validated", played(10 * number))
    newer = make_trajectory((1.0,), seed=30)
    write(tmp_path / "validated", [*played(40), newer])
    # Left behind by a closing that was killed before the pins moved: round 4 is still open.
    write(tmp_path / "history" / "round-0004" / "validated", played(90))
    run(tmp_path, closed=3)
    rows = read_catalogue(tmp_path / "batches" / "catalogue.csv").set_index("trajectory_id")
    rounds = {make_trajectory(seed=seed).id: number for seed, number in ((20, 2), (21, 2), (30, 4), (31, 3))}
    assert {id: rows.loc[id, "round"] for id in rounds} == rounds
    assert len(rows) == 6
    assert newer in read_trajectories(tmp_path / "batches")
    report = read_json(tmp_path / "batches" / "curate.json")
    assert (report["round"], report["rounds"], report["repeated"]) == (4, [2, 3, 4], 1)


def test_a_window_of_one_leaves_history_alone(base):
    damaged = write(base / "history" / "round-0001" / "validated", [make_trajectory(seed=50)])
    (damaged / "steps.parquet").write_bytes(b"PAR1")
    run(base, CONFIG.model_copy(update={"window": 1}), closed=1)
    with pytest.raises(DataError, match=r"round-0001/validated/steps\.parquet is damaged"):
        run(base, closed=1)


def test_a_round_that_was_not_pulled_is_named(base):
    with pytest.raises(DataError, match=r"round-0001/validated does not exist.*dvc pull"):
        run(base, closed=1)


def test_nothing_to_learn_from_is_said_and_what_was_there_stays(base):
    run(base)
    before = hash_directory(base / "batches")
    for name in ("episodes.parquet", "steps.parquet"):
        (base / "validated" / name).unlink()
    kept = make_trajectory(seed=1, split="checkpoint")
    write_trajectories(base / "validated", [make_error(seed=0), kept])
    with pytest.raises(DataError, match=r"no trajectory of split train.*error 1, success 1.*collect again"):
        run(base)
    assert hash_directory(base / "batches") == before


def test_an_empty_folder_is_said(tmp_path):
    write(tmp_path / "validated", [])
    with pytest.raises(DataError, match=r"read 0: nothing"):
        run(tmp_path)
    with pytest.raises(DataError, match=r"validated does not exist; run validate"):
        run(tmp_path / "nowhere")


def test_weights_that_are_all_zero_are_refused(base):
    zero = {"success_weight": 0.0, "return_weight": 0.0, "length_weight": 0.0}
    with pytest.raises(ConfigError, match="all 0"):
        run(base, CONFIG.model_copy(update=zero))


def test_what_is_for_evaluation_alone_lies_apart(base):
    run(base)
    before = hash_directory(base / "batches")
    kept = [make_trajectory(WON, seed=30, split="evaluation"), make_error(seed=31, split="evaluation")]
    trajectories = [*read_trajectories(base / "validated"), *kept]
    write_trajectories(base / "validated", trajectories)
    assert run(base) == {"read": 13, "sampled": 8, "checkpoint": 2}
    batches = base / "batches"
    assert {one.id for one in read_trajectories(batches / "evaluation")} == {one.id for one in kept}
    assert not {one.id for one in read_trajectories(batches)} & {one.id for one in kept}
    rows = read_catalogue(batches / "catalogue.csv").set_index("trajectory_id").loc[[one.id for one in kept]]
    assert rows["split"].tolist() == ["evaluation"] * 2
    assert rows["probability"].tolist() == [0, 0]
    assert read_json(batches / "curate.json")["splits"] == {"train": 9, "checkpoint": 2, "evaluation": 2}

    write_trajectories(base / "validated", trajectories[:-2])
    run(base)
    assert hash_directory(batches) == before
