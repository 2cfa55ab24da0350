import csv
import shutil
from collections import Counter

import pytest

from retroformer.environments.splits import seeds
from retroformer.errors import DataError, EnvironmentFault, PinMismatch
from retroformer.files import hash_directory, read_json
from retroformer.pins import policy_hash
from retroformer.policies.checkpoints import load
from retroformer.rollouts import workers
from retroformer.stages.evaluate import COLUMNS
from retroformer.storage import read_trajectories
from tiny_round import BOT, pin, run_evaluate, run_to_batches, run_train, tiny_config


def read(root):
    with (root / "data/evaluation/episodes.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file)), read_json(root / "data/evaluation/evaluation.json")


def of(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_what_was_played(made_challenger):
    rows, report = read(made_challenger)
    assert list(rows[0]) == list(COLUMNS)
    ways = Counter(tuple(row[key] for key in COLUMNS[:4]) for row in rows)
    n = report["looks"][-1]["n"]
    assert ways == {
        ("champion", "gate", "true", "sampled"): n,
        ("challenger", "gate", "true", "sampled"): n,
        ("challenger", "gate", "shuffled", "sampled"): 4,
        ("challenger", "gate", "other", "sampled"): 4,
        ("champion", "gate", "shuffled", "sampled"): 4,
        ("challenger", "gate", "true", "greedy"): 4,
        ("random", "gate", "true", "sampled"): 4,
        ("challenger", "final", "true", "sampled"): 4,
        ("challenger", "final", "true", "greedy"): 4,
        ("challenger", "transfer", "true", "sampled"): 2,
        ("challenger", "transfer", "shuffled", "sampled"): 2,
        ("champion", "transfer", "true", "sampled"): 2,
    }
    assert {row["task"] for row in of(rows, range="transfer")} == {"P6N3"}
    assert {row["task"] for row in of(rows, range="gate")} == {"P5N2", "GoToLocalS5N2"}
    assert {row["success"] for row in rows} <= {"0", "1"}
    assert report["errors"] == 0
    assert report["champion"] == BOT
    assert report["challenger"] == policy_hash("data/challenger", made_challenger)[:16]


def test_baselines_play_the_challengers_final_seeds_beside_the_champion_and_random(challenger):
    shutil.copytree(challenger / "data/challenger", challenger / "data/training/baselines/imitation")
    before, _ = read(challenger)
    run_evaluate(challenger, tiny_config())
    rows, _ = read(challenger)
    new = Counter(tuple(row[key] for key in COLUMNS[:4]) for row in rows if row not in before)
    assert new == {
        ("imitation", "final", "true", "sampled"): 4,
        ("imitation", "final", "true", "greedy"): 4,
        ("champion", "final", "true", "sampled"): 4,
        ("random", "final", "true", "sampled"): 4,
    }
    assert [row for row in rows if row in before] == before
    for decoding in ("sampled", "greedy"):
        ours, theirs = (
            [{**row, "policy": ""} for row in of(rows, policy=policy, range="final", decoding=decoding)]
            for policy in ("imitation", "challenger")
        )
        assert ours == theirs, "the same weights on the same seeds"


def test_champion_and_challenger_play_the_same_held_out_seeds(made_challenger):
    rows, report = read(made_challenger)
    alike = {"range": "gate", "mission": "true", "decoding": "sampled"}
    pairs = [
        [(row["task"], row["seed"]) for row in of(rows, policy=name, **alike)] for name in ("champion", "challenger")
    ]
    assert pairs[0] == pairs[1]
    n = report["looks"][-1]["n"]
    assert [int(seed) for _, seed in pairs[0]] == list(seeds("gate", run_seed=0, round_number=1, count=n))
    learned = {one.task.seed for one in read_trajectories(made_challenger / "data/batches")}
    assert not learned & {int(row["seed"]) for row in rows}
    assert not {row["seed"] for row in of(rows, range="gate")} & {row["seed"] for row in of(rows, range="final")}


def test_the_summary_is_the_mean_over_tasks(made_challenger):
    rows, report = read(made_challenger)
    way = {"policy": "challenger", "range": "gate", "mission": "true", "decoding": "sampled"}
    lines = {(line["family"], line["task"]): line for line in of(report["summary"], **way)}
    means = {}
    for task in ("P5N2", "GoToLocalS5N2"):
        own = [int(row["success"]) for row in of(rows, task=task, **way)]
        means[task] = sum(own) / len(own)
        (line,) = (line for (_, name), line in lines.items() if name == task)
        assert line["success"] == pytest.approx(means[task])
        assert 0 <= line["lower"] <= line["success"] <= line["upper"] <= 1
    assert lines[None, None]["success"] == pytest.approx(sum(means.values()) / 2)
    assert lines[None, None]["n"] == report["looks"][-1]["n"]


def test_the_difference_is_that_of_the_pairs(made_challenger):
    rows, report = read(made_challenger)
    last = report["looks"][-1]
    alike = {"range": "gate", "mission": "true", "decoding": "sampled"}
    per_task = []
    for task in ("P5N2", "GoToLocalS5N2"):
        ours, theirs = (
            [int(row["success"]) for row in of(rows, policy=name, task=task, **alike)]
            for name in ("champion", "challenger")
        )
        per_task.append(sum(b - a for a, b in zip(ours, theirs, strict=True)) / len(ours))
    assert last["difference"] == pytest.approx(sum(per_task) / 2)
    assert last["lower"] <= last["difference"] <= last["upper"]
    assert [look["n"] for look in report["looks"]] == [4, 8][: len(report["looks"])]


def test_samples_say_what_was_weighed_at_each_step(made_challenger):
    samples = read_json(made_challenger / "data/evaluation/samples/trajectories.json")
    assert len(samples) == 10
    assert Counter(one["mission"] for one in samples) == {"true": 8, "other": 2}
    for one in samples:
        for step in one["steps"]:
            assert step["action"] in step["probabilities"]
            assert sum(step["probabilities"].values()) == pytest.approx(1, abs=1e-3)


def test_a_challenger_that_is_the_champion_does_not_differ(challenger):
    for champion in ("data/policy", "data/challenger"):
        if champion == "data/policy":
            shutil.copytree(challenger / "data/challenger", challenger / "data/policy")
        pin(challenger, champion, closed=1)
        run_evaluate(challenger, tiny_config(evaluate__looks=1))
        rows, report = read(challenger)
        alike = {"mission": "true", "decoding": "sampled"}
        for name in ("gate", "transfer"):
            ours, theirs = (
                [{**row, "policy": ""} for row in of(rows, policy=policy, range=name, **alike)]
                for policy in ("champion", "challenger")
            )
            assert ours == theirs
            assert ours
        (look,) = report["looks"]
        assert look["difference"] == 0
        assert look["lower"] < 0 < look["upper"]


def test_the_same_inputs_give_the_same_episodes_however_many_advance_together(challenger):
    before = read(challenger)
    run_evaluate(challenger, tiny_config(collect__environments=3))
    assert read(challenger) == before


@pytest.mark.slow
def test_the_same_inputs_give_the_same_bytes_on_more_workers(challenger):
    before = hash_directory(challenger / "data/evaluation")
    run_evaluate(challenger, tiny_config(collect__workers=2))
    assert hash_directory(challenger / "data/evaluation") == before


def test_what_is_missing_or_edited_is_told_before_anything_is_played(challenger, monkeypatch):
    before = hash_directory(challenger / "data/evaluation")
    monkeypatch.setattr("retroformer.stages.evaluate.play_all", None)
    shutil.move(challenger / "data/challenger", challenger / "data/policy")
    with pytest.raises(DataError, match="data/challenger does not exist"):
        run_evaluate(challenger, tiny_config())
    pin(challenger, "data/policy", closed=1)
    (challenger / "data/policy/extra").write_text("x")
    with pytest.raises(PinMismatch, match="data/policy has hash"):
        run_evaluate(challenger, tiny_config())
    shutil.rmtree(challenger / "data/policy")
    with pytest.raises(DataError, match=r"data/policy, .* does not exist"):
        run_evaluate(challenger, tiny_config())
    assert hash_directory(challenger / "data/evaluation") == before


def test_a_held_out_level_that_does_not_exist_is_told_before_anything_is_played(challenger, monkeypatch):
    monkeypatch.setattr("retroformer.stages.evaluate.play_all", None)
    with pytest.raises(EnvironmentFault, match=r"babyai has no task 'P7N'; nearest: "):
        run_evaluate(challenger, tiny_config(tasks__held_out=["babyai:P7N"]))


def test_episodes_lost_to_the_infrastructure_have_no_success(challenger):
    tasks = {"tasks__train": ["babyai:P5N2", "chaos.One:exit"], "evaluate__looks": 1}
    kept = hash_directory(challenger / "data/evaluation")
    message = r"episodes ended in error, .* collect\.max_errors = 0\.05 of 4\d .*: Died: its process exited with code 3"
    with pytest.raises(EnvironmentFault, match=message):
        run_evaluate(challenger, tiny_config(**tasks))
    assert hash_directory(challenger / "data/evaluation") == kept
    run_evaluate(challenger, tiny_config(**tasks, collect__max_errors=1.0))
    rows, report = read(challenger)
    lost = of(rows, success="")
    assert lost
    assert {(row["task"], row["outcome"], int(row["seed"]) % 3, row["steps"]) for row in lost} == {
        ("exit", "error", 1, "1")
    }
    assert report["errors"] == len(lost)
    assert {line["task"] for line in report["summary"]} == {None, "P5N2", "exit", "P6N3"}
    before = hash_directory(challenger / "data/evaluation")
    dead = {"tasks__train": ["chaos.One:exit_in_reset"], "tasks__held_out": [], "evaluate__looks": 1}
    with pytest.raises(EnvironmentFault, match=r"environment package chaos\.One cannot be used: its process exited"):
        run_evaluate(challenger, tiny_config(**dead, collect__max_errors=1.0))
    assert hash_directory(challenger / "data/evaluation") == before


def test_a_killed_evaluation_goes_on_to_the_same_bytes(challenger, monkeypatch):
    before = hash_directory(challenger / "data/evaluation")
    played = []
    play_shard = workers.play_shard
    monkeypatch.setattr(workers, "play_shard", lambda *one: (played.append(one), play_shard(*one))[1])
    with monkeypatch.context() as patch:
        patch.setattr("retroformer.stages.evaluate.read_samples", None)
        with pytest.raises(TypeError):
            run_evaluate(challenger, tiny_config())
    once = len(played)
    run_evaluate(challenger, tiny_config())
    assert len(played) - once == 1, "the samples, which are not kept"
    assert hash_directory(challenger / "data/evaluation") == before
    assert not list((challenger / ".resume").glob("evaluate-*"))


def test_actions_of_several_words_and_plain_text_go_all_the_way(tmp_path):
    config = tiny_config(
        tasks__actions="words",
        tasks__text="plain",
        collect__episodes=12,
        train__updates=4,
        train__checkpoints=1,
        evaluate__looks=1,
    )
    pin(tmp_path)
    run_to_batches(tmp_path, config)
    played = read_trajectories(tmp_path / "data/batches")
    assert any(" " in step.action for one in played for step in one.steps)
    run_train(tmp_path, config)
    policy = load(tmp_path / "data/challenger")
    assert policy.collate(policy.windows(played[0])).branches
    run_evaluate(tmp_path, config)
    rows, report = read(tmp_path)
    assert report["errors"] == 0
    assert {row["success"] for row in of(rows, policy="challenger")} <= {"0", "1"}
