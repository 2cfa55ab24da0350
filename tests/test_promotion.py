from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

from project import run
from retroformer import promotion, rounds
from retroformer.errors import ConfigError, DataError, PinMismatch
from retroformer.files import read_json, write_json
from retroformer.pins import Pin, Pins, policy_hash, read_pins
from retroformer.tracking import aliases, mlflow_view, promotions
from retroformer.tracking.record import read_records
from test_rounds import kill, state
from three_rounds import PATHS, SITUATION, quick_dvc

BOT = "scripted:babyai-bot?noise=0.7"


def pins(root: Path) -> Pins:
    return read_pins(root / "data/champion.json")


def pinned(root: Path) -> tuple[str, str | None]:
    found = pins(root)
    return found.champion.policy, found.train_from and found.train_from.policy


def set_aliases(root: Path) -> dict[str, str]:
    return aliases.held_by(mlflow_view.client(root))


def agree(root: Path) -> None:
    found = pins(root)
    assert aliases.disagreements(root, found, read_records(root, found.closed_rounds)) == []


def test_the_gates_promotion_is_recorded(three: Path) -> None:
    assert pinned(three) == (PATHS[0], PATHS[2])
    (line,) = promotions.read(three)
    assert (line.action, line.before.policy, line.after.policy) == ("promote", BOT, PATHS[0])
    assert (line.by, line.reason, line.forced) == ("gate", "because 1", False)
    assert line.evidence["against"] == BOT
    assert [line.evidence[key] for key in ("round", "difference", "lower", "upper", "n")] == [1, 0.3, 0.2, 0.4, 400]
    assert (three / line.evidence["report"]).is_file()
    agree(three)


def test_a_promotion_moves_pin_alias_and_training_and_says_who_and_why(three: Path) -> None:
    made = promotion.promote("3", three, reason="the owner's choice", by="an owner")
    assert pinned(three) == (PATHS[2], PATHS[2])
    assert set_aliases(three) == {"champion": "3", "challenger": "3"}
    line = promotions.read(three)[-1]
    assert line == made.promotion
    assert (line.by, line.reason, line.before.policy) == ("an owner", "the owner's choice", PATHS[0])
    assert (line.evidence["verdict"], line.evidence["round"], line.evidence["against"]) == (
        "not_enough_evidence",
        3,
        PATHS[0],
    )
    store = mlflow_view.client(three)
    version = store.get_model_version(mlflow_view.NAME, "3")
    assert (version.tags["promoted_by"], version.tags["promoted_because"]) == ("an owner", "the owner's choice")
    assert store.get_registered_model(mlflow_view.NAME).tags["in_production"] == "models:/retroformer/3"
    agree(three)


def test_a_rollback_goes_back_step_by_step_to_the_agent_of_the_beginning(three: Path) -> None:
    before = pins(three)
    promotion.promote("challenger", three, reason="try it")
    promotion.rollback(three, by="drift check")
    assert pinned(three) == (PATHS[0], PATHS[0]), "what was rolled back is not trained on"
    assert set_aliases(three) == {"champion": "1", "challenger": "3"}
    agree(three)
    assert pins(three).start == before.champion, "the next round starts from it"
    promotion.rollback(three)
    assert pinned(three) == (BOT, None)
    assert set_aliases(three) == {"challenger": "3"}, "no version is in production"
    store = mlflow_view.client(three)
    assert store.get_registered_model(mlflow_view.NAME).tags["in_production"] == BOT
    assert pins(three).start is None, "it is no checkpoint: training starts afresh"
    agree(three)
    with pytest.raises(DataError, match=r"is the first champion .* there is nothing to roll back to"):
        promotion.rollback(three)
    lines = promotions.read(three)
    assert [(one.action, one.by) for one in lines[2:]] == [("rollback", "drift check"), ("rollback", "a test")]
    assert lines[2].reason == "rollback of version 3"
    promotion.promote("1", three, reason="it was not the policy's fault")
    promotion.rollback(three)
    assert pinned(three)[0] == BOT


def test_a_promotion_that_is_taken_back_leaves_the_pins_as_they_were(three: Path) -> None:
    before = (three / "data/champion.json").read_bytes()
    promotion.promote("3", three, reason="a mistake")
    promotion.rollback(three, train_from="3")
    assert (three / "data/champion.json").read_bytes() == before, "the open round's work stands"


