"""Every command that the README names, run in a copy of the repository on tiny parameters."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.test_pipeline import copy_of_the_repository
from project import HERE


def commands() -> list[str]:
    """The lines of the README's shell blocks and its inline `make` and `python` commands, comments cut."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [*filter(None, lines), *re.findall(r"`((?:make|python) [^`]+)`", text)]


class Shell:
    """A user's terminal in a copy of the repository, its virtual environment active."""

    def __init__(self, root: Path):
        self.root = root
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PREFECT_HOME": str(root / ".prefect")}

    def __call__(self, command: str, **more: str) -> str:
        done = subprocess.run(
            command,
            shell=True,
            cwd=self.root,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def answers(self, command: str) -> bool:
        """Whether a server that `command` starts answers on a port of its own."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [*command.split(), "--port", str(port)]
        child = subprocess.Popen(
            words,
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        try:
            for _ in range(600):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5) as reply:
                        return reply.status == 200
                except OSError:
                    assert child.poll() is None, f"{command} ended with {child.returncode}"
                    time.sleep(0.2)
            return False
        finally:
            os.killpg(child.pid, 15)
            child.wait(timeout=120)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """The copy shares this interpreter's environment: installing it anew is what `.ci/run` tries."""
    root = copy_of_the_repository(tmp_path_factory.mktemp("readme") / "clone")
    (root / ".venv").symlink_to(Path(sys.prefix))
    (Path(sys.prefix) / ".ready").touch()
    return Shell(root)


@pytest.mark.long
def test_every_command_of_the_readme(shell: Shell) -> None:
    first = shell("make run ROUNDS=1")
    assert "all levels" in first
    assert "Where to look" in first
    tried: dict[str, Callable[[], object]] = {
        "make run": lambda: None,
        "make run ROUNDS=4": lambda: None,
        "make test": lambda: "passed" in shell("make test", PYTEST_ADDOPTS="-q tests/test_types.py"),
        "make setup": lambda: shell("make setup"),
        "make help": lambda: "make run" in shell("make help"),
        "make check": lambda: "make check" in (HERE / ".ci/run").read_text(),
        "make study": lambda: "make study" in shell("make help") and "NAME" in shell("python -m studies --help"),
        "dvc repro": lambda: "verdict" in shell("dvc repro") and "up to date" in shell("dvc repro"),
        "retroformer close --commit": lambda: "round 2 is closed" in shell("retroformer close --commit"),
        "retroformer status": lambda: "all levels" in shell("retroformer status"),
        "retroformer train --help": lambda: "--learning-rate" in shell("retroformer train --help"),
        "dvc exp run -S train.learning_rate=0.002": lambda: shell("dvc exp run -S train.learning_rate=0.002"),
        "dvc metrics diff": lambda: "train.json" in (told := shell("dvc metrics diff")) and "failed" not in told,
        "dvc plots show": lambda: "index.html" in shell("dvc plots show"),
        "mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db": lambda: shell.answers(
            "mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db"
        ),
        "retroformer models list": lambda: "champion" in shell("retroformer models list"),
        "retroformer lineage challenger": lambda: "data" in shell("retroformer lineage challenger"),
        "make serve": lambda: "make serve" in (HERE / "docs/operations.md").read_text(),  # tried where that is
        "make deploy": lambda: "make deploy" in (HERE / "docs/operations.md").read_text(),
        "python flows/improve.py --rounds 3": lambda: "all levels" in shell("python flows/improve.py --rounds 3"),
    }
    tried["""python -c "from retroformer.pins import policy_hash; print(policy_hash('path/to/checkpoint'))\""""] = (
        lambda: (
            len(
                shell(
                    """python -c "from retroformer.pins import policy_hash; print(policy_hash('data/challenger'))\""""
                ).strip()
            )
            == 64
        )
    )
    assert set(commands()) == set(tried), "the README names other commands than are tried here"
    for command in ("retroformer train --help", "make setup", "make help", "make check", "make study", "make test"):
        assert tried.pop(command)() is not False, command
    for command, run in tried.items():
        assert run() is not False, command
