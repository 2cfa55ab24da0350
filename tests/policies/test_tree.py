from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retroformer.errors import PolicyError
from retroformer.policies import batch, exactness, tree
from retroformer.policies.tree import grow, windows
from tiny import FAMILIES, WORDS, plain_scores, tiny_policy, told

POLICIES = {family: tiny_policy(family) for family in FAMILIES}
SHORT = {family: tiny_policy(family, context=16) for family in FAMILIES}
DOUBLE = {family: tiny_policy(family, double=True) for family in FAMILIES}


@st.composite
def action_sets(draw):
    """Actions of one to three words, some of which begin alike; none begins another or is another."""
    some = draw(
        st.lists(st.lists(st.sampled_from(WORDS[:4]), min_size=1, max_size=3).map(tuple), min_size=1, max_size=5)
    )
    kept = []
    for action in some:
        if not any(action[: len(other)] == other[: len(action)] for other in kept):
            kept.append(action)
    return tuple(" ".join(action) for action in kept)


@st.composite
def trajectories(draw, most=3):
    steps = []
    for _ in range(draw(st.integers(1, most))):
        actions = draw(action_sets())
        observation = " ".join(draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3)))
        steps.append((observation, actions, draw(st.integers(0, len(actions) - 1))))
    return told(steps)


def tree_scores(policy, *batch, temperature=1.0):
    laid = [window for place, one in enumerate(batch) for window in policy.windows(one, place)]
    return policy.score(policy.collate(laid), temperature)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=6, deadline=None)
@given(several=st.lists(trajectories(), min_size=1, max_size=2))
def test_one_forward_of_the_tree_scores_every_action_as_its_own_forward_does(family, several):
    policy = POLICIES[family]
    with torch.no_grad():
        scores = tree_scores(policy, *several)
        for one, own in zip(several, scores, strict=True):
            for step, expected in enumerate(plain_scores(policy, one)):
                torch.testing.assert_close(own[step, : len(expected)], expected, atol=1e-4, rtol=0)
                assert bool((own[step, len(expected) :] == -torch.inf).all())


BRANCHED = told(
    [("w5 w6", ("w0 w1", "w0 w2", "w3"), 1), ("w7", ("w0 w1 w2", "w0 w1 w3", "w2"), 0), ("w8", ("w1", "w2 w3"), 1)]
)


@pytest.mark.parametrize("most", [1, 2, 4, 5, 6, 100])
def test_every_observed_place_of_a_batch_is_as_probable_as_any_other(monkeypatch, most):
    laid = [window for place in range(3) for window in POLICIES[FAMILIES[0]].windows(BRANCHED, place)]
    every = [(i, place) for i, window in enumerate(laid) for place in window.observed]
    assert len(every) == 3 * (1 + 1)  # "w7" and "w8"; the first observation is before the first decision
    monkeypatch.setattr(batch, "OBSERVED", most)
    counts = dict.fromkeys(every, 0)
    for part in range(60):
        found = [(i, place) for i, own in enumerate(batch.observed_places(laid, part / 60)) for place in own]
        assert len(found) == min(most, 6)
        for one in found:
            counts[one] += 1
    assert set(counts.values()) == {10 * min(most, 6)}


@pytest.mark.parametrize("method", ["tree", "mask", "sequences"])
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=3, deadline=None)
@given(several=st.lists(trajectories(most=6), min_size=1, max_size=2))
def test_observations_are_scored_as_plain_text_beside_the_actions(family, method, several):
    policy = SHORT[family]
    before = policy.method
    try:
        policy.use(method)
        laid = [window for place, one in enumerate(several) for window in policy.windows(one, place)]
        with torch.no_grad():
            asked = policy.collate(laid, batch.observed_places(laid, 0.0))
            hidden = policy.hidden(asked)
            got = policy.observation_logprobs(hidden, asked)
            torch.testing.assert_close(
                policy.logprobs(hidden, asked), policy.score(policy.collate(laid)), atol=1e-5, rtol=0
            )
            expected = []
            for window in laid:
                for root, action, chosen, after in zip(
                    window.roots, window.actions, window.chosen, window.roots[1:], strict=False
                ):
                    for place in range(root + 1 + len(action[chosen]), after + 1):
                        logits = policy.logits(policy.states(torch.tensor([window.tokens[:place]]))[0, -1:])
                        expected.append(logits.log_softmax(-1)[0, window.tokens[place]])
        torch.testing.assert_close(got, torch.stack(expected) if expected else got.new_zeros(0), atol=1e-4, rtol=0)
    finally:
        policy.use(before)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=3, deadline=None)
