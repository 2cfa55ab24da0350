import random

import pytest
from minigrid.core.world_object import Ball, Box, Door, Key
from minigrid.minigrid_env import MiniGridEnv

from retroformer.environments import known, lexicon, make
from retroformer.environments.protocol import TextEnvironment
from retroformer.errors import EnvironmentFault

DEFAULT = ("P5N2", "P6N3", "P6N4", "D6N4", "GoToLocalS5N2", "GoToLocalS6N4", "PickupDist", "GoToDoor")


def play(environment, seed, choose, mission="true"):
    """Every observation, what was admissible and the last info; `choose` sees the admissible actions."""
    observation, info = environment.reset(seed=seed, options={"mission": mission})
    trace, ended = [(observation, info["task"])], False
    while not ended:
        action = choose(info["admissible_actions"])
        observation, reward, terminated, truncated, info = environment.step(action)
        trace.append((action, observation, reward, terminated, truncated))
        ended = terminated or truncated
    return trace, info


def at_random(seed):
    generator = random.Random(seed)
    return generator.choice


def empty_room(task, **options):
    """A level whose room was cleared, the agent at the left wall's middle, facing up; one turn right faces the room."""
    environment = make(f"babyai:{task}", **options)
    _, info = environment.reset(seed=3)
    level = environment.level
    for x in range(1, level.width - 1):
        for y in range(1, level.height - 1):
            level.grid.set(x, y, None)
    level.agent_pos, level.agent_dir = (1, 3), 3
    return environment, info


def test_it_is_a_text_environment():
    assert isinstance(make("babyai:P6N3"), TextEnvironment)
    assert make("babyai:P6N3").family == "strict"
    assert make("babyai:GoToDoor").family == "babyai"


@pytest.mark.parametrize("task", ["P6N4", "D6N4", "PickupDist"])
def test_an_episode_depends_on_its_seed_and_actions_alone(task):
    used = make(f"babyai:{task}")
    play(used, 99, at_random(0), "shuffled")
    assert play(used, 7, at_random(1)) == play(make(f"babyai:{task}"), 7, at_random(1))
    assert play(used, 8, at_random(1)) != play(used, 7, at_random(1))


@pytest.mark.parametrize("task", [*DEFAULT, "P7N3", "P8N5", "OpenRedDoor", "OpenDoorColor", "PutNextLocalS5N3"])
def test_the_expert_solves_the_level_within_its_cap(task):
    environment = make(f"babyai:{task}")
    solved = [play(environment, seed, lambda _: environment.expert_action())[1]["success"] for seed in range(40)]
    assert sum(solved) >= 38


@pytest.mark.parametrize("task", ["P6N3", "D6N4", "GoToDoor", "GoToLocalS8N5", "PutNextLocalS5N3"])
def test_the_quick_view_is_minigrids_own(task):
    environment, choose = make(f"babyai:{task}"), at_random(5)
    for seed in range(5):
        _, info = environment.reset(seed=seed)
        while "success" not in info:
            grid, seen = environment.level.gen_obs_grid()
            its_grid, its_seen = MiniGridEnv.gen_obs_grid(environment.level)
            assert (seen == its_seen).all()
            assert [cell and (cell.type, cell.color) for cell in grid.grid] == [
                cell and (cell.type, cell.color) for cell in its_grid.grid
            ]
            *_, info = environment.step(choose(info["admissible_actions"]))


def test_a_scene_in_compact_text():
    environment, info = empty_room("P8N5")
    grid = environment.level.grid
    grid.set(3, 3, Ball("red"))  # two ahead
    grid.set(2, 2, Key("grey"))  # facing right, up is left
    grid.set(1, 5, Box("blue"))
    grid.set(5, 6, Ball("green"))
    goal = info["task"].removeprefix("pick ")
    assert environment.step("right")[0] == (f"wall6 blue_box@f0r2 grey_key@f1l1 red_ball@f2r0 green_ball@f4r3 > {goal}")
    # Facing up again, with the blue box behind.
    assert environment.step("left")[0] == f"wall3 red_ball@f0r2 grey_key@f1r1 > {goal}"


