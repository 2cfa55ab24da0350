"""Policies on disk: build a small one from a config, load any Hugging Face causal language model.

A small model learns to follow its task only if words start related (measured: success .85 against .34): the
embedding of ``red_ball@f2r0`` begins as the sum of its parts, and attention begins by comparing like with like.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from string import Formatter
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from retroformer.config import PolicyConfig
from retroformer.errors import PolicyError
from retroformer.files import hash_directory, read_json
from retroformer.policies.exactness import settle
from retroformer.policies.language_model import SETTINGS, LanguageModelPolicy
from retroformer.policies.layout import END, Layout

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
SPECIAL = ("<pad>", "<unk>")
JOINED = "\u2060"
"""Before a piece that goes on with a word: Unicode's word joiner, which no word of a text begins with."""
LONGEST = 512
"""Characters of a word that is still spelled."""
LOOK = 1.7
"""How sharply a head of `look_back` looks: a sixth of its weight is on the token before, without it a fortieth."""
CONTEXT = 1024
"""Window of a built model, in tokens; the longest default episode takes about 300."""


def build(
    config: PolicyConfig, words: Iterable[str], *, seed: int, layout: Layout | None = None, phrases: bool = False
) -> LanguageModelPolicy:
    """A fresh Llama of `config`'s size whose vocabulary is `words`.

    A word that it does not know is spelled in pieces (Schuster and Nakajima 2012, as WordPiece): two such words stay
    two, so an action that is named by one can be chosen. ``<unk>`` is a word with a character that is neither ASCII
    nor in `words`.

    `phrases` says that it chooses among actions of several words, see `look_back`.
    """
    layout = layout or Layout()
    if layout.condition_on_return:
        words = [*words, "return", *(f"{tenth / 10:.1f}" for tenth in range(-10, 11))]
    special = (*SPECIAL, END) if END in layout.action else SPECIAL
    known = sorted(set(words) - set(special))
    letters = sorted({letter for word in known for letter in word}.union(map(chr, range(33, 127))))
    entries = dict.fromkeys([*special, *known, *letters, *(JOINED + letter for letter in letters)])
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    raw = Tokenizer(
        models.WordPiece(
            vocabulary, unk_token="<unk>", continuing_subword_prefix=JOINED, max_input_chars_per_word=LONGEST
        )
    )
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.decoder = decoders.WordPiece(prefix=JOINED, cleanup=False)
    named = {"pad_token": "<pad>", "unk_token": "<unk>"} | ({"eos_token": END} if END in special else {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **named)
    if config.width % config.heads or (config.width // config.heads) % 2:
        raise PolicyError(f"policy.width {config.width} must be an even multiple of policy.heads {config.heads}")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    initialise(model, list(vocabulary), torch.Generator().manual_seed(seed))
    if phrases:
        look_back(model)
    return LanguageModelPolicy(model, tokenizer, layout)


def initialise(model: Any, words: list[str], generator: torch.Generator) -> None:
    """Start small models where they can learn to follow a task.

    Embeddings are composed: a part is drawn with deviation .5, ``a_b`` is (a + b) / sqrt 2, ``object@place`` is
    (object + place) / sqrt 2. Linear layers have deviation .7 / sqrt(fan in), keys equal queries at 1.5 times that,
    the output layer .02.
    """
    parts: dict[str, torch.Tensor] = {}
    width = model.config.hidden_size

    def vector(word: str) -> torch.Tensor:
        for separator in ("@", "_"):
            pieces = word.split(separator)
            if len(pieces) > 1 and all(pieces):
                return torch.stack([vector(piece) for piece in pieces]).sum(0) / math.sqrt(len(pieces))
        if word not in parts:
            parts[word] = torch.randn(width, generator=generator) * 0.5
        return parts[word]

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name and "lm_head" not in name:
                scale = (1.5 if "q_proj" in name else 1.0) * 0.7 / math.sqrt(parameter.shape[1])
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        for layer in model.model.layers:
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
        model.get_input_embeddings().weight.copy_(torch.stack([vector(word) for word in words]))
        output = model.get_output_embeddings().weight
        output.copy_(torch.randn(output.shape, generator=generator) * 0.02)


def look_back(model: Any) -> None:
    """Let one head of each layer but the first begin by looking at the last few tokens, most at the one before.

    What to do is read where the prompt ends; the second word of an action, read one token later, must find it there
    (measured on ``turn left`` and the like, see docs/studies/words.md). A component that all embeddings share gives
    the head one and the same query and key, the query turned back by one position (Su et al. 2021, eq. 14).
    """
    heads = model.config.num_attention_heads
    size = model.config.hidden_size // heads
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 1.0
        angles = model.model.rotary_emb.inv_freq.float()
        cos, sin = angles.cos(), angles.sin()
        for layer in model.model.layers[1:]:
            for states in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight):
                states[:size] *= 0.3
            layer.self_attn.k_proj.weight[:size, 0] = LOOK
            layer.self_attn.q_proj.weight[:size, 0] = LOOK * torch.cat([cos + sin, cos - sin])


def load(source: str | Path, *, layout: Layout | None = None, condition_on_return: bool = False) -> LanguageModelPolicy:
    """Load a checkpoint folder or a hub id. Remote code is never run.

    `layout` and `condition_on_return` are for models that this project did not write; those that it did carry theirs
    in retroformer.json. Such a model is told things in the turns of its chat template, and in sentences where it has
    none that can be used.
    A model whose scores as a tree differ from plain scoring is scored the slow exact way, and that is told on stderr.
    Raises PolicyError where the model cannot be loaded or scored.
    """
    directory = Path(source)
    own = directory / SETTINGS
    if own.is_file():
        settings = read_json(own)
        try:
            layout = Layout(**settings["layout"])
        except (KeyError, TypeError) as error:
            raise PolicyError(f"{own} does not hold a layout: {error}") from None
        check_layout(own, layout)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # so that they are told below, not in a table of the library's
            output_loading_info=True,
        )
        model, info = loaded
    except Exception as error:  # whatever a folder that is damaged makes the library raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if reason.endswith(":"):
            reason = " ".join(str(error).split())
        if isinstance(error, OSError) and not directory.is_dir() and HF_HUB_OFFLINE:
            reason = (
                "it is not a local folder, and not whole in the local cache; "
                "with HF_HUB_OFFLINE=0 in the environment it may be downloaded"
            )
        raise PolicyError(f"cannot load a language model from {source}: {reason}") from None
    for name, *_ in info["mismatched_keys"]:
        raise PolicyError(f"{source}: the weights {name} have another shape than config.json says")
    for name in sorted(info["missing_keys"]):
        raise PolicyError(f"{source}: there are no weights {name}, which config.json asks for")
    known = len(model.get_input_embeddings().weight)
    if len(tokenizer) > known:
        raise PolicyError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens, the model {known}; they do not belong together"
        )
    version = hash_directory(directory)[:16] if directory.is_dir() else str(source)
    if layout is None:
        told = {"condition_on_return": condition_on_return}
        layout = Layout.chat(tokenizer, **told) or Layout.sentences(end=tokenizer.eos_token or "\n", **told)
    policy = LanguageModelPolicy(model, tokenizer, layout, version=version)
    if note := settle(policy, str(source)):
        print(f"retroformer: {note}", file=sys.stderr, flush=True)
    return policy


def check_layout(path: Path, layout: Layout) -> None:
    """Raise PolicyError where a template of a layout that was read from `path` does not take its piece."""
    for name in ("task", "observation", "action"):
        template = getattr(layout, name)
        try:
            # The bare piece alone: another field of str.format could reach into it, or ask for a width of gigabytes.
            sound = [rest for _, *rest in Formatter().parse(template) if rest[0] is not None] == [[name, "", None]]
        except (TypeError, ValueError):
            sound = False
        if not sound:
            raise PolicyError(f"{path}: layout.{name} is {template!r}, expected text with {{{name}}} in it")
    if not isinstance(layout.target_return, int | float):
        raise PolicyError(f"{path}: layout.target_return is {layout.target_return!r}, expected a number")
