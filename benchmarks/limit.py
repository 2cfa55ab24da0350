"""How near training comes to what this machine's matrix products allow, and what it saves at the output layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.measure import CLOCK, MEMORY, QUICK_REPS, REPS, Report, interleave, peak_megabytes
from benchmarks.train import Update
from benchmarks.workload import build_policy, describe, totals
from retroformer.policies.language_model import LanguageModelPolicy
from retroformer.policies.tree import Window

WIDTHS = (128, 256)
SHAPE, ROWS = (8, 5), 4
LARGE = 152_000
SQUARE = 1024
NOTES = [
    f"gemm_share: forward, objective and backward of {ROWS} trajectories of T, K = {SHAPE[0]}, {SHAPE[1]} whose chosen "
    "actions alone are scored, laying out included. The share is (floating-point operations that this needs / its "
    "time) / (rate of the probe). Needed are the linear layers' products for the tokens that are not padding, three "
    "times forward's for forward and backward; attention's for the pairs that causality allows; the output layer's at "
    "the places that are scored. Norms, activations, softmax and the embedding count as nothing, so 1 cannot be had.",
    "The probe: the bare fp32 matrix products of the same linear layers at the same shapes, forward and the two of "
    "backward, into memory that is there already, in turn with the policy. `square` is a product of two matrices of "
    f"{SQUARE} x {SQUARE}, for orientation.",
    f"selected_logits: one trajectory, a vocabulary of {LARGE}; logits at all positions, as a model's own forward "
    "gives them, against the project's at scoring positions alone. The same loss.",
    f"Time: {CLOCK}. Memory: {MEMORY}.",
]


class Products:
    """The matrix products of a model's linear layers for `tokens` tokens, forward and backward, and nothing else."""

    def __init__(self, shapes: Sequence[tuple[int, int]], tokens: int):
        self.operations = sum(6 * tokens * before * after for before, after in shapes)
        self.buffers = [
            [torch.randn(*size) for size in ((tokens, before), (after, before), (tokens, after)) * 2]
            for before, after in shapes
        ]

    def __call__(self) -> None:
        """Every product once."""
        for x, weight, gradient, into_x, into_weight, into_y in self.buffers:
            torch.mm(x, weight.T, out=into_y)
            torch.mm(gradient, weight, out=into_x)
            torch.mm(gradient.T, x, out=into_weight)


def linear_shapes(policy: LanguageModelPolicy) -> list[tuple[int, int]]:
    """(inputs, outputs) of every linear layer but the output layer."""
    layers = [layer for layer in policy.model.base_model.modules() if isinstance(layer, torch.nn.Linear)]
    return [(layer.in_features, layer.out_features) for layer in layers]


def needed(policy: LanguageModelPolicy, windows: Sequence[Window]) -> int:
    """Floating-point operations of forward and backward, as NOTES say."""
    config = policy.model.config
    tokens = [totals([window])[0] for window in windows]
    scored = sum(len(actions[chosen]) for w in windows for actions, chosen in zip(w.actions, w.chosen, strict=True))
    linear = sum(before * after for before, after in linear_shapes(policy)) * sum(tokens)
    pairs = sum(count * (count + 1) // 2 for count in tokens)
    attention = 2 * config.hidden_size * config.num_hidden_layers * pairs
    return 6 * (linear + attention + scored * config.hidden_size * config.vocab_size)


class Everywhere:
    """The same loss as `Update.chosen` from logits at every position."""

    def __init__(self, update: Update):
        (self.window,), self.update = update.branched, update

    def __call__(self) -> torch.Tensor:
        """Forward, objective and backward; returns the loss."""
        window, model = self.window, self.update.policy.model
        model.zero_grad(set_to_none=True)
        ids = torch.tensor([window.tokens[: totals([window])[0]]])
        logprobs_lv = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        of_step = []
        for root, actions, chosen in zip(window.roots, window.actions, window.chosen, strict=True):
            places = torch.arange(root, root + len(actions[chosen]))
            of_step.append(logprobs_lv[places, torch.tensor(actions[chosen])].sum())
        return self.update.backward(self.update.batch._replace(logprobs_bt=torch.stack(of_step)[None]))


def measure(quick: bool, widths: Sequence[int] = WIDTHS, vocabulary: int = 4096, large: int = LARGE) -> Report:
    """All cases; with `quick` 3 repetitions, at the first width alone."""
    reps = QUICK_REPS if quick else REPS
    report = Report("limit", reps, notes=list(NOTES))
    if quick and len(widths) > 1:
        report.skipped.append("wider models: left out by --quick")
    square = torch.randn(SQUARE, SQUARE)
    for width in widths[:1] if quick else widths:
        policy = build_policy(width, vocabulary=vocabulary)
        report.model[str(width)] = describe(policy)
        update = Update(policy, *SHAPE, ROWS)
        products = Products(linear_shapes(policy), totals(update.branched)[0])
        operations = {
            "policy": needed(policy, update.branched),
            "products": products.operations,
            "square": 2 * SQUARE**3,
        }
        taken = interleave(
            {"policy": update.chosen, "products": products, "square": lambda: torch.mm(square, square)}, reps
        )
        rate = {name: operations[name] / one.median for name, one in taken.items()}
        for name, one in taken.items():
            report.cases.append(
                {
                    "case": f"width {width}",
                    "variant": name,
                    "seconds": one.as_json(),
                    "gigaflops": rate[name] / 1e9,
                    "peak_mb": peak_megabytes(update.chosen) if name == "policy" else None,
                }
            )
        report.ratios[f"gemm_share_{width}"] = rate["policy"] / rate["products"]
    policy = build_policy(widths[0], vocabulary=large)
    report.model["large vocabulary"] = describe(policy)
    update = Update(policy, *SHAPE, 1)
    variants = {"scoring positions": update.chosen, "all positions": Everywhere(update)}
    taken = interleave(variants, reps)
    for name, one in taken.items():
        case = {"case": f"vocabulary {large}", "variant": name, "seconds": one.as_json(), "loss": float(one.result)}
        report.cases.append({**case, "peak_mb": peak_megabytes(variants[name])})
    ratio = taken["all positions"].median / taken["scoring positions"].median
    report.ratios[f"selected_logits_{large // 1000}k"] = ratio
    return report
