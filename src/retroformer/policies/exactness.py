"""Whether a model can be scored as a tree: found by trying, never believed.

Two random trees are scored in the fastest way that the model may allow and compared with plain forwards; where they
differ the next way is tried, and the last is one sequence an action, which needs nothing but a causal model.
"""

from __future__ import annotations

from typing import Any

import torch

from retroformer.errors import PolicyError
from retroformer.policies.language_model import LanguageModelPolicy, Method
from retroformer.policies.reading import Question, probabilities
from retroformer.policies.tree import Tokens, Window, grow

TOLERANCE = 1e-3
"""Nats. Above what rounding explains in fp32, below what a wrong mask gives."""
SHORT = 512
"""Tokens. A window of local attention that is longer becomes the context; with a shorter one little could be told."""
LOCAL = (
    "sliding_window",
    "attention_chunk_size",
    "window_size",
    "attention_window_size",
    "local_attention",
    "keep_window_size",
)
"""What configs call the reach of local attention."""


def settle(policy: LanguageModelPolicy, source: str) -> str | None:
    """Choose the fastest way of scoring that is exact for this model; a sentence for the user where it is slow, or
    where the context is shorter than the config says.

    Raises PolicyError where none is.
    """
    if bad := [name for name, one in policy.model.named_parameters() if not bool(one.isfinite().all())]:
        raise PolicyError(
            f"{source}: {len(bad)} of its weights hold numbers that are not finite (first: {bad[0]}): it was damaged, "
            "or its training broke down; load an earlier checkpoint"
        )
    notes: list[str] = []
    local = reach(policy.model.config)
    if local >= SHORT:
        # Within the window every token sees all that is before it, so a tree is exact.
        stated, policy.limit = policy.limit, min(policy.limit, local)
        if policy.limit < stated:
            notes.append(
                f"{source}: its attention, or the scale of its positions, holds for {local} tokens: that is the "
                "context, longer histories are cut"
            )
    methods: tuple[Method, ...] = ("tree", "mask", "sequences") if policy.method == "tree" else ("mask", "sequences")
    differences: dict[Method, float] = {}
    for method in methods:
        policy.use(method)
        try:
            differences[method] = tree_error(policy, longest=local + 2 if local < SHORT else 3)
        except Exception as error:  # whatever a model raises that is fed what it does not know
            if method == "sequences":
                raise PolicyError(f"{source}: the model cannot be scored: {error}") from error
            differences[method] = float("inf")
        if differences[method] < TOLERANCE:
            break
    else:
        raise PolicyError(
            f"{source}: scores of whole trajectories differ from those of plain forwards by "
            f"{differences['sequences']:.2g} nats, more than {TOLERANCE:g}; its logits are more than its output layer "
            "makes of its last states, so it cannot be used"
        )
    if policy.method == "sequences":
        notes.append(
            f"{source}: the model does not heed a mask over branches (off by {differences['mask']:.2g} nats; sliding "
            "windows or ALiBi do that), so every action is scored by a sequence of its own: exact, and many times "
            "slower"
        )
    return "\n".join(notes) or None


def reach(config: Any) -> int:
    """Tokens that a token sees where attention is local in some layer, or the rotary scale holds; else no limit."""
    found = [getattr(config, name, None) for name in LOCAL]
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):  # whose frequencies change with the length beyond that
        found.append(rope.get("original_max_position_embeddings"))
    return min((window for window in found if isinstance(window, int) and window > 0), default=1 << 30)


@torch.no_grad()
def tree_error(policy: LanguageModelPolicy, longest: int = 3) -> float:
    """Largest difference, in nats, between scores of two random trees and those of plain forwards, in training and in
    acting; infinite where they are no numbers.

    The first prefix of the longer tree has `longest` tokens.
    """
    vocabulary = policy.text.vocabulary
    generator = torch.Generator().manual_seed(0)
    windows = []
    for length in (2, longest):
        prefix = torch.randint(vocabulary, (length,), generator=generator).tolist()
        a, b, c = torch.randperm(vocabulary, generator=generator)[:3].tolist()
        actions = ((a, b, c), (a, c), (b,))
        tokens = [*prefix, *actions[0], *prefix, *actions[1]]
        roots = [length - 1, 2 * length + 2]
        windows.append(Window(len(windows), 0, tokens, roots, [actions, actions], [0, 1]))
    trained = policy.score(policy.collate(windows)).cpu()
    reader, worst = policy.reader(len(windows)), 0.0
    for step in range(2):
        asked = [
            Question(slot, one.tokens[: one.roots[step] + 1], one.actions[step]) for slot, one in enumerate(windows)
        ]
        for question, logits in zip(asked, reader.read(asked), strict=True):
            plain = plain_scores(policy, question.tokens, question.actions)
            _, acted = probabilities([logits], [grow(question.actions)], 1.0)
            for scores in (trained[question.slot, step], torch.from_numpy(acted[0])):
                worst = max(worst, float((plain - scores).abs().max().nan_to_num(torch.inf)))
    return worst


def plain_scores(policy: LanguageModelPolicy, prefix: list[int], actions: tuple[Tokens, ...]) -> torch.Tensor:
    """log pi of each action after a prefix, [A] in nats, by the definition and a forward for every action."""
    scores = []
    for action in actions:
        sequence = torch.tensor([[*prefix, *action]], device=policy.model.device)
        logits = policy.model(input_ids=sequence).logits[0, len(prefix) - 1 : -1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        score = logits.new_zeros(())
        for depth, token in enumerate(action):
            rivals = sorted({other[depth] for other in actions if other[:depth] == action[:depth]})
            score = score + logits[depth, rivals].log_softmax(0)[rivals.index(token)]
        scores.append(score.cpu())
    return torch.stack(scores)
