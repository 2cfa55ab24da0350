import shutil
from collections import Counter
from dataclasses import replace

import pytest
from joblib.externals.loky import get_reusable_executor

from builders import make_error, make_trajectory
from retroformer.errors import ConfigError, ContractBroken, DataError, EnvironmentFault, PinMismatch
from retroformer.files import hash_directory, read_json
from retroformer.pins import read_pins, write_pins
from retroformer.policies.scripted import load_scripted
from retroformer.stages.collect import collect, describe, episodes_of
from retroformer.storage import read_trajectories
from retroformer.tombstones import write_tombstones
from retroformer.types import Outcome
from tiny_logs import REFUND, write_lines
from tiny_round import BOT, pin, run_collect, tiny_config

MINE = """
class Mine:
    family = "mine"
    def reset(self, *, seed, options=None):
        return "more", {"task": f"go {seed}", "admissible_actions": ("a", "b")}
    def step(self, action):
        return "over", float(action == "a"), True, False, {"success": action == "a"}
    def close(self):
        pass
"""


def test_what_was_forgotten_is_not_recorded_again(tmp_path, made_batches):
    played = read_trajectories(made_batches / "data/rollouts")
    group = {"ids": {played[3].id: ""}, "rounds": [1], "trained": [], "checkpoint": [], "judged": []}
    graves = tmp_path / "tombstones.jsonl"
    write_tombstones(graves, [{"trajectories": [group]}])
    config, data = tiny_config(), made_batches / "data"
    paths = {"champion": data / "champion.json", "logs": data / "logs", "tombstones": graves, "out": tmp_path / "out"}
    collect(config.collect, config.tasks, config.seed, **paths)
    assert read_trajectories(tmp_path / "out") == played[:3] + played[4:]
    report = read_json(tmp_path / "out/collect.json")
    assert (report["episodes"], report["forgotten"]) == (23, 1)


def test_what_was_played_is_recorded(made_batches):
    played = read_trajectories(made_batches / "data/rollouts")
    assert len(played) == 24
    assert Counter(one.task.split for one in played) == {"history": 18, "checkpoint": 6}
    assert Counter(one.task.name for one in played) == {"P5N2": 12, "GoToLocalS5N2": 12}
    assert len({one.task.seed for one in played}) == 24
    assert {one.policy for one in played} == {BOT}
    assert all(step.logprob is not None and step.logprob <= 0 for one in played for step in one.steps)
    assert all(one.learnable and one.steps for one in played)
    report = read_json(made_batches / "data/rollouts/collect.json")
    assert (report["round"], report["policy"], report["episodes"]) == (1, BOT, 24)
    assert report["steps"] == sum(len(one.steps) for one in played)
    for name, task in report["tasks"].items():
        own = [one.outcome is Outcome.SUCCESS for one in played if one.task.name == name]
        assert (task["success"], task["n"]) == (sum(own) / 12, 12)


def test_the_same_inputs_give_the_same_bytes(batches):
    before = hash_directory(batches / "data/rollouts")
    run_collect(batches, tiny_config(collect__environments=3))
    assert hash_directory(batches / "data/rollouts") == before
    run_collect(batches, tiny_config(seed=1))
    assert hash_directory(batches / "data/rollouts") != before


def test_rounds_and_splits_have_seeds_of_their_own():
    config = tiny_config()
    plans = [episodes_of(config.collect, config.tasks, config.seed, number) for number in (1, 2)]
    assert [Counter(one.split for one in plan) for plan in plans] == [
        {"history": 18, "checkpoint": 6},
        {"train": 18, "checkpoint": 6},
    ]
    assert len({one.seed for plan in plans for one in plan}) == 48


def test_a_level_that_does_not_exist_names_the_nearest(tmp_path):
    pin(tmp_path)
    with pytest.raises(EnvironmentFault, match=r"babyai has no task 'P5N'; nearest: .*P5N2"):
        run_collect(tmp_path, tiny_config(tasks__train=["babyai:P5N"]))
    with pytest.raises(EnvironmentFault, match="no environment package 'babyia'; nearest: babyai"):
        run_collect(tmp_path, tiny_config(tasks__train=["babyia:P5N2"]))
    with pytest.raises(EnvironmentFault, match=r"babyai has no task 'P7N'; nearest: "):
        run_collect(tmp_path, tiny_config(tasks__held_out=["babyai:P7N"]))
    assert not (tmp_path / "data/rollouts").exists()


