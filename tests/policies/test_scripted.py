import math
import random

import pytest

from retroformer.environments import make
from retroformer.errors import PolicyError
from retroformer.policies.agent import Decision
from retroformer.policies.scripted import load_scripted

DEFAULT = ("P5N2", "P6N3", "P6N4", "D6N4", "GoToLocalS5N2", "GoToLocalS6N4", "PickupDist", "GoToDoor")
ACTIONS = ("left", "right", "forward", "pickup")


class Expert:
    def __init__(self, action):
        self.action = action

    def expert_action(self):
        return self.action


def choose(spec, uniform, expert="forward", actions=ACTIONS):
    decision = Decision(0, 0, "pick red_ball", "> red_ball", actions, uniform, Expert(expert))
    return load_scripted(spec).act([decision])[0]


def success_rate(task, spec, episodes):
    environment, agent, generator = make(f"babyai:{task}"), load_scripted(spec), random.Random(0)
    solved = 0
    for seed in range(episodes):
        observation, info = environment.reset(seed=seed)
        task_text, t = info["task"], 0
        while "success" not in info:
            actions = info["admissible_actions"]
            decision = Decision(0, t, task_text, observation, actions, generator.random(), environment)
            observation, _, _, _, info = environment.step(agent.act([decision])[0].action)
            t += 1
        solved += info["success"]
    return solved / episodes


@pytest.mark.parametrize(
    ("uniform", "action"),
    # .7 / 4 = .175 for each action, and .3 more for forward: cumulative .175, .35, .825, 1
    [(0.0, "left"), (0.174, "left"), (0.176, "right"), (0.351, "forward"), (0.824, "forward"), (0.826, "pickup")],
)
def test_the_noisy_expert_on_numbers_worked_out_by_hand(uniform, action):
    choice = choose("scripted:babyai-bot?noise=0.7", uniform)
    assert choice.action == action
    assert choice.probabilities == pytest.approx((0.175, 0.175, 0.475, 0.175))
    assert choice.logprob == pytest.approx(math.log(0.475 if action == "forward" else 0.175))


def test_without_noise_the_expert_alone_acts():
    choice = choose("scripted:babyai-bot", 1 - 2**-53)
    assert (choice.action, choice.logprob, choice.probabilities) == ("forward", 0.0, (0.0, 0.0, 1.0, 0.0))


def test_the_expert_of_any_environment_that_has_one():
    environment, agent = make("toy_text:Lake4"), load_scripted("scripted:expert")
    for seed in range(5):
        observation, info = environment.reset(seed=seed)
        while "success" not in info:
            decision = Decision(0, 0, "", observation, info["admissible_actions"], 0.5, environment)
            observation, _, _, _, info = environment.step(agent.act([decision])[0].action)
        assert info["success"]


def test_where_the_expert_does_not_know_the_choice_is_uniform_and_recorded_as_such():
    choice = choose("scripted:babyai-bot?noise=0.1", 0.6, expert=None)
    assert choice.action == "forward"
    assert choice.probabilities == (0.25,) * 4
    assert choice.logprob == pytest.approx(math.log(0.25))


def test_the_random_agent_needs_no_expert():
    decision = Decision(0, 0, "", "", ("left", "right", "toggle"), 0.99)
    choice = load_scripted("scripted:random").act([decision])[0]
    assert choice.action == "toggle"
    assert choice.probabilities == pytest.approx((1 / 3,) * 3)


def test_the_last_random_number_still_finds_an_action():
    assert choose("scripted:random", 1 - 2**-53, actions=tuple("abcdefghijklm")).action == "m"


def test_the_agent_of_today_solves_between_40_and_70_percent_and_wandering_fails():
    rates = [success_rate(task, "scripted:babyai-bot?noise=0.7", 40) for task in DEFAULT]
    wandering = [success_rate(task, "scripted:random", 40) for task in DEFAULT[:4]]
    assert 0.4 <= sum(rates) / len(rates) <= 0.7
    assert sum(wandering) / len(wandering) < 0.25


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("scripted:babyai-bt", r"no scripted agent 'scripted:babyai-bt'; known: scripted:babyai-bot\?noise=0.7"),
        ("babyai-bot", "no scripted agent"),
        ("scripted:babyai-bot?noise=2", "noise '2', allowed: a number from 0 to 1"),
        ("scripted:babyai-bot?noise=nan", "noise 'nan', allowed"),
        ("scripted:babyai-bot?noise=", "noise '', allowed"),
        ("scripted:babyai-bot?nois=0.7", "unknown option 'nois'"),
        ("scripted:random?noise=0.7", "unknown option 'noise'"),
    ],
)
def test_a_bad_name_is_told_with_what_is_known(spec, message):
    with pytest.raises(PolicyError, match=message):
        load_scripted(spec)


def test_an_environment_without_an_expert_is_told():
    with pytest.raises(PolicyError, match="needs an environment with an expert"):
        load_scripted("scripted:babyai-bot").act([Decision(0, 0, "", "", ACTIONS, 0.5, object())])
    with pytest.raises(PolicyError, match="no action to choose in slot 3 at step 2"):
        load_scripted("scripted:random").act([Decision(3, 2, "", "", (), 0.5)])


class Spoken:
    """An environment in text mode."""

    def expert_action(self):
        return "help"

    def possible_actions(self):
        return ("wave", "shout")


def test_in_text_mode_the_noise_is_among_what_the_environment_names_and_nothing_is_known_of_it():
    agent = load_scripted("scripted:desk?noise=0.3")
    grid = [agent.act([Decision(0, 0, "", "", None, (k + 0.5) / 100, Spoken())])[0] for k in range(100)]
    # wave and shout have .1 each, help what is left.
    assert [choice.action for choice in grid] == ["wave"] * 10 + ["shout"] * 10 + ["help"] * 80
    assert {(choice.logprob, choice.probabilities, choice.token_ids) for choice in grid} == {(None, (), None)}
    (random,) = load_scripted("scripted:random").act([Decision(0, 0, "", "", None, 0.9, Spoken())])
    assert (random.action, random.logprob) == ("shout", None)