def test_training_goes_on_where_it_is_told_to(three: Path) -> None:
    promotion.promote("1", three, reason="training too", train_from="1")
    assert pinned(three) == (PATHS[0], PATHS[0])
    promotion.promote("1", three, reason="again")
    promotion.promote("2", three, reason="whatever", force=True, train_from="3")
    assert pinned(three) == (PATHS[1], PATHS[2])
    assert [one.forced for one in promotions.read(three)] == [False, False, True]
    promotion.rollback(three)
    assert pinned(three) == (PATHS[0], PATHS[0]), "a line that moved training alone is no champion to go back to"


def test_promoting_what_is_in_production_mends_the_registry_alone(three: Path) -> None:
    before, lines = (three / "data/champion.json").read_bytes(), promotions.read(three)
    mlflow_view.client(three).set_registered_model_alias(mlflow_view.NAME, "champion", "2")
    (told,) = aliases.disagreements(three, pins(three), read_records(three, 3))
    assert "the alias champion is version 2, data/champion.json says version 1" in told
    made = promotion.promote("1", three, reason="anew")
    assert made.promotion is None
    assert (three / "data/champion.json").read_bytes() == before
    assert promotions.read(three) == lines
    agree(three)


@pytest.mark.parametrize(
    ("act", "error", "said"),
    [
        (lambda root: promotion.promote("9", root, reason="x"), DataError, "'9' is not a version; known: champion, ch"),
        (
            lambda root: promotion.promote("2", root, reason="x"),
            DataError,
            r"version 2 was rejected in round 2: because 2 --force promotes it all the same",
        ),
        (
            lambda root: promotion.rollback(root, expected="3"),
            DataError,
            "version 3 is not in production, version 1 is",
        ),
        (lambda root: promotion.rollback(root, train_from="9"), DataError, "'9' is not a version"),
    ],
)
def test_what_cannot_be_moves_nothing(
    three: Path, act: Callable[[Path], Any], error: type[Exception], said: str
) -> None:
    before = (three / "data/champion.json").read_bytes()
    with pytest.raises(error, match=said):
        act(three)
    assert (three / "data/champion.json").read_bytes() == before
    assert len(promotions.read(three)) == 1


def test_what_is_not_here_or_not_what_it_was_is_refused(three: Path) -> None:
    checkpoint = three / PATHS[2]
    (checkpoint / "config.json").write_text("{}")
    with pytest.raises(PinMismatch, match=rf"{PATHS[2]} has hash .*, data/history/round-0003/round.json pins"):
        promotion.promote("3", three, reason="x")
    checkpoint.rename(checkpoint.with_name("away"))
    with pytest.raises(DataError, match=rf"{PATHS[2]}, which .*/round.json pins, does not exist; try `dvc pull`"):
        promotion.promote("3", three, reason="x")
    value = read_json(three / "data/champion.json")
    write_json(three / "data/champion.json", value | {"champion": {**value["champion"], "policy": "scripted:random"}})
    with pytest.raises(PinMismatch, match="the policy or the pin was edited"):
        promotion.promote("1", three, reason="x")
    # An edited pin must not stand in the way of going back to what was recorded.
    promotion.rollback(three)
    assert pinned(three)[0] == PATHS[0]


def test_a_champion_that_was_pinned_by_hand_can_be_gone_back_from_and_to(three: Path) -> None:
    value = read_json(three / "data/champion.json")
    mine = {"policy": "scripted:random", "hash": policy_hash("scripted:random"), "uri": ""}
    write_json(three / "data/champion.json", value | {"champion": mine})
    promotion.promote("3", three, reason="better than random")
    promotion.rollback(three)
    assert pinned(three) == ("scripted:random", None)
    promotion.rollback(three)
    assert pinned(three)[0] == PATHS[0]


def test_before_the_first_round_there_is_no_version(project: Path) -> None:
    with pytest.raises(DataError, match="no round is closed yet, so there is no version"):
        promotion.promote("1", project, reason="x")
    with pytest.raises(DataError, match="there is nothing to roll back to"):
        promotion.rollback(project)


def test_someone_must_have_decided(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="that is what a closing signs with"):
        promotion.rollback(three, by="gate")
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    run(three, "git", "config", "--unset", "user.name")
    with pytest.raises(ConfigError, match=r"who decides this\? git has no user.name here; say --by NAME"):
        promotion.rollback(three)


