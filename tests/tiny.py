"""Tiny language models of several families, built from configs, and trajectories that they can read."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from retroformer.policies.language_model import LanguageModelPolicy
from retroformer.policies.layout import Layout
from retroformer.types import Outcome, Step, StopReason, Task, Trajectory

WORDS = tuple(f"w{n}" for n in range(12))
FAMILIES = ("llama", "llama-grouped", "llama-eager", "qwen2", "qwen3", "gpt2")
PLAIN = ("mistral", "bloom")
"""Families whose attention no mask over branches describes: a sliding window of 4 tokens, ALiBi."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({w: n for n, w in enumerate(("<pad>", "<unk>", *WORDS))}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>")


def tiny_policy(family: str = "llama", context: int = 64, double: bool = False, **options: Any) -> LanguageModelPolicy:
    """Two layers of width 16, with weights large enough that the probabilities are far from uniform."""
    size = {"vocab_size": 2 + len(WORDS), "max_position_embeddings": context}
    common = {**size, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    if family == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=size["vocab_size"], n_positions=context, n_embd=16, n_layer=2, n_head=4)
        )
    elif family == "bloom":
        model = BloomForCausalLM(BloomConfig(vocab_size=size["vocab_size"], hidden_size=16, n_layer=2, n_head=4))
    elif family == "mistral":
        model = MistralForCausalLM(MistralConfig(**common, num_key_value_heads=2, sliding_window=4))
    elif family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**common, num_key_value_heads=2, head_dim=4))
    elif family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**common, num_key_value_heads=2))
    else:
        model = LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=4 if family == "llama" else 2))
    if family == "llama-eager":
        model.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 0.5)
    model = model.eval().double() if double else model.eval()
    return LanguageModelPolicy(model, tiny_tokenizer(), Layout(), **options)


def told(steps: list[tuple[str, tuple[str, ...], int]], id: str = "t1", **options: Any) -> Trajectory:
    """A trajectory from (observation, admissible actions, which one was taken)."""
    return Trajectory(
        id=id,
        task=Task("fake", "fake", "A", "w0 w1", 0, "train"),
        steps=tuple(
            Step(observation, actions[taken], 0.0, actions, logprob=-1.0) for observation, actions, taken in steps
        ),
        stop_reason=StopReason.TERMINATED,
        outcome=Outcome.SUCCESS,
        policy="p",
        **options,
    )


def plain_scores(policy: LanguageModelPolicy, trajectory: Trajectory, temperature: float = 1.0) -> list[torch.Tensor]:
    """log pi over each step's actions, each scored by a forward of its own over prefix + action. No window is cut."""
    layout, sequence = policy.layout, list(policy.encode(*policy.layout.opening(trajectory.task.description)))
    scores = []
    for step in trajectory.steps:
        sequence += policy.encode(*layout.piece("observation", step.observation))
        actions = [policy.encode(*layout.piece("action", action)) for action in step.admissible_actions or ()]
        own = []
        for tokens in actions:
            logits = policy.model(input_ids=torch.tensor([[*sequence, *tokens]])).logits[0, len(sequence) - 1 : -1]
            score = logits.new_zeros(())
            for depth, token in enumerate(tokens):
                rivals = sorted({other[depth] for other in actions if other[:depth] == tokens[:depth]})
                score = score + (logits[depth, rivals] / temperature).log_softmax(0)[rivals.index(token)]
            own.append(score)
        scores.append(torch.stack(own))
        sequence += policy.encode(*layout.piece("action", step.action))
    return scores
