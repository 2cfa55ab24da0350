"""Secrets and personal data replaced by the name of what they were, in a record's text before anything is written.

Ids and times of a log are left alone: they are not written but as hashes, and must stay apart.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from retroformer.errors import ConfigError
from retroformer.importers.conversation import LoggedCall, Run, Turn
from retroformer.types import Step, Trajectory


def _luhn(text: str) -> bool:
    digits = [int(one) for one in re.sub(r"\D", "", text)]
    doubled = sum(sum(divmod(2 * one, 10)) for one in digits[-2::-2])
    return 13 <= len(digits) <= 19 and (sum(digits[-1::-2]) + doubled) % 10 == 0


def _number_of_a_phone(text: str) -> bool:
    groups = re.findall(r"\d+", text.replace("(0)", "0"))
    decimals = "." in text and " " in text  # "+12.50 13.75", a row of numbers
    return 9 <= sum(map(len, groups)) <= 15 and not decimals and all(len(one) > 1 for one in groups[2:])


def _any(text: str) -> bool:
    return True


PATTERNS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "private_key": (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        _any,
    ),
    "jwt": (re.compile(r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+"), _any),
    "bearer": (re.compile(r"(?i)\b(?:bearer|basic)\s+[\w.~+/-]{16,}=*"), _any),
    "api_key": (
        re.compile(
            r"\b(?:sk|pk|rk)[-_][\w-]{16,}|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{30,}"
            r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bhf_\w{20,}|\bglpat-[\w-]{16,}"
            r"|(?i:\b(?:api[_-]?key|secret|token|password)\b[\"']?\s*[:=]\s*[\"']?)[^\s\"',;}]{8,}"
        ),
        _any,
    ),
    "email": (re.compile(r"\b[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"), _any),
    "iban": (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _any),
    "card": (re.compile(r"(?<![\w.-])[2-6](?:[ -]?\d){12,18}(?![\w-])"), _luhn),
    "ip": (
        re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w.]*\d)"),
        _any,
    ),
    "phone": (
        # By how countries write them: groups of digits alone may be any numbers.
        re.compile(
            r"(?<![\w.+-])(?:"
            r"(?:\+|00(?=[1-9]\d{0,2}[ /-]))[1-9](?:(?:[ ./-]|[ .-]?\(|\)[ ./-]?)?\d){8,14}"  # +49 170 1234567
            r"|(?:1[ .-])?\([2-9]\d\d\)[ .-]?\d{3}[ .-]\d{4}"  # (555) 123-4567
            r"|(?:1[ .-])?[2-9]\d\d(?P<same>[ .-])\d{3}(?P=same)\d{4}"  # 555-123-4567
            r"|\([1-9]\d\)[ .-]?\d{4,5}[ .-]\d{4}"  # (11) 91234-5678
            r"|\(0[1-9]\d{0,3}\)[ ./-]?\d{3,8}(?:[ -]\d{2,5}){0,3}"  # (030) 1234567
            r"|0[1-9]\d{1,3}(?:[ /]\d{3,8}(?:[ -]\d{2,5}){0,3}|(?:-\d{3,5}){2})"  # 0170 1234567, 020-7946-0958
            r"|0[1-9](?P<pair>[ .-])\d\d(?:(?P=pair)\d\d){3}"  # 06 12 34 56 78
            r")(?![\w-]|[.,]\d)"
        ),
        _number_of_a_phone,
    ),
}
"""Name, pattern, and what else must hold; the first that fits wins. No card begins with 1, as times in milli- and
nanoseconds do."""
ESCAPE = re.compile(r"\\u00([2-7][0-9a-fA-F])")


class Redactor:
    """Replaces what the named patterns find by ``[name]``, and counts it. Raises ConfigError for an unknown name."""

    def __init__(self, names: Iterable[str]):
        names = list(names)
        if unknown := [name for name in names if name not in (*PATTERNS, "all")]:
            raise ConfigError(f"no pattern {unknown[0]!r} to redact; known: {', '.join(PATTERNS)}, all")
        self.names = [name for name in PATTERNS if name in names or "all" in names]
        self.found: Counter[str] = Counter()

    def value(self, value: Any) -> Any:
        """The same value with every text in it redacted, also where it lies as JSON within a text."""
        if isinstance(value, str):
            if "\\" in value and value.lstrip()[:1] in ("{", "["):
                counted = self.found.total()
                # An escape may hide a pattern, "\u0040" an e-mail's "@".
                try:
                    written = json.dumps(self.value(json.loads(value)), ensure_ascii=False)
                except (ValueError, RecursionError):
                    written = self.text(ESCAPE.sub(lambda match: chr(int(match[1], 16)), value))
                if self.found.total() > counted:
                    return written
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key) if isinstance(key, str) else key: self.value(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.value(one) for one in value]
        if type(value) is int and value >= 10**12:
            text = self.text(str(value))
            return value if text == str(value) else text
        return value

    def run(self, run: Run) -> Run:
        """The same run with its texts redacted: what was said, called and offered, names, an error.

        The tokens and the log-probability of what changed are no longer its own, and dropped.
        """
        if not self.names:
            return run
        run.turns = [self._turn(turn) for turn in run.turns]
        run.tools = self.value(run.tools)
        run.task, run.policy = self.text(run.task), self.text(run.policy)
        run.error = None if run.error is None else self.text(run.error)
        return run

    def _turn(self, turn: Turn) -> Turn:
        calls = [LoggedCall(call.id, self.text(call.name), self.value(call.arguments)) for call in turn.calls]
        text, reasoning = self.value(turn.text), self.value(turn.reasoning)
        if (text, reasoning, calls) == (turn.text, turn.reasoning, list(turn.calls)):
            return turn
        return replace(turn, text=text, reasoning=reasoning, calls=calls, token_ids=None, logprob=None)

    def trajectory(self, one: Trajectory) -> Trajectory:
        """What is a trajectory already, likewise; an id that would be redacted becomes a hash of itself."""
        if not self.names:
            return one
        task = replace(
            one.task,
            environment=self.text(one.task.environment),
            family=self.text(one.task.family),
            name=self.text(one.task.name),
            description=self.value(one.task.description),
        )
        return replace(
            one,
            id=self._id(one.id),
            task=task,
            steps=tuple(map(self._step, one.steps)),
            policy=self.text(one.policy),
            previous_id=None if one.previous_id is None else self._id(one.previous_id),
            source=self.text(one.source),
            error=None if one.error is None else self.text(one.error),
        )

    def _id(self, id: str) -> str:
        return id if self.text(id) == id else hashlib.sha256(id.encode()).hexdigest()[:16]

    def _step(self, step: Step) -> Step:
        observation, action = self.value(step.observation), self.value(step.action)
        if step.admissible_actions is not None:
            step = replace(step, admissible_actions=tuple(map(self.value, step.admissible_actions)))
        if action != step.action:
            step = replace(step, action=action, token_ids=None, logprob=None)
        return replace(step, observation=observation)

    def hidden(self, text: str) -> str:
        """A record's text redacted for quarantine, without counting anything a second time."""
        counted = self.found.copy()
        try:
            return self.value(text)
        finally:
            self.found = counted

    def text(self, text: str) -> str:
        """The text, redacted."""
        for name in self.names:
            pattern, holds = PATTERNS[name]

            def replaced(match: re.Match[str], name: str = name, holds: Callable[[str], bool] = holds) -> str:
                if not holds(match.group()):
                    return match.group()
                self.found[name] += 1
                return f"[{name}]"

            text = pattern.sub(replaced, text)
        return text
