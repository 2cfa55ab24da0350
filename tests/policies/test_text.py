"""Text mode: what was generated is what is scored, stopping is learned, and only the agent's own tokens are."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from retroformer.config import PolicyConfig
from retroformer.errors import PolicyError
from retroformer.objectives.losses import Batch, imitation
from retroformer.policies.agent import Decision
from retroformer.policies.checkpoints import JOINED, build, load
from retroformer.policies.language_model import LanguageModelPolicy
from retroformer.policies.layout import END, Layout
from retroformer.policies.text import sample
from retroformer.types import Outcome, Step, StopReason, Task, Trajectory
from tiny import WORDS, tiny_policy

CONFIG = PolicyConfig(model="", width=16, layers=2, heads=4)
END_ID = 2
"""Of ``<end>``; the words follow it: w0 is 3, w9 is 12."""
WORDS = WORDS[:10]


def speaker(context=1024):
    """A tiny model that generates, with probabilities far from uniform."""
    policy = build(CONFIG, WORDS, seed=0, layout=Layout.words(ended=True))
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(0))
    policy.limit = context
    return policy


def spoken(*steps, id="t1"):
    """A trajectory of (observation, action, token ids or None, admissible actions or None)."""
    return Trajectory(
        id=id,
        task=Task("fake", "fake", "A", "w0 w1", 0, "train"),
        steps=tuple(Step(o, action, 1.0, admissible, ids) for o, action, ids, admissible in steps),
        stop_reason=StopReason.TERMINATED,
        outcome=Outcome.SUCCESS,
        policy="p",
    )


def asked(slot, t, uniform, observation="w5 w6", most=8, actions=None):
    return Decision(slot, t, "w0 w1", observation, actions, uniform, max_new_tokens=most)


def scored(policy, trajectory, temperature=1.0):
    """log pi of each action."""
    laid = policy.windows(trajectory)
    with torch.no_grad():
        scores = policy.score(policy.collate(laid), temperature)
    return [
        float(row[step, choice])
        for window, row in zip(laid, scores, strict=True)
        for step, choice in enumerate(window.chosen)
    ]


def plain(policy, sequence, start, temperature=1.0):
    """Sum of the log-probabilities of a sequence's tokens from `start` on, by a forward of its own."""
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([sequence])).logits[0].double() / temperature
    return float(logits.log_softmax(-1)[range(start - 1, len(sequence) - 1), sequence[start:]].sum())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("context", [1024, 48])
def test_what_was_generated_is_scored_as_it_was_sampled(temperature, context):
    """Ragged neighbours, both modes in one batch, a limit that cuts some actions, windows that start anew."""
    policy = speaker(context)
    agent = policy.agent(3, temperature=temperature)
    chance = np.random.default_rng(0)
    played = {slot: [] for slot in range(3)}
    for call in range(8):
        decisions = []
        for slot in range(3 if call % 2 else 2):
            observation = " ".join(chance.choice(WORDS, 1 + slot))
            actions = ("w0", "w1 w2") if (slot + call) % 3 == 0 else None
            decisions.append(asked(slot, len(played[slot]), chance.random(), observation, 5, actions))
        for decision, choice in zip(decisions, agent.act(decisions), strict=True):
            played[decision.slot].append((decision, choice))
    assert {choice.cut for steps in played.values() for _, choice in steps} == {True, False}
    windows = 0
    for steps in played.values():
        trajectory = spoken(*((d.observation, c.action, c.token_ids, d.admissible_actions) for d, c in steps))
        windows += len(policy.windows(trajectory))
        np.testing.assert_allclose(scored(policy, trajectory, temperature), [c.logprob for _, c in steps], atol=2e-5)
    assert (windows > 3) == (context == 48)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_pi_is_the_plain_sum_over_the_tokens_and_the_end_is_one_of_them(temperature):
    policy = speaker()
    one = spoken(("w5", "w0 w1", None, None), ("w6 w7", "w2", (5, END_ID), None))
    first = [3, 4, 8, 3, 4, END_ID]
    second = [*first, 9, 10, 5, END_ID]
    assert policy.windows(one)[0].tokens == second
    expected = [plain(policy, first, 3, temperature), plain(policy, second, 8, temperature)]
    np.testing.assert_allclose(scored(policy, one, temperature), expected, atol=1e-5)


def test_a_generated_step_is_not_normalised_and_its_neighbours_of_choice_mode_are():
    policy = speaker()
    mixed = spoken(("w5", "w0", None, ("w0", "w1")), ("w6", "w2", None, None), ("w7", "w1", None, ("w0", "w1")))
    batch = policy.collate([*policy.windows(mixed), *policy.windows(spoken(("w5", "w3", None, ("w3", "w4"))))])
    assert batch.generated_bt.tolist() == [[False, True, False], [False, False, False]]
    with torch.no_grad():
        mass = policy.score(batch).exp().sum(-1)
    torch.testing.assert_close(mass[0, [0, 2]], torch.ones(2))
    torch.testing.assert_close(mass[1, 0], torch.tensor(1.0))
    assert float(mass[0, 1]) < 0.5


