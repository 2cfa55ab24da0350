"""An agent inside an application, recording itself, beside the bare model's forward over the same new tokens."""

from __future__ import annotations

import copy
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import DynamicCache

from benchmarks.measure import CLOCK, QUICK_REPS, REPS, Report, Run, interleave
from benchmarks.workload import build_policy, describe, random_actions, random_words
from retroformer.policies.language_model import LanguageModelPolicy
from retroformer.serving.agent import ServingAgent
from retroformer.serving.recording import Recorder

WIDTHS = (128, 512)
HISTORIES = (50, 200, 500)
NEW, ACTIONS = 30, 6
"""Words of the new observation, and what may be chosen."""
WRITES, QUICK_WRITES = 500, 50
"""Steps that are recorded one by one for the time of a record alone."""
NOTES = [
    f"One action of one episode with a history of H tokens: an observation of {NEW} new words and {ACTIONS} admissible "
    "actions of one word and their end. `bare`: the model's own forward over the same new tokens with transformers' "
    "`DynamicCache`, and the log-probabilities of the last place: what any use of the model must do, given tokens, "
    "whatever it then makes of them. `agent`: `Episode.act`, which tokenises, lays out, reads what is new and the "
    "actions, samples, and records the step before it returns. `silent`: the same without recording.",
    "The history is read before the clock starts. `serve_vs_bare_H` is agent over bare at width 128, where the model "
    "costs least and what surrounds it shows most; `serve_vs_bare_H_512` at width 512. Lower is better; less than 1 "
    "cannot be had.",
    "`record`: wall seconds of writing one step alone, by the operating system's buffer and with fsync.",
    f"Time elsewhere: {CLOCK}.",
]


class Scene:
    """An episode in its middle: what the agent and the bare model have read, and the action to be timed."""

    def __init__(self, policy: LanguageModelPolicy, history: int, folder: Path):
        chance = random.Random(history)
        vocabulary = policy.model.config.vocab_size
        recorder = Recorder(folder)
        self.before = random_words(history, vocabulary, chance)
        self.now = random_words(NEW, vocabulary, chance)
        self.admissible = tuple(word.split()[0] for word in random_actions(3 * ACTIONS, vocabulary, chance))[:ACTIONS]
        self.agents = {
            "agent": ServingAgent(policy.agent(1), slots=1, recorder=recorder, seed=0),
            "silent": ServingAgent(policy.agent(1), slots=1, seed=0),
        }
        self.episodes = {}
        self.prepare("agent")
        transcript = self.agents["agent"]._policy.transcripts[0]
        read = len(transcript.tokens)
        self.episodes["agent"].act(self.now, self.admissible)
        tokens = transcript.tokens
        own = policy.encode(*policy.layout.piece("observation", self.now))
        first = read - 1  # the end of the last action was not fed yet
        self.history, self.new = tokens[:first], tokens[first : read + len(own)]
        self.model = copy.deepcopy(policy.model)
        self.model.set_attn_implementation("sdpa")
        self.cache = DynamicCache(config=self.model.config)
        with torch.inference_mode():
            self.model(input_ids=torch.tensor([self.history]), past_key_values=self.cache, logits_to_keep=1)

    def prepare(self, variant: str) -> None:
        """Bring an agent to the action that is timed."""
        agent = self.agents[variant]
        if variant in self.episodes:
            self.episodes[variant].finish()
        self.episodes[variant] = agent.episode("w3")
        self.episodes[variant].act(self.before, self.admissible)

    def act(self, variant: str) -> str:
        """The action, by an agent."""
        return self.episodes[variant].act(self.now, self.admissible)

    def rewind(self) -> None:
        """Let the bare model forget what it read last."""
        if new := self.cache.get_seq_length() - len(self.history):
            self.cache.crop(-new)

    @torch.inference_mode()
    def bare(self) -> torch.Tensor:
        """The log-probabilities of what comes next."""
        output = self.model(
            input_ids=torch.tensor([self.new]), past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        return output.logits[0, -1].float().log_softmax(-1)


def measure(
    quick: bool, widths: Sequence[int] = WIDTHS, histories: Sequence[int] = HISTORIES, vocabulary: int = 4096
) -> Report:
    """All cases; with `quick` 3 repetitions, and the first width alone."""
    reps = QUICK_REPS if quick else REPS
    report = Report("serve", reps, notes=list(NOTES))
    with tempfile.TemporaryDirectory() as place:
        for width in widths[:1] if quick else widths:
            policy = build_policy(width, vocabulary=vocabulary)
            report.model[str(width)] = describe(policy)
            for history in histories:
                scene = Scene(policy, history, Path(place) / f"{width}-{history}")
                variants: dict[str, Run] = {
                    "agent": lambda scene=scene: scene.act("agent"),
                    "silent": lambda scene=scene: scene.act("silent"),
                    "bare": scene.bare,
                }
                before: dict[str, Run] = {
                    "agent": lambda scene=scene: scene.prepare("agent"),
                    "silent": lambda scene=scene: scene.prepare("silent"),
                    "bare": scene.rewind,
                }
                taken = interleave(variants, reps, before)
                for name, one in taken.items():
                    case = {"case": f"width {width}, H {history}", "variant": name, "seconds": one.as_json()}
                    report.cases.append(case)
                key = f"{history}" if width == widths[0] else f"{history}_{width}"
                report.ratios[f"serve_vs_bare_{key}"] = taken["agent"].median / taken["bare"].median
                report.ratios[f"serve_record_{key}"] = taken["agent"].median / taken["silent"].median
        for name, fsync in (("buffer", False), ("fsync", True)):
            seconds = writing(Path(place) / name, fsync, QUICK_WRITES if quick else WRITES)
            report.cases.append({"case": "record", "variant": name, "seconds": seconds})
    if quick:
        report.skipped.append(f"widths but {widths[0]}: left out by --quick")
    return report


def writing(folder: Path, fsync: bool, count: int) -> dict[str, float]:
    """Wall seconds of recording one step, as median, least and most over `count`."""
    recorder = Recorder(folder, fsync=fsync)
    step = {
        "event": "step", "id": "e0123456789abcdef", "t": 7, "time": 1.7e9, "observation": "word " * NEW,
        "admissible_actions": ["left"] * ACTIONS, "action": "left", "logprob": -1.5, "token_ids": None,
    }  # fmt: skip
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        recorder.write([step])
        taken.append(time.perf_counter() - started)
    return {"median": statistics.median(taken), "least": min(taken), "most": max(taken)}
