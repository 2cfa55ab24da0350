"""Close rounds until the asked number is closed: `python flows/improve.py --rounds 3`, from the project's root.

Each stage is one task run around `dvc repro --single-item STAGE`, so the scheduled path is the path of `dvc repro`.
A server of Prefect's starts and ends with the flow; nothing else needs to run. Where PREFECT_API_URL names a server,
the flow reports there.

Runs share the working tree, whoever starts them: a schedule, an event, a person. A lock on it lets one in, and the
others end in the state Refused before they touch anything.
"""

from __future__ import annotations

import argparse
import atexit
import base64
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from uuid import UUID

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Importing Prefect takes seconds, and an interrupt meanwhile is one line too.
    signal.signal(signal.SIGINT, lambda _number, _frame: (os.write(2, b"\nimprove: interrupted\n"), os._exit(130)))

# Before Prefect is imported. Its server needs up to 20 s on a cold machine and is given up sooner by default; without
# the other settings it fills the terminal when it stops, and takes longer to start for blocks that no flow here uses.
# Its database stays in the project.
for key, value in {
    "PREFECT_HOME": str(Path(".prefect").resolve()),
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(key, value)

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import refresh_global_settings_context
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS
from prefect.states import Cancelled, Completed, Crashed, Failed

from retroformer.arrivals import begun, nothing_new, take_in, waiting
from retroformer.config import load_config
from retroformer.errors import Busy, RetroformerError, user_fault
from retroformer.journal import alone, lock_runs, record_seconds, take_failure
from retroformer.pins import read_pins
from retroformer.preloaded import preloaded
from retroformer.recovery import leave_with, mend_dvc
from retroformer.stages import STAGES
from retroformer.tracking.record import COLUMNS, folder_of, read_records
from retroformer.tracking.table import show

PINS = Path("data/champion.json")
ROUNDS = 3
"""That `make run` closes unless it is told otherwise."""
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
SERVER = """\
import socket, sys
from retroformer.recovery import leave_with
leave_with(int(sys.argv[1]))
import uvicorn
from prefect.server.api.server import create_app
server = uvicorn.Server(uvicorn.Config(create_app(ephemeral=True, final=True), log_level="critical"))
server.run([socket.socket(fileno=int(sys.argv[2]))])
"""
"""The server that Prefect would start for a flow, without the flow's process importing all of it first."""
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


def end(child: subprocess.Popen[bytes], *numbers: int) -> None:
    """Send a command and all that it started these signals, by default an interrupt, until it leaves; else kill it."""
    for number in (*(numbers or (signal.SIGINT, signal.SIGTERM)), signal.SIGKILL):
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
    try:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as told:
            words = [sys.executable, "-c", DVC, str(os.getpid()), str(told.fileno()), "repro", "--single-item", name]
            state = execute(words, name, told)
        record_seconds(name, time.monotonic() - started, around=True)
    except OSError as error:
        return unwritable(error)
    return state


@task(retries=2, retry_delay_seconds=5, retry_condition_fn=may_be_retried, cache_policy=NO_CACHE, persist_result=False)
def close_round(commit: bool = False) -> State[Any] | None:
    """Close the round; can be repeated."""
    words = [sys.executable, "-c", CLOSE, str(os.getpid()), "close"]
    try:
        return execute([*words, "--commit"] if commit else words, "close")
    except OSError as error:
        return unwritable(error)


def unwritable(error: OSError) -> State[Any]:
    """The state that says that the disk is full or nothing may be written; raises any other error again."""
    if (told := user_fault(error)) is None:
        raise error
    return Failed(message=told)


@flow(name="improve", flow_run_name="to-round-{rounds}")
def improve(rounds: int = ROUNDS, commit: bool = False) -> State[Any]:
    """Run and close rounds until `rounds` are closed; `commit` commits, tags and pushes each."""
    return by_itself(lambda: close_until(rounds, commit))


@flow(name="improve-once")
def improve_once(commit: bool = True, announced: str = "") -> State[Any]:
    """One more round than are closed: what the schedule and an arrival run; `announced` is when the event was sent.

    Rounds of imported logs end where there is nothing new to learn from: there is none where every log was read by a
    closed round, and another one where logs arrived in the meantime.
    """
    return by_itself(lambda: close_what_is_new(commit))


def by_itself(work: Callable[[], State[Any]]) -> State[Any]:
    """Do `work` while no other run is under way in this project; else the state Refused that names the other."""
    from prefect.runtime import flow_run

    try:
        with alone(f"{flow_run.flow_name} {flow_run.name}", flow_run.id or "") as left:
            if left.get("id"):
                bury(left)
            return work()
    except Busy as busy:
        return Cancelled(name="Refused", message=str(busy))
    except RetroformerError as error:
        return stopped("", Failed(message=str(error)))
    except OSError as error:  # without an artifact, which would have to be written too
        return unwritable(error)


def bury(left: dict[str, Any]) -> None:
    """Give a run that was killed the state that it could not give itself; the lock it held says that it is gone."""
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(UUID(left["id"]))
        except (ObjectNotFound, ValueError):
            return  # of another server
        if run.state and not run.state.is_final():
            message = f"its process, {left['pid']}, was gone when the next run began; that one goes on where it stopped"
            client.set_flow_run_state(run.id, Crashed(message=message), force=True)


@preloaded()
def close_until(rounds: int, commit: bool) -> State[Any]:
    """Run and close rounds; the state that a stage or a closing stopped at, else that of the last verdict."""
    source, format = load_config().collect.source, load_config().collect.format
    while (number := read_pins(PINS).round) <= rounds:
        if source == "import" and not begun():
            take_in(format)
        for name in STAGES:
            state = run_stage(name, return_state=True)
            if not state.is_completed():
                return stopped(f"round {number}, ", state)
        state = close_round(commit, return_state=True)
        if not state.is_completed():
            return stopped(f"round {number}, ", state)
        publish(number)
    closed = read_records(Path(), read_pins(PINS).closed_rounds)
    return Completed(
        message=f"round {closed[-1]['round']}, {verdict_of(closed[-1])}" if closed else "no round was asked"
    )


def close_what_is_new(commit: bool) -> State[Any]:
    """One round; of imported logs as many as bring new ones."""
    collect = load_config().collect
    if collect.source == "play":
        return close_until(read_pins(PINS).round, commit)
    state = Completed(name="Nothing new", message="every log was read by a closed round; no round was run")
    while True:
        if not begun():
            take_in(collect.format)
        if nothing_new():
            return state
        state = close_until(read_pins(PINS).round, commit)
        if not state.is_completed() or not waiting(collect.format):
            return state


def stopped(where: str, state: State[Any]) -> State[Any]:
    """The state of a run that cannot go on, and an artifact with it."""
    told = f"{where}{state.message}"
    after = "The next run goes on with the finished stages; what is said above must be mended first."
    if state.name == "Broken":
        after = "A signal or a lock ended it, three times. The next run goes on with the finished stages."
    create_markdown_artifact(f"# Stopped\n\n{literal(told)}\n\n{after}", key="stopped")
    return Failed(name=state.name, message=told)


def publish(number: int) -> None:
    """What a person wants to see of the rounds, as artifacts of the flow run."""
    records = read_records(Path(), number)
    rows = [{key: record[key] for key in COLUMNS if key != "seconds"} for record in records]
    create_table_artifact(rows, key="rounds", description="Closed rounds")
    report = (folder_of(number) / "decision/report.html").resolve()
    create_link_artifact(report.as_uri(), link_text=f"Report of round {number}", key="report")
    last = records[-1]
    since = next((back for back, one in enumerate(reversed(records)) if one["verdict"] == "promote"), len(records))
    text = f"# Round {number}: {last['verdict'].replace('_', ' ')}\n\n{literal(last['reason'])}\n\n"
    text += f"Rounds since the last promotion: {since}.\n\n![success by round]({plot(records)})"
    create_markdown_artifact(text, key=f"round-{number}")


def verdict_of(record: dict[str, Any]) -> str:
    """The verdict with its reason."""
    return f"{record['verdict'].replace('_', ' ')}: {record['reason']}"


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
        # A shell lets what it starts with `&` ignore the interrupt, and so would all that is started from here.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        leave_with(parent)
        try:
            return work()
        except KeyboardInterrupt:
            return 130
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: os.kill(child, signal.SIGINT))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:  # killed, and what it started ends with it
        print("improve: error: the flow was killed; the same command goes on where it stopped", file=sys.stderr)
        return 128 - code
    return code


