import csv
import os
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from builders import make_trajectory
from retroformer.config import PolicyConfig
from retroformer.curriculum.catalogue import COLUMNS, read_catalogue, write_catalogue
from retroformer.errors import ConfigError, DataError, PinMismatch, PolicyError, TrainingStopped
from retroformer.files import hash_directory, read_json
from retroformer.pins import policy_hash
from retroformer.policies.checkpoints import build, load
from retroformer.policies.layout import Layout
from retroformer.stages.train import train_baseline, words_of
from retroformer.storage import read_trajectories, write_trajectories
from retroformer.training.beside import counted
from retroformer.training.trainer import Trainer
from retroformer.types import Step
from tiny_round import BOT, pin, run_train, tiny_config

BASELINES = ["imitation", "imitation_of_successes"]


def rows(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_training_leaves(made_challenger):
    data = made_challenger / "data"
    report = read_json(data / "training/train.json")
    assert report["updates"] == 12
    assert report["start"] == "fresh"
    assert (report["trajectories"], report["objective"], report["round"]) == (24, "topr", 1)
    assert report["learning_rate"] == tiny_config().train.learning_rate
    curve = rows(data / "training/curve.csv")
    assert [int(row["update"]) for row in curve] == list(range(1, 13))
    assert [row["update"] for row in curve if row["score"]] == ["6", "12"]
    wanted = (
        "loss policy_loss value_loss observation_loss entropy kl ess clipped grad_norm agreement kl_reference "
        "learning_rate tiers score"
    )
    assert list(curve[0]) == ["update", *wanted.split()]
    assert all(float(row["observation_loss"]) > 0 for row in curve)
    schedule = rows(data / "training/schedule.csv")
    assert list(schedule[0]) == ["update", "tiers_admitted", "signal"]
    assert (data / "challenger/value_head.safetensors").is_file()
    policy = load(data / "challenger")
    assert report["parameters"] == sum(parameter.numel() for parameter in policy.model.parameters())
    played = read_trajectories(data / "batches")
    assert report["steps"] == sum(len(one.steps) for one in played)
    assert report["tokens"] == sum(len(window.tokens) for one in played for window in policy.windows(one))
    assert list((made_challenger / ".resume").iterdir()) == []


def test_the_built_policy_knows_every_word_of_its_tasks(made_challenger):
    policy = load(made_challenger / "data/challenger")
    played = read_trajectories(made_challenger / "data/batches")
    said = {word for one in played for step in one.steps for word in step.observation.split()}
    words, ended, phrases = words_of(played)
    assert said <= set(words)
    assert not ended
    assert not phrases
    unknown = policy.tokenizer.unk_token_id
    assert not any(unknown in window.tokens for one in played for window in policy.windows(one))


def test_environments_that_list_no_words_add_those_of_their_history_to_what_others_list():
    told = {"description": "pick red_ball", "name": "P6N3"}
    known, *_ = words_of([make_trajectory(**told)])
    alone, *_ = words_of([make_trajectory(environment="nowhere.Zoo", name="x", description="feed it")])
    both, *_ = words_of(
        [make_trajectory(**told), make_trajectory(environment="toy_text", name="Taxi", description="feed it")]
    )
    assert {"pick", "red_ball", "green_door_open@f1l2", "left"} <= set(known)  # compact text, that is
    assert alone == ["feed", "forward", "it", "left", "o0", "o1", "o2", "right"]
    assert {*known, *alone, "passenger@taxi"} <= set(both)


@pytest.mark.parametrize("longer", ["take book from shelf", "book take"])
def test_actions_have_an_end_where_one_goes_on_from_another(longer):
    steps = (Step("a book", "take book", 1.0, admissible_actions=("take book", longer), logprob=-1.0),)
    made = make_trajectory((1.0,), environment="nowhere.Zoo", steps=steps)
    words, ended, phrases = words_of([made])
    assert phrases
    assert ended == (longer != "book take")
    config = PolicyConfig(model="", width=8, layers=1, heads=2)
    policy = build(config, words, seed=0, layout=Layout.words(ended=ended))
    [window] = policy.windows(made)
    scores = policy.score(policy.collate([window]))
    assert scores[0, 0].exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_the_same_inputs_give_the_same_bytes_also_over_a_kill(made_challenger, batches, monkeypatch):
    update = Trainer.update

    def killed(self):
        if self.done == 7:
            raise KeyboardInterrupt
        update(self)

    monkeypatch.setattr(Trainer, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        run_train(batches, tiny_config())
    assert not (batches / "data/challenger").exists()
    assert len(list((batches / ".resume").iterdir())) == 1
    monkeypatch.setattr(Trainer, "update", update)
    run_train(batches, tiny_config())
    for name in ("challenger", "training"):
        assert hash_directory(batches / "data" / name) == hash_directory(made_challenger / "data" / name)


def test_baselines_are_what_their_objective_gives_and_leave_the_challenger_as_it_is(made_challenger, batches):
    alone = {}
    for name in BASELINES:
        config = tiny_config(train__objective=name, train__curriculum=name != "imitation")
        run_train(batches, config)
        alone[name] = load_file(batches / "data/challenger/model.safetensors")
    for name in ("challenger", "training"):
        shutil.rmtree(batches / "data" / name)

    config = tiny_config(train__baselines=BASELINES)
    run_train(batches, config)
    for name in BASELINES:
        policy = load(batches / "data/training/baselines" / name)
        for key, tensor in load_file(batches / "data/training/baselines" / name / "model.safetensors").items():
            torch.testing.assert_close(tensor, alone[name][key], atol=0, rtol=0)
        assert policy.layout == load(batches / "data/challenger").layout
    assert hash_directory(batches / "data/challenger") == hash_directory(made_challenger / "data/challenger")
    report = read_json(batches / "data/training/train.json")["baselines"]
    assert {name: (one["updates"], one["stopped"]) for name, one in report.items()} == dict.fromkeys(
        BASELINES, (12, None)
    )
    assert list((batches / ".resume").iterdir()) == []


def test_a_baseline_that_was_killed_goes_on_and_a_finished_one_is_read(batches, tmp_path, monkeypatch):
    config = tiny_config()
    data = batches / "data"
    work = partial(train_baseline, config.train, config.policy, config.seed, data / "batches", data / "champion.json")
    report = work(tmp_path / "whole/imitation_of_successes", os.getppid())
    update = Trainer.update

    def killed(self):
        if self.done == 7:
            raise KeyboardInterrupt
        update(self)

    monkeypatch.setattr(Trainer, "update", killed)
    again = tmp_path / "again/imitation_of_successes"
    with pytest.raises(KeyboardInterrupt):
        work(again, os.getppid())
    monkeypatch.setattr(Trainer, "update", update)
    assert work(again, os.getppid()) == report
    assert hash_directory(again / "policy") == hash_directory(tmp_path / "whole/imitation_of_successes/policy")
    monkeypatch.setattr(Trainer, "update", None)
    assert work(again, os.getppid()) == report
    assert (again / "updates").stat().st_size == config.train.updates


def test_a_baseline_that_a_threshold_stopped_leaves_its_reason_and_no_policy(batches, tmp_path):
    config = tiny_config(train__max_kl=1e-9)
    folder = tmp_path / "imitation"
    sections = (config.train, config.policy, config.seed)
    for _ in range(2):  # the second time it is read, not trained
        report = train_baseline(
            *sections, batches / "data/batches", batches / "data/champion.json", folder, os.getppid()
        )
        assert report["chosen_update"] is None
        assert "KL to the behaviour is" in report["stopped"]
        assert not (folder / "policy").exists()
    assert (folder / "updates").stat().st_size == config.train.updates


def test_a_worker_leaves_when_its_parent_is_gone(tmp_path):
    with counted(tmp_path, os.getppid()) as advance:
        advance(3, "")
    assert (tmp_path / "updates").stat().st_size == 3
    with counted(tmp_path, os.getpid()) as advance, pytest.raises(SystemExit):
        advance(1, "")


def test_training_goes_on_from_the_candidate_or_the_champion(challenger):
    shutil.move(challenger / "data/challenger", challenger / "data/policy")
    config = tiny_config(
        train__baselines=BASELINES,
        train__updates=2,
        train__checkpoints=1,
        train__learning_rate=1e-9,
    )
    before = load(challenger / "data/policy")
    for champion, train_from in ((BOT, "data/policy"), ("data/policy", None)):
        pin(challenger, champion, train_from, closed=1)
        run_train(challenger, config)
        report = read_json(challenger / "data/training/train.json")
        assert (report["start"], report["round"], report["learning_rate"]) == ("data/policy", 2, 1e-9)
        assert (report["baselines"], (challenger / "data/training/baselines").exists()) == ({}, False)
        after = load(challenger / "data/challenger")
        for ours, theirs in zip(after.model.parameters(), before.model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "other"), [("width", 32), ("layers", 2), ("heads", 4)])
def test_a_policy_that_goes_on_keeps_its_size(challenger, name, other):
    shutil.move(challenger / "data/challenger", challenger / "data/policy")
    pin(challenger, BOT, "data/policy", closed=1)
    known = getattr(tiny_config().policy, name)
    assert known != other
    with pytest.raises(ConfigError, match=rf"policy\.{name} is {other}, data/policy, .*, has {known}; a policy keeps"):
        run_train(challenger, tiny_config(**{f"policy__{name}": other}))


def test_a_model_of_ones_own_is_trained(challenger):
    own = challenger / "own"
    shutil.move(challenger / "data/challenger", own)
    run_train(challenger, tiny_config(policy__model=str(own), train__updates=2, train__checkpoints=1))
    assert read_json(challenger / "data/training/train.json")["start"] == str(own)
    (own / "retroformer.json").unlink()
    # A model that this project did not write is told in sentences, with the return where asked.
    options = {"train__updates": 2, "train__checkpoints": 1, "train__condition_on_return": True}
    run_train(challenger, tiny_config(policy__model=str(own), **options))
    assert load(challenger / "data/challenger").layout == Layout.sentences(condition_on_return=True)


def test_return_conditioning_is_kept_in_the_checkpoint(batches):
    config = tiny_config(train__condition_on_return=True, train__updates=2, train__checkpoints=1)
    run_train(batches, config)
    policy = load(batches / "data/challenger")
    played = read_trajectories(batches / "data/batches")
    openings = {policy.tokenizer.decode(policy.windows(one)[0].tokens[:2]) for one in played}
    assert openings == {f"return {round(one.total_reward, 1):.1f}" for one in played}
    shutil.move(batches / "data/challenger", batches / "data/policy")
    pin(batches, BOT, "data/policy", closed=1)
    with pytest.raises(ConfigError, match=r"condition_on_return is False, .* made with True"):
        run_train(batches, tiny_config())


def test_an_empty_history_is_told(batches):
    write_trajectories(batches / "data/batches", [])
    with pytest.raises(DataError, match=r"batches holds no trajectory to learn from; see .*curate\.json"):
        run_train(batches, tiny_config())


def test_a_history_of_which_nothing_may_be_drawn_is_told(batches):
    path = batches / "data/batches/catalogue.csv"
    catalogue = read_catalogue(path)
    catalogue["probability"] = 0.0
    write_catalogue(path, catalogue[list(COLUMNS)])
    with pytest.raises(DataError, match="no trajectory of split train with a positive probability"):
        run_train(batches, tiny_config())
    path.unlink()
    with pytest.raises(DataError, match=r"catalogue\.csv does not exist; run curate"):
        run_train(batches, tiny_config())
    shutil.rmtree(batches / "data/batches")
    with pytest.raises(DataError, match="batches does not exist"):
        run_train(batches, tiny_config())


def test_a_bad_update_leaves_the_earlier_challenger(challenger):
    before = policy_hash("data/challenger", challenger)
    with pytest.raises(TrainingStopped, match="before its first checkpoint: KL to the behaviour"):
        run_train(challenger, tiny_config(train__max_kl=1e-9))
    assert policy_hash("data/challenger", challenger) == before


def test_an_edited_or_missing_candidate_is_refused(challenger):
    shutil.move(challenger / "data/challenger", challenger / "data/policy")
    pin(challenger, BOT, "data/policy", closed=1)
    with (challenger / "data/policy/retroformer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(PinMismatch, match="data/policy has hash"):
        run_train(challenger, tiny_config())
    shutil.rmtree(challenger / "data/policy")
    with pytest.raises(DataError, match=r"data/policy, .* does not exist"):
        run_train(challenger, tiny_config())
    pin(challenger)
    with pytest.raises(PolicyError, match=r"cannot load a language model from .*nowhere"):
        run_train(challenger, tiny_config(policy__model=str(challenger / "nowhere")))
