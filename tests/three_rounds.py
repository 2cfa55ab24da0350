"""A project of three closed rounds with real, tiny policies: version 1 promoted, 2 rejected, 3 not proven."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from project import make_round
from retroformer import rounds
from retroformer.config import PolicyConfig
from retroformer.evaluation.episodes import COLUMNS
from retroformer.files import hash_directory, write_text

WORDS = ("go", "to", "the", "ball", "a", "wall", "left", "right")
SITUATION = {
    "description": "go to the ball",
    "history": [["a wall", "left"]],
    "observation": "a ball",
    "admissible_actions": ["left", "right"],
}
VERDICTS = (("promote", False), ("keep", True), ("not_enough_evidence", False))
FINAL = {
    1: {"A": "11110000", "B": "11000000"},
    2: {"A": "00000000", "B": "00000000"},
    3: {"A": "11111100", "B": "1110000t"},
}
"""Version -> level -> what it scored on the final seeds; t is truncated."""
PATHS = [f"data/history/round-000{number}/challenger" for number in (1, 2, 3)]


def quick_dvc(root: Path, command: str, *words: str) -> str:
    """Stands in for DVC where only the moving of pins is the matter."""
    if command == "add":
        entry = f"outs:\n- md5: {hash_directory(root / words[-1])}\n  path: {Path(words[-1]).name}\n"
        (root / f"{words[-1]}.dvc").write_text(entry)
    return "{}"


def close_three(root: Path, monkeypatch: Any) -> Path:
    """Close three rounds that were made by hand."""
    from retroformer.policies.checkpoints import build

    monkeypatch.setattr(rounds, "dvc", quick_dvc)
    text = (root / "params.yaml").read_text()
    for number, (verdict, worse) in enumerate(VERDICTS, 1):
        write_text(root / "params.yaml", re.sub(r"updates: \d+", f"updates: 250{number - 1}", text))
        make_round(root / "data", number, verdict=verdict, worse=worse)
        shutil.rmtree(root / "data/challenger")
        (root / "data/challenger").mkdir()
        policy = build(PolicyConfig(model="", width=8, layers=1, heads=1), WORDS, seed=number)
        policy.save(root / "data/challenger")
        write_text(root / "data/evaluation/episodes.csv", episodes(number))
        rounds.close(root)
    return root


def episodes(number: int) -> str:
    """Of the challenger, and of a champion that a later round played again on other seeds."""
    lines = [",".join(COLUMNS)]
    for level, scores in FINAL[number].items():
        for seed, score in enumerate(scores):
            success, outcome = {"1": ("1", "success"), "0": ("0", "failure"), "t": ("", "truncated")}[score]
            lines.append(f"challenger,final,true,sampled,strict,{level},{seed},{success},{outcome},3")
            lines.append(f"challenger,final,true,greedy,strict,{level},{seed},1,success,3")
    if number == 3:
        lines.append("champion,final,true,sampled,strict,A,8,0,failure,3")
        lines.append("challenger,final,true,sampled,strict,A,8,1,success,3")
    return "\n".join(lines) + "\n"
