"""Acting with the cache against training's tree: the same log-probabilities, however the episodes are interleaved."""

import numpy as np
import pytest
import torch

from retroformer.errors import PolicyError
from retroformer.policies.agent import Decision
from retroformer.types import Step
from tiny import FAMILIES, WORDS, tiny_policy, told

ACTIONS = (("w0", "w1", "w2"), ("w0 w1", "w0 w2", "w3"), ("w0 w1 w2", "w0 w1 w3", "w1", "w2 w3"), ("w4",))


def play(policy, slots, script, **options):
    """Play episodes by a script: for each call the slots that wait, and where an episode begins.

    Returns the finished trajectories with the log-probabilities and probabilities recorded while acting.
    """
    agent = policy.agent(slots, **options)
    chance = np.random.default_rng(0)
    running: dict[int, list] = {}
    finished = []

    def finish(slot):
        agent.release(slot)
        if slot in running:
            finished.append(running.pop(slot))

    for waiting, starting in script:
        for slot in starting:
            finish(slot)
            running[slot] = []
        decisions = [
            Decision(
                slot=slot,
                t=len(running[slot]),
                description="w0 w1",
                observation=" ".join(chance.choice(WORDS, size=int(chance.integers(1, 4)))),
                admissible_actions=ACTIONS[int(chance.integers(len(ACTIONS)))],
                uniform=float(chance.random()),
            )
            for slot in waiting
        ]
        for decision, choice in zip(decisions, agent.act(decisions), strict=True):
            running[decision.slot].append((decision, choice))
    for slot in list(running):
        finish(slot)
    return finished


def recorded(episode):
    return told([(d.observation, d.admissible_actions, d.admissible_actions.index(c.action)) for d, c in episode])


def assert_tree_agrees(policy, episodes, temperature=1.0):
    for episode in episodes:
        trajectory = recorded(episode)
        laid = policy.windows(trajectory)
        with torch.no_grad():
            scores = policy.score(policy.collate(laid), temperature)
        rows = [row for window, own in zip(laid, scores, strict=True) for row in own[: len(window.roots)]]
        for row, (decision, choice) in zip(rows, episode, strict=True):
            count = len(decision.admissible_actions)
            np.testing.assert_allclose(row[:count].exp(), choice.probabilities, atol=1e-4)
            place = decision.admissible_actions.index(choice.action)
            assert choice.logprob == pytest.approx(float(row[place]), abs=1e-4)


