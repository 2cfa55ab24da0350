"""What the project is compared with: lamorel's two ways of scoring, one sequence per step, and TRL's GRPO.

lamorel (Carta et al. 2023, "Grounding large language models in interactive environments with online reinforcement
learning", flowersteam/lamorel) scores every admissible action of a state as a sequence of its own, or with
`pre_encode_inputs` encodes the state once, repeats its keys and values for every action and feeds the actions. Its
package starts processes of its own, so the algorithm is written down here in a few lines; like there, the output
layer runs over every position that is fed. How probabilities are made of the logits is the project's own definition
(lamorel normalises whole actions' likelihoods), so that the results can be compared.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from retroformer.policies.tree import Tokens, Window

TRL = "trl is not installed: pip install 'retroformer[benchmarks]'; its cases are left out"


def padded(rows: Sequence[Sequence[int]], left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Token rows as one tensor [B, L], and its attention mask; padding is token 0."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for place, row in enumerate(rows):
        where = slice(longest - len(row), None) if left else slice(len(row))
        ids[place, where] = torch.tensor(row)
        mask[place, where] = 1
    return ids, mask


def scores(logits_klv: torch.Tensor, actions: Sequence[Tokens]) -> torch.Tensor:
    """log pi(a | h) over the actions, [K] in nats, from the logits that predict each action's tokens, [K, L, V].

    By the project's definition: each token competes with those that go on with one of the actions.
    """
    ids, mask = padded(actions)
    there = mask.bool()
    own_kl = logits_klv.gather(-1, ids[..., None])[..., 0]
    same_kkl = (ids[:, None] == ids[None]) & there[:, None] & there[None]
    before_kkl = torch.cat([torch.ones_like(same_kkl[..., :1]), same_kkl[..., :-1].cumprod(-1).bool()], -1)
    rivals_kkl = before_kkl & there[None]
    twins_kl = (before_kkl & same_kkl).sum(0).clamp(min=1)  # actions that go on alike count once
    mass_kl = (own_kl - twins_kl.log())[None].masked_fill(~rivals_kkl, float("-inf")).logsumexp(1)
    return (own_kl - mass_kl).masked_fill(~there, 0.0).sum(-1)


def naive(model: Any, prefix: Sequence[int], actions: Sequence[Tokens]) -> torch.Tensor:
    """log pi(a | h) over the actions, [K] in nats: one sequence for every action (lamorel)."""
    ids, mask = padded([[*prefix, *action] for action in actions])
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return scores(logits[:, len(prefix) - 1 : -1], actions)


def cached(model: Any, prefixes: Sequence[Sequence[int]], actions: Sequence[Sequence[Tokens]]) -> list[torch.Tensor]:
    """log pi(a | h) of several states, [K] each: every state encoded once, its cache repeated K times (lamorel's
    `pre_encode_inputs`). All states have K actions."""
    count = len(actions[0])
    ids, mask = padded(prefixes, left=True)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    encoded = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True)
    cache: DynamicCache = encoded.past_key_values
    cache.batch_repeat_interleave(count)
    branches, branch_mask = padded([action for own in actions for action in own])
    whole_mask = torch.cat([mask.repeat_interleave(count, 0), branch_mask], 1)
    places = positions[:, -1:].repeat_interleave(count, 0) + 1 + torch.arange(branches.shape[1])
    logits = model(
        input_ids=branches, attention_mask=whole_mask, position_ids=places, past_key_values=cache, use_cache=True
    ).logits
    first = encoded.logits[:, -1:].repeat_interleave(count, 0)
    logits = torch.cat([first, logits[:, :-1]], 1)
    return [scores(own, mine) for own, mine in zip(logits.split(count), actions, strict=True)]


def one_sequence(model: Any, prefix: Sequence[int], action: Tokens) -> torch.Tensor:
    """log p(action | prefix), a number: one sequence per step, for the action taken alone."""
    ids = torch.tensor([[*prefix, *action]])
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(action) + 1).logits
    return logits[0, :-1].log_softmax(-1)[torch.arange(len(action)), torch.tensor(action)].sum()


def trl_trainer(model: Any, tokenizer: Any) -> Any | None:
    """TRL's GRPOTrainer around a copy of the model, ready for its loss; None where trl is not installed.

    Defaults, but fp32 and without gradient checkpointing, which would only slow it down on a CPU.
    """
    if importlib.util.find_spec("trl") is None:
        return None
    from datasets import Dataset, disable_progress_bars
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = GRPOConfig(
            output_dir=".resume/benchmarks",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
        )
        return GRPOTrainer(
            model=copy.deepcopy(model),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": ["w3"]}),
            processing_class=tokenizer,
        )


def trl_inputs(windows: Sequence[Window], advantages: Sequence[float]) -> dict[str, torch.Tensor]:
    """Trajectories as GRPO's loss takes them: one row each, padded; observations masked out of the loss as tool output.

    The prompt ends before the first action; what follows is the completion.
    """
    first = [window.roots[0] + 1 for window in windows]
    taken = []
    for window, start in zip(windows, first, strict=True):
        own = [0] * len(window.tokens)
        for root, actions, chosen in zip(window.roots, window.actions, window.chosen, strict=True):
            for place in range(root + 1, root + 1 + len(actions[chosen])):
                own[place] = 1
        taken.append(own[start:])
    prompt_ids, prompt_mask = padded([w.tokens[:start] for w, start in zip(windows, first, strict=True)], left=True)
    completion_ids, completion_mask = padded([w.tokens[start:] for w, start in zip(windows, first, strict=True)])
    tool_mask = padded(taken)[0]
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": tool_mask.sum(),
    }