def test_a_scene_in_plain_text():
    environment, info = empty_room("P8N5", text="plain", actions="words")
    environment.level.grid.set(3, 3, Ball("red"))
    environment.level.grid.set(2, 2, Key("grey"))
    assert info["task"].startswith("pick up the ")
    observation, *_, after = environment.step("turn right")
    assert observation == (
        "You see a wall 6 steps forward. You see a grey key 1 step forward and 1 step left. "
        f"You see a red ball 2 steps forward. Task: {info['task']}."
    )
    assert after["admissible_actions"] == ("turn left", "turn right", "go forward")


def test_doors_tell_their_state_and_what_is_carried_is_told():
    environment, info = empty_room("PickupDist")
    grid = environment.level.grid
    grid.set(2, 3, Door("red"))
    grid.set(1, 2, Door("blue", is_locked=True))
    goal = info["task"].removeprefix("pick ")
    # Sight goes round a door that stands free, so the wall behind it is seen.
    assert environment.step("right")[0] == f"wall5 blue_door_locked@f0l1 red_door@f1r0 > {goal}"
    assert environment.step("toggle")[0] == f"wall5 blue_door_locked@f0l1 red_door_open@f1r0 > {goal}"
    environment.level.carrying = Key("grey")
    assert environment.step("left")[0] == f"wall3 carry_grey_key red_door_open@f0r1 blue_door_locked@f1r0 > {goal}"


def test_admissible_actions_follow_the_cell_ahead_and_the_hands():
    environment, _ = empty_room("GoToLocalS8N5")
    grid, level = environment.level.grid, environment.level
    turn = ("left", "right")

    def admissible(thing, carrying=None):
        level.carrying, level.agent_dir = carrying, 3
        grid.set(2, 3, thing)
        return environment.step("right")[-1]["admissible_actions"]

    assert admissible(None) == (*turn, "forward")
    assert admissible(None, carrying=Ball("red")) == (*turn, "forward", "drop")
    assert admissible(Ball("red")) == (*turn, "pickup")
    assert admissible(Box("red")) == (*turn, "pickup", "toggle")
    assert admissible(Box("red"), carrying=Key("red")) == (*turn, "toggle")
    assert admissible(Door("red")) == (*turn, "toggle")
    assert admissible(Door("red", is_open=True)) == (*turn, "forward", "toggle")


def test_an_action_that_is_not_admissible_is_refused_and_changes_nothing():
    environment, _ = empty_room("P6N3")
    with pytest.raises(EnvironmentFault, match=r"cannot do 'pickup' now, admissible: left, right"):
        environment.step("pickup")
    assert environment.step("right")[0].startswith("wall4 ")


def test_the_wrong_object_ends_a_strict_episode_in_failure():
    environment, info = empty_room("P6N3")
    wrong = Ball("red") if info["task"] != "pick red_ball" else Ball("blue")
    environment.level.grid.set(2, 3, wrong)
    environment.step("right")
    _, reward, terminated, truncated, info = environment.step("pickup")
    assert (reward, terminated, truncated, info) == (0.0, True, False, {"success": False})
    with pytest.raises(EnvironmentFault, match="not running"):
        environment.step("left")


