import pytest

from retroformer.environments import known
from retroformer.environments.checker import check_environment
from retroformer.environments.splits import seeds
from retroformer.errors import EnvironmentFault

FIND = "scienceworld:find-animal"


def test_it_keeps_the_contract(made, monkeypatch: pytest.MonkeyPatch) -> None:
    made(FIND)
    assert len(known("scienceworld")) == 30
    monkeypatch.setattr("retroformer.environments.checker.SECONDS", 10.0)
    monkeypatch.setattr("retroformer.environments.checker.MAX_ACTIONS", 3)
    report = check_environment(FIND)
    assert report.problems == {}, list(report.lines())


def test_a_subset_is_offered_and_the_gold_path_may_leave_it(made) -> None:
    environment = made(FIND)
    from retroformer.environments.scienceworld import OFFERED

    _, info = environment.reset(seed=0)
    total, over, left = environment.world.lastStepScore / 100, False, 0  # the points that it starts with
    while not over:
        offered = info["admissible_actions"]
        assert len(offered) <= OFFERED
        assert "look around" in offered
        gold = environment.gold_action()
        left += gold not in offered
        assert environment.expert_action() == (gold if gold in offered else None)
        _, reward, terminated, truncated, info = environment.step(gold)
        total, over = total + reward, terminated or truncated
    assert info == {"success": True, "score": 100}
    assert total == pytest.approx(1.0)
    assert left > 0


def test_variations_are_of_the_official_splits(made) -> None:
    environment = made(FIND)
    from retroformer.environments.scienceworld import variations

    train, dev, test = variations("find-animal")
    assert not set(train) & set(dev)
    assert not set(test) & {*train, *dev}
    for split, allowed in (("history", train), ("checkpoint", dev[::2]), ("gate", dev[1::2]), ("transfer", test)):
        environment.reset(seed=seeds(split, run_seed=0, round_number=1, count=1)[0])
        assert environment._variation in allowed


def test_two_worlds_in_one_machine_do_not_touch_each_other(made) -> None:
    one, other = made(FIND), made("scienceworld:boil")
    first = one.reset(seed=1)
    other.reset(seed=2)
    other.step("look around")
    assert one.reset(seed=1) == first
    told = other.reset(seed=2)[1]["task"]
    one.step("look around")
    assert other.step("look around")[0] == other.reset(seed=2)[0]
    assert "boil" in told


def test_what_is_not_understood_raises(made) -> None:
    environment = made(FIND)
    environment.reset(seed=0)
    with pytest.raises(EnvironmentFault, match="does not understand 'dance wildly'"):
        environment.step("dance wildly")
