"""Low-rank adapters: few weights are trained, and the policy that training began with stays at hand."""

from __future__ import annotations

import warnings

import torch

from retroformer.errors import ConfigError
from retroformer.policies.language_model import LanguageModelPolicy


def adapt(policy: LanguageModelPolicy, rank: int, *, seed: int) -> None:
    """Freeze the model and add a low-rank update of each linear layer but the output layer, 0 at the start.

    W + 2 B A with B A of `rank` (Hu et al. 2021, arXiv 2106.09685; on all layers, Dettmers et al. 2023, arXiv
    2305.14314). Raises ConfigError where the library is missing.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ConfigError(
            "policy.lora_rank is above 0 and peft is not installed: pip install 'retroformer[lora]', or set it to 0"
        ) from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers that keep their weights the other way round
        torch.manual_seed(seed)
        policy.adapter = get_peft_model(policy.model, config)