def losses_gradient(policy, trajectory):
    """Gradient of a loss with respect to the hidden state at every token of the window."""
    batch = policy.collate(policy.windows(trajectory))
    held = []
    hook = policy.model.base_model.register_forward_hook(
        lambda module, given, output: held.append(output.last_hidden_state.retain_grad() or output.last_hidden_state)
    )
    scores = policy.score(batch)[..., 0]
    hook.remove()
    mask = batch.mask_bt
    imitation(Batch(scores, scores.detach(), scores.detach(), scores.detach(), mask.any(1), mask)).loss.backward()
    return held[0].grad[0]


def test_the_tokens_of_observations_carry_no_loss():
    policy = speaker()
    one = spoken(("w5 w6 w7", "w0 w1", None, None), ("w8 w9 w8", "w2", None, None))
    moved = losses_gradient(policy, one).abs().sum(-1) > 0
    # Task (2), observation (3), action and end (3), observation (3), action (1); its end is predicted, not fed. What
    # predicts a token of an action carries the loss: the last of the observation, and the action's own before its end.
    expected = [False, False, *(False, False, True), *(True, True, False), *(False, False, True), True]
    assert moved.tolist() == expected


def test_what_comes_after_an_action_changes_nothing_of_it():
    policy = speaker()
    one = spoken(("w5 w6", "w0 w1", None, None), ("w7", "w2", None, None), ("w8", "w3", None, None))
    other = replace(one, steps=(*one.steps[:2], replace(one.steps[2], observation="w9 w1 w4", action="w6 w6")))
    np.testing.assert_allclose(scored(policy, one)[:2], scored(policy, other)[:2], atol=1e-6)
    last = policy.collate(policy.windows(one))
    padded = policy.collate([*policy.windows(one), *policy.windows(replace(one, steps=one.steps * 2))])
    with torch.no_grad():
        torch.testing.assert_close(policy.score(padded)[0, :3], policy.score(last)[0])
        padded.tokens_bl[0, last.tokens_bl.shape[1] :] = 7
        torch.testing.assert_close(policy.score(padded)[0, :3], policy.score(last)[0])


def test_text_alone_needs_no_mask():
    policy = speaker()
    batch = policy.collate(policy.windows(spoken(("w5", "w0 w1", None, None), ("w6", "w2 w3", None, None))))
    assert batch.positions_bl is None


def test_an_episode_does_not_depend_on_its_neighbours():
    policy = speaker()
    alone = policy.agent(1).act([asked(0, 0, 0.3)])[0]
    together = policy.agent(3).act([asked(1, 0, 0.9, "w1"), asked(2, 0, 0.3), asked(0, 0, 0.1, "w2", 8, ("w0", "w1"))])
    assert (together[1].token_ids, together[1].action) == (alone.token_ids, alone.action)
    assert together[1].logprob == pytest.approx(alone.logprob, abs=1e-5)
    other = policy.agent(1).act([asked(0, 0, 0.31)])[0]
    assert other.token_ids != alone.token_ids


def test_an_action_stops_at_its_end_or_at_the_limit_and_the_history_closes_it():
    policy = speaker()
    agent = policy.agent(1)
    for number in range(40):
        (choice,) = agent.act([asked(0, 0, number / 40, most=3)])
        assert choice.token_ids.count(END_ID) == (not choice.cut)
        assert 1 <= len(choice.token_ids) <= 3
        assert choice.cut == (choice.token_ids[-1] != END_ID)
        assert agent.transcripts[0].tokens == [
            *(3, 4, 8, 9),
            *choice.token_ids,
            *((END_ID,) if choice.cut else ()),
        ]
        said = [policy.tokenizer.convert_ids_to_tokens(token) for token in choice.token_ids if token != END_ID]
        assert choice.action == (" ".join(said).replace(f" {JOINED}", "") or END)


def test_a_token_that_the_tokenizer_lacks_is_trained_on_as_it_was_sampled():
    """Checkpoints often have more rows than their tokenizer has tokens."""
    policy = speaker()
    policy.model.resize_token_embeddings(len(policy.tokenizer) + 40)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(0))
    policy = LanguageModelPolicy(policy.model, policy.tokenizer, policy.layout)
    beyond = 0
    for number in range(30):
        agent = policy.agent(1)
        (choice,) = agent.act([asked(0, 0, number / 30)])
        beyond += max(choice.token_ids) >= len(policy.tokenizer)
        if not choice.action:
            continue
        trajectory = spoken(("w5 w6", choice.action, choice.token_ids, None))
        (window,) = policy.windows(trajectory)
        assert window.actions[0] == (choice.token_ids,)
        assert scored(policy, trajectory) == pytest.approx([choice.logprob], abs=1e-4)
    assert beyond > 10