# Ragged lengths, slots that idle, slots that are released and taken again by an episode that begins anew.
SCRIPT = [
    ((0, 1), (0, 1)),
    ((0,), ()),
    ((1, 0, 2), (2,)),
    ((2,), ()),
    ((0, 1, 2), (1,)),
    ((1, 2), ()),
    ((0, 1, 2), (0,)),
    ((0, 1), ()),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_acting_gives_the_log_probabilities_that_training_computes(family, temperature):
    policy = tiny_policy(family, context=256)
    episodes = play(policy, 4, SCRIPT, temperature=temperature)
    assert sorted(map(len, episodes)) == [2, 2, 4, 4, 5]
    assert_tree_agrees(policy, episodes, temperature)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_acting_and_training_restart_a_full_window_alike(family):
    policy = tiny_policy(family, context=20)
    episodes = play(policy, 2, [((0, 1), (0, 1)), *[((0,), ()), ((0, 1), ())] * 6])
    assert all(len(policy.windows(recorded(episode))) >= 2 for episode in episodes)
    assert_tree_agrees(policy, episodes)


def test_the_cache_grows_over_its_first_room():
    policy = tiny_policy("llama", context=512)
    episodes = play(policy, 2, [((0, 1), (0, 1)), *[((0, 1), ())] * 24])
    assert all(sum(len(window.tokens) for window in policy.windows(recorded(one))) > 64 for one in episodes)
    assert_tree_agrees(policy, episodes)


def test_an_episode_does_not_see_its_neighbours():
    policy = tiny_policy("llama")
    together = policy.agent(2)
    alone = policy.agent(1)
    for t, (observation, other) in enumerate([("w5", "w6 w7 w8"), ("w9", "w5")]):
        mine = Decision(0, t, "w0", observation, ("w1", "w2 w3"), 0.3)
        neighbour = Decision(1, t, "w1 w1", other, ("w1 w2", "w1 w3"), 0.9)
        (expected,) = alone.act([mine])
        got, _ = together.act([mine, neighbour])
        assert got.action == expected.action
        np.testing.assert_allclose(got.probabilities, expected.probabilities, atol=1e-6)


def first_decision(uniform, actions=("w0", "w1 w2", "w1 w3"), slot=0):
    return Decision(slot, 0, "w0 w1", "w5", actions, uniform)


def test_a_grid_of_uniform_numbers_gives_each_action_its_probability():
    agent = tiny_policy("llama").agent(1)
    grid = [agent.act([first_decision((k + 0.5) / 400)])[0] for k in range(400)]
    for place, action in enumerate(("w0", "w1 w2", "w1 w3")):
        share = sum(choice.action == action for choice in grid) / 400
        assert share == pytest.approx(grid[0].probabilities[place], abs=1.01 / 400)
    assert agent.act([first_decision(np.nextafter(1, 0))])[0].action == "w1 w3"
    assert agent.act([first_decision(0.0)])[0].action == "w0"


def test_greedy_takes_the_most_probable_action_whatever_the_chance():
    agent = tiny_policy("llama").agent(1, greedy=True)
    for uniform in (0.0, 0.5, 0.999):
        (choice,) = agent.act([first_decision(uniform)])
        best = max(choice.probabilities)
        assert choice.probabilities[first_decision(0).admissible_actions.index(choice.action)] == best
        assert choice.logprob == pytest.approx(np.log(best))


def test_an_unknown_word_is_read_as_one_and_does_not_crash():
    policy = tiny_policy("llama")
    for words in ("never heard", "w5 heard"):
        (choice,) = policy.agent(1).act([Decision(0, 0, "strange task", words, ("w0", "w1"), 0.2)])
        assert sum(choice.probabilities) == pytest.approx(1)


@pytest.mark.parametrize(
    ("observation", "actions", "message"),
    [
        ("w5 " * 70, ("w0", "w1"), "window has 64"),
        ("w5", ("w0", "w0 w1"), "begins with the tokens of action 0 ('w0')"),
    ],
)
def test_what_cannot_be_scored_is_told_and_the_others_are_not_touched(observation, actions, message):
    policy = tiny_policy("llama")
    bad, good = Decision(0, 0, "w0", observation, actions, 0.5), first_decision(0.5, slot=1)
    refused, choice = policy.agent(2).act([bad, good])
    assert isinstance(refused, PolicyError)
    assert message in str(refused)
    (alone,) = policy.agent(2).act([good])
    assert choice.action == alone.action
    assert choice.logprob == pytest.approx(alone.logprob, abs=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_model_that_gives_no_number_is_told():
    policy = tiny_policy("llama")
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.fill_(float("nan"))
    (refused,) = policy.agent(1).act([first_decision(0.5)])
    assert isinstance(refused, PolicyError)
    assert "no finite probabilities for 'w5'" in str(refused)


def test_steps_are_recorded_as_they_are_replayed():
    policy = tiny_policy("llama")
    (episode,) = play(policy, 1, [((0,), (0,)), ((0,), ())])
    trajectory = recorded(episode)
    assert all(isinstance(step, Step) for step in trajectory.steps)
    transcript = policy.agent(1)
    transcript.act([episode[0][0]])
    assert (
        policy.windows(trajectory)[0].tokens[: len(transcript.transcripts[0].tokens)]
        == transcript.transcripts[0].tokens
    )
