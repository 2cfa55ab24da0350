"""Close rounds until the asked number is closed: `python flows/improve.py --rounds 4`, from the project's root.

Each stage is one task run around `dvc repro --single-item STAGE`, so the scheduled path is the path of `dvc repro`.
Prefect's embedded server starts with the flow; nothing else needs to run. Where PREFECT_API_URL names a server, the
flow reports there.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

# Before Prefect is imported. Its server needs up to 20 s on a cold machine and gives up sooner by default; without the
# other settings it fills the terminal when it stops. Its database stays in the project.
for key, value in {
    "PREFECT_HOME": str(Path(".prefect").resolve()),
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(key, value)

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Failed

from retroformer.config import load_config
from retroformer.errors import RetroformerError
from retroformer.journal import record_seconds, take_failure
from retroformer.pins import read_pins
from retroformer.recovery import leave_with, mend_dvc
from retroformer.stages import STAGES
from retroformer.tracking.record import COLUMNS, folder_of, read_records
from retroformer.tracking.table import show

PINS = Path("data/champion.json")
PATIENCE = 20.0
"""Seconds that an interrupted stage has to leave in good order."""
DVC = """\
import sys
from retroformer.recovery import leave_with
leave_with(int(sys.argv.pop(1)))
sys.stdout = sys.stderr = open(int(sys.argv.pop(1)), "w", encoding="utf-8")
from dvc.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""DVC with its own words in a file; the stage that it starts keeps the terminal."""
CLOSE = """\
import sys
from retroformer.recovery import leave_with
leave_with(int(sys.argv.pop(1)))
from retroformer.__main__ import main
sys.argv[0] = "retroformer"
sys.exit(main())
"""
PASSES = re.compile(r"exited with (-\d|1[3-9]\d)|is being blocked by|[Uu]nable to acquire|is locked|is under way")
"""A signal, by itself or as a shell reports it, and a lock that DVC, SQLite or a closing met."""


def may_be_retried(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Whether a second attempt can help: not where the user, or we, must mend something first."""
    return state.name == "Broken"


def execute(words: list[str], name: str, told: IO[str] | None = None) -> State[Any] | None:
    """Run a command with this terminal; None if it went well, else the state that says why not.

    What was killed by a signal (out of memory, a machine going down) or met a lock is in the state Broken, which is
    tried again. `told` is an open file that the command inherits, with what it says besides the failure it records.
    """
    take_failure()
    for mended in mend_dvc():
        print(f"improve: {mended}", file=sys.stderr, flush=True)
    here = str(Path(sys.executable).parent)
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "PATH": os.pathsep.join([here, os.environ.get("PATH", "")])}
    # A group of its own: DVC lets its stages catch the interrupt, so whoever sends one must send it to all of them.
    inherited = () if told is None else (told.fileno(),)
    child = subprocess.Popen(words, env=environment, process_group=0, pass_fds=inherited)
    try:
        code = child.wait()
    except BaseException:
        end(child)
        raise
    if code == 0:
        return None
    failure = take_failure()
    if failure.get("code") == 130:
        raise KeyboardInterrupt
    said = ""
    if told is not None:
        told.seek(0)
        said = told.read()
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    cause = failure.get("message") or (errors[-1] if errors else f"ended with exit code {code}")
    broken = code < 0 or PASSES.search(f"{cause}\n{said}")
    return Failed(name="Broken" if broken else "Failed", message=f"{name}: {cause}")


def end(child: subprocess.Popen[bytes]) -> None:
    """Interrupt a command and all that it started; kill what does not leave."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(timeout=PATIENCE)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


@task(
    task_run_name="{name}",
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=may_be_retried,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_stage(name: str) -> State[Any] | None:
    """One stage of the open round."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as told:
        words = [sys.executable, "-c", DVC, str(os.getpid()), str(told.fileno()), "repro", "--single-item", name]
        state = execute(words, name, told)
    record_seconds(name, time.monotonic() - started, around=True)
    return state


@task(retries=2, retry_delay_seconds=5, retry_condition_fn=may_be_retried, cache_policy=NO_CACHE, persist_result=False)
def close_round(commit: bool = False) -> State[Any] | None:
    """Close the round; can be repeated."""
    words = [sys.executable, "-c", CLOSE, str(os.getpid()), "close"]
    return execute([*words, "--commit"] if commit else words, "close")


