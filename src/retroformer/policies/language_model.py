"""A causal language model as the policy: its logits over the admissible actions, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from retroformer.errors import PolicyError
from retroformer.policies.agent import Choice, Decision
from retroformer.policies.attention import PREFIX_TREE, additive, dense
from retroformer.policies.batch import TreeBatch, action_logprobs, collate, collate_sequences, token_logprobs
from retroformer.policies.cache import SlotCache
from retroformer.policies.layout import Layout, Transcript
from retroformer.policies.text import TextActions, Utterance, room, sample
from retroformer.policies.tree import Branches, Tokens, Window, grow, windows
from retroformer.types import Trajectory

SETTINGS = "retroformer.json"
Method = Literal["tree", "mask", "sequences"]
Plan = tuple[Decision, tuple[Tokens, ...], Branches]


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

    def logprobs(
        self, hidden_nd: torch.Tensor, batch: TreeBatch, temperature: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        """log pi(a | h), [B, T, A] in nats, from the hidden states of `hidden`."""
        own = token_logprobs(hidden_nd, self.model.get_output_embeddings(), batch, temperature)
        return action_logprobs(own, batch, temperature, self.length_normalised)

    def score(self, batch: TreeBatch, temperature: float | torch.Tensor = 1.0) -> torch.Tensor:
        """log pi(a | h) of every admissible action of every step, [B, T, A] in nats."""
        return self.logprobs(self.hidden(batch), batch, temperature)

    def agent(self, slots: int, *, temperature: float = 1.0, greedy: bool = False) -> LanguageModelAgent:
        """The policy at work in `slots` environments at once."""
        return LanguageModelAgent(self, slots, temperature, greedy)

    def save(self, directory: Path) -> None:
        """Write an ordinary Hugging Face checkpoint (config, tokenizer, safetensors) and the layout beside it."""
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


class LanguageModelAgent:
    """Acts with a cache that lives as long as the episodes; see `policies.agent.Agent`.

    Each forward feeds, for every slot, what is new since the last one (the action taken, the new observation) and
    the branches of all admissible actions; the branches are not kept. Where actions are generated, their tokens are
    fed in turn, those of all slots together.
    """

    def __init__(self, policy: LanguageModelPolicy, slots: int, temperature: float, greedy: bool):
        self.policy = policy
        self.version = policy.version
        self.temperature = temperature
        self.greedy = greedy
        self.cache = SlotCache(slots)
        self.transcripts: dict[int, Transcript] = {}
        policy.model.eval()

    def release(self, slot: int) -> None:  # noqa: D102
        self.transcripts.pop(slot, None)
        self.cache.release(slot)

    @torch.inference_mode()
    def act(self, decisions: Sequence[Decision]) -> list[Choice | PolicyError]:  # noqa: D102
        slots = self.cache.slots
        nodes: list[list[tuple[int, int, int]]] = [[] for _ in range(slots)]
        answers: dict[int, Choice | PolicyError] = {}
        plans: list[Plan] = []
        speaking: list[Utterance] = []
        for decision in decisions:
            try:
                if decision.admissible_actions is None:
                    speaking.append(self._listen(decision))
                else:
                    plans.append(self._plan(decision))
                    tree = plans[-1][2]
                    nodes[decision.slot] = list(
                        zip(tree.node_token.tolist(), tree.node_depth.tolist(), tree.node_parent.tolist(), strict=True)
                    )
            except PolicyError as error:
                answers[decision.slot] = error
        waiting = [*(plan[0].slot for plan in plans), *(one.decision.slot for one in speaking)]
        if waiting:
            logprobs = self._forward(self._unread(waiting), nodes)
            if plans:
                pi, log_pi = self._probabilities(logprobs, plans)
                for row, (decision, actions, _) in enumerate(plans):
                    answers[decision.slot] = self._choose(decision, actions, pi[row], log_pi[row])
            answers |= self._speak(speaking, logprobs)
        return [answers[decision.slot] for decision in decisions]

    def _observe(self, decision: Decision, needed: int) -> None:
        """Append the observation to the slot's transcript, with room for an action of `needed` tokens."""
        if decision.t == 0:
            self.release(decision.slot)
            self.transcripts[decision.slot] = Transcript(
                self.policy.layout, self.policy.encode, decision.description, self.policy.limit
            )
        if self.transcripts[decision.slot].observe(decision.observation, needed):
            self.cache.release(decision.slot)

    def _unread(self, waiting: Sequence[int]) -> list[list[int]]:
        """What each waiting slot's transcript has that was not fed; it counts as fed from now on."""
        new: list[list[int]] = [[] for _ in range(self.cache.slots)]
        for slot in waiting:
            transcript = self.transcripts[slot]
            new[slot] = transcript.tokens[transcript.fed :]
            transcript.fed = len(transcript.tokens)
        return new

    def _plan(self, decision: Decision) -> Plan:
        """The decision with its actions in tokens; its observation is part of the slot's transcript from now on."""
        encode, layout = self.policy.encode, self.policy.layout
        assert decision.admissible_actions is not None
        actions = tuple(encode(*layout.piece("action", action)) for action in decision.admissible_actions)
        tree = grow(actions)
        self._observe(decision, max(map(len, actions)))
        return decision, actions, tree

    def _listen(self, decision: Decision) -> Utterance:
        """The decision with nothing said yet; its observation is part of the slot's transcript from now on."""
        text = self.policy.text
        text.require_end()
        free = room(self.policy.limit)
        self._observe(decision, free)
        return Utterance(decision, max(1, min(decision.max_new_tokens, free - len(text.terminator))))

    def _speak(self, speaking: list[Utterance], logprobs: list[np.ndarray]) -> dict[int, Choice | PolicyError]:
        """Generate the actions of all slots together, one token of each a forward, until each ends or is cut."""
        text = self.policy.text
        answers: dict[int, Choice | PolicyError] = {}
        nodes: list[list[tuple[int, int, int]]] = [[] for _ in range(self.cache.slots)]
        while speaking:
            rows = np.stack([logprobs[one.decision.slot][0] for one in speaking])
            uniforms = np.array([one.chance.random() for one in speaking])
            going_on = []
            for one, token, logprob in zip(
                speaking, *sample(rows, uniforms, self.temperature, self.greedy), strict=True
            ):
                slot, transcript = one.decision.slot, self.transcripts[one.decision.slot]
                if np.isnan(logprob):
                    told = f"the model gives no finite probabilities for {one.decision.observation!r}"
                    answers[slot] = PolicyError(told)
                    continue
                one.add(int(token), float(logprob))
                transcript.act((int(token),))
                tokens = tuple(one.tokens)
                ended = text.end_of(tokens) > 0
                if not ended and len(tokens) < one.limit:
                    going_on.append(one)
                    continue
                transcript.act(text.closing(tokens))
                answers[slot] = Choice(text.text(tokens), one.logprob, (), tokens, cut=not ended)
            speaking = going_on
            if speaking:
                logprobs = self._forward(self._unread([one.decision.slot for one in speaking]), nodes)
        return answers

    def _choose(
        self, decision: Decision, actions: tuple[Tokens, ...], pi_a: np.ndarray, log_pi_a: np.ndarray
    ) -> Choice | PolicyError:
        """The action at `uniform` of the cumulative distribution, or the likeliest one."""
        assert decision.admissible_actions is not None
        count = len(actions)
        if np.isnan(log_pi_a).any():
            return PolicyError(f"the model gives no finite probabilities for {decision.observation!r}")
        # The last action takes what rounding leaves.
        below = int((pi_a[:count].cumsum() <= decision.uniform).sum())
        index = int(pi_a[:count].argmax()) if self.greedy else min(below, count - 1)
        self.transcripts[decision.slot].act(actions[index])
        return Choice(decision.admissible_actions[index], float(log_pi_a[index]), tuple(pi_a[:count].tolist()))

    def _probabilities(self, logprobs: list[np.ndarray], plans: list[Plan]) -> tuple[np.ndarray, np.ndarray]:
        """pi and log pi over the admissible actions of each decision, [D, A], 0 and -inf where there is none."""
        widest = max(len(actions) for _, actions, _ in plans)
        likelihood = np.full((len(plans), widest), -np.inf)
        for row, (decision, actions, tree) in enumerate(plans):
            own = logprobs[decision.slot][tree.entry_node + 1, tree.entry_token]
            likelihood[row, : len(actions)] = np.bincount(tree.entry_action, weights=own)
            if self.policy.length_normalised:
                likelihood[row, : len(actions)] /= [len(action) for action in actions]
        scores = likelihood / self.temperature
        scores -= scores.max(1, keepdims=True)
        log_pi = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        return np.exp(log_pi), log_pi

    def _forward(self, new: list[list[int]], nodes: list[list[tuple[int, int, int]]]) -> list[np.ndarray]:
        """Next-token log-probabilities after each slot's prefix and each of its branch nodes, [1 + nodes, V] a slot."""
        width = max(len(a) + len(b) for a, b in zip(new, nodes, strict=True))
        slots = self.cache.slots
        span = self.cache.begin(width)
        before = self.cache.lengths
        counts = torch.tensor([len(tokens) for tokens in new])
        tokens = torch.full((slots, width), self.policy.pad, dtype=torch.long)
        offsets = torch.arange(width)
        positions = before[:, None] + offsets
        for slot, (trunk, branch) in enumerate(zip(new, nodes, strict=True)):
            tokens[slot, : len(trunk)] = torch.tensor(trunk, dtype=torch.long)
            for index, (token, depth, _) in enumerate(branch):
                place = len(trunk) + index
                tokens[slot, place] = token
                positions[slot, place] = before[slot] + len(trunk) - 1 + depth
        # A trunk token sees all that is before it; a branch node the trunk, its ancestors and itself.
        visible = torch.arange(span) <= (before[:, None] + offsets)[..., None]
        for slot, (trunk, branch) in enumerate(zip(new, nodes, strict=True)):
            start = int(before[slot]) + len(trunk)
            for index, (_, _, parent) in enumerate(branch):
                row = visible[slot, len(trunk) + index]
                row[start:] = False
                if parent >= 0:
                    row[start:] |= visible[slot, len(trunk) + parent, start:]
                row[start + index] = True
        device = self.policy.model.device
        hidden = self.policy.model.base_model(
            input_ids=tokens.to(device),
            attention_mask=additive(visible.to(device), self.policy.model.dtype)[:, None],
            position_ids=positions.clamp(max=self.policy.limit - 1).to(device),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.cache.keep(counts)
        # Only the places that are read go through the output layer.
        wanted = [
            (slot, len(trunk) - 1, len(branch))
            for slot, (trunk, branch) in enumerate(zip(new, nodes, strict=True))
            if trunk
        ]
        rows = [slot for slot, _, extra in wanted for _ in range(extra + 1)]
        columns = [last + step for _, last, extra in wanted for step in range(extra + 1)]
        logits = self.policy.model.get_output_embeddings()(hidden[rows, columns]).float().log_softmax(-1).cpu()
        result = [np.empty((0, 0))] * slots
        parts = logits.split([extra + 1 for _, _, extra in wanted])
        for (slot, _, _), part in zip(wanted, parts, strict=True):
            result[slot] = part.numpy()
        return result