@given(trajectory=trajectories(most=6), width=st.sampled_from([1, 2, 5]), block=st.sampled_from([0, 1, 3]))
def test_windows_chunks_and_blocks_of_any_size_score_alike(family, trajectory, width, block):
    """Histories that start anew, branches cut into small chunks, and tries into small blocks."""
    policy = SHORT[family]
    grow.cache_clear()
    with torch.no_grad(), mock.patch.object(batch, "WIDTH", width), mock.patch.object(tree, "BLOCK", block):
        laid = policy.windows(trajectory)
        scores = policy.score(policy.collate(laid))
        for window, own in zip(laid, scores, strict=True):
            for root, actions, row in zip(window.roots, window.actions, own, strict=False):
                expected = exactness.plain_scores(policy, window.tokens[: root + 1], actions)
                torch.testing.assert_close(row[: len(actions)], expected, atol=1e-4, rtol=0)
    grow.cache_clear()


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=4, deadline=None)
@given(trajectory=trajectories())
@example(trajectory=BRANCHED)
def test_gradients_are_those_of_the_plain_computation(family, trajectory):
    policy = DOUBLE[family]
    weights = torch.randn(3, 5, dtype=torch.double, generator=torch.Generator().manual_seed(1))

    def gradients(scores):
        policy.model.zero_grad()
        torch.stack([(weights[step, : len(row)] * row).sum() for step, row in enumerate(scores)]).sum().backward()
        return [parameter.grad.clone() for parameter in policy.model.parameters()]

    rows = [
        row[: len(step.admissible_actions)]
        for row, step in zip(tree_scores(policy, trajectory)[0], trajectory.steps, strict=True)
    ]
    ours, plain = gradients(rows), gradients(plain_scores(policy, trajectory))
    scale = max(float(gradient.abs().max()) for gradient in plain)
    for one, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()) + 1e-9 * scale)


def test_the_gradient_of_log_pi_matches_finite_differences():
    # GPT-2, since the norms of the others compute in single precision whatever they are given.
    policy = tiny_policy("gpt2", double=True)
    parameter = policy.model.get_input_embeddings().weight

    def log_pi():
        return tree_scores(policy, BRANCHED)[0, 1, 0]

    (gradient,) = torch.autograd.grad(log_pi(), [parameter])
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = torch.randn(parameter.shape, dtype=torch.double, generator=generator)
        with torch.no_grad():
            parameter += 1e-5 * direction
            above = log_pi()
            parameter -= 2e-5 * direction
            below = log_pi()
            parameter += 1e-5 * direction
        torch.testing.assert_close((gradient * direction).sum(), (above - below) / 2e-5, rtol=1e-6, atol=1e-8)


def test_probabilities_sum_to_one_at_any_temperature():
    policy = tiny_policy("llama")
    with torch.no_grad():
        for temperature in (0.5, 2.0):
            scores = tree_scores(policy, BRANCHED, temperature=temperature)
            torch.testing.assert_close(scores.exp().sum(-1), torch.ones(1, 3), atol=1e-6, rtol=0)
            for step, expected in enumerate(plain_scores(policy, BRANCHED, temperature)):
                torch.testing.assert_close(scores[0, step, : len(expected)], expected, atol=1e-4, rtol=0)


def test_padding_gives_no_gradient_that_is_not_a_number():
    policy = tiny_policy("llama")
    long = told([("w5", ("w0", "w1"), 0)] * 4, id="long")
    scores = tree_scores(policy, told([("w5", ("w0",), 0)]), long)
    scores[scores > -torch.inf].sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in policy.model.parameters())


def test_a_full_window_with_branches_leaves_no_position_beyond_the_table():
    """GPT-2 looks positions up in a table, and branches make the row longer than the window."""
    actions = tuple(f"{first} {second}" for first in WORDS[:6] for second in WORDS[:2])
    policy = tiny_policy("gpt2", context=8)
    full = told([("w5 w6 w7 w8", actions, 3)])
    with torch.no_grad():
        scores = tree_scores(policy, full, told([("w5", ("w0", "w1"), 0)]))
        torch.testing.assert_close(scores[0, 0], plain_scores(policy, full)[0], atol=1e-4, rtol=0)