@flow(name="improve", flow_run_name="to-round-{rounds}")
def improve(rounds: int = 4, commit: bool = False) -> State[Any] | None:
    """Run and close rounds until `rounds` are closed; `commit` commits, tags and pushes each."""
    while (number := read_pins(PINS).round) <= rounds:
        for name in STAGES:
            state = run_stage(name, return_state=True)
            if not state.is_completed():
                return Failed(message=f"round {number}, {state.message}")
        state = close_round(commit, return_state=True)
        if not state.is_completed():
            return Failed(message=f"round {number}, {state.message}")
        publish(number)
    return None


@flow(name="improve-once")
def improve_once(commit: bool = True) -> State[Any] | None:
    """One more round than are closed: what the schedule runs."""
    return improve(read_pins(PINS).round, commit, return_state=True)


def publish(number: int) -> None:
    """What a person wants to see of the rounds, as artifacts of the flow run."""
    records = read_records(Path(), number)
    rows = [{key: record[key] for key in COLUMNS if key != "seconds"} for record in records]
    create_table_artifact(rows, key="rounds", description="Closed rounds")
    report = (folder_of(number) / "decision/report.html").resolve()
    create_link_artifact(report.as_uri(), link_text=f"Report of round {number}", key="report")
    last = records[-1]
    title = f"# Round {number}: {last['verdict'].replace('_', ' ')}"
    text = f"{title}\n\n{literal(last['reason'])}\n\n![success by round]({plot(records)})"
    create_markdown_artifact(text, key=f"round-{number}")


def literal(text: str) -> str:
    """Text as Markdown that shows it as it is: a reason names tasks, and those may be anybody's words."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def plot(records: list[dict[str, Any]]) -> str:
    """Success by round with intervals, as a data URI."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="tight")
    axes = figure.add_subplot(xlabel="round", ylabel="success", ylim=(0, 1))
    for policy, offset in (("behaviour", -0.08), ("champion", 0.0), ("challenger", 0.08)):
        points = [(record["round"] + offset, record["levels"][0][policy]) for record in records]
        points = [(x, value) for x, value in points if value is not None]
        middles = [value["success"] for _, value in points]
        down = [value["success"] - value["lower"] for _, value in points]
        up = [value["upper"] - value["success"] for _, value in points]
        axes.errorbar([x for x, _ in points], middles, yerr=[down, up], fmt="o-", capsize=3, label=policy)
    axes.set_xticks([record["round"] for record in records])
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return "data:image/png;base64," + base64.b64encode(image.getvalue()).decode()


def shielded(work: Callable[[], int]) -> int:
    """Do `work` in a process group of its own and pass signals on to it alone. Returns its exit code.

    The terminal's Ctrl-C goes to a whole group: Prefect's server would die of it before the run's state is recorded.
    """
    parent, child = os.getpid(), os.fork()
    if child == 0:
        os.setpgid(0, 0)
        leave_with(parent)
        try:
            return work()
        except KeyboardInterrupt:
            return 130
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: os.kill(child, signal.SIGINT))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:  # killed: Prefect's server, of the same group, would stay
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        print("improve: error: the flow was killed; the same command goes on where it stopped", file=sys.stderr)
        return 128 - code
    return code


def run(rounds: int, commit: bool) -> int:
    """Run the flow and print the table. Returns the exit code."""
    try:
        state = improve(rounds, commit, return_state=True)
    except RuntimeError as error:
        if "Prefect API server" not in str(error):
            raise
        print(f"improve: error: {unanswered()}", file=sys.stderr)
        return 2
    if not state.is_completed():
        print(f"improve: error: {state.message}", file=sys.stderr)
        return 2
    show()
    return 0


def unanswered() -> str:
    """Why Prefect's server may not have come up."""
    seconds, home = (os.environ[f"PREFECT_{key}"] for key in ("SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "HOME"))
    return (
        f"Prefect's server did not answer within {seconds} s; its database, {home}/prefect.db, may be locked by "
        "another program (another flow, a server of Prefect). Close that or wait: the same command goes on, nothing of "
        "the rounds is in that database"
    )


def main() -> int:
    """Close the rounds that are missing, then print the table. Returns the exit code."""
    parser = argparse.ArgumentParser(description=improve.__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="how many rounds are to be closed in the end")
    parser.add_argument("--commit", action="store_true", help="commit, tag and push each round")
    asked = parser.parse_args()
    try:
        load_config()
        if read_pins(PINS).closed_rounds >= asked.rounds:
            show()
            return 0
    except RetroformerError as error:
        print(f"improve: error: {error}", file=sys.stderr)
        return 2
    parent = os.getpid()
    code = shielded(lambda: run(asked.rounds, asked.commit))
    if code == 130 and os.getpid() == parent:
        print("\nimprove: interrupted; the same command goes on where it stopped", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
