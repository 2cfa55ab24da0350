"""A causal language model as the policy: its logits over the admissible actions, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

from retroformer.policies.acting import LanguageModelAgent
from retroformer.policies.attention import PREFIX_TREE, additive, dense
from retroformer.policies.batch import TreeBatch, action_logprobs, collate, collate_sequences, temperatures
from retroformer.policies.layout import Layout
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

    def __init__(
        self, model: Any, tokenizer: Any, layout: Layout, *, length_normalised: bool = False, version: str = ""
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.layout = layout
        self.length_normalised = length_normalised
        self.version = version
        self.adapter: Any = None
        """What `policies.adapters.adapt` adds to the model; None without."""
        self.encode = lru_cache(maxsize=1 << 15)(self._encode)
        added = tokenizer.added_tokens_decoder.values()
        told = layout.task + layout.observation + layout.action
        named = {token.content for token in added if token.special or token.content in told}
        markers = sorted({*named, *tokenizer.all_special_tokens}, key=len, reverse=True)
        self._marker = re.compile("|".join(map(re.escape, markers)) or r"(?!)")
        self.text = TextActions(tokenizer, layout, self.encode, stops_of(model, tokenizer))
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
        return tuple(id for part in parts if part for id in self.tokenizer.encode(part, add_special_tokens=False))

    def windows(self, trajectory: Trajectory, index: int = 0) -> list[Window]:
        """The trajectory laid out in tokens; see `policies.tree.windows`."""
        return windows(trajectory, index, self.layout, self.encode, self.limit, self.text)

    def collate(self, batch: Sequence[Window]) -> TreeBatch:
        """Windows as one padded batch on the model's device."""
        lay = collate_sequences if self.method == "sequences" else collate
        return lay(batch, self.pad).to(self.model.device)

    def hidden(self, batch: TreeBatch) -> torch.Tensor:
        """One forward for all windows; the hidden states of the N places that are scored, [N, D]."""
        extra: dict[str, Any] = {}
        if batch.branches:
            extra["position_ids"] = batch.positions_bl
            dtype = self.model.dtype
            if self.method == "tree":
                extra["branches"] = [(one, additive(one.visible_bqk[:, None], dtype)) for one in batch.branches]
                # Asks the model to make no mask of its own; `tree_attention` does not read it.
                extra["attention_mask"] = torch.zeros(1, 1, 1, 1, dtype=dtype, device=self.model.device)
            else:
                extra["attention_mask"] = additive(dense(batch.branches, batch.tokens_bl.shape[1]), dtype)
        output = self.model.base_model(input_ids=batch.tokens_bl, use_cache=False, **extra)
        return output.last_hidden_state.flatten(0, 1)[batch.score_n]

    def logits(self, hidden_nd: torch.Tensor) -> torch.Tensor:
        """Next-token logits [N, V] of hidden states, in fp32 or better, as the model's own head makes them."""
        config = self.model.config
        logits = self.model.get_output_embeddings()(hidden_nd)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if getattr(config, "final_logit_softcapping", None):  # Gemma
            logits = config.final_logit_softcapping * torch.tanh(logits / config.final_logit_softcapping)
        return logits

    def token_logprobs(
        self, hidden_nd: torch.Tensor, place: torch.Tensor, token: torch.Tensor, divisor_n: torch.Tensor | None = None
    ) -> torch.Tensor:
        """log p(token) in nats at places of [N, D] hidden states, the logits of each divided by `divisor_n`.

        Where places times vocabulary are many, parts of them are computed one after the other, and again for the
        gradient, so that memory does not grow with the number of actions.
        """

        def part(hidden: torch.Tensor, start: int) -> torch.Tensor:
            logits = self.logits(hidden)
            if divisor_n is not None:
                logits = logits / divisor_n[start : start + len(hidden), None]
            inside = (place - start).clamp(0, len(hidden) - 1)
            own = logits.log_softmax(-1)[inside, token]
            return own if len(hidden) == len(hidden_nd) else torch.where(place - start == inside, own, 0.0)

        size = max(1, LOGITS // self.model.get_output_embeddings().weight.shape[0])
        if len(hidden_nd) <= size:
            return part(hidden_nd, 0)
        parts = [
            checkpoint(part, hidden_nd[start : start + size], start, use_reentrant=False)
            for start in range(0, len(hidden_nd), size)
        ]
        return torch.stack(parts).sum(0)

    def logprobs(
        self, hidden_nd: torch.Tensor, batch: TreeBatch, temperature: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        """log pi(a | h), [B, T, A] in nats, from the hidden states of `hidden`."""
        divisor_n = None if batch.generated_bt is None else temperatures(batch, temperature, hidden_nd)
        own = self.token_logprobs(hidden_nd, batch.entry_place, batch.entry_token, divisor_n)
        return action_logprobs(own, batch, temperature, self.length_normalised)

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
        settings = {"layout": asdict(self.layout), "length_normalised": self.length_normalised}
        (Path(directory) / SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def stops_of(model: Any, tokenizer: Any) -> list[int]:
    """The tokens by which a model ends what it says, besides the layout's terminator."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return [token for token in (*listed, tokenizer.eos_token_id) if token is not None]
