"""The main job over several seeds: as many rounds as `make run` closes, in a clone of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from retroformer.config import load_config
from retroformer.files import read_json, resume_folder, write_json, write_text
from studies.start import PINS, first_pins

ROOT = Path(".resume/studies")
ROUNDS = 3
FAMILIES = ("strict", "babyai")
Round = dict[str, Any]


def clone_of(seed: int) -> Path:
    """Where a seed's rounds lie; named by the parameters and the code, like an arm."""
    return ROOT / resume_folder("rounds", [], [load_config(overrides={"seed": seed})]).name


def run(seed: int) -> list[Round]:
    """Bring the number of closed rounds of a seed's clone to ROUNDS; returns them."""
    folder = clone_of(seed)
    if not (folder / ".git").is_dir():
        clone(folder, seed)
    words = [sys.executable, "flows/improve.py", "--rounds", str(ROUNDS)]
    subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return closed(seed)


def clone(folder: Path, seed: int) -> None:
    """The committed project without its rounds, with the seed in params.yaml.

    Raises SystemExit where what decides a round is not committed: the folder is named by the files as they are.
    """
    words = ["git", "status", "--porcelain", "--", "src", "flows", "dvc.yaml", "params.yaml"]
    changed = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split("\n")[:-1]
    if changed:
        raise SystemExit(f"the study runs in clones of what is committed; commit these first: {', '.join(changed)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", ".", str(new)], check=True)
    params = new / "params.yaml"
    write_text(params, re.sub(r"(?m)^seed: .*", f"seed: {seed}", params.read_text()))
    write_json(new / PINS, first_pins())
    for path in (
        new / "data/rounds.csv",
        new / "data/promotions.jsonl",
        new / "dvc.lock",
        *(new / "data/history").glob("*.dvc"),
    ):
        path.unlink(missing_ok=True)
    new.rename(folder)


def closed(seed: int) -> list[Round]:
    """The closed rounds of a seed: round.json and evaluation.json of each."""
    folders = sorted((clone_of(seed) / "data/history").glob("round-*/"))
    return [
        {
            "seed": seed,
            **read_json(one / "round.json"),
            "summary": read_json(one / "evaluation/evaluation.json")["summary"],
        }
        for one in folders
        if (one / "round.json").is_file()
    ]


def figure(one: Round, policy: str, where: str, mission: str, decoding: str, family: str) -> float | None:
    """Success of a policy over a family's tasks, as evaluated in a round."""
    for line in one["summary"]:
        way = (line["policy"], line["range"], line["mission"], line["decoding"], line["family"], line["task"])
        if way == (policy, where, mission, decoding, family, None):
            return line["success"]
    return None


def behaviour(one: Round, family: str) -> float:
    """Success of the agent that made the round's data, over a family's tasks."""
    names = {line["task"] for line in one["summary"] if line["family"] == family and line["task"]}
    own = [level["behaviour"]["success"] for level in one["levels"] if level["task"] in names and level["behaviour"]]
    return sum(own) / len(own)


def page(rounds: Sequence[Round]) -> tuple[str, Callable[[Any], None]]:
    """A row for each seed and round, what the champions did on fresh seeds, and the curve."""
    header = [
        "seed",
        "round",
        "verdict",
        "difference",
        *(f"{family}: {what}" for family in FAMILIES for what in COLUMNS),
    ]
    rows = []
    for one in rounds:
        difference = f"{one['difference']:+.3f} [{one['lower']:+.3f}, {one['upper']:+.3f}], n {one['n']}"
        cells = [cell(value) for family in FAMILIES for value in (behaviour(one, family), *measured(one, family))]
        rows.append([str(one["seed"]), str(one["round"]), one["verdict"].replace("_", " "), difference, *cells])
    lines = [header, ["---"] * len(header), *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + champions(rounds)

    def draw(axes: Any) -> None:
        for seed in sorted({one["seed"] for one in rounds}):
            own = [one for one in rounds if one["seed"] == seed]
            for color, family in enumerate(FAMILIES):
                curve = [behaviour(own[0], family), *(measured(one, family)[0] for one in own)]
                axes.plot(range(len(curve)), curve, f"C{color}o-", alpha=0.7, label=family if not seed else None)
        axes.set_xticks(range(ROUNDS + 1), ["logs", *map(str, range(1, ROUNDS + 1))])
        axes.set_xlabel("round")
        axes.set_ylabel("challenger's success, final range, sampled")
        axes.legend()

    return text, draw


COLUMNS = ("behaviour", "final", "final, greedy", "gate, shuffled", "gate, other", "held out", "held out, shuffled")


def measured(one: Round, family: str) -> list[float | None]:
    """The challenger's figures, in the order of COLUMNS after the first."""
    ways = (
        ("final", "true", "sampled"),
        ("final", "true", "greedy"),
        ("gate", "shuffled", "sampled"),
        ("gate", "other", "sampled"),
        ("transfer", "true", "sampled"),
        ("transfer", "shuffled", "sampled"),
    )
    return [figure(one, "challenger", *way, family) for way in ways]


def cell(value: float | None) -> str:
    """Two digits, as most intervals are .03 wide."""
    return "-" if value is None else f"{value:.2f}"


def champions(rounds: Sequence[Round]) -> str:
    """For each seed: the champion after the last round, and the worst fall from a champion to the next, fresh seeds."""
    lines = []
    for seed in sorted({one["seed"] for one in rounds}):
        reigns = [one for one in rounds if one["seed"] == seed and one["verdict"] == "promote"]
        for family in FAMILIES:
            found = [value for one in reigns if (value := measured(one, family)[0]) is not None]
            falls = [before - after for before, after in pairwise(found)]
            worst = f"{max(falls):+.3f}" if falls else "none"
            offline = f"{found[-1] - found[0]:+.3f} over round 1" if len(found) > 1 else "round 1's"
            lines.append(
                f"- seed {seed}, {family}: {len(found)} champions; the last one {found[-1]:.3f} ({offline}, "
                f"{found[-1] - behaviour(reigns[0], family):+.3f} over the logs); worst fall {worst}"
            )
    return "Promoted champions on the final range, which no gate uses (n 400 a family):\n\n" + "\n".join(lines) + "\n"
