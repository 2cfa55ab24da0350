import gymnasium
import numpy as np
import pytest

from retroformer.environments import known, lexicon, make, start
from retroformer.environments.toy_text import COMPASS, action_values
from retroformer.errors import EnvironmentFault

NAMES = [f"toy_text:{task}" for task in known("toy_text")]


def play(name: str, seed: int, choose, text: str = "compact") -> tuple[list[str], float, bool]:
    environment = make(name, text=text)
    observation, info = start(environment, seed)
    said, total = [info["task"], observation], 0.0
    while True:
        action = choose(environment, info["admissible_actions"])
        observation, reward, terminated, truncated, info = environment.step(action)
        said += [action, observation]
        total += reward
        if terminated or truncated:
            return said, total, info["success"]


def expert(environment, actions) -> str:
    return environment.expert_action()


def test_taxis_admissible_actions_are_gymnasiums_mask() -> None:
    environment = make("toy_text:Taxi")
    world = gymnasium.make("Taxi-v4").unwrapped
    for seed in range(50):
        _, info = environment.reset(seed=seed)
        _, theirs = world.reset(seed=seed)
        chance = np.random.default_rng(seed)
        for _ in range(30):
            mask = [COMPASS["Taxi-v4"][index] for index in np.flatnonzero(theirs["action_mask"])]
            assert list(info["admissible_actions"]) == mask
            action = mask[chance.integers(len(mask))]
            _, _, ends, _, info = environment.step(action)
            theirs = world.step(COMPASS["Taxi-v4"].index(action))[-1]
            if ends:
                break


@pytest.mark.parametrize("text", ["compact", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_the_lexicon_holds_every_word(name: str, text: str) -> None:
    words = set(lexicon([name], text))
    chance = np.random.default_rng(0)
    for seed in range(20):
        said, total, _ = play(name, seed, lambda _, actions: actions[chance.integers(len(actions))], text)
        assert set(" ".join(said).split()) <= words
        assert -40 <= total <= 1


def test_both_texts_tell_of_the_same_place() -> None:
    told = {}
    for text in ("plain", "compact"):
        lake, taxi = make("toy_text:Lake4", text=text), make("toy_text:Taxi", text=text)
        lake.reset(seed=1)
        taxi.reset(seed=1)
        told[text] = (lake.step("south")[0], taxi.step(taxi.expert_action())[0])
    place, _, drawn = told["plain"][0].partition(" of ")
    assert place == "row 1 column 0"
    cells = {(r, c): cell for r, line in enumerate(drawn.split(" / ")) for c, cell in enumerate(line.split())}
    found = set()
    for word in told["compact"][0].split():
        cell, _, where = word.replace("here", "").partition("@")
        down = -1 if where.startswith("n") else int(where[1]) if where.startswith("s") else 0
        right = int(where[where.index("e") + 1]) if "e" in where else 0
        assert cells[1 + down, right] == cell
        found.add((1 + down, right))
    assert found == {at for at, cell in cells.items() if cell in "HG"}
    row, column = map(int, told["plain"][1].split()[3:6:2])
    # Gymnasium's red stop is the cell in the corner: so many north and west.
    assert told["compact"][1].split()[0] == f"red@{f'n{row}' if row else ''}{f'w{column}' if column else ''}"
    assert told["compact"][1].split()[-1].startswith("passenger@")


@pytest.mark.parametrize("name", ["Taxi", "Lake4", "Lake6", "CliffWalking"])
def test_the_expert_solves_what_can_be_solved(name: str) -> None:
    assert all(play(f"toy_text:{name}", seed, expert)[2] for seed in range(20))


def test_value_iteration_on_a_corridor() -> None:
    # Two cells; going right from the second ends with 1, everything else costs nothing.
    dynamics = {
        0: {0: [(1.0, 0, 0.0, False)], 1: [(1.0, 1, 0.0, False)]},
        1: {0: [(1.0, 0, 0.0, False)], 1: [(0.5, 1, 0.0, False), (0.5, 1, 1.0, True)]},
    }
    values = action_values(dynamics)
    right = 0.5 / (1 - 0.5 * 0.99)  # q = 1/2 + 1/2 * 0.99 q
    assert values[1][1] == pytest.approx(right)
    assert values[0][1] == pytest.approx(0.99 * right)
    assert values[1][0] == pytest.approx(0.99**2 * right)


def test_a_swapped_destination_is_told_and_the_true_one_judged() -> None:
    environment = make("toy_text:Taxi")
    observation, info = start(environment, 3)
    swapped_observation, swapped = start(environment, 3, "shuffled")
    assert swapped_observation == observation
    assert (info["task"], "mission" in info) == ("drive the passenger to yellow", False)
    assert swapped["task"] != info["task"]
    assert swapped["mission"] == "shuffled"
    while True:  # the expert knows the true one
        *_, terminated, truncated, info = environment.step(environment.expert_action())
        if terminated or truncated:
            break
    assert info["success"]


def test_a_mission_that_never_differs_cannot_be_swapped() -> None:
    with pytest.raises(EnvironmentFault, match="cannot be swapped: every episode is told 'cross the lake"):
        start(make("toy_text:Lake4"), 0, "other")


def test_what_is_not_admissible_raises_and_so_does_a_step_without_reset() -> None:
    environment = make("toy_text:CliffWalking")
    with pytest.raises(EnvironmentFault, match="CliffWalking cannot do 'north' now, it is not running: reset it"):
        environment.step("north")
    environment.reset(seed=0)
    with pytest.raises(EnvironmentFault, match="cannot do 'west' now, admissible: north"):
        environment.step("west")
