"""Commands as forks of a process that has imported what they need: the same result, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from project import hear_interrupts
from retroformer import __version__, preloaded
from retroformer.files import hash_directory
from tiny_round import pin, tiny_config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks of a process with torch are for Linux alone")
RETROFORMER = str(Path(sys.executable).with_name("retroformer"))


@pytest.fixture(scope="module")
def served() -> Iterator[psutil.Process]:
    """The process that forks; one of this file's own, where the run of tests has one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(preloaded.ADDRESS, raising=False)
        with preloaded.preloaded():
            [child] = [one for one in psutil.Process().children() if preloaded.SERVE in one.cmdline()]
            yield child


def start(*words: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [RETROFORMER, *words], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def project(root: Path, **collect: int) -> Path:
    pin(root)
    config = tiny_config(train__baselines=["imitation"]).model_dump(mode="json", by_alias=True)
    config["collect"] |= collect
    (root / "params.yaml").write_text(yaml.safe_dump(config))
    return root


def eventually(found: Callable[[], object], seconds: float = 240.0) -> None:
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until
        time.sleep(0.05)


def below(process: psutil.Process, command: str) -> list[psutil.Process]:
    """The forks of `process` that are at a command, by the folder that they work in."""
    return [one for one in process.children() if one.status() != psutil.STATUS_ZOMBIE and one.cwd() == command]


def test_says_and_ends_as_the_command_by_itself(served: psutil.Process, tmp_path: Path) -> None:
    process = start("curat", folder=tmp_path)
    said, told = process.communicate(timeout=120)
    assert (process.returncode, said) == (2, "")
    assert told == "retroformer: error: curat is not a command; did you mean curate?\n"
    process = start("--version", folder=tmp_path)
    assert process.communicate(timeout=120) == (f"retroformer {__version__}\n", "")
    assert process.returncode == 0


@pytest.mark.long
def test_a_stage_writes_the_same_bytes(served: psutil.Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With workers, which are forks of the fork."""
    mine, alone = project(tmp_path / "mine", workers=2), project(tmp_path / "alone", workers=2)
    for name in ("collect", "validate", "curate", "train", "evaluate", "decide"):
        process = start(name, folder=mine)
        assert process.wait(timeout=300) == 0, process.communicate()[1]
    assert not served.children()
    monkeypatch.delenv(preloaded.ADDRESS)
    for name in ("collect", "curate", "train", "evaluate"):
        process = start(name, folder=alone)
        assert process.wait(timeout=300) == 0, process.communicate()[1]
        if name == "collect":
            shutil.copytree(mine / "data/validated", alone / "data/validated")
    for out in ("rollouts", "batches", "challenger", "training", "evaluation"):
        assert hash_directory(mine / "data" / out) == hash_directory(alone / "data" / out), out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_fork_too(served: psutil.Process, tmp_path: Path, number: int) -> None:
    root = project(tmp_path, episodes=5000, workers=2)
    process = start("collect", folder=root)
    eventually(lambda: [worker for one in below(served, str(root)) for worker in one.children()])
    os.kill(process.pid, number)
    code = process.wait(timeout=60)
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}[signal.Signals(number)]
    if number == signal.SIGINT:
        assert "interrupted; what was finished is kept" in process.communicate()[1]
    eventually(lambda: not served.children(recursive=True))
    assert not (root / "data/rollouts").exists()


def test_an_interrupt_while_workers_are_forked_is_not_lost() -> None:
    script = """
import os, signal
from retroformer import preloaded
from retroformer.pools import pool
preloaded.forked = True
os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGINT))
try:
    pool(2)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=True)
    assert told.stdout == "interrupted\n", told.stderr


@pytest.mark.parametrize("patience", [0.0, 0.3, 0.6])
def test_an_interrupt_while_workers_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """A terminal sends it to the command and to all that it started, which is still importing."""
    monkeypatch.delenv(preloaded.ADDRESS, raising=False)
    root = project(tmp_path, episodes=5000, workers=2)
    process = subprocess.Popen(
        [RETROFORMER, "collect"],
        cwd=root,
        text=True,
        stderr=subprocess.PIPE,
        process_group=0,
        preexec_fn=hear_interrupts,
    )
    eventually(lambda: any("LokyProcess" in " ".join(one.cmdline()) for one in psutil.Process(process.pid).children()))
    time.sleep(patience)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    assert told == "\nretroformer: interrupted; what was finished is kept, run the same command again to go on\n"


@pytest.mark.parametrize("other", [False, True])
def test_what_is_deaf_hears_no_interrupt_and_who_started_it_does(other: bool) -> None:
    """The system gives an interrupt to any thread that lets it in; Python's handler runs in the main one."""
    words = [sys.executable, "-c", "import signal; signal.raise_signal(signal.SIGINT); print('unheard')"]
    with preloaded.deaf():
        told = subprocess.run(words, capture_output=True, text=True, check=True)
    assert told.stdout == "unheard\n"

    began, went_on = threading.Event(), threading.Event()

    def interrupt() -> None:
        began.wait()
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)

    def interrupted() -> None:
        with preloaded.deaf():
            began.set()
            if other:
                thread.join()
            else:
                interrupt()
            went_on.set()

    if other:
        thread.start()  # outside the block, whose mask it would inherit
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert went_on.is_set()


def test_who_asks_and_is_gone_takes_nothing_with_it(served: psutil.Process, tmp_path: Path) -> None:
    for _ in range(5):
        process = start("--version", folder=tmp_path)
        time.sleep(0.05)
        process.kill()
        process.communicate()
    eventually(lambda: not served.children())
    assert served.is_running()
    assert served.status() != psutil.STATUS_ZOMBIE
    test_says_and_ends_as_the_command_by_itself(served, tmp_path)


def test_runs_by_itself_where_the_package_changed_or_nobody_listens(
    served: psutil.Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preloaded, "PACKAGE", tmp_path)
    assert preloaded.command(["--version"]) is None
    monkeypatch.setenv(preloaded.ADDRESS, str(tmp_path / "gone"))
    process = start("--version", folder=tmp_path)
    assert process.communicate(timeout=60)[0].startswith("retroformer ")


@pytest.mark.long
def test_leaves_with_who_started_it(tmp_path: Path) -> None:
    script = f"""
import os, subprocess, sys, time
from retroformer.preloaded import preloaded
with preloaded():
    subprocess.Popen([{RETROFORMER!r}, "collect"], cwd={str(project(tmp_path, episodes=5000, workers=2))!r})
    time.sleep(600)
"""
    variables = {key: value for key, value in os.environ.items() if key != preloaded.ADDRESS}
    starter = subprocess.Popen([sys.executable, "-c", script], env=variables)
    top = psutil.Process(starter.pid)
    eventually(lambda: len(top.children(recursive=True)) > 4)
    left = top.children(recursive=True)
    starter.kill()
    starter.wait()
    eventually(lambda: not [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE])
