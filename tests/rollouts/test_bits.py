"""Log-probabilities, bit for bit: products of other shapes round otherwise, so shapes must not depend on workers."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from retroformer.config import PolicyConfig
from retroformer.environments import lexicon
from retroformer.files import hash_directory
from retroformer.policies.checkpoints import build
from retroformer.policies.layout import Layout
from retroformer.policies.reading import Cached
from retroformer.rollouts.episodes import Conditions, Episode
from retroformer.rollouts.workers import SHARD, Player, play_all

CONDITIONS = Conditions(0, "compact", "token", environments=3, max_new_tokens=6, max_seconds=600.0)
NAMES = {"choice": ("babyai:P5N2", "babyai:GoToLocalS5N2"), "text": ("desk:refund", "desk:undo")}
EACH = SHARD * CONDITIONS.environments + 4
"""A whole shard and a part of one, for each mode."""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A model of each mode and its episodes; models that know nothing, so episodes end at many different steps."""
    found = []
    for mode, names in NAMES.items():
        layout = Layout.words(ended=mode == "text")
        policy = build(PolicyConfig(model="", width=32, layers=2, heads=2), lexicon(names), seed=0, layout=layout)
        policy.save(folder := tmp_path_factory.mktemp(mode))
        episodes = [Episode(names[seed % 2], seed, "train") for seed in range(EACH)]
        found.append((Player(str(folder)), episodes))
    return found


def bits(work, workers: int, folder: Path) -> list[tuple[str, list[str]]]:
    """Each episode's id and its log-probabilities, to the last bit."""
    arrived = [one.trajectory for _, some in play_all(work, CONDITIONS, workers, folder=folder) for one in some]
    return [(one.id, [(step.logprob or math.nan).hex() for step in one.steps]) for one in arrived]


@pytest.mark.long
def test_workers_and_an_interruption_change_no_bit_in_either_mode(work, tmp_path, monkeypatch):
    shapes: dict[bool, set[int]] = {True: set(), False: set()}
    answer = Cached._answer

    def counted(self, questions, trees):
        shapes[bool(questions[0].actions)].add(len(questions))
        return answer(self, questions, trees)

    monkeypatch.setattr(Cached, "_answer", counted)
    alone = bits(work, 1, tmp_path / "1")
    # How many are read together does change while neighbours end, in both modes: equality is not for want of shapes.
    assert all(len(counts) > 1 for counts in shapes.values()), shapes
    assert len(alone) == 2 * EACH
    assert all(numbers and "nan" not in numbers for _, numbers in alone)
    written = hash_directory(tmp_path / "1")
    assert bits(work, 2, tmp_path / "2") == alone
    assert hash_directory(tmp_path / "2") == written
    # What a kill leaves: one shard whole, one begun. Workers that have played other shards before play the rest.
    shutil.copytree(tmp_path / "1/000001", tmp_path / "resumed/000001")
    (tmp_path / "resumed/.begun").mkdir()
    assert bits(work, 3, tmp_path / "resumed") == alone
    assert hash_directory(tmp_path / "resumed") == written