def test_what_is_no_output_is_refused_before_anything_is_played(tmp_path, monkeypatch):
    monkeypatch.setattr("retroformer.stages.collect.play_all", None)
    pin(tmp_path)
    (tmp_path / "data/rollouts").mkdir()
    (tmp_path / "data/rollouts/thesis.tex").touch()
    with pytest.raises(DataError, match=r"data/rollouts holds thesis\.tex and is no output"):
        run_collect(tmp_path, tiny_config())


def test_an_edited_or_missing_champion_is_refused_and_earlier_results_stay(batches):
    before = hash_directory(batches / "data/rollouts")
    path = batches / "data/champion.json"
    pins = read_pins(path)
    for champion, error, message in (
        (replace(pins.champion, hash="0" * 64), PinMismatch, "pins 0000000000000000"),
        (replace(pins.champion, policy="data/policy"), DataError, r"data/policy, .* does not exist; try `dvc pull`"),
    ):
        write_pins(path, replace(pins, champion=champion))
        with pytest.raises(error, match=message):
            run_collect(batches, tiny_config())
    path.unlink()
    with pytest.raises(DataError, match=r"champion\.json does not exist"):
        run_collect(batches, tiny_config())
    assert hash_directory(batches / "data/rollouts") == before


def test_too_many_errors_stop_the_stage_and_leave_what_was(batches):
    before = hash_directory(batches / "data/rollouts")
    broken = {"tasks__train": ["chaos.One:some_seeds"], "collect__retries": 0}
    message = r"of 24 episodes .* collect.max_errors = 0\.05 of 24 .* FileNotFoundError: no level \d+"
    with pytest.raises(EnvironmentFault, match=message):
        run_collect(batches, tiny_config(**broken))
    assert hash_directory(batches / "data/rollouts") == before
    run_collect(batches, tiny_config(**broken, collect__max_errors=1.0))
    played = read_trajectories(batches / "data/rollouts")
    assert {one.outcome: one.task.seed % 3 == 1 for one in played} == {Outcome.ERROR: True, Outcome.SUCCESS: False}
    report = read_json(batches / "data/rollouts/collect.json")
    assert report["errors"] == {"FileNotFoundError": report["outcomes"]["error"]}
    assert (report["success"], report["retries"], report["replaced"]) == (1.0, 0, {})
    run_collect(batches, tiny_config(**broken | {"collect__retries": 1}, collect__max_errors=1.0))
    again = read_json(batches / "data/rollouts/collect.json")
    assert (again["episodes"], again["retries"]) == (24, report["outcomes"]["error"])
    assert len(read_trajectories(batches / "data/rollouts")) == 24 + again["retries"]


def test_an_environment_that_cannot_even_be_made_is_told_before_anything_is_played(tmp_path, monkeypatch):
    monkeypatch.setattr("retroformer.stages.collect.play_all", None)
    monkeypatch.setattr("retroformer.rollouts.trial.START", 4.0)
    pin(tmp_path, "scripted:random")
    with pytest.raises(
        EnvironmentFault,
        match=r"environment package chaos\.One does not answer within 4\.5 s, in __init__ at chaos\.py",
    ):
        run_collect(tmp_path, tiny_config(tasks__train=["chaos.One:hang_in_make"], collect__max_step_seconds=0.5))


