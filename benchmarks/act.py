"""Acting: the agent's persistent cache and tree, beside lamorel's cached scoring and full rescoring."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from benchmarks.measure import CLOCK, MEMORY, QUICK_REPS, REPS, Report, Run, interleave, peak_megabytes
from benchmarks.peers import cached, naive
from benchmarks.workload import build_policy, describe, random_actions, random_words
from retroformer.policies.agent import Decision
from retroformer.policies.language_model import LanguageModelPolicy
from retroformer.policies.tree import Tokens

ENVIRONMENTS = 8
NEW = 60
"""Words of the new observation, which each environment's history is longer or shorter than by up to RAGGED."""
RAGGED = 8
SHAPES = ((200, 6), (200, 20), (500, 6), (500, 20))
QUICK_SHAPES = ((200, 6), (500, 6))
NAIVE_QUICK = (500, 6)
NOTES = [
    f"One call for {ENVIRONMENTS} environments, each with a history of about H tokens and a new observation of {NEW}; "
    "the project's time includes tokenising, laying out and sampling, the peers are given tokens and stop at the "
    "probabilities. The history is encoded before the clock starts: that is what a cache is for.",
    "lamorel cached: its `pre_encode_inputs` for all environments in one batch; every step encodes the whole state "
    "once, repeats its keys and values K times and feeds the actions. naive: one sequence for every action, an "
    "environment's K as one batch. Both send every position that they feed through the output layer, as lamorel does.",
    "`difference` is the largest one between a variant's probabilities and the project's.",
    f"Time: {CLOCK}. Memory: {MEMORY}.",
]


class Scene:
    """Environments in the middle of their episodes: the decisions before, and those to be timed."""

    def __init__(self, policy: LanguageModelPolicy, history: int, actions: int):
        chance = random.Random(history)
        vocabulary = policy.model.config.vocab_size
        self.agent = policy.agent(ENVIRONMENTS)
        self.before: list[Decision] = []
        self.now: list[Decision] = []
        for slot in range(ENVIRONMENTS):
            words = [history + chance.randint(-RAGGED, RAGGED), NEW]
            for t, decisions in enumerate((self.before, self.now)):
                observation = random_words(words[t], vocabulary, chance)
                admissible = random_actions(actions, vocabulary, chance)
                decisions.append(Decision(slot, t, "w3", observation, admissible, chance.random()))
        self.model = policy.model
        self.prefixes: list[list[int]] = []
        self.actions: list[list[Tokens]] = []
        self.act()
        for decision in self.now:
            transcript = self.agent.transcripts[decision.slot]
            tokens = [policy.encode(*policy.layout.piece("action", one)) for one in decision.admissible_actions or ()]
            own = next(one for one in tokens if tuple(transcript.tokens[-len(one) :]) == one)
            self.prefixes.append(transcript.tokens[: -len(own)])
            self.actions.append(tokens)

    def prepare(self) -> None:
        """Play the episodes up to the decision that is timed."""
        for decision in self.before:
            self.agent.release(decision.slot)
        self.agent.act(self.before)

    def act(self) -> list[torch.Tensor]:
        """The agent's decision; probabilities of each environment's actions."""
        self.prepare()
        return self.timed()

    def timed(self) -> list[torch.Tensor]:
        """The part of `act` that the clock sees."""
        choices = self.agent.act(self.now)
        return [torch.tensor(choice.probabilities) for choice in choices]  # type: ignore[union-attr]

    @torch.inference_mode()
    def lamorel(self) -> list[torch.Tensor]:
        """The same probabilities by lamorel's cached scoring."""
        return [one.exp() for one in cached(self.model, self.prefixes, self.actions)]

    @torch.inference_mode()
    def naive(self) -> list[torch.Tensor]:
        """The same probabilities by rescoring everything."""
        pairs = zip(self.prefixes, self.actions, strict=True)
        return [naive(self.model, prefix, actions).exp() for prefix, actions in pairs]


def measure(
    quick: bool, width: int = 128, vocabulary: int = 4096, shapes: Sequence[tuple[int, int]] | None = None
) -> Report:
    """All cases; with `quick` 3 repetitions."""
    reps = QUICK_REPS if quick else REPS
    policy = build_policy(width, vocabulary=vocabulary)
    report = Report("act", reps, describe(policy), notes=list(NOTES))
    for history, actions in shapes or (QUICK_SHAPES if quick else SHAPES):
        scene = Scene(policy, history, actions)
        variants: dict[str, Run] = {"project": scene.timed, "lamorel cached": scene.lamorel}
        if not quick or (history, actions) == NAIVE_QUICK:
            variants["naive"] = scene.naive
        taken = interleave(variants, reps, {"project": scene.prepare})
        for name, one in taken.items():
            case = {"case": f"{history}_{actions}", "variant": name, "seconds": one.as_json(), "peak_mb": None}
            case["difference"] = difference(one.result, taken["project"].result)
            if not quick or name != "naive":
                scene.prepare()
                case["peak_mb"] = peak_megabytes(variants[name])
            report.cases.append(case)
        for peer, key in (("lamorel cached", "act_vs_lamorel_cached"), ("naive", "act_vs_naive")):
            if peer in taken:
                report.ratios[f"{key}_{history}_{actions}"] = taken[peer].median / taken["project"].median
    if quick:
        report.skipped.append("K = 20, naive but for H, K = 500, 6, and its memory: left out by --quick")
    return report


def difference(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """Largest difference between two scorings' probabilities."""
    return max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))
