"""The model and the trajectories that are measured: random words, in the shapes of the claims."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from retroformer.policies.language_model import LanguageModelPolicy
from retroformer.policies.layout import Layout
from retroformer.policies.tree import Window
from retroformer.types import Outcome, Step, StopReason, Task, Trajectory

END = "."
"""Ends an action, so that none begins another."""
OBSERVATION = (62, 98)
"""Words of an observation, least and most: about 85 tokens a step with the action taken."""
ACTION = (2, 2, 3)
"""Words of an action before its end, drawn evenly: what an alternative adds to the tree."""
DESCRIPTION = 20


def build_policy(width: int = 128, layers: int = 4, vocabulary: int = 4096, context: int = 4096) -> LanguageModelPolicy:
    """A fresh Qwen2 of that size in fp32 whose vocabulary is ``<pad> <unk> . w3 w4 ...``."""
    torch.manual_seed(0)
    words = ["<pad>", "<unk>", END, *(f"w{place}" for place in range(3, vocabulary))]
    raw = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token=END, model_max_length=context
    )
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 32),
            num_key_value_heads=max(1, width // 64),
            max_position_embeddings=context,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=2,
        )
    )
    return LanguageModelPolicy(model.eval(), tokenizer, Layout(action=f"{{action}} {END}"))


def describe(policy: LanguageModelPolicy) -> dict[str, Any]:
    """The model in figures, for the report."""
    config = policy.model.config
    return {
        "architecture": config.model_type,
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "vocabulary": config.vocab_size,
        "parameters": sum(parameter.numel() for parameter in policy.model.parameters()),
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "attention": config._attn_implementation,
    }


def random_words(count: int, vocabulary: int, chance: random.Random) -> str:
    """`count` random words of the vocabulary."""
    return " ".join(f"w{chance.randrange(3, vocabulary)}" for _ in range(count))


def random_actions(count: int, vocabulary: int, chance: random.Random) -> tuple[str, ...]:
    """`count` different actions."""
    actions: dict[str, None] = {}
    while len(actions) < count:
        actions[random_words(chance.choice(ACTION), vocabulary, chance)] = None
    return tuple(actions)


def random_trajectory(steps: int, actions: int, vocabulary: int, seed: int) -> Trajectory:
    """`steps` decisions among `actions` each; the seed decides all words."""
    chance = random.Random(seed)
    task = Task("random", "random", "words", random_words(DESCRIPTION, vocabulary, chance), seed, "train")
    made = []
    for _ in range(steps):
        observation = random_words(chance.randint(*OBSERVATION), vocabulary, chance)
        admissible = random_actions(actions, vocabulary, chance)
        made.append(Step(observation, chance.choice(admissible), chance.gauss(0, 1), admissible, None, -1.0))
    return Trajectory(f"random-{seed}", task, tuple(made), StopReason.TERMINATED, Outcome.SUCCESS, "random")


def fed_tokens(window: Window) -> tuple[int, int]:
    """Tokens that a window's forward needs: with the actions taken alone, and with all as branches.

    Counted here and not asked of the policy: the claim is about the algorithm, not about padding.
    """
    trunk = max(window.roots) + 1
    taken = alternatives = 0
    for root, actions, chosen in zip(window.roots, window.actions, window.chosen, strict=True):
        own = {actions[chosen][:end] for end in range(1, len(actions[chosen]))}
        nodes = {action[:end] for action in actions for end in range(1, len(action))}
        taken += len(own) if root + 1 == trunk else 0
        alternatives += len(nodes - own)
    return trunk + taken, trunk + taken + alternatives


def totals(windows: Sequence[Window]) -> tuple[int, int]:
    """`fed_tokens` over several windows."""
    counts = [fed_tokens(window) for window in windows]
    return sum(one for one, _ in counts), sum(other for _, other in counts)
