"""SIGKILL at the worst moments of the stages, and a full disk. `python -m studies crashes` draws moments at random."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from project import HERE

OUTS = {
    "collect": ("rollouts",),
    "curate": ("batches",),
    "train": ("challenger", "training"),
    "evaluate": ("evaluation",),
    "decide": ("decision",),
}
"""validate is left out: Great Expectations takes seconds to import, and what it writes is written like the others'."""


def run(name: str, root: Path) -> int:
    """The stage as a command in its project."""
    from retroformer import cli

    os.chdir(root)
    return cli.main([name])


def succeed(name: str, root: Path) -> None:
    assert run(name, root) == 0


def meet_a_full_disk(name: str, root: Path) -> None:
    """No file may grow beyond a kilobyte: one sentence, exit code 2, and nothing half written."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
    with contextlib.redirect_stderr(io.StringIO()) as told:
        assert run(name, root) == 2
    errors = [line for line in told.getvalue().splitlines() if line.startswith("retroformer: error: ")]
    assert len(errors) == 1, told.getvalue()
    assert "Traceback" not in told.getvalue()
    words = errors[0].lower()
    assert "beyond the allowed size" in words or "file too large" in words, words


def scenario(home: Path) -> None:
    """In a process of its own, from which nothing but forks runs: each stage disturbed, run again, and compared."""
    import torch  # noqa: F401 (once, for all forks)

    from dying import dies, lives
    from retroformer import storage
    from retroformer.files import hash_directory
    from retroformer.policies import checkpoints  # noqa: F401
    from retroformer.stages import collect, curate, decide, evaluate, train  # noqa: F401
    from retroformer.training import trainer  # noqa: F401
    from tiny_round import pin, tiny_config

    # Where it dies first, and for two where it dies on top of what an earlier run left: (whose, name, call, after it).
    first = {
        "collect": (storage.pq, "write_table", 2, False),
        "curate": (storage.pq, "write_table", 2, False),
        "train": (os, "replace", 5, True),
        "evaluate": (os, "replace", 1, False),
        "decide": (os, "replace", 1, False),
    }
    again = {"collect": (os, "rename", 1, True), "train": (os, "rename", 1, True)}
    whole, disturbed = home / "whole", home / "disturbed"
    for root in (whole, disturbed):
        pin(root)
        (root / "params.yaml").write_text(yaml.safe_dump(tiny_config().model_dump(mode="json", by_alias=True)))

    for name, outs in OUTS.items():
        if name == "curate":  # all that was collected is sound
            for root in (whole, disturbed):
                shutil.copytree(root / "data/rollouts", root / "data/validated")
        lives(partial(succeed, name, whole))
        lives(partial(meet_a_full_disk, name, disturbed))
        *moment, after = first[name]
        dies(partial(run, name, disturbed), *moment, after=after)
        assert not any((disturbed / "data" / out).exists() for out in outs), "half of an output"
        if name == "train":
            assert list((disturbed / ".resume").glob("train-*/trainer.pt")), "there is nothing to go on from"
        lives(partial(succeed, name, disturbed))
        if name in again:
            *moment, after = again[name]
            dies(partial(run, name, disturbed), *moment, after=after)
            lives(partial(succeed, name, disturbed))
        for out in outs:
            same = hash_directory(disturbed / "data" / out) == hash_directory(whole / "data" / out)
            assert same, f"data/{out} differs after {name} was disturbed"
        assert not list(disturbed.rglob(".*.writing-*")), f"something is left of {name}"
    print("the same")


NAMES = ("AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD")
SECRETS = {name: f"marked-{name}-93b1" for name in NAMES}


@pytest.mark.long
def test_stages_that_are_disturbed_and_run_again_leave_the_same_bytes(tmp_path: Path) -> None:
    code = f"import sys; sys.path[:0] = [{str(HERE / 'tests')!r}, {str(Path(__file__).parent)!r}]; import test_kills; "
    code += f"from pathlib import Path; test_kills.scenario(Path({str(tmp_path)!r}))"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=os.environ | SECRETS, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["the same"]), done.stderr[-3000:]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 40
    assert not [path for path in written if b"marked-" in path.read_bytes()], "a secret of the environment"
    assert "marked-" not in done.stdout + done.stderr