def start_server() -> None:
    """Let what this process does from now on report to a server of its own, unless one is named.

    Raises TimeoutError where it does not answer in time.
    """
    if PREFECT_API_URL.value():
        return
    patience = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    print("improve: Prefect's server starts (some 20 s the first time, then 10)", file=sys.stderr, flush=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        words = [sys.executable, "-c", SERVER, str(os.getpid()), str(listener.fileno())]
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, process_group=0, pass_fds=[listener.fileno()])
    # Not before: as this process ends, Prefect's threads send what they still hold. A server leaves quietly on SIGTERM.
    atexit.register(end, child, signal.SIGTERM)
    # Nor by way of a proxy, which would look for it elsewhere.
    direct = filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1"))
    os.environ["no_proxy"] = ",".join(direct)
    try:
        # Who connects before it listens waits in the socket's queue, and is told if it ends.
        urllib.request.urlopen(f"{url}/health", timeout=patience).close()
    except OSError as error:
        raise TimeoutError(unanswered(patience)) from error
    os.environ |= {"PREFECT_API_URL": url, "PREFECT_UI_URL": ""}
    refresh_global_settings_context()


def unanswered(patience: float) -> str:
    """Why Prefect's server may not have come up."""
    return (
        f"Prefect's server did not answer within {patience:g} s; its database, {os.environ['PREFECT_HOME']}/prefect.db"
        ", may be locked by another program (another flow, a server of Prefect). Close that or wait: the same command "
        "goes on, nothing of the rounds is in that database"
    )