def test_greedy_takes_the_likeliest_token_each_time():
    policy = speaker()
    (choice,) = policy.agent(1, greedy=True).act([asked(0, 0, 0.9, most=4)])
    sequence = [3, 4, 8, 9]
    for token in choice.token_ids:
        with torch.no_grad():
            assert int(policy.model(input_ids=torch.tensor([sequence])).logits[0, -1].argmax()) == token
        sequence.append(token)


def test_sampling_follows_the_distribution_at_the_temperature():
    logprobs = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]]).log().numpy()
    grid = (np.arange(1000) + 0.5) / 1000
    for temperature in (1.0, 0.5):
        pi = np.array([0.1, 0.2, 0.7]) ** (1 / temperature)
        pi /= pi.sum()
        tokens, own = sample(np.repeat(logprobs[:1], 1000, 0), grid, temperature, False)
        np.testing.assert_allclose(np.bincount(tokens) / 1000, pi, atol=1.1e-3)
        np.testing.assert_allclose(own, np.log(pi)[tokens], rtol=1e-6)
    assert sample(logprobs, np.array([0.0, np.nextafter(1, 0)]), 1.0, False)[0].tolist() == [0, 1]
    assert sample(logprobs, np.zeros(2), 1.0, True)[0].tolist() == [2, 0]


def test_sampled_ids_are_kept_and_those_of_another_tokenizer_are_not():
    text = speaker().text
    # The ids of unknown words are <unk>, which no text would give back.
    assert text.tokens(Step("o", "<unk> w0", 0.0, None, (1, 3, END_ID))) == (1, 3, END_ID)
    assert text.tokens(Step("o", "w1 w0", 0.0, None, (4, 3))) == (4, 3)
    for others in ((3, 4, END_ID), (400, 3), (-1, 3), ()):
        assert text.tokens(Step("o", "w1 w0", 0.0, None, others)) == (4, 3, END_ID)
    assert text.tokens(Step("o", "w1 w0", 0.0)) == (4, 3, END_ID)


def test_a_limit_of_tokens_is_also_a_quarter_of_the_window():
    policy = speaker(context=16)
    for number in range(30):
        (choice,) = policy.agent(1).act([asked(0, 0, number / 30, "w5", most=100)])
        assert len(choice.token_ids) <= 3


def test_a_layout_without_an_end_is_refused_in_acting_and_training():
    policy = tiny_policy("llama")
    refused, choice = policy.agent(2).act([asked(0, 0, 0.5), asked(1, 0, 0.5, actions=("w0", "w1"))])
    assert isinstance(refused, PolicyError)
    assert "has no end that could be learned" in str(refused)
    assert choice.action in ("w0", "w1")
    with pytest.raises(PolicyError, match="trajectory t1, step 0: its action is to be generated"):
        policy.windows(spoken(("w5", "w0", None, None)))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_model_that_gives_no_number_is_told():
    policy = speaker()
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.fill_(float("nan"))
    (refused,) = policy.agent(1).act([asked(0, 0, 0.5)])
    assert isinstance(refused, PolicyError)
    assert "no finite probabilities for 'w5 w6'" in str(refused)


def test_a_speaker_is_the_same_after_saving(tmp_path):
    policy = speaker()
    policy.save(tmp_path)
    again = load(tmp_path)
    assert again.text.ends == policy.text.ends == ((END_ID,),)
    decision = asked(0, 0, 0.4)
    assert again.agent(1).act([decision])[0].token_ids == policy.agent(1).act([decision])[0].token_ids


@pytest.mark.parametrize("context", [1024, 48])
def test_an_episode_is_taken_up_as_training_lays_it_out(context):
    policy = speaker(context)
    agent = policy.agent(1, greedy=True)
    history = [(f"w{t} w{t + 1}", "w3 w4 w5") for t in range(7)]
    for t in (1, 7):
        agent.recall(0, "w0 w1", history[:t])
        (choice,) = agent.act([asked(0, t, 0.5, "w8 w9", most=6)])
        whole = spoken(
            *((seen, said, None, None) for seen, said in history[:t]), ("w8 w9", choice.action, choice.token_ids, None)
        )
        (*earlier, window) = policy.windows(whole)
        assert agent.transcripts[0].tokens == window.tokens
        assert choice.logprob == pytest.approx(scored(policy, whole)[-1], abs=1e-5)
        assert bool(earlier) == (context == 48 and t == 7)


def test_what_closes_an_action_that_was_cut_is_no_observation():
    """It follows the action in the history, and nobody said it: neither the policy nor the environment."""
    policy = speaker()
    cut = policy.encode("w0 w1")
    for ids in (cut, (*cut, END_ID)):
        [window] = policy.windows(spoken(("w5", "w0 w1", ids, None), ("w6 w7", "w2", None, ("w2", "w3"))))
        said = policy.encode(*policy.layout.piece("observation", "w6 w7"))
        assert tuple(window.tokens[place + 1] for place in window.observed) == said
