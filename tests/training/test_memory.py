import copy
import math

import pytest
import torch
from test_trainer import DEFAULTS, MANY, WORDS, catalogue, trainer
from transformers import OPTConfig, OPTForCausalLM

from builders import make_trajectory
from retroformer.config import PolicyConfig
from retroformer.policies.checkpoints import build
from retroformer.policies.language_model import LanguageModelPolicy
from retroformer.policies.layout import Layout
from retroformer.policies.tree import Window
from retroformer.training import memory
from retroformer.training.memory import Memory, allowed, kept, measure, shape
from retroformer.training.replay import Replay
from retroformer.training.trainer import Trainer, new_value_head
from retroformer.types import Step
from tiny import FAMILIES, tiny_policy, told


def window(tokens):
    return Window(0, 0, [0] * tokens, [0], [((1,),)], [0])


def test_windows_are_cut_where_the_next_would_not_fit_by_hand():
    policy = tiny_policy()
    room = Memory(budget=1000, linear=10.0, quadratic=0.0, checkpointed=5.0)
    some = [window(length) for length in (20, 25, 30, 60, 10, 10, 200, 10)]
    # Padded to the longest: 3 of 30 are 900 bytes, with 60 they would be 4 of 60; 200 alone are too many.
    sizes = [[len(one.tokens) for one in part] for part in room.parts(some, policy, False)]
    assert sizes == [[20, 25, 30], [60], [10, 10], [200], [10]]
    halved = [[len(one.tokens) for one in part] for part in room.parts(some, policy, True)]
    assert halved == [[20, 25, 30], [60, 10, 10], [200], [10]]
    assert (room.rows(30), room.rows(200), room.rows(200, checkpointing=True)) == (3, 0, 1)
    assert Memory(1000, 1.0, 0.1, 1.0).rows(50) == 1000 // (50 + 250)


def test_what_a_window_takes_by_hand():
    policy = tiny_policy()
    one = told([("w1", ("w2", "w3 w4 w5"), 0), ("w1", ("w2", "w3 w4"), 1)])
    (only,) = policy.windows(one)
    # Task 2, observations 2, actions taken 1 + 2; the tokens of an action but its last may be branches: 2 + 1.
    assert shape(only, policy) == (1, 7 + 3)
    policy.use("sequences")
    assert shape(only, policy) == (4, 7 + 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_measured_at_two_lengths_holds_at_others(family):
    policy = tiny_policy(family, context=512)
    measured = measure(policy)
    assert 0 < measured.checkpointed < measured.linear
    for length in (100, 400):
        expected = measured.linear * length + measured.quadratic * length**2
        assert kept(policy, length) == pytest.approx(expected, rel=0.05)


def gradients(budget, **options):
    terms = {"entropy": 0.01, "value": 0.5, "observations": 0.5, "baseline": "value"}
    one = trainer(MANY, batch=6, max_grad_norm=1e9, **terms, **options)
    one._allow(one.memory.budget if budget is None else budget)
    one.optimizer.step = lambda: None
    one.update()
    return one, [parameter.grad.double() for parameter in one.parameters]


@pytest.mark.parametrize("objective", ["topr", "asymmetric", "imitation_of_successes"])
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(objective, rows, monkeypatch):
    whole, expected = gradients(None, objective=objective)
    budget = int(rows * whole.memory.linear * 12)
    calls = []
    hidden = type(whole.policy).hidden
    monkeypatch.setattr(
        type(whole.policy), "hidden", lambda self, tree: calls.append(tree.shape[0]) or hidden(self, tree)
    )
    parts, got = gradients(budget, objective=objective)
    assert parts.checkpointing == (rows == 0)
    assert max(calls[2:]) <= max(rows, 1) < 6  # the first two are what `measure` looks at
    assert sum(calls[2:]) == 2 * 6
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in expected))
    off = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(got, expected, strict=True)))
    assert norm > 0
    assert off < 1e-6 * norm
    torch.testing.assert_close(parts.recent[0], whole.recent[0], rtol=1e-5, atol=1e-6)


def test_checkpointing_keeps_less_and_dropout_stays_off():
    policy = tiny_policy("gpt2", context=512)  # whose config has dropout
    before, plain = kept(policy, 200), policy.score(policy.collate([window(40)]))
    assert memory.checkpoint_layers(policy.model)
    assert kept(policy, 200) < before / 3
    assert torch.equal(policy.score(policy.collate([window(40)])), plain)
    assert not any(module.training for module in policy.model.modules() if isinstance(module, torch.nn.Dropout))


def test_dropout_that_a_layer_calls_itself_stays_off_too():
    size = {
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 16,
    }
    torch.manual_seed(0)
    model = OPTForCausalLM(OPTConfig(vocab_size=16, max_position_embeddings=64, dropout=0.5, layerdrop=0.5, **size))
    tokens = torch.arange(12)[None]
    plain = model.eval()(tokens).logits
    assert memory.checkpoint_layers(model)
    for _ in range(3):
        assert torch.equal(model(tokens, use_cache=False).logits, plain)


def test_what_is_allowed_is_a_share_of_what_the_container_leaves(tmp_path, monkeypatch):
    parameter = torch.nn.Parameter(torch.zeros(1 << 18))
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    unlimited = allowed(torch.device("cpu"), [parameter])
    assert unlimited.bit_count() == 1
    (tmp_path / "memory.max").write_text(f"{100 << 20}\n")
    (tmp_path / "memory.current").write_text(f"{16 << 20}\n")
    # 84 MiB are left, 4 go to the optimiser's copies: a quarter of 80, rounded down to a power of two.
    assert allowed(torch.device("cpu"), [parameter]) == 16 << 20
    (tmp_path / "memory.current").write_text(f"{99 << 20}\n")
    assert allowed(torch.device("cpu"), [parameter]) == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert allowed(torch.device("cpu"), [parameter]) == unlimited


def test_a_resumed_run_parts_its_batches_as_the_first_did():
    first = trainer(MANY, batch=6)
    first._allow(1 << 12)
    second = trainer(MANY, batch=6)
    second.restore(first.state())
    assert second.memory == first.memory


def test_generated_and_chosen_actions_go_through_the_same_parts():
    policy = build(PolicyConfig(model="", width=8, layers=1, heads=2), WORDS, seed=1, layout=Layout.words(ended=True))
    spoken = tuple(Step(f"o{t}", "left right forward", 0.5, logprob=-3.0) for t in range(2))
    texts = [make_trajectory(seed=seed, steps=spoken[: 1 + seed % 2]) for seed in range(20, 24)]
    mixed = [*MANY[:3], *texts]
    replay = Replay(policy, mixed, 1.0, "mean")
    (window,) = replay.windows[replay.place[texts[1].id]]
    assert window.generated == {0, 1}
    config = DEFAULTS.model_copy(update={"batch": 7, "objective": "topr", "baseline": "mean", "curriculum": False})
    found = []
    for budget in (None, 1):
        fresh = copy.deepcopy(policy.model)
        held = LanguageModelPolicy(fresh, policy.tokenizer, policy.layout)
        one = Trainer(
            held,
            Replay(held, mixed, 1.0, "mean"),
            catalogue(mixed),
            config,
            seed=0,
            value_head=new_value_head(8),
            budget=budget,
        )
        one.queue = [[trajectory.id for trajectory in mixed]]
        one.update()
        found.append(torch.cat([parameter.grad.flatten() for parameter in fresh.parameters()]))
    assert float(found[0].norm()) > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