def test_a_killed_collection_goes_on_where_what_it_depends_on_is_the_same(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    get_reusable_executor().shutdown()  # workers of earlier tests would not know of it
    pin(tmp_path, "scripted:random")

    def stopped(config):
        """The folder that a collection leaves that is stopped when all is played."""
        with monkeypatch.context() as patch:
            patch.setattr("retroformer.stages.collect.merge", None)
            with pytest.raises(TypeError):
                run_collect(tmp_path, config)
        (folder,) = (tmp_path / ".resume").iterdir()
        shutil.rmtree(folder)
        return folder.name

    mine = {"tasks__train": ["mine.Mine:default"], "tasks__held_out": [], "collect__episodes": 8}
    first = stopped(tiny_config(**mine))
    assert stopped(tiny_config(**mine, collect__workers=3, collect__max_errors=0.5)) == first
    assert stopped(tiny_config(**mine, collect__temperature=0.5)) != first
    (tmp_path / "mine.py").write_text(MINE.replace("more", "less"))
    assert stopped(tiny_config(**mine)) != first


def test_success_counts_tasks_alike_and_only_what_ended():
    played = [
        *(make_trajectory((reward,), seed=n) for n, reward in enumerate((1.0, 1.0, 1.0, 0.0))),
        make_trajectory((0.0,), name="P5N2"),
        make_error(name="P5N2", seed=1),
        make_error(name="P7N3"),
    ]
    report = describe(played, 3, "p")
    assert report["success"] == (0.75 + 0.0) / 2
    assert report["outcomes"] == {"error": 2, "failure": 2, "success": 3}
    assert report["tasks"]["P5N2"] == {"episodes": 2, "family": "strict", "success": 0.0, "n": 1}
    assert report["tasks"]["P7N3"]["success"] is None
    with pytest.raises(DataError, match="no episode was played"):
        describe([], 1, "p")


def test_the_pinned_candidate_collects_where_asked(challenger):
    (challenger / "data/challenger").rename(challenger / "data/policy")
    pin(challenger, BOT, train_from="data/policy", closed=1)
    run_collect(challenger, tiny_config(collect__policy="train_from", collect__episodes=4, collect__temperature=0.5))
    played = read_trajectories(challenger / "data/rollouts")
    assert {one.policy for one in played} == {hash_directory(challenger / "data/policy")[:16]}
    assert {one.temperature for one in played} == {0.5}
    assert {one.task.split for one in played} == {"train", "checkpoint"}
    run_collect(challenger, tiny_config(collect__episodes=4))
    assert {one.policy for one in read_trajectories(challenger / "data/rollouts")} == {load_scripted(BOT).version}


def test_logs_are_imported_where_asked(tmp_path):
    pin(tmp_path)
    logs = tmp_path / "data/logs"
    logs.mkdir()
    write_lines(logs / "a.jsonl", [REFUND, {**REFUND, "id": "r2", "reward": 0.0}, {"messages": 0}])
    (logs / "README.md").write_text("no log")
    asked = {"collect__source": "import", "collect__max_errors": 0.5, "collect__redact": ["email"]}
    result = run_collect(tmp_path, tiny_config(**asked))
    assert result == {"read": 3, "accepted": 2, "quarantined": 1, "episodes": 2, "steps": 4, "success": 0.5}
    report = read_json(tmp_path / "data/rollouts/collect.json")
    assert (report["round"], report["source"], report["reasons"]) == (1, "import", {"not_this_format": 1})
    before = hash_directory(tmp_path / "data/rollouts")
    run_collect(tmp_path, tiny_config(**asked))
    assert hash_directory(tmp_path / "data/rollouts") == before, "imported afresh, not added to"
    with pytest.raises(ContractBroken, match=r"1 of 3 records could not be imported, more than the share 0\.05"):
        run_collect(tmp_path, tiny_config(collect__source="import"))
    run_collect(tmp_path, tiny_config(**asked, collect__outcome="success:solved"))
    assert {one.outcome for one in read_trajectories(tmp_path / "data/rollouts")} == {Outcome.UNKNOWN}
    with pytest.raises(ConfigError, match="outcome 'solved' is none of reward:FIELD"):
        run_collect(tmp_path, tiny_config(**asked, collect__outcome="solved"))
    believed = {"collect__max_errors": 1.0, "collect__reward_range": [-1, 0.5]}
    run_collect(tmp_path, tiny_config(**asked | believed))
    report = read_json(tmp_path / "data/rollouts/collect.json")
    assert report["reasons"] == {"not_this_format": 1, "reward_out_of_range": 1}
    for wrong in ([1], [1, 0], [0, 1, 2]):
        with pytest.raises(ConfigError, match=r"collect.reward_range.* expected \[LOW, HIGH\] or \[\]"):
            tiny_config(collect__reward_range=wrong)
