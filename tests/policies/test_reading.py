"""What one forward of an acting policy is made of, and that its memory is bounded."""

from itertools import product

import numpy as np
import pytest
import torch

from retroformer.errors import PolicyError
from retroformer.policies import reading
from retroformer.policies.agent import Decision
from retroformer.policies.cache import ROOM
from retroformer.policies.reading import Cached, Question, alike, portions, ragged
from tiny import PLAIN, WORDS, tiny_policy, told

MANY = tuple(" ".join(words) for words in product(WORDS, repeat=4))[:5000]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def shapes(policy, call):
    """The shapes of what the model is fed while `call` runs, and what that returns."""
    fed = []
    hook = policy.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        return fed, call()
    finally:
        hook.remove()


def ask(slot, *words, actions=("w0", "w1 w2", "w1 w3"), policy):
    tokens = [token for word in words for token in policy.encode(word)]
    return Question(slot, tokens, tuple(policy.encode(action) for action in actions))


def test_only_slots_that_ask_are_fed_and_only_what_is_new():
    policy = tiny_policy("llama")
    reader = Cached(policy, 8)
    fed, _ = shapes(policy, lambda: reader.read([ask(slot, "w5 w6 w7", policy=policy) for slot in range(8)]))
    assert fed == [(8, 4)]  # three words and the node w1
    fed, _ = shapes(policy, lambda: reader.read([ask(slot, "w5 w6 w7 w8", policy=policy) for slot in (5, 2)]))
    assert fed == [(2, 2)]


def test_the_same_question_again_has_the_same_answer():
    policy = tiny_policy("qwen3")
    reader = Cached(policy, 2)
    question = ask(1, "w5 w6", policy=policy)
    (first,), (again,) = reader.read([question]), reader.read([question])
    np.testing.assert_allclose(again, first, atol=1e-5)


def test_what_is_much_longer_than_its_neighbours_is_fed_by_itself(monkeypatch):
    monkeypatch.setattr(reading, "WASTE", 20)
    assert list(alike([3, 40, 3, 4, 41])) == [[4, 1], [3, 0, 2]]
    assert list(alike([3, 4, 5])) == [[2, 1, 0]]
    policy = tiny_policy("llama")
    asked = [ask(slot, "w5 " * length, policy=policy) for slot, length in enumerate((2, 40, 3))]
    fed, answers = shapes(policy, lambda: Cached(policy, 3).read(asked))
    assert fed == [(1, 41), (2, 4)]
    for question, answer in zip(asked, answers, strict=True):
        (alone,) = Cached(policy, 3).read([question])
        np.testing.assert_allclose(answer, alone, atol=1e-5)