def test_the_first_door_that_is_opened_decides():
    environment = make("babyai:D6N4")
    level, opened = environment.level, {}
    environment.reset(seed=0)
    doors = [
        (i % level.width, i // level.width) for i, cell in enumerate(level.grid.grid) if cell and cell.type == "door"
    ]
    assert len(doors) == 4
    for x, y in doors:
        _, info = environment.reset(seed=0)
        # The room's walls are at 5 and 10; stand before the door, turned away to the left.
        before = {x == 10: ((9, y), 0), y == 10: ((x, 9), 1), x == 5: ((6, y), 2), y == 5: ((x, 6), 3)}[True]
        level.agent_pos, level.agent_dir = before[0], (before[1] - 1) % 4
        environment.step("right")
        _, reward, terminated, truncated, end = environment.step("toggle")
        assert (reward, terminated, truncated) == (float(end["success"]), True, False)
        opened[f"open {level.grid.get(x, y).color}_door"] = end["success"]
    assert opened.pop(info["task"]) is True
    assert list(opened.values()) == [False] * 3


@pytest.mark.parametrize(("task", "cap"), [("P6N3", 16), ("P8N5", 24), ("D7N4", 20), ("PickupDist", 14)])
def test_the_step_cap_ends_the_episode_as_a_failed_task(task, cap):
    environment = make(f"babyai:{task}")
    trace, info = play(environment, 0, lambda _: "left")
    assert len(trace) - 1 == cap
    assert trace[-1][2:] == (0.0, False, True)
    assert info == {"success": False}


def test_success_pays_one_at_the_last_step():
    environment = make("babyai:P6N4")
    trace, info = play(environment, 1, lambda _: environment.expert_action())
    assert info == {"success": True}
    assert [step[2] for step in trace[1:]] == [0.0] * (len(trace) - 2) + [1.0]


@pytest.mark.parametrize("task", [*DEFAULT, "PutNextLocalS5N3"])
@pytest.mark.parametrize("mission", ["shuffled", "other"])
def test_a_swapped_mission_differs_and_only_the_words_change(task, mission):
    environment, plain = make(f"babyai:{task}"), make(f"babyai:{task}", text="plain")
    for seed in range(30):
        true_text, true_info = environment.reset(seed=seed)
        text, info = environment.reset(seed=seed, options={"mission": mission})
        assert info["task"].split()[0] == true_info["task"].split()[0]
        goal, true_goal = info["task"].split(" ", 1)[1], true_info["task"].split(" ", 1)[1]
        assert goal != true_goal
        assert text == f"{true_text.removesuffix(true_goal)}{goal}"
        there = {(cell.color, cell.type) for cell in environment.level.grid.grid if cell and cell.type != "wall"}
        colour, kind = goal.split()[0].split("_")
        true_colour, true_kind = true_goal.split()[0].split("_")
        meant = {one for one in there if colour in ("any", one[0]) and kind in ("object", one[1])}
        true_meant = {one for one in there if true_colour in ("any", one[0]) and true_kind in ("object", one[1])}
        assert true_meant
        assert not meant & true_meant
        if info["mission"] == "other":
            assert meant
        sentence = plain.reset(seed=seed, options={"mission": mission})[1]["task"]
        assert {word for word in (colour, kind) if word != "any"} <= set(sentence.split())


def test_a_swapped_mission_is_the_same_each_time_and_the_true_one_is_judged():
    environment = make("babyai:P6N4")
    first = environment.reset(seed=4, options={"mission": "shuffled"})
    assert environment.reset(seed=4, options={"mission": "shuffled"}) == first
    assert make("babyai:P6N4").reset(seed=4, options={"mission": "shuffled"}) == first
    _, info = play(environment, 4, lambda _: environment.expert_action(), "shuffled")
    assert info["success"]


def test_where_nothing_else_can_be_told_the_info_says_what_was_done():
    _, info = make("babyai:GoToObj").reset(seed=0, options={"mission": "other"})
    assert info["mission"] == "shuffled"
    _, info = make("babyai:OpenRedDoor", text="plain").reset(seed=1, options={"mission": "other"})
    assert info["mission"] == "invented"
    assert info["task"] == "open the blue door"
    with pytest.raises(EnvironmentFault, match="'swapped', allowed: true, shuffled, other"):
        make("babyai:GoToObj").reset(seed=0, options={"mission": "swapped"})


def test_the_expert_says_so_when_it_does_not_know():
    environment, _ = empty_room("GoToLocalS8N5")
    environment.level.grid.set(2, 3, Box("red"))
    environment.step("right")
    environment.expert_action()
    environment.step("toggle")
    assert environment.expert_action() is None


@pytest.mark.parametrize(("text", "actions"), [("compact", "token"), ("plain", "words")])
def test_the_lexicon_holds_every_word_of_every_level(text, actions):
    words = set(lexicon(["babyai:P5N2"], text, actions))
    for task in known("babyai"):
        environment = make(f"babyai:{task}", text=text, actions=actions)
        for seed in range(2):
            for mission in ("true", "shuffled", "other"):
                trace, _ = play(environment, seed, at_random(seed), mission)
                said = {word for step in trace for part in step[:2] for word in part.split()}
                assert said <= words, (task, said - words)


def test_the_lexicon_is_sorted_finite_and_the_same_for_every_level():
    words = lexicon(["babyai:GoToDoor"])
    assert list(words) == sorted(set(words))
    assert words == lexicon(["babyai:P8N5", "babyai:P5N2"])
    assert {"left", "wall6", "red_door_locked@f6l3", "any_ball", "red_object", ">", "pick"} <= set(words)
    assert len(words) < 2000


def test_drawing_levels_prints_nothing(capsys):
    environment = make("babyai:PutNextLocalS5N3")
    for seed in range(60):
        environment.reset(seed=seed)
    assert capsys.readouterr().out == ""
