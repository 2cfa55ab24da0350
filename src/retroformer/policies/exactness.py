"""Whether a model can be scored as a tree: found by trying, never believed.

Two random trees are scored in the fastest way that the model may allow and compared with plain forwards; where they
differ the next way is tried, and the last is one sequence an action, which needs nothing but a causal model. That it is
causal is found by trying too: what it says after a text may not depend on what follows or pads it.
"""

from __future__ import annotations

from typing import Any

import torch

from retroformer.errors import PolicyError
from retroformer.policies.language_model import LanguageModelPolicy, Method
from retroformer.policies.precision import widened
from retroformer.policies.reading import Question, probabilities
from retroformer.policies.tree import Tokens, Window, grow

TOLERANCE, REDUCED = 1e-4, 0.5
"""Nats that scores may differ by, in fp32 and in a lower precision: above what rounding explains, below what a wrong
mask gives. Measured over Llama, Qwen2, Qwen3 and GPT-2 of random weights, up to 12 layers: 8e-5 and .27."""
RELATIVE = 1e-5
"""Of a score, where that is more: fp32 rounds logits in proportion to their size, and a score of -100 comes of logits
as large."""
PREFIXES = 8
"""Texts whose next token is compared with and without what follows."""
BEHIND = 64
"""Least tokens of the longest of them: among few keys, ties fall alike by luck."""
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
    if (chosen := all_chosen(policy.model.config)) < policy.limit:
        why = f"its sparse attention chooses {chosen} keys, and which ones of those that score alike depends on padding"
        if chosen < SHORT:
            raise PolicyError(f"{source}: {why}; fewer than {SHORT} are no context to act in: choose another model")
        policy.limit = chosen
        notes.append(f"{source}: {why}: so many tokens are the context, longer histories are cut")
    longest = local + 2 if local < SHORT else 3
    allowed = TOLERANCE if policy.model.dtype in (torch.float32, torch.float64) else REDUCED
    try:
        moved = causal_error(policy, longest)
    except Exception as error:  # whatever a model raises that is fed what it does not know
        raise PolicyError(f"{source}: the model cannot be scored: {error}") from error
    if not moved < allowed:
        raise PolicyError(
            f"{source}: what it says after a text differs by {moved:.2g} nats, more than {allowed:g}, with what "
            "follows the text: its attention looks ahead, or chooses among keys that tie; acting and training would be "
            "two policies, so it cannot be used: choose a causal language model"
        )
    differences: dict[Method, float] = {}
    for method in ways(policy):
        policy.use(method)
        try:
            differences[method] = tree_error(policy, longest)
        except Exception as error:
            if method == "sequences":
                raise PolicyError(f"{source}: the model cannot be scored: {error}") from error
            differences[method] = float("inf")
        if differences[method] < allowed:
            break
    else:
        raise PolicyError(
            f"{source}: scores of whole trajectories differ from those of plain forwards by "
            f"{differences['sequences']:.2g} nats, more than {allowed:g}; its logits are more than its output layer "
            "makes of its last states, so it cannot be used"
        )
    if policy.method == "sequences":
        off = f"off by {differences['mask']:.2g} nats; " if differences.get("mask", torch.inf) < torch.inf else ""
        notes.append(
            f"{source}: the model does not heed a mask over branches ({off}sliding windows, ALiBi and the like do "
            "that), so every action is scored by a sequence of its own: exact, and many times slower"
        )
    elif policy.method == "mask":
        notes.append(
            f"{source}: the model takes its attention from elsewhere ({policy.own_attention}), so a dense mask over "
            "all pairs of tokens is made for it: exact, and slower and larger for long histories"
        )
    return "\n".join(notes) or None


def all_chosen(config: Any) -> int:
    """Tokens up to which sparse attention (DeepSeek-V3.2's, MiniMax-M3's) chooses all keys; else no limit.

    Beyond, keys that score alike, as many do at 0, are chosen by their place and by the length of the whole, padding
    included: no test of some texts would tell what happens to others.
    """
    keys = getattr(config, "index_topk", None)
    blocks, size = (getattr(config, name, None) for name in ("index_topk_blocks", "index_block_size"))
    return keys or (blocks * size if blocks and size else 1 << 30)


