import pytest

from retroformer.environments import known
from retroformer.environments.checker import check_environment
from retroformer.errors import EnvironmentFault

COIN = "textworld:coin-collector-5"


@pytest.fixture
def few_games(made, monkeypatch: pytest.MonkeyPatch, tmp_path_factory) -> None:
    """Two games for each split, compiled where the other tests of this run find them."""
    made(COIN)
    monkeypatch.setattr("retroformer.environments.textworld.GAMES", {"train": 2, "dev": 2, "test": 2})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "games"))


def test_the_challenges_are_known(made) -> None:
    made(COIN)
    assert {"coin-collector-10", "treasure-hunter-5", "simple"} <= set(known("textworld"))


def test_it_keeps_the_contract(few_games, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retroformer.environments.checker.SEEDS", (0, 1, 5_999_999_999))
    # The other process draws among the default number of games, so determinism is for the next test.
    monkeypatch.setattr("retroformer.environments.checker.check_determinism", lambda *_: None)
    report = check_environment(COIN)
    assert report.problems == {}, list(report.lines())


def test_the_expert_solves_it_also_after_a_detour(made, few_games) -> None:
    environment = made(COIN)
    observation, info = environment.reset(seed=0)
    assert "-=" in observation
    assert "\n" not in observation
    assert "west" not in info["task"]  # the goal is told, the way is not
    environment.step("look")
    total, over = 0.0, False
    while not over:
        _, reward, terminated, truncated, info = environment.step(environment.expert_action())
        total, over = total + reward, terminated or truncated
    assert info == {"success": True}
    assert total == pytest.approx(1.0)


def test_an_episode_is_the_same_again(made, few_games) -> None:
    traces = []
    for environment in (made(COIN), made(COIN)):
        trace = [environment.reset(seed=3)]
        for turn in range(8):
            trace.append(environment.step(environment.admissible[turn % len(environment.admissible)]))
        traces.append(trace)
    assert traces[0] == traces[1]


def test_a_compiled_game_is_found_again(made, few_games) -> None:
    from retroformer.environments.textworld import cache, compiled

    first = compiled("coin-collector-5", 1000)
    stamp = first.stat().st_mtime_ns
    assert compiled("coin-collector-5", 1000).stat().st_mtime_ns == stamp
    assert all(folder.name.startswith("coin-collector-5-") for folder in cache().iterdir())


def test_a_seed_that_has_no_game_gives_the_next(made) -> None:
    made(COIN)
    import textworld

    from retroformer.environments.textworld import generated

    options = textworld.GameOptions()
    games = [generated("treasure-hunter-10", number, options) for number in range(1000, 1003)]
    assert len({game.objective for game in games}) > 1


def test_what_a_game_does_not_offer_raises(made, few_games) -> None:
    environment = made(COIN)
    with pytest.raises(EnvironmentFault, match="cannot do 'look' now, it is not running: reset it"):
        environment.step("look")
    environment.reset(seed=0)
    with pytest.raises(EnvironmentFault, match="cannot do 'fly' now, admissible: "):
        environment.step("fly")
