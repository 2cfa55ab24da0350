"""Which way of scoring each kind of model is given, and that it is exact."""

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    DeepseekV32Config,
    DeepseekV32ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
)

from retroformer.errors import PolicyError
from retroformer.policies.checkpoints import load
from retroformer.policies.exactness import causal_error, reach, settle, tree_error
from retroformer.policies.language_model import LanguageModelPolicy
from retroformer.policies.layout import Layout
from tiny import FAMILIES, PLAIN, plain_scores, tiny_policy, tiny_tokenizer, told

SMALL = {"vocab_size": 14, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
STEPS = told([("w5 w6", ("w0 w1", "w0 w2", "w3"), 1), ("w7", ("w0 w1 w2", "w2"), 0), ("w8", ("w1",), 0)])


def far_from_uniform(model):
    """A policy of the model, with weights large enough that its probabilities tell it from another."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 0.5)
    return LanguageModelPolicy(model.eval(), tiny_tokenizer(), Layout())


@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_heed_masks_are_scored_as_trees(family):
    policy = tiny_policy(family)
    note = settle(policy, "m")
    if family == "llama-eager":
        assert note is not None
        assert note.startswith("m: the model takes its attention from elsewhere (eager), so a dense mask")
    else:
        assert note is None
    assert policy.method == ("mask" if family == "llama-eager" else "tree")
    assert tree_error(policy) < 1e-4


@pytest.mark.parametrize("family", PLAIN)
def test_other_models_are_scored_one_sequence_an_action_and_that_is_told(family):
    policy = tiny_policy(family)
    note = settle(policy, "m")
    assert note is not None
    assert "m: the model does not heed a mask over branches" in note
    assert policy.method == "sequences"
    assert policy.model.config._attn_implementation == policy.own_attention
    scores = policy.score(policy.collate(policy.windows(STEPS)))[0]
    for row, expected in zip(scores, plain_scores(policy, STEPS), strict=True):
        torch.testing.assert_close(row[: len(expected)], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", PLAIN)
def test_loading_tells_it_on_stderr(family, tmp_path, capfd):
    policy = tiny_policy(family)
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.method == "sequences"
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("retroformer: ")]
    assert line.endswith("exact, and many times slower")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MistralConfig(sliding_window=4096), 4096),
        (MistralConfig(sliding_window=None), 1 << 30),
        (LlamaConfig(), 1 << 30),
        (
            LlamaConfig(
                rope_parameters={
                    "rope_type": "dynamic",
                    "factor": 2.0,
                    "original_max_position_embeddings": 2048,
                    "rope_theta": 1e4,
                }
            ),
            2048,
        ),
    ],
)
def test_a_long_window_of_attention_is_the_context(config, expected):
    assert reach(config) == expected


def test_within_its_window_a_sliding_model_is_a_tree():
    policy = tiny_policy("mistral", context=4096)
    policy.model.config.sliding_window = 600
    note = settle(policy, "m")
    assert note is not None
    assert "holds for 600 tokens: that is the context, longer histories are cut" in note
    assert (policy.method, policy.limit) == ("tree", 600)


def test_logits_that_the_model_caps_are_capped():
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=14,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=64,
        final_logit_softcapping=0.5,
        sliding_window=1024,
    )
    policy = far_from_uniform(Gemma2ForCausalLM(config))
    settle(policy, "m")
    assert policy.method == "mask"
    assert_exact(policy)


@pytest.mark.parametrize(
    ("family", "own"),
    [
        (CohereForCausalLM, CohereConfig(logit_scale=0.25, pad_token_id=0, bos_token_id=1, eos_token_id=1, **SMALL)),
        (GraniteForCausalLM, GraniteConfig(logits_scaling=4.0, **SMALL)),
    ],
)
def test_logits_that_the_model_scales_are_scaled(family, own):
    torch.manual_seed(0)
    policy = far_from_uniform(family(own))
    assert settle(policy, "m") is None


def test_weights_that_are_no_numbers_are_told_as_such():
    policy = tiny_policy("llama")
    with torch.no_grad():
        policy.model.lm_head.weight[3, 0] = torch.nan
    with pytest.raises(PolicyError, match=r"m: 1 of its weights hold numbers that are not finite \(first: lm_head"):
        settle(policy, "m")


def test_a_model_whose_logits_are_not_its_output_layers_is_refused(monkeypatch):
    policy = tiny_policy("llama")
    whole = LlamaForCausalLM.forward

    def doubled(self, *args, **kwargs):
        output = whole(self, *args, **kwargs)
        output.logits = 2 * output.logits
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", doubled)
    with pytest.raises(PolicyError, match=r"m: scores .* differ .* by .* nats, more than 0\.0001; its logits are more"):
        settle(policy, "m")


def test_scores_within_the_tolerance_of_fp32_and_no_further_are_exact(monkeypatch):
    policy = tiny_policy("llama")
    right = LanguageModelPolicy.logprobs

    def off_by(nats):
        monkeypatch.setattr(LanguageModelPolicy, "logprobs", lambda *args, **kwargs: right(*args, **kwargs) + nats)

    off_by(5e-5)
    assert settle(policy, "m") is None
    off_by(5e-4)
    with pytest.raises(PolicyError, match=r"by 0\.0005 nats, more than 0\.0001"):
        settle(policy, "m")


IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
SPARSE = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
}


def assert_exact(policy):
    scores = policy.score(policy.collate(policy.windows(STEPS)))[0]
    for row, expected in zip(scores, plain_scores(policy, STEPS), strict=True):
        torch.testing.assert_close(row[: len(expected)], expected, atol=1e-4, rtol=0)


def sparse(keys):
    torch.manual_seed(0)
    model = DeepseekV32ForCausalLM(DeepseekV32Config(**{**SMALL, **SPARSE, "num_key_value_heads": 4}, index_topk=keys))
    model.model.layers[1].mlp.gate.e_score_correction_bias.zero_()
    return far_from_uniform(model)


def test_sparse_attention_is_trusted_for_as_many_tokens_as_it_chooses_keys():
    policy = sparse(600)
    note = settle(policy, "m")
    assert note is not None
    assert "chooses 600 keys, and which ones of those that score alike depends on padding: so many tokens are" in note
    assert (policy.method, policy.limit) == ("sequences", 600)
    assert_exact(policy)


def test_sparse_attention_that_chooses_few_keys_is_refused_as_what_follows_a_text_changes_what_it_says():
    policy = sparse(4)
    assert causal_error(policy) > 0.1
    with pytest.raises(PolicyError, match=r"m: its sparse attention chooses 4 keys, .* choose another model"):
        settle(policy, "m")


def test_a_model_that_looks_ahead_is_refused_as_such(monkeypatch):
    policy = tiny_policy("llama")
    whole = LlamaForCausalLM.forward

    def ahead(self, *args, **kwargs):
        output = whole(self, *args, **kwargs)
        output.logits = output.logits + output.logits.mean(1, keepdim=True)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", ahead)
    with pytest.raises(PolicyError, match=r"m: what it says after a text differs by .* nats, .* with what follows"):
        settle(policy, "m")


@pytest.mark.parametrize(("window", "method"), [(8, "sequences"), (1200, "tree")])
def test_a_head_between_the_last_states_and_the_output_layer_is_gone_through(window, method):
    torch.manual_seed(0)
    config = ModernBertDecoderConfig(
        **SMALL, **IDS, cls_token_id=1, sep_token_id=1, local_attention=window, max_position_embeddings=64
    )
    policy = far_from_uniform(ModernBertDecoderForCausalLM(config))
    settle(policy, "m")
    assert policy.method == method
    assert_exact(policy)


def test_a_model_that_scales_queries_by_their_column_is_scored_by_sequences():
    torch.manual_seed(0)
    experts = {"intermediate_size_mlp": 24, "head_dim": 4, "num_local_experts": 2}
    config = Llama4TextConfig(
        **SMALL, **IDS, **experts, num_key_value_heads=2, no_rope_layers=[1, 0], floor_scale=2, attn_scale=1.0
    )
    policy = far_from_uniform(Llama4ForCausalLM(config))
    note = settle(policy, "m")
    assert note is not None
    assert note.endswith("exact, and many times slower")
    assert policy.method == "sequences"
    assert_exact(policy)
    policy.use("tree")
    assert tree_error(policy) > 1e-3
