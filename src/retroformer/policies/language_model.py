"""A causal language model as the policy: its logits over the admissible actions, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerFast

from retroformer.policies.acting import LanguageModelAgent
from retroformer.policies.attention import PREFIX_TREE, additive, dense
from retroformer.policies.batch import (
    TreeBatch,
    action_logprobs,
    collate,
    collate_sequences,
    rival_logprobs,
    temperatures,
)
from retroformer.policies.layout import Layout
from retroformer.policies.precision import rounded, unrounded, widened
from retroformer.policies.reading import Cached, Plain, Reader
from retroformer.policies.text import TextActions
from retroformer.policies.tree import Window, windows
from retroformer.types import Trajectory

SETTINGS = "retroformer.json"
LOGITS = 1 << 25
"""Logits held at once."""
Method = Literal["tree", "mask", "sequences"]


class LanguageModelPolicy:
    """A model, its tokenizer and its layout.

    `score` gives log pi(a | h) of whole trajectories, differentiable; `agent` acts in environments.
    """

    def __init__(self, model: Any, tokenizer: Any, layout: Layout, *, version: str = ""):
        self.model = model
        self.tokenizer = tokenizer
        self.layout = layout
        self.version = version
        self.adapter: Any = None
        """What `policies.adapters.adapt` adds to the model; None without."""
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        """The precision of products where `devices.Choice.act` set one; that of training is the trainer's."""
        self._tokenise = tokeniser(tokenizer)
        self.encode = lru_cache(maxsize=1 << 15)(self._encode)
        added = tokenizer.added_tokens_decoder.values()
        told = layout.task + layout.observation + layout.action
        named = {token.content for token in added if token.special or token.content in told}
        markers = sorted({*named, *tokenizer.all_special_tokens}, key=len, reverse=True)
        self._marker = re.compile("|".join(map(re.escape, markers)) or r"(?!)")
        rows = len(model.get_input_embeddings().weight)
        self.text = TextActions(tokenizer, layout, self.encode, stops_of(model, tokenizer), rows)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.limit = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 30)
        self.own_attention = str(model.config._attn_implementation)
        self.method: Method = "tree"
        self.use("tree" if self.own_attention == "sdpa" else "mask")

    def use(self, method: Method) -> None:
        """Score in this way from now on: by `tree_attention`, by a dense mask, or one sequence an action."""
        self.method = method
        self.model.set_attn_implementation(PREFIX_TREE if method == "tree" else self.own_attention)

    def _encode(self, content: str, before: str = "", after: str = "") -> tuple[int, ...]:
        """Tokens of foreign text and of the layout's around it; only the layout's can be special ones."""
        # The layout's markers stand alone; the words beside them are tokenised with the content, as one text.
        opening = max((match.end() for match in self._marker.finditer(before)), default=0)
        closing = min((match.start() for match in self._marker.finditer(after)), default=len(after))
        text = before[opening:] + content + after[:closing]
        # A marker in the content is cut in two, so that it is read as the text that it is.
        cuts = [0, *(match.start() + 1 for match in self._marker.finditer(text)), len(text)]
        parts = [before[:opening], *(text[a:b] for a, b in pairwise(cuts)), after[closing:]]
        return tuple(id for part in parts if part for id in self._tokenise(part))

    def windows(self, trajectory: Trajectory, index: int = 0) -> list[Window]:
        """The trajectory laid out in tokens; see `policies.tree.windows`."""
        return windows(trajectory, index, self.layout, self.encode, self.limit, self.text)

    def collate(self, batch: Sequence[Window], observed: Sequence[Sequence[int]] | None = None) -> TreeBatch:
        """Windows as one padded batch on the model's device; `observed` are places that predict observations."""
        lay = collate_sequences if self.method == "sequences" else collate
        return lay(batch, self.pad, observed).to(self.model.device)

    def hidden(self, batch: TreeBatch) -> torch.Tensor:
        """One forward for all windows; the hidden states of the N places that are scored, [N, D]."""
        extra: dict[str, Any] = {}
        dtype = self.model.dtype
        if batch.branches:
            extra["position_ids"] = batch.positions_bl
        if self.method == "tree":
            extra["branches"] = [(one, additive(one.visible_bqk[:, None], dtype)) for one in batch.branches]
            # Asks the model to make no mask of its own, for which the host would wait for the device at every forward;
            # `tree_attention` does not read it.
            extra["attention_mask"] = torch.zeros(1, 1, 1, 1, dtype=dtype, device=self.model.device)
        elif batch.branches:
            extra["attention_mask"] = additive(dense(batch.branches, batch.tokens_bl.shape[1]), dtype)
        if batch.lengths:
            return self._row_by_row(batch.tokens_bl, batch.lengths).flatten(0, 1)[batch.score_n]
        return self.states(batch.tokens_bl, use_cache=False, **extra).flatten(0, 1)[batch.score_n]

    def _row_by_row(self, tokens_bl: torch.Tensor, lengths: Sequence[tuple[int, int]]) -> torch.Tensor:
        """States [B, L, D] of rows of which so many have so many tokens, each length in a forward of its own.

        Nothing is padded: what pads a row is no neighbour of its tokens for most models, and is one for some (where the
        keys that are most alike are looked for among all).
        """
        length, start, states = tokens_bl.shape[1], 0, []
        for count, own in lengths:
            found = self.states(tokens_bl[start : start + count, :own], use_cache=False)
            states.append(torch.nn.functional.pad(found, (0, 0, 0, length - own)))
            start += count
        return torch.cat(states)

    def states(self, tokens_bl: torch.Tensor, **extra: Any) -> torch.Tensor:
        """The model's last hidden states [B, L, D], without its output layer."""
        model = self.model
        # Llama 4 names a part as its base that it does not have, and is then its own.
        body = model.base_model if model.base_model is not model else model.model
        with self.autocast():
            return body(input_ids=tokens_bl, **extra).last_hidden_state

    def _led(self, hidden_nd: torch.Tensor) -> torch.Tensor:
        """What some families (ModernBERT's decoder) put between the last states and the output layer, done to them."""
        between = getattr(self.model, "lm_head", None)
        if not isinstance(between, torch.nn.Module) or between is self.model.get_output_embeddings():
            return hidden_nd
        return between(hidden_nd)

    def logits(self, hidden_nd: torch.Tensor) -> torch.Tensor:
        """Next-token logits [N, V] of hidden states, in fp32 or better, as the model's own head makes them.

        Where products are in bf16 the head's weights are rounded to it, and nothing else: neither states nor logits.
        """
        with self.autocast():
            return self._logits(hidden_nd)

    def _logits(self, hidden_nd: torch.Tensor) -> torch.Tensor:
        head, hidden_nd = self.model.get_output_embeddings(), self._led(hidden_nd)
        if type(head) is not torch.nn.Linear:  # something wrapped around it, which may do anything
            return self._finished(widened(head(hidden_nd)))
        weight, bias = widened(rounded(head.weight)), None if head.bias is None else widened(head.bias)
        with unrounded(hidden_nd.device.type):
            return self._finished(torch.nn.functional.linear(widened(hidden_nd), weight, bias))

    def _finished(self, logits: torch.Tensor) -> torch.Tensor:
        """What some families do to the output layer's numbers; `exactness` tells where one does something else."""
        config = self.model.config
        if isinstance(scale := getattr(config, "logit_scale", None), int | float):  # Cohere
            logits = logits * scale
        if scaling := getattr(config, "logits_scaling", None):  # Granite
            logits = logits / scaling
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma
        return cap * torch.tanh(logits / cap) if cap else logits

    def token_logits(self, hidden_nd: torch.Tensor, place: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """Logits [E] of tokens at places of [N, D] hidden states; no other row of the output layer is touched."""
        head = self.model.get_output_embeddings()
        if type(head) is not torch.nn.Linear:
            return self.logits(hidden_nd)[place, token]
        with self.autocast():
            hidden_nd = self._led(hidden_nd)

        def part(hidden_nd: torch.Tensor, place: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
            with self.autocast():
                rows = rounded(torch.nn.functional.embedding(token, head.weight))
            own = (widened(hidden_nd[place]) * widened(rows)).sum(-1)
            return self._finished(own if head.bias is None else own + head.bias[token])

        return in_parts(part, hidden_nd, place, token, size=LOGITS // hidden_nd.shape[1])

    def token_logprobs(
        self, hidden_nd: torch.Tensor, place: torch.Tensor, token: torch.Tensor, temperature: torch.Tensor | float = 1.0
    ) -> torch.Tensor:
        """log p(token) in nats, [E], in the softmax over the vocabulary of logits / `temperature` (a number or [E])."""
        divisors: tuple[torch.Tensor, ...] = ()  # 1 divides nothing
        if isinstance(temperature, torch.Tensor):
            divisors = (temperature.expand(len(token)),)
        elif temperature != 1:
            divisors = (torch.full((len(token),), temperature, device=hidden_nd.device),)

        def part(hidden_nd: torch.Tensor, place: torch.Tensor, token: torch.Tensor, *divisors: torch.Tensor):
            logits = self.logits(hidden_nd[place])
            for divisor in divisors:
                logits = logits / divisor[:, None]
            return logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]

        size = LOGITS // self.model.get_output_embeddings().weight.shape[0]
        return in_parts(part, hidden_nd, place, token, *divisors, size=size)

    def observation_logprobs(self, hidden_nd: torch.Tensor, batch: TreeBatch) -> torch.Tensor:
        """log p of each token of the observations that `batch` asks for, [P] in nats; empty where it asks for none."""
        token = batch.observed_token
        if token is None:
            return hidden_nd.new_zeros(0)
        first = len(hidden_nd) - len(token)
        return self.token_logprobs(hidden_nd, torch.arange(first, len(hidden_nd), device=token.device), token)

    def logprobs(
        self, hidden_nd: torch.Tensor, batch: TreeBatch, temperature: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        """log pi(a | h), [B, T, A] in nats, from the hidden states of `hidden`.

        An action's log pi is the sum over its tokens of their log-probability, each in the softmax of logits /
        `temperature` (a number, or [B, 1, 1]) over the tokens that go on with an admissible action: what constrained
        decoding samples from, summing to 1 over the admissible actions. A generated action's tokens compete with the
        whole vocabulary instead, as they did when they were sampled, and have no alternatives to sum over.
        """
        divisor = temperatures(batch, temperature)
        own = rival_logprobs(self.token_logits(hidden_nd, batch.entry_place, batch.entry_token) / divisor, batch)
        free = batch.generated_entries
        if free is not None:
            divisor = divisor[free] if isinstance(divisor, torch.Tensor) else divisor
            sampled = self.token_logprobs(hidden_nd, batch.entry_place[free], batch.entry_token[free], divisor)
            own = own.index_copy(0, free, sampled.to(own.dtype))
        return action_logprobs(own, batch)

    def score(self, batch: TreeBatch, temperature: float | torch.Tensor = 1.0) -> torch.Tensor:
        """log pi(a | h) of every admissible action of every step, [B, T, A] in nats."""
        return self.logprobs(self.hidden(batch), batch, temperature)

    def reader(self, slots: int) -> Reader:
        """What reads the histories of `slots` environments while acting, as exactly as `score` does afterwards."""
        return Plain(self) if self.method == "sequences" else Cached(self, slots)

    def agent(self, slots: int, *, temperature: float = 1.0, greedy: bool = False) -> LanguageModelAgent:
        """The policy at work in `slots` environments at once."""
        return LanguageModelAgent(self, slots, temperature, greedy)

    def reference(self) -> AbstractContextManager[Any]:
        """While the block lasts, the policy is the one that training began with: its adapter is off."""
        return self.adapter.disable_adapter()

    def save(self, directory: Path) -> None:
        """Write an ordinary Hugging Face checkpoint (config, tokenizer, safetensors) and the layout beside it.

        An adapter is first added to the weights, for good: so the folder is all of the policy, its hash covers all of
        it, and whatever opens checkpoints opens it. It is as large as the model.
        """
        if self.adapter is not None:
            self.model, self.adapter = self.adapter.merge_and_unload(), None
        self.model.save_pretrained(directory, safe_serialization=True)
        for trace in ("is_local", "local_files_only"):  # of how it was loaded, which is no part of the policy
            self.tokenizer.init_kwargs.pop(trace, None)
        self.tokenizer.save_pretrained(directory)
        settings = {"layout": asdict(self.layout)}
        (Path(directory) / SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def in_parts(part: Callable[..., torch.Tensor], hidden_nd: torch.Tensor, *of_entries: torch.Tensor, size: int):
    """`part` of the hidden states and of `size` entries at a time; where that is not all, again for the gradient.

    So memory does not grow with the number of actions.
    """
    count, size = len(of_entries[0]), max(1, size)
    if count <= size:
        return part(hidden_nd, *of_entries)
    slices = [slice(start, start + size) for start in range(0, count, size)]
    return torch.cat(
        [checkpoint(part, hidden_nd, *(one[some] for one in of_entries), use_reentrant=False) for some in slices]
    )


def tokeniser(tokenizer: Any) -> Callable[[str], Sequence[int]]:
    """A text's tokens, with none around them, as `tokenizer` has them; by its fast half alone where that is all."""
    slow = partial(tokenizer.encode, add_special_tokens=False)
    kind = type(tokenizer)
    if (getattr(kind, "encode", None), getattr(kind, "_encode_plus", None)) != (
        PreTrainedTokenizerFast.encode,
        PreTrainedTokenizerFast._encode_plus,
    ):
        return slow
    slow("")  # which also sets how the fast half cuts, pads and reads special tokens
    fast = tokenizer.backend_tokenizer
    return lambda text: fast.encode(text, add_special_tokens=False).ids


def stops_of(model: Any, tokenizer: Any) -> list[int]:
    """The tokens by which a model ends what it says, besides the layout's terminator."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return [token for token in (*listed, tokenizer.eos_token_id) if token is not None]