def test_a_long_prompt_is_read_in_parts_so_that_its_mask_is_bounded(monkeypatch):
    policy = tiny_policy("llama")
    asked = [ask(0, "w5 w6 w7 " * 16, policy=policy), ask(1, "w8", policy=policy)]
    whole = Cached(policy, 2).read(asked)
    monkeypatch.setattr(reading, "MASK", 2 * 48 * 10)
    fed, parts = shapes(policy, lambda: Cached(policy, 2).read(asked))
    assert fed == [(2, 10)] * 4 + [(2, 9)]
    for ours, expected in zip(parts, whole, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_five_thousand_actions_are_read_in_parts_and_scored_as_in_training():
    policy = tiny_policy("llama")
    agent = policy.agent(2)
    decisions = [Decision(0, 0, "w0 w1", "w5", MANY, 0.5), Decision(1, 0, "w0 w1", "w6", ("w0", "w1"), 0.5)]
    fed, (choice, other) = shapes(policy, lambda: agent.act(decisions))
    assert max(width for _, width in fed) <= reading.PART + 8
    assert agent.reader.cache.keys[0].shape[1] <= 2 * reading.PART
    place = MANY.index(choice.action)
    batch = policy.collate(policy.windows(told([("w5", MANY, place)])))
    # Neither is there a mask over all pairs of branches.
    assert sum(one.visible_bqk.numel() for one in batch.branches) < 1000 * batch.tokens_bl.shape[1]
    with torch.no_grad():
        scores = policy.score(batch)[0, 0]
    np.testing.assert_allclose(scores.exp(), choice.probabilities, atol=1e-5)
    assert choice.logprob == pytest.approx(float(scores[place]), abs=1e-4)
    (alone,) = policy.agent(2).act(decisions[1:])
    assert other.logprob == pytest.approx(alone.logprob, abs=1e-5)


def test_actions_are_cut_into_portions_of_about_so_many_tokens(monkeypatch):
    monkeypatch.setattr(reading, "PART", 3)
    actions = ((1, 2, 3), (1, 4, 3), (5, 6), (7,))
    assert [one.entry_token.tolist() for one in portions(actions)] == [[1, 2, 3, 1, 4, 3], [5, 6, 7]]
    assert [len(one.entry_token) for one in portions(())] == [0]


def test_ragged_rows():
    rows, places = ragged(np.array([2, 0, 3]))
    assert rows.tolist() == [0, 0, 2, 2, 2]
    assert places.tolist() == [0, 1, 0, 1, 2]


def test_the_store_shrinks_when_long_episodes_have_ended():
    policy = tiny_policy("llama", context=2048)
    agent = policy.agent(3)
    long = Decision(0, 0, "w0", "w5 " * 1200, ("w0", "w1"), 0.5)
    short = [Decision(slot, 0, "w0", "w6", ("w0", "w1"), 0.5) for slot in (1, 2)]
    agent.act([long, *short])
    assert agent.reader.cache.keys[0].shape[1] == 2048
    agent.act([Decision(1, 1, "w0", "w7", ("w0", "w1"), 0.5)])
    assert agent.reader.cache.keys[0].shape[1] == 2048, "the long episode is still at work"
    agent.release(0)
    before = agent.act([Decision(2, 1, "w0", "w7", ("w0", "w1"), 0.5)])
    assert agent.reader.cache.keys[0].shape[1] == ROOM
    fresh = policy.agent(3)
    fresh.act(short)
    after = fresh.act([Decision(2, 1, "w0", "w7", ("w0", "w1"), 0.5)])
    assert before[0].logprob == pytest.approx(after[0].logprob, abs=1e-5)


@pytest.mark.parametrize("family", PLAIN)
def test_what_cannot_be_cached_acts_as_it_trains(family):
    policy = tiny_policy(family)
    policy.use("sequences")
    agent = policy.agent(2)
    steps = [("w5 w6 w7", ("w0 w1", "w0 w2", "w3")), ("w8 w9", ("w1", "w2 w3"))]
    taken = []
    for t, (observation, actions) in enumerate(steps):
        decisions = [Decision(slot, t, "w0 w1", observation, actions, 0.4) for slot in (1, 0)]
        taken.append(agent.act(decisions))
    recorded = [(o, actions, actions.index(pair[0].action)) for (o, actions), pair in zip(steps, taken, strict=True)]
    with torch.no_grad():
        scores = policy.score(policy.collate(policy.windows(told(recorded))))[0]
    for row, pair, (_, actions) in zip(scores, taken, steps, strict=True):
        for choice in pair:
            np.testing.assert_allclose(row[: len(actions)].exp(), choice.probabilities, atol=1e-4)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ((), "step 0: no action is admissible: end the episode there, or leave out steps"),
        (("w0", ""), "step 0: admissible action 1 ('') has no tokens: give it a text"),
        (("w0", "w0"), "step 0: admissible action 1 ('w0') is action 0 once more: list every action once"),
    ],
)
def test_actions_that_cannot_be_chosen_end_their_episode_with_the_step_and_the_remedy(actions, message):
    (refused,) = tiny_policy("llama").agent(1).act([Decision(0, 0, "w0", "w5", actions, 0.5)])
    assert isinstance(refused, PolicyError)
    assert message in str(refused)


def test_the_only_action_is_certain():
    (choice,) = tiny_policy("llama").agent(1).act([Decision(0, 0, "w0", "w5", ("w1 w2",), 0.99)])
    assert (choice.action, choice.logprob, choice.probabilities) == ("w1 w2", 0.0, (1.0,))


def test_no_row_of_sequences_is_padded_when_it_goes_through_the_model():
    policy = tiny_policy("bloom")
    policy.use("sequences")
    batch = policy.collate(policy.windows(told([("w5 w6", ("w0 w1", "w0 w2 w3", "w4"), 1), ("w7", ("w0", "w1"), 0)])))
    fed, _ = shapes(policy, lambda: policy.hidden(batch))
    assert fed == [(1, 4), (1, 5), (1, 6), (2, 8)]
    assert batch.tokens_bl.shape == (5, 8)
