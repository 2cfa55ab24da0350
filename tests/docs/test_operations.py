"""The guide, block by block, in a copy of the repository with stand-ins for the stages and a server of its own."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from project import HERE
from retroformer.cli import COMMANDS
from retroformer.pins import read_pins, verify
from retroformer.stages import STAGES
from served import Served, free_port, serving

GUIDE = (HERE / "docs/operations.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)


class Terminal:
    """A shell that keeps its folder and variables from block to block."""

    def __init__(self, served: Served):
        self.served, self.folder, self.state = served, str(served.root), ""
        self.environment = served.environment | {"PREFECT_API_URL": served.url}  # the default names port 4200
        self.ports = {"4200": str(served.port), "5001": str(free_port())}

    def __call__(self, block: str) -> str:
        for port, free in self.ports.items():
            block = block.replace(port, free)
        kept = self.served.root.parent / "kept"
        script = f"{self.state}\nset -e\n{block}\ndeclare -px >{kept}\npwd >{kept}.folder\n"
        words = ["bash", "-c", script]
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}: {done.stdout}{done.stderr}"
        self.state, self.folder = kept.read_text(), Path(f"{kept}.folder").read_text().strip()
        return done.stdout + done.stderr


@pytest.mark.slow
def test_every_block_of_the_guide(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        terminal = Terminal(served)
        told: dict[str, str] = {}
        for block in BLOCKS:
            if "make serve" in block:
                assert block == "make serve\n"
                continue
            told[block] = terminal(block)
            if "deployment run improve-once/nightly" in block:
                (first,) = served.ended("nightly", 1)
                assert first["state"]["message"].startswith("round 1, promote"), first["state"]
            if "make arrived" in block:
                assert "received data/inbox/exported.jsonl" in told[block]
                assert served.ended("arrived", 1)[0]["state"]["message"].startswith("round 2, ")
            if "events emit" in block:
                # The same logs again, so no third round; the two may also meet.
                states = {one["state_name"] for one in served.ended("arrived", 3)[1:]}
                assert states <= {"Nothing new", "Refused", "Cancelled"}
        closed = read_pins(served.root / "data/champion.json").closed_rounds
        assert closed == 3
        assert any("closed by the run" in one and "the event" in one for one in told.values())
        assert any('"name": "retroformer"' in one and '"version": "3"' in one for one in told.values())
        restored = served.root.parent / "restored"
        assert Path(terminal.folder) == restored
        pins = read_pins(restored / "data/champion.json")
        assert pins.closed_rounds == closed
        verify(pins.champion, restored)
        assert any("all levels" in one and "data/champion.json" in one for one in told.values())
        at_the_tag = terminal("git checkout --quiet round/2\ndvc pull --quiet\ndvc status")
        assert "Data and pipelines are up to date." in at_the_tag


def test_the_guide_names_what_there_is() -> None:
    deployments = yaml.safe_load((HERE / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    named = re.findall(r"`[a-z-]+/([a-z]+)` \|", GUIDE)
    assert named == [one["name"] for one in deployments]
    makefile = (HERE / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", GUIDE, re.MULTILINE):
        assert f"\n{target}:" in makefile, target
    for path in re.findall(r"\b((?:flows|docs|tests)/[\w/]+\.\w+)", GUIDE):
        assert (HERE / path).is_file(), path
    for command in re.findall(r"retroformer ([a-z-]+)", "".join(BLOCKS)):
        assert command in {*COMMANDS, *STAGES}, command
    params = yaml.safe_load((HERE / "params.yaml").read_text(encoding="utf-8"))
    for section, key in re.findall(rf"`({'|'.join(params)})\.([a-z_]+)[`:]", GUIDE):
        assert key in params[section] or key == "json", f"{section}.{key}"
