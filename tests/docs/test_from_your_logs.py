"""The guide, command by command, in a copy of the repository: fewer runs and a short training, all else as it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from flows.test_pipeline import copy_of_the_repository
from project import HERE
from retroformer.files import read_json
from retroformer.storage import read_trajectories
from test_readme import Shell

GUIDE = (HERE / "docs/from-your-logs.md").read_text(encoding="utf-8")
FEWER = {"--runs 4000": "--runs 240", "--runs 20": "--runs 3"}


def commands() -> list[str]:
    """The lines of the guide's shell blocks, and the commands within its text."""
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    inline = re.findall(r"`(retroformer [a-z]+ [^`]+)`", GUIDE)
    return [line for block in blocks for line in block.splitlines()] + inline


def change_parameters(path: Path) -> None:
    """What the guide's YAML says, with fewer updates."""
    [block] = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for section, changes in yaml.safe_load(block).items():
        assert changes.keys() <= values[section].keys()
        values[section] |= changes
    values["train"] |= {"updates": 6, "checkpoints": 1}
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


@pytest.mark.slow
def test_every_command_of_the_guide(tmp_path: Path) -> None:
    root = copy_of_the_repository(tmp_path / "clone")
    change_parameters(root / "params.yaml")
    shell = Shell(root)
    told = {}
    for command in commands():
        for many, few in FEWER.items():
            command = command.replace(many, few)
        told[command] = shell(command)
        if command == "dvc repro":
            verdict = read_json(root / "data/decision/verdict.json")
            assert verdict["verdict"] == "not_enough_evidence"
            assert read_json(root / "data/rollouts/collect.json")["source"] == "import"
    assert any("240 runs, 0." in one for one in told.values())
    assert any("import: read 240, accepted 240, repeated 0, quarantined 0" in one for one in told.values())
    assert any("import: read 3, accepted 3" in one for one in told.values())
    assert any("export: 3 trajectories" in one for one in told.values())
    assert any("Not enough evidence" in one for one in told.values())
    assert any("round 1 is closed" in one for one in told.values())
    assert {one.task.name for one in read_trajectories(root / "imported/desk")} == {"refund", "cancel"}
    played = read_json(root / "data/evaluation/evaluation.json")
    assert played["looks"], "with the tasks named, champion and challenger play"
