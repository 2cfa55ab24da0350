"""The contract between an agent and anything it acts in: Gymnasium's semantics, over text.

**Episode.** ``reset(seed=, options=)`` starts an episode and gives ``(observation, info)``; ``step(action)`` goes on
and gives ``(observation, reward, terminated, truncated, info)``. An environment plays one episode at a time, one after
the other, for any seed from 0 up. A step before the first reset, or after the end, raises. ``family`` is a word for the
tasks that share mechanics. ``close()`` frees what is held. Each returns within ``collect.max_step_seconds``, and none
ends the process or leaves otherwise what the environments there share: working folder, timers, files not its own.

**Texts.** Observations and actions are strings with something in them, at most 2^20 characters that UTF-8 can hold.
``info`` is a dict.

**Task.** ``info["task"]``, set by ``reset``, is what the agent is told to do.

**Actions.** In choice mode ``info["admissible_actions"]`` says what may be chosen now. It is set by ``reset`` and by
every step that does not end the episode: at least one, each once, each of which can really be done; ``step`` raises
for what cannot be. Where there are too many to list, it is a subset, and what else could be done may
be done too. An environment without it is played in text mode: the action is whatever the agent wrote, and what is
wrong with that is told in the next observation, never raised.

**Tools.** In text mode ``info["tools"]``, set by ``reset``, may offer tools, each ``{"name", "description",
"parameters"}`` with a JSON schema of the parameters. They are told to the agent with its task; its calls and their
results have the form of ``retroformer.chat``.

**Reward.** A finite number for every step.

**End.** ``terminated``: the task is over. ``truncated``: the task's own step limit was reached, which is a failed task.
The step that ends the episode sets ``info["success"]``, true or false. Every episode ends.

**Determinism.** The same seed, options and actions give the same episode, also in another process, and also while other
instances play in the same one: what chance decides comes from a generator of the instance's own, seeded by ``reset``.

**Mission.** ``options["mission"]`` is the control that shows whether a policy follows its task: ``true`` (default);
``shuffled``: the agent is told the mission of another episode of the same level, one that differs; ``other``: it is
told another mission that is valid in this very episode. Reward and success always judge the true one, so nothing but
what is told may differ. ``info["mission"]``, set by ``reset``, says which it is told. Where an environment does not
set it, its ``info["task"]`` is swapped from outside for that of another seed, if another seed's differs.

**Expert.** An environment may have ``expert_action()``: what an expert would do now, or None where it does not know.

**Lexicon.** The package may list every word that its tasks can say or be told, parted by whitespace: a model that is
built for them then has no unknown word.
"""

from __future__ import annotations

import re
from typing import Any, Literal, Protocol, runtime_checkable

Mission = Literal["true", "shuffled", "other"]
MOST_TEXT = 1 << 20
"""Characters of an observation or an action, at most."""


@runtime_checkable
class TextEnvironment(Protocol):
    """One running episode at a time."""

    family: str
    """Tasks of a family share mechanics."""

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start the episode that `seed` names."""
        ...

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do `action`; in choice mode one that is not admissible raises."""
        ...

    def close(self) -> None:
        """Free what the environment holds."""
        ...


def section(name: str) -> str:
    """The contract's paragraph of that name, as one line."""
    paragraphs = re.findall(r"^\*\*(\w+)\.\*\*(.*?)(?=\n\n|\Z)", __doc__ or "", re.DOTALL | re.MULTILINE)
    return " ".join(dict(paragraphs)[name].split())
