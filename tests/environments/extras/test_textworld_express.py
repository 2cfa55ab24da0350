import numpy as np
import pytest

from retroformer.environments import known, start
from retroformer.environments.checker import check_environment
from retroformer.environments.splits import seeds
from retroformer.errors import EnvironmentFault

COIN = "textworld-express:coin"


def test_the_games_are_known(made) -> None:
    made(COIN)
    assert {"coin", "cookingworld", "mapreader", "simonsays"} <= set(known("textworld-express"))


@pytest.mark.parametrize("task", ["coin", "mapreader"])
def test_it_keeps_the_contract(made, task: str) -> None:
    made(COIN)
    report = check_environment(f"textworld-express:{task}")
    assert report.problems == {}, list(report.lines())


def test_seeds_are_of_the_official_splits(made) -> None:
    environment = made(COIN)
    for split, first in (("history", 0), ("checkpoint", 10_000), ("gate", 10_000), ("final", 20_000)):
        for seed in seeds(split, run_seed=0, round_number=1, count=20):
            environment.reset(seed=seed)
            assert first <= environment._seed < first + 1000
            if split in ("checkpoint", "gate"):
                assert environment._seed % 2 == (split == "gate")


def test_games_in_one_machine_do_not_touch_each_other(made) -> None:
    together = [made(COIN) for _ in range(3)]
    alone = []
    for seed, environment in enumerate(together):
        alone.append(random_play([environment], [seed])[0])
    assert random_play(together, [0, 1, 2]) == alone


def random_play(environments, seeds) -> list[list]:
    """Steps taken in turn, each environment by random numbers of its own."""
    traces = []
    for environment, seed in zip(environments, seeds, strict=True):
        observation, info = start(environment, seed)
        traces.append([observation, info])
    chances = [np.random.default_rng(seed) for seed in seeds]
    for _ in range(12):
        for environment, trace, chance in zip(environments, traces, chances, strict=True):
            actions = trace[-1].get("admissible_actions")
            if actions:
                trace += environment.step(actions[chance.integers(len(actions))])
    return traces


def test_the_gold_path_succeeds_and_the_score_is_kept(made) -> None:
    environment = made(COIN)
    environment.reset(seed=0)
    total, over = 0.0, False
    while not over:
        _, reward, terminated, truncated, info = environment.step(environment.expert_action())
        total, over = total + reward, terminated or truncated
    assert info == {"success": True, "score": 1.0}
    assert total == pytest.approx(1.0)


def test_the_expert_is_silent_off_its_path(made) -> None:
    environment = made(COIN)
    _, info = environment.reset(seed=0)
    gold = environment.expert_action()
    environment.step(next(action for action in info["admissible_actions"] if action != gold))
    assert environment.expert_action() is None


def test_what_a_game_does_not_offer_raises(made) -> None:
    environment = made("textworld-express:mapreader")
    _, info = environment.reset(seed=0)
    assert "task" not in info["admissible_actions"]
    with pytest.raises(EnvironmentFault, match="cannot do 'task' now, admissible: "):
        environment.step("task")
