"""A language model at work in environments: it chooses among admissible actions, or says what it wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from retroformer.errors import PolicyError
from retroformer.policies.agent import Choice, Decision
from retroformer.policies.layout import Transcript
from retroformer.policies.reading import Question, probabilities
from retroformer.policies.text import Utterance, room, sample
from retroformer.policies.tree import Tokens, grow, tell_apart
from retroformer.types import Step

if TYPE_CHECKING:
    from retroformer.policies.language_model import LanguageModelPolicy

Plan = tuple[Decision, tuple[Tokens, ...]]


class LanguageModelAgent:
    """Acts in `slots` environments at once; see `policies.agent.Agent`.

    All slots that wait are read together (`policies.reading`): what is new in each, and its admissible actions. Where
    actions are generated, their tokens are fed in turn, those of all slots together.
    """

    def __init__(self, policy: LanguageModelPolicy, slots: int, temperature: float, greedy: bool):
        self.policy = policy
        self.version = policy.version
        self.temperature = temperature
        self.greedy = greedy
        self.reader = policy.reader(slots)
        self.transcripts: dict[int, Transcript] = {}
        policy.model.eval()

    def release(self, slot: int) -> None:  # noqa: D102
        self.transcripts.pop(slot, None)
        self.reader.release(slot)

    def suspend(self, slot: int) -> Transcript | None:  # noqa: D102
        transcript = self.transcripts.get(slot)  # none where the first step failed before it was laid out
        self.release(slot)
        return transcript

    def resume(self, slot: int, kept: Transcript) -> None:
        """As `policies.agent.Agent` has it; the tokens are read anew with the next question."""
        self.release(slot)
        self.transcripts[slot] = kept

    def recall(self, slot: int, description: str, history: Sequence[tuple[str, str]]) -> None:
        """Take up an episode of text mode after these observations and actions; its next is step len(history)."""
        for t, (observation, action) in enumerate(history):
            tokens = self.policy.text.tokens(Step(observation, action, 0.0))
            needed = max(room(self.policy.limit), len(tokens))
            self._observe(Decision(slot, t, description, observation, None, 0.0), needed)
            self.transcripts[slot].act(tokens)

    @torch.inference_mode()
    def act(self, decisions: Sequence[Decision]) -> list[Choice | PolicyError]:  # noqa: D102
        answers: dict[int, Choice | PolicyError] = {}
        plans: list[Plan] = []
        speaking: list[Utterance] = []
        for decision in decisions:
            try:
                if decision.admissible_actions is None:
                    speaking.append(self._listen(decision))
                else:
                    plans.append(self._plan(decision))
            except PolicyError as error:
                answers[decision.slot] = PolicyError(f"step {decision.t}: {error}")
        questions = [self._question(decision.slot, actions) for decision, actions in plans]
        questions += [self._question(one.decision.slot) for one in speaking]
        if questions:
            found = self.reader.read(questions)
            if plans:
                pi, log_pi = probabilities(found[: len(plans)], [grow(one) for _, one in plans], self.temperature)
                for row, (decision, actions) in enumerate(plans):
                    answers[decision.slot] = self._choose(decision, actions, pi[row], log_pi[row])
            answers |= self._speak(speaking, found[len(plans) :])
        return [answers[decision.slot] for decision in decisions]

    def _question(self, slot: int, actions: tuple[Tokens, ...] = ()) -> Question:
        return Question(slot, self.transcripts[slot].tokens, actions)

    def _observe(self, decision: Decision, needed: int) -> None:
        """Append the observation to the slot's transcript, with room for an action of `needed` tokens."""
        if decision.t == 0:
            self.release(decision.slot)
            self.transcripts[decision.slot] = Transcript(
                self.policy.layout, self.policy.encode, decision.description, self.policy.limit
            )
        if self.transcripts[decision.slot].observe(decision.observation, needed):
            self.reader.release(decision.slot)

    def _plan(self, decision: Decision) -> Plan:
        """The decision with its actions in tokens; its observation is part of the slot's transcript from now on."""
        encode, layout = self.policy.encode, self.policy.layout
        actions = tuple(encode(*layout.piece("action", action)) for action in decision.admissible_actions or ())
        tell_apart(actions, decision.admissible_actions or ())
        self._observe(decision, max(map(len, actions)))
        return decision, actions

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
        while speaking:
            uniforms = np.array([one.chance.random() for one in speaking])
            sampled = sample(np.stack(logprobs), uniforms, self.temperature, self.greedy)
            going_on = []
            for one, token, logprob in zip(speaking, *sampled, strict=True):
                slot, transcript = one.decision.slot, self.transcripts[one.decision.slot]
                if np.isnan(logprob):
                    answers[slot] = no_number(one.decision)
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
                logprobs = self.reader.read([self._question(one.decision.slot) for one in speaking])
        return answers

    def _choose(
        self, decision: Decision, actions: tuple[Tokens, ...], pi_a: np.ndarray, log_pi_a: np.ndarray
    ) -> Choice | PolicyError:
        """The action at `uniform` of the cumulative distribution, or the likeliest one."""
        assert decision.admissible_actions is not None
        count = len(actions)
        if np.isnan(log_pi_a).any():
            return no_number(decision)
        # The last action takes what rounding leaves.
        below = int((pi_a[:count].cumsum() <= decision.uniform).sum())
        index = int(pi_a[:count].argmax()) if self.greedy else min(below, count - 1)
        self.transcripts[decision.slot].act(actions[index])
        return Choice(decision.admissible_actions[index], float(log_pi_a[index]), tuple(pi_a[:count].tolist()))


def no_number(decision: Decision) -> PolicyError:
    """What is told where the model's logits are not finite."""
    return PolicyError(
        f"step {decision.t}: the model gives no finite probabilities for {decision.observation[:200]!r}: "
        "its weights are damaged or overflowed, use another checkpoint"
    )