def test_actions_of_one_token_need_no_branch():
    laid = POLICIES["llama"].collate(
        POLICIES["llama"].windows(told([("w5", ("w0", "w1"), 0), ("w6", ("w2", "w3"), 1)]))
    )
    assert not laid.branches
    assert laid.positions_bl is None
    # Task w0 w1, w5, w0, w6; the last action is not fed.
    assert laid.tokens_bl.tolist() == [[2, 3, 7, 2, 8]]
    assert laid.score_n.tolist() == [2, 4]


def test_actions_that_begin_alike_share_their_nodes():
    branches = grow(((1, 2, 3), (1, 2, 4), (1, 5), (6,)))
    nodes = zip(branches.node_token, branches.node_depth, branches.node_parent, strict=True)
    assert list(nodes) == [(1, 1, -1), (2, 2, 0)]
    assert list(zip(branches.entry_action, branches.entry_node, branches.entry_token, strict=True)) == [
        (0, -1, 1), (0, 0, 2), (0, 1, 3), (1, -1, 1), (1, 0, 2), (1, 1, 4), (2, -1, 1), (2, 0, 5), (3, -1, 6),
    ]  # fmt: skip
    # After the prefixes (), (1) and (1, 2); three actions begin with 1, two of them go on with 2.
    assert branches.entry_rivals.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0]
    assert branches.entry_twins.tolist() == [3, 2, 1, 3, 2, 1, 3, 1, 1]


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (
            ("w0", "w0 w1"),
            "action 1 .'w0 w1'. begins with the tokens of action 0 .'w0'.: end layout",
        ),
        (
            ("w0 w1", "w2", "w0"),
            "action 0 .'w0 w1'. begins with the tokens of action 2 .'w0'.: end layout",
        ),
        (("w0 w1", "w0 w1"), "action 1 .'w0 w1'. is action 0 once more: list every action once"),
        (("w0", " "), "action 1 .' '. has no tokens: give it a text"),
        (
            ("nonsense", "gibberish"),
            "action 1 .'gibberish'. has the tokens of action 0 .'nonsense'.: name them",
        ),
    ],
)
def test_actions_that_cannot_be_told_apart_are_refused_with_trajectory_and_step(actions, message):
    with pytest.raises(PolicyError, match=f"trajectory t1, step 1: .*{message}"):
        POLICIES["llama"].windows(told([("w5", ("w0", "w1"), 0), ("w6", actions, 0)]))


def test_a_step_whose_action_is_not_admissible_or_that_has_none_is_refused():
    sound = told([("w5", ("w0", "w1"), 0)])
    for step, message in (
        (
            replace(sound.steps[0], admissible_actions=()),
            "trajectory t1, step 0: no action is admissible: end the episode",
        ),
        (replace(sound.steps[0], action="w9"), "step 0: the action 'w9' is not among the 2 admissible ones: add it"),
        (
            replace(sound.steps[0], admissible_actions=None),
            "step 0: its action is to be generated, and layout.action = .* has no end",
        ),
    ):
        with pytest.raises(PolicyError, match=message):
            POLICIES["llama"].windows(replace(sound, steps=(step,)))


def test_a_long_history_is_cut_at_a_step_and_scored_as_its_windows_say():
    policy = tiny_policy("llama", context=10)
    long = told([(f"w{t} w{t}", ("w0", "w1 w2"), t % 2) for t in range(6)])
    laid = policy.windows(long)
    assert len(laid) > 1
    assert [step for window in laid for step in range(window.first_step, window.first_step + len(window.roots))] == [
        *range(6)
    ]
    assert all(max(len(a) for a in window.actions[-1]) + window.roots[-1] + 1 <= 10 for window in laid)
    with torch.no_grad():
        scores = policy.score(policy.collate(laid))
        for window, own in zip(laid, scores, strict=True):
            for root, row in zip(window.roots, own, strict=False):
                prefix = window.tokens[: root + 1]
                logits = policy.model(input_ids=torch.tensor([prefix])).logits[0, root]
                one, two = logits[[2, 3]].log_softmax(0)  # w2 has no rival after w1
                torch.testing.assert_close(row, torch.stack([one, two]), atol=1e-4, rtol=0)


def test_an_observation_longer_than_the_context_is_refused():
    with pytest.raises(PolicyError, match=r"trajectory t1, step 1: .*window has 10: use a model with a longer context"):
        windows(
            told([("w5", ("w0",), 0), ("w5 " * 10, ("w0",), 0)]),
            0,
            POLICIES["llama"].layout,
            POLICIES["llama"].encode,
            10,
            POLICIES["llama"].text,
        )