def ways(policy: LanguageModelPolicy) -> tuple[Method, ...]:
    """The ways of scoring that may be exact, the fastest first."""
    if getattr(policy.model.config, "attn_temperature_tuning", False):
        return ("sequences",)  # Llama 4 scales queries by their column, which on a branch is not their position
    return ("tree", "mask", "sequences") if policy.method == "tree" else ("mask", "sequences")


def reach(config: Any) -> int:
    """Tokens that a token sees where attention is local in some layer, or the rotary scale holds; else no limit."""
    found = [getattr(config, name, None) for name in LOCAL]
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):  # whose frequencies change with the length beyond that
        found.append(rope.get("original_max_position_embeddings"))
    return min((window for window in found if isinstance(window, int) and window > 0), default=1 << 30)


def off(plain: torch.Tensor, found: torch.Tensor) -> float:
    """Largest difference of scores in nats, of large ones in proportion (see RELATIVE); infinite where it is none."""
    size = (plain.abs() * (RELATIVE / TOLERANCE)).clamp(min=1)
    return float(((plain - found).abs() / size).max().nan_to_num(torch.inf))


@torch.no_grad()
def causal_error(policy: LanguageModelPolicy, longest: int = 3) -> float:
    """Largest difference, in nats, between what the bare model says after texts and what it says there with more
    behind.

    Over all next tokens, after some beginnings of a random text of BEHIND tokens, or twice `longest`.
    """
    method = policy.method
    policy.use("sequences")  # another attention is none of the bare model's, and some look at its name
    count = min(max(2 * longest, BEHIND), policy.limit)
    tokens = torch.randint(policy.text.vocabulary, (1, count), generator=torch.Generator().manual_seed(1))
    tokens = tokens.to(policy.model.device)
    lengths = sorted({1 + step * (count - 1) // PREFIXES for step in range(PREFIXES)})

    def said(length: int) -> torch.Tensor:
        logits = policy.model(input_ids=tokens[:, :length], use_cache=False).logits[0]
        return widened(logits).log_softmax(-1)

    try:
        whole = said(count)
        return max(off(said(length)[-1], whole[length - 1]) for length in lengths)
    finally:
        policy.use(method)


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
    asked = [
        [Question(slot, one.tokens[: one.roots[step] + 1], one.actions[step]) for slot, one in enumerate(windows)]
        for step in range(2)
    ]
    method = policy.method
    policy.use("sequences")  # see `causal_error`
    try:
        plain = [[plain_scores(policy, one.tokens, one.actions) for one in questions] for questions in asked]
    finally:
        policy.use(method)
    trained = policy.score(policy.collate(windows)).cpu()
    reader, worst = policy.reader(len(windows)), 0.0
    for step, questions in enumerate(asked):
        for question, expected, logits in zip(questions, plain[step], reader.read(questions), strict=True):
            _, acted = probabilities([logits], [grow(question.actions)], 1.0)
            for scores in (trained[question.slot, step], torch.from_numpy(acted[0])):
                worst = max(worst, off(expected, scores))
    return worst


def plain_scores(policy: LanguageModelPolicy, prefix: list[int], actions: tuple[Tokens, ...]) -> torch.Tensor:
    """log pi of each action after a prefix, [A] in nats, by the definition and a forward for every action."""
    scores = []
    for action in actions:
        sequence = torch.tensor([[*prefix, *action]], device=policy.model.device)
        logits = policy.model(input_ids=sequence).logits[0, len(prefix) - 1 : -1]
        logits = widened(logits)
        score = logits.new_zeros(())
        for depth, token in enumerate(action):
            rivals = sorted({other[depth] for other in actions if other[:depth] == action[:depth]})
            score = score + logits[depth, rivals].log_softmax(0)[rivals.index(token)]
        scores.append(score.cpu())
    return torch.stack(scores)
