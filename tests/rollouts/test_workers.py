import shutil
from collections import Counter
from dataclasses import replace

import pytest

from retroformer.config import PolicyConfig
from retroformer.errors import ConfigError, EnvironmentFault
from retroformer.policies.checkpoints import build
from retroformer.rollouts import workers as module
from retroformer.rollouts.episodes import Conditions, Episode
from retroformer.rollouts.workers import SHARD, Player, play_all
from retroformer.types import Outcome

BOT, RANDOM = Player("scripted:babyai-bot?noise=0.5"), Player("scripted:random")
EPISODES = [Episode("babyai:P5N2", seed, "train") for seed in range(12)]
CONDITIONS = Conditions(0, "compact", "token", environments=2)


def played(work, workers, **options):
    return list(play_all(work, CONDITIONS, workers, **options))


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


def test_what_is_on_disk_is_not_played_again_and_what_is_missing_or_torn_is(tmp_path, monkeypatch):
    work = [(BOT, EPISODES), (RANDOM, EPISODES[:3])]
    folder = tmp_path / "shards"
    whole = played(work, 1, folder=folder)
    assert whole == played(work, 1)
    assert sorted(path.name for path in folder.iterdir()) == ["000000", "000001", "000002"]
    numbers = []
    play_shard = module.play_shard
    monkeypatch.setattr(module, "play_shard", lambda *one: (numbers.append(one[0]), play_shard(*one))[1])
    assert played(work, 1, folder=folder) == whole
    assert numbers == []
    shutil.rmtree(folder / "000000")
    (folder / "000002/steps.parquet").write_bytes(b"half of")
    (folder / ".begun").mkdir()
    assert played(work, 1, folder=folder) == whole
    assert numbers == [0, 2]
    assert not (folder / ".begun").exists()


def of_chaos(task, count=6):
    return [(RANDOM, [Episode(f"chaos.One:{task}", seed, "train") for seed in range(count)])]


def test_an_episode_that_ended_in_error_is_tried_again_and_every_try_is_kept(tmp_path):
    again = replace(CONDITIONS, retries=2)
    replaced = Counter()
    ((_, before),) = list(play_all(of_chaos("exit"), again, 1, folder=tmp_path / "shards", replaced=replaced))
    ((_, after),) = list(play_all(of_chaos("exit"), again, 1, folder=tmp_path / "shards"))
    assert before == after, "as read from disk"
    assert replaced == {"Died": 6}
    for one in before:
        tries = (*one.earlier, one.trajectory)
        guilty = one.episode.seed % 3 == 1
        assert [trajectory.outcome for trajectory in tries] == ([Outcome.ERROR] * 3 if guilty else [Outcome.SUCCESS])
        assert [trajectory.attempt for trajectory in tries] == list(range(len(tries)))
        assert [trajectory.previous_id for trajectory in tries] == [None, *(other.id for other in tries[:-1])]
    alone = [one for _, some in play_all(of_chaos("exit"), CONDITIONS, 1) for one in some]
    healthy = [one for one in before if not one.earlier]
    assert healthy == [one for one in alone if one.trajectory.outcome is Outcome.SUCCESS]


def test_where_too_many_fail_it_stops_and_keeps_what_is_sound(tmp_path):
    folder = tmp_path / "shards"
    work = [*of_chaos("sound", 3), *of_chaos("some_seeds")]
    last = "some_seeds at seed 4: FileNotFoundError: no level 4"
    message = rf"2 of 9 episodes ended in error, .* = 0\.2 of 9 allows; the last, {last}"
    with pytest.raises(EnvironmentFault, match=message):
        list(play_all(work, CONDITIONS, 1, 0.2, folder=folder))
    assert [path.name for path in folder.iterdir()] == ["000000"]


def test_a_worker_that_dies_is_replaced_and_its_shard_played_again(tmp_path, monkeypatch):
    from joblib.externals.loky import get_reusable_executor

    monkeypatch.setenv("LEAVES", str(tmp_path / "once"))
    work = of_chaos("worker", 20)
    get_reusable_executor().shutdown()  # workers have the variables of when they started
    survived = played(work, 2)
    assert (tmp_path / "once").exists()
    assert survived == played(work, 1)
    assert {one.trajectory.outcome for _, some in survived for one in some} == {Outcome.SUCCESS}


@pytest.mark.parametrize("cluster", ["dusk", "dask://", "ray"])
def test_a_cluster_that_is_not_known_is_told(cluster):
    with pytest.raises(
        ConfigError, match=rf"collect\.cluster is '{cluster}', allowed: empty, dask or dask://HOST:PORT"
    ):
        played([(BOT, EPISODES)], 2, cluster=cluster)