def run(rounds: int, commit: bool) -> int:
    """Run the flow and print the table. Returns the exit code."""
    with preloaded():  # beside the start of the server, which takes as long as the imports
        try:
            start_server()
        except TimeoutError as error:
            print(f"improve: error: {error}", file=sys.stderr)
            return 2
        try:
            state = improve(rounds, commit, return_state=True)
        except PrefectHTTPStatusError as error:
            told = " ".join(str(error).split())
            print(f"improve: error: Prefect's server cannot record the run, is the disk full? {told}", file=sys.stderr)
            return 2
    if not state.is_completed():
        print(f"improve: error: {state.message}", file=sys.stderr)
        return 2
    show()
    return 0


def main() -> int:
    """Close the rounds that are missing, then print the table. Returns the exit code."""
    parser = argparse.ArgumentParser(description=improve.__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how many rounds are to be closed in the end")
    parser.add_argument("--commit", action="store_true", help="commit, tag and push each round")
    asked = parser.parse_args()
    if asked.rounds < 0:
        parser.error(f"--rounds is {asked.rounds}, expected a number from 0")
    try:
        load_config()
        if read_pins(PINS).closed_rounds >= asked.rounds:
            show()
            return 0
        lock_runs().release()  # where another run is under way, this is told before Prefect's server is started
    except (RetroformerError, OSError) as error:
        if (told := user_fault(error)) is None:
            raise
        print(f"improve: error: {told}", file=sys.stderr)
        return 2
    parent = os.getpid()
    code = shielded(lambda: run(asked.rounds, asked.commit))
    if code == 130 and os.getpid() == parent:
        print("\nimprove: interrupted; the same command goes on where it stopped", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
