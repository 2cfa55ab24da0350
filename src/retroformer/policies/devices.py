"""Where a model runs, in which precision and on how many threads: probed once, written down, and the same thereafter.

Weights that are trained stay in fp32, since an update is smaller than what bf16 can add to a weight; the products of
a forward are in `Choice.dtype`. A policy that only acts computes the same way, so that it is the policy that trains:
its linear layers, which are most of it, are held in that type, and what runs between them stays fp32.

What is left between acting and training in bf16 is the rounding of products of other shapes. Measured on a CPU with
Llama, Qwen2 and GPT-2 of random weights (width 64, 4 layers, vocabulary 512, 16 choices of 5 actions and 16 texts of up
to 40 tokens each): at most .01 nats a choice and .13 a text; .04 and .49 where all of the acting policy is bf16.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from retroformer.errors import DataError
from retroformer.files import read_json, write_json
from retroformer.policies.language_model import LanguageModelPolicy

RECORD = Path(".resume/devices.json")
"""Beside what else a run leaves: machine and width -> what the probe chose."""
SMALL = 512
"""Width below which nothing is probed: its products are too small to share out (measured), and calls, not arithmetic,
take the time, so fp32 and one thread it is."""
LARGE = 2048
"""Width of the widest product that is timed; above it the answer is the same."""
ROWS = 256
"""Tokens in a timed product."""
FASTER = 1.5
"""A lower precision on a CPU must be this much faster to be worth its rounding."""
WITHIN = 1.1
"""Threads are not added for less than this."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a probe chose. A round that is given the same choice gives the same bits."""

    device: str = "cpu"
    dtype: str = "float32"
    """Of products: float32 or bfloat16."""
    threads: int = 1
    """Of this process; the workers that play have one each."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Forwards of fp32 weights in this precision."""
        dtype = getattr(torch, self.dtype)
        return nullcontext() if dtype == torch.float32 else torch.autocast(self.device, dtype)

    def act(self, policy: LanguageModelPolicy) -> LanguageModelPolicy:
        """The policy, moved to where it acts, in the precision of its products."""
        policy.model.to(self.device)
        if self.dtype != "float32":
            words = policy.model.get_input_embeddings().weight  # may be the output layer's too, and are no product's
            for module in policy.model.modules():
                for parameter in module.parameters(recurse=False):
                    # Those of linear layers, and of experts in one tensor.
                    if (isinstance(module, torch.nn.Linear) or parameter.dim() > 2) and parameter is not words:
                        parameter.data = parameter.data.to(getattr(torch, self.dtype))
            policy.autocast = self.autocast
        return policy


def choose(width: int, root: Path = Path(".")) -> Choice:
    """Where a model of `width` runs; what had to be timed is recorded, and the record is what counts thereafter.

    A CUDA device where there is one (CUDA_VISIBLE_DEVICES hides it), with bf16 if it computes in that.
    """
    if torch.cuda.is_available():
        half = width >= SMALL and torch.cuda.is_bf16_supported(including_emulation=False)
        return Choice("cuda", "bfloat16" if half else "float32")
    if width < SMALL:
        return Choice()
    key = fingerprint(width)
    try:
        known = dict(read_json(root / RECORD))
    except (DataError, TypeError, ValueError):
        known = {}
    try:
        return Choice(**known[key])
    except (KeyError, TypeError):
        choice = probe(width)
    with suppress(OSError):  # where nothing can be written, the probe is only asked again
        write_json(root / RECORD, {**known, key: asdict(choice)})
    return choice


def kind_of_machine() -> dict[str, str]:
    """What the bits of a result depend on besides data, parameters and code; alike on machines of one type."""
    cuda = f", {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if torch.cuda.is_available() else ""
    libraries = ("numpy", "scipy", "pyarrow", "tokenizers", "transformers", "minigrid")
    return {
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}{cuda}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in libraries},
    }


def fingerprint(width: int) -> str:
    """This machine, as far as a probe could tell it from another, and the width: 16 hex digits."""
    kind = (os.cpu_count(), platform.machine(), torch.backends.cpu.get_cpu_capability())
    return hashlib.sha256(json.dumps([*kind, torch.__version__, width]).encode()).hexdigest()[:16]


def probe(width: int) -> Choice:
    """Time a product of the model's width on the CPU: some tenths of a second at most."""
    before = torch.get_num_threads()
    try:
        counts = sorted({*(1 << power for power in range((os.cpu_count() or 1).bit_length())), os.cpu_count() or 1})
        taken = {count: seconds(width, torch.float32, count) for count in counts}
        threads = next(count for count in counts if taken[count] <= WITHIN * min(taken.values()))
        # Elsewhere bf16 is emulated, and 24 to 190 times slower (measured).
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        half = native and FASTER * seconds(width, torch.bfloat16, threads) < taken[threads]
    finally:
        torch.set_num_threads(before)
    return Choice("cpu", "bfloat16" if half else "float32", threads)


def seconds(width: int, dtype: torch.dtype, threads: int) -> float:
    """The shortest of three products [ROWS, width] x [width, width]."""
    torch.set_num_threads(threads)
    width = min(width, LARGE)
    a, b = torch.ones(ROWS, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(a, b)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])  # the first one also makes the threads