MOVES = {
    "promote": lambda root: promotion.promote("3", root, reason="x"),
    "rollback": lambda root: promotion.rollback(root, expected="1"),
}
STEPS = [(aliases, "wanted"), (aliases, "reconcile"), (promotions, "append"), (rounds, "write_pins")]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("module", "name"), STEPS, ids=[name for _, name in STEPS])
@pytest.mark.parametrize("move", MOVES)
def test_killed_anywhere_and_repeated_it_ends_in_the_same_state(
    three: Path, monkeypatch: pytest.MonkeyPatch, move: str, module: Any, name: str, after: bool, undisturbed: Any
) -> None:
    before = pins(three)
    with monkeypatch.context() as patch:
        kill(patch, module, name, after)
        with pytest.raises(KeyboardInterrupt):
            MOVES[move](three)
    done = (name, after) == ("write_pins", True)
    assert (pins(three) != before) == done, "the pins move last"
    if done and move == "rollback":
        with pytest.raises(DataError, match="version 1 is not in production"):
            MOVES[move](three)
    else:
        MOVES[move](three)
    assert state(three) == undisturbed(move)
    agree(three)


@pytest.fixture(scope="module")
def undisturbed(made_three_rounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    import shutil

    states = {}
    for move, act in MOVES.items():
        root = Path(shutil.copytree(made_three_rounds, tmp_path_factory.mktemp(move) / "project", symlinks=True))
        act(root)
        states[move] = state(root)
    return states.__getitem__


def test_a_killed_promotion_that_is_not_repeated_is_as_if_it_had_not_been(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill(patch, rounds, "write_pins", after=False)
        with pytest.raises(KeyboardInterrupt):
            promotion.promote("3", three, reason="x")
    (told,) = aliases.disagreements(three, pins(three), read_records(three, 3))
    assert "the alias champion is version 3, data/champion.json says version 1" in told
    rounds.close(three)  # of the round that is closed: it changes nothing but what disagrees
    agree(three)
    promotion.rollback(three)
    assert pinned(three)[0] == BOT
    agree(three)


def test_a_registry_that_is_locked_is_told_and_nothing_moves(three: Path) -> None:
    before = (three / "data/champion.json").read_bytes()
    set_aliases(three)
    with sqlite3.connect(three / mlflow_view.DATABASE) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DataError, match=r"the registry, mlruns/mlflow.db, did not answer: database is locked"):
            promotion.promote("3", three, reason="x")
        other.rollback()
    assert (three / "data/champion.json").read_bytes() == before
    assert len(promotions.read(three)) == 1
    promotion.promote("3", three, reason="x")
    agree(three)


RACE = """
import sys, time
from pathlib import Path
from retroformer import cli, promotion

version, other = sys.argv[1:]
read = promotion.read_pins

def together(path):
    # Both have seen the same pins before either goes on: the worst moment.
    promotion.read_pins = read
    found = read(path)
    Path("ready-" + version).touch()
    while not Path("ready-" + other).exists():
        time.sleep(0.001)
    return found

promotion.read_pins = together
sys.exit(cli.main(["models", "promote", version, "--force", "--reason", "race", "--by", "racer " + version]))
"""


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(three: Path) -> None:
    racers = {
        version: subprocess.Popen([sys.executable, "-c", RACE, version, other], stderr=subprocess.PIPE, text=True)
        for version, other in (("2", "3"), ("3", "2"))
    }
    told = {version: racer.communicate(timeout=300)[1] for version, racer in racers.items()}
    codes = {version: racer.returncode for version, racer in racers.items()}
    assert sorted(codes.values()) == [0, 2], told
    winner, loser = sorted(codes, key=codes.__getitem__)
    assert told[loser].startswith("retroformer: error: another ")
    assert told[loser].count("\n") == 1
    assert pinned(three) == (PATHS[int(winner) - 1],) * 2
    assert set_aliases(three)["champion"] == winner
    assert [one.by for one in promotions.read(three)] == ["gate", f"racer {winner}"]
    agree(three)


def test_another_command_that_moves_the_pins_is_waited_for_by_nobody(three: Path) -> None:
    with filelock.FileLock(three / ".resume/close.lock"):
        for act in (*MOVES.values(), promotion.repair):
            with pytest.raises(DataError, match="another closing, promotion or rollback is under way here"):
                act(three)


def test_a_clone_makes_the_registry_again_with_the_same_numbers(three: Path) -> None:
    """Also where a version of a round that was never closed has used a number up."""
    database = three / mlflow_view.DATABASE
    mlflow_view.client(three).delete_registered_model(mlflow_view.NAME)
    for number, version in ((2, "3"), (3, "4")):
        path = three / f"data/history/round-000{number}/round.json"
        write_json(path, {**read_json(path), "model_version": version})
    told = aliases.disagreements(three, pins(three), read_records(three, 3))
    assert "version 3 is not in the registry; `retroformer models repair` sets the registry from the files" in told
    away = database.rename(database.with_name("away"))
    (told,) = aliases.disagreements(three, pins(three), read_records(three, 3))
    assert "mlruns/mlflow.db, is not here; `retroformer models repair`" in told
    assert not database.exists()
    away.rename(database)
    assert promotion.repair(three) == {"champion": "1", "challenger": "4"}
    store = mlflow_view.client(three)
    assert sorted(str(one.version) for one in mlflow_view.versions(store)) == ["1", "3", "4"]
    agree(three)
    assert promotion.repair(three) == {}


def test_a_commit_holds_the_move_alone(three: Path) -> None:
    (three / "other.txt").write_text("mine")
    run(three, "git", "add", "other.txt")
    promotion.promote("3", three, reason="x", commit=True)
    assert run(three, "git", "log", "--format=%s").strip() == "Promote version 3"
    assert "data/promotions.jsonl" in run(three, "git", "show", "--name-only", "--format=", "HEAD")
    promotion.rollback(three, commit=True)
    assert run(three, "git", "log", "--format=%s", "-1").strip() == "Roll back to version 1"
    assert run(three, "git", "show", "--name-only", "--format=", "HEAD").split() == [
        "data/champion.json",
        "data/promotions.jsonl",
    ]
    assert run(three, "git", "diff", "--cached", "--name-only").strip() == "other.txt"


def test_a_round_that_was_judged_against_another_champion_is_not_closed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = pins(project)
    before = Pins(0, Pin("scripted:random", policy_hash("scripted:random")), None)
    promotions.append(project, promotions.decision("promote", before, now, "me", "better than random", {}))
    promotion.rollback(project, reason="the users complain")
    with pytest.raises(DataError, match=r"collect, curate, train, evaluate: something changed since the verdict"):
        rounds.close(project)
    assert pins(project).closed_rounds == 0
    monkeypatch.setattr(rounds, "dvc", quick_dvc)  # as after `dvc repro`, which runs the round again
    rounds.close(project)
    (record,) = read_records(project, 1)
    assert record["champion"]["policy"] == "scripted:random", "the next round starts from what was rolled back to"
    promotion.rollback(project)
    assert pinned(project) == ("scripted:random", None)


def probabilities(root: Path, path: str) -> list[float]:
    """What the agent that acts step by step says: other code than that which serves."""
    from retroformer.policies.agent import Decision
    from retroformer.policies.checkpoints import load

    agent = load(root / path).agent(1)
    agent.act([Decision(0, 0, "go to the ball", "a wall", ("left",), 0.0)])
    (choice,) = agent.act([Decision(0, 1, "go to the ball", "a ball", ("left", "right"), 0.0)])
    return list(choice.probabilities)


def test_the_alias_loads_what_is_in_production(three: Path) -> None:
    mlflow_view.client(three)
    import mlflow

    def loaded() -> dict[str, Any]:
        (answer,) = mlflow.pyfunc.load_model("models:/retroformer@champion").predict([SITUATION])
        return answer

    expected = {path: probabilities(three, path) for path in (PATHS[0], PATHS[2])}
    assert expected[PATHS[0]] != pytest.approx(expected[PATHS[2]], rel=1e-2)
    first = loaded()
    promotion.promote("3", three, reason="x")
    second = loaded()
    promotion.rollback(three)
    assert loaded() == first
    for answer, path in ((first, PATHS[0]), (second, PATHS[2])):
        assert list(answer["probabilities"].values()) == pytest.approx(expected[path], rel=1e-4)
        assert answer["action"] == max(answer["probabilities"], key=answer["probabilities"].get)
