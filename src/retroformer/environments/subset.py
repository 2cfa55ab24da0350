"""A subset of the admissible actions, where there are too many to score each of them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np


def subset(actions: Sequence[str], context: str, limit: int, seed: Sequence[int]) -> tuple[str, ...]:
    """At most `limit` of the distinct `actions`, in their order.

    Half of them by retrieval: those that share the most with `context` (the task, what was seen last), a shared word
    counting log(n / how many of the n actions have it), over the root of the action's length. The other half are drawn
    uniformly from the rest, by `seed` (non-negative integers) alone, so that every action is offered now and then.
    What an expert would do gets no preference: a subset that always held it would tell the agent.
    """
    if len(actions) <= limit:
        return tuple(actions)
    words = [set(re.findall(r"\w+", action.lower())) for action in actions]
    known = set(re.findall(r"\w+", context.lower()))
    frequency = Counter(word for one in words for word in one)
    # Exactly rounded sums, as a set has no order: actions that share words of equal worth are to be worth the same.
    shared = [[math.log(len(actions) / frequency[word]) for word in one & known] for one in words]
    worth = np.array([math.fsum(one) / len(own) ** 0.5 for one, own in zip(shared, words, strict=True)])
    chance = np.random.default_rng(seed)
    # Equal scores in a drawn order, not in that of the alphabet.
    order = np.lexsort((chance.random(len(actions)), -worth))
    retrieved, rest = order[: limit // 2], order[limit // 2 :]
    drawn = chance.choice(rest, limit - limit // 2, replace=False)
    return tuple(actions[int(index)] for index in sorted((*retrieved, *drawn)))
