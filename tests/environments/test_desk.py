"""The order desk: what a seed says, what the tools do to the table, and when it is as it should be."""

import pytest

from retroformer.chat import ToolCall, write_action
from retroformer.environments import known, lexicon, make
from retroformer.environments.desk import CITIES, DONE, draw
from retroformer.errors import EnvironmentFault
from retroformer.policies import open_agent
from retroformer.rollouts.engine import Conditions, Episode, play
from retroformer.types import Outcome

NAMES = [f"desk:{task}" for task in known("desk")]
SEED = 3
"""undo: ``undo cleo rug``; her orders are o3 (sent), the rug o4 (open) and o5 (open)."""


def call(name, **arguments):
    return write_action(calls=[ToolCall(name, arguments)])


@pytest.fixture
def undo():
    environment = make("desk:undo")
    yield environment
    environment.close()


def played(environment, *actions, seed=SEED, **options):
    """The steps of an episode after its reset."""
    environment.reset(seed=seed, options=options)
    return [environment.step(action) for action in actions]


def test_an_episode_by_hand(undo):
    observation, info = undo.reset(seed=SEED)
    assert (observation, info["task"]) == ("> undo cleo rug", "undo cleo rug")
    assert "admissible_actions" not in info
    found, changed, ended = played(undo, call("find", customer="cleo"), call("cancel", order="o4"), DONE)
    orders = found[0].splitlines()[1].split()
    assert [order.split("_")[1:] for order in orders] == [["o3", "sent"], ["o4", "open"], ["o5", "open"]]
    assert orders[1] == "rug_o4_open"
    assert changed[:4] == ("<tool_response>\ndone\n</tool_response>\n> undo cleo rug", 0.0, False, False)
    assert ended[1:] == (1.0, True, False, {"success": True})


@pytest.mark.parametrize(
    "actions",
    [
        (DONE,),
        (call("find", customer="cleo"), DONE),
        (call("cancel", order="o5"), call("cancel", order="o4"), DONE),
        (call("move", order="o4", city="oslo"), call("cancel", order="o4"), DONE),
        (call("cancel", order="o4"),) * 6,
    ],
    ids=["nothing done", "only looked", "another order too", "moved too", "never says that it is done"],
)
def test_anything_else_than_the_wish_fails(undo, actions):
    *_, (_, reward, terminated, truncated, info) = played(undo, *actions)
    assert (reward, info["success"]) == (0.0, False)
    assert truncated == (not terminated) == (len(actions) == 6)


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("<tool_call>\n{oops\n</tool_call>", "call"),
        (call("delete", order="o4"), "tool"),
        (call("find"), "arguments"),
        (call("find", customer=3), "arguments"),
        (call("refund", order="o99"), "order"),
        (call("refund", order="o4"), "state"),
        (call("find", customer="nobody"), "customer"),
    ],
)
def test_what_is_wrong_with_a_call_is_an_observation_and_changes_nothing(undo, action, told):
    wrong, _, ended = played(undo, action, call("cancel", order="o4"), DONE)
    assert wrong[0].startswith(f"<tool_response>\nerror {told}\n</tool_response>")
    assert ended[4] == {"success": True}


def test_two_calls_in_one_action_are_done_in_their_order(undo):
    both = "\n".join((call("find", customer="cleo"), call("cancel", order="o4")))
    (first, *_), (*_, info) = played(undo, both, DONE)
    assert first.count("<tool_response>") == 2
    assert info["success"] is True


def test_a_step_that_is_not_due_is_refused(undo):
    with pytest.raises(EnvironmentFault, match="not running"):
        undo.step(DONE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["compact", "plain"])
def test_the_expert_solves_every_wish_and_every_word_is_known(name, text):
    words = set(lexicon([name], text))
    agent = open_agent("scripted:desk?noise=.1", slots=8)
    noisy = [
        one.trajectory
        for one in play(agent, [Episode(name, k, "gate") for k in range(60)], Conditions(0, text, "token", 8))
    ]
    for one in noisy:
        for step in one.steps:
            # The description has the tools, which are told in plain text alone.
            assert set(f"{one.task.description} {step.observation} {step.action}".split()) <= words
            assert (step.admissible_actions, step.logprob) == (None, None)
    expert = open_agent("scripted:desk", slots=8)
    solved = [
        one.trajectory
        for one in play(expert, [Episode(name, k, "gate") for k in range(40)], Conditions(0, text, "token", 8))
    ]
    assert {(one.outcome, len(one.steps)) for one in solved} == {(Outcome.SUCCESS, 3)}


@pytest.mark.parametrize("task", known("desk"))
def test_wishes_differ_and_can_be_met(task):
    wishes = set()
    for seed in range(300):
        orders, wish = draw(task, seed)
        (goal,) = (one for one in orders if (one.customer, one.item) == (wish.customer, wish.item))
        assert {"cancel": "open", "refund": "sent"}.get(task, goal.state) == goal.state
        assert (wish.city in CITIES) == (task == "move")
        assert wish.city != goal.city
        assert len({one.id for one in orders}) == 9
        wishes.add((wish.compact, *(one.compact for one in orders)))
    assert len(wishes) == 300


@pytest.mark.parametrize("mission", ["other", "shuffled"])
@pytest.mark.parametrize("name", NAMES)
def test_another_mission_is_another_wish_and_as_possible(name, mission):
    environment = make(name)
    for seed in range(20):
        observation, info = environment.reset(seed=seed, options={"mission": mission})
        assert info["mission"] == mission
        assert info["task"] != environment.wish.compact
        assert observation == f"> {info['task']}"
        if mission == "other":
            orders, true = draw(environment.task, seed)
            told = next(one for one in orders if (one.customer, one.item) == tuple(info["task"].split()[-2:]))
            assert (told.customer, told.item) != (true.customer, true.item)
            assert {"cancel": "open", "refund": "sent"}.get(environment.task, told.state) == told.state
    environment.close()


def test_the_noisy_desk_solves_about_two_thirds():
    agent = open_agent("scripted:desk?noise=0.3", slots=8)
    episodes = [Episode(NAMES[k % 4], k, "history") for k in range(200)]
    outcomes = [one.trajectory.outcome for one in play(agent, episodes, Conditions(0, "compact", "token", 8))]
    assert 0.4 < outcomes.count(Outcome.SUCCESS) / 200 < 0.75
