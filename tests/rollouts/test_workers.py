import shutil

import pytest

from retroformer.config import PolicyConfig
from retroformer.policies.checkpoints import build
from retroformer.rollouts.engine import Conditions, Episode
from retroformer.rollouts.workers import SHARD, Player, play_all
from retroformer.types import Outcome

BOT, RANDOM = Player("scripted:babyai-bot?noise=0.5"), Player("scripted:random")
EPISODES = [Episode("babyai:P5N2", seed, "train") for seed in range(12)]
CONDITIONS = Conditions(0, "compact", "token", environments=2)


def played(work, workers):
    return list(play_all(work, CONDITIONS, workers))


def test_the_result_does_not_depend_on_the_number_of_workers():
    work = [(BOT, EPISODES), (RANDOM, EPISODES[:3])]
    alone, two = played(work, 1), played(work, 2)
    assert alone == two
    # Shards of 8, in the order of the work; within each the order of its episodes.
    size = SHARD * CONDITIONS.environments
    assert [(player, [one.episode for one in some]) for player, some in alone] == [
        (BOT, EPISODES[:size]),
        (BOT, EPISODES[size:]),
        (RANDOM, EPISODES[:3]),
    ]
    assert {one.trajectory.outcome for _, some in alone for one in some} <= {Outcome.SUCCESS, Outcome.FAILURE}


def test_nothing_to_play_is_no_work():
    assert played([], 0) == []
    assert played([(BOT, [])], 2) == []


def test_a_checkpoint_that_was_replaced_plays_as_it_is_now(tmp_path):
    folder = tmp_path / "policy"

    def probabilities(seed):
        shutil.rmtree(folder, ignore_errors=True)
        (tmp_path / "new").mkdir()
        policy = build(PolicyConfig(model="", width=8, layers=1, heads=2), ("left", "right", "forward"), seed=seed)
        policy.save(tmp_path / "new")
        (tmp_path / "new").rename(folder)
        ((_, (one,)),) = played([(Player(str(folder)), EPISODES[:1])], 1)
        return one.trajectory.policy, one.trajectory.steps[0].logprob

    first, second = probabilities(0), probabilities(1)
    assert first[0] != second[0]
    assert first[1] != pytest.approx(second[1], abs=1e-9)
