"""SIGKILL at random moments of a round: does every restart end in the same champion, bytes and trajectories?

A campaign is a fresh copy of the project and a micro round in it, run as the flow runs it: each stage by DVC, then the
closing with its commit; every fifth campaign, first the second, is the flow itself. In two of three campaigns the
commands are forks of a preloaded process, as they are in the flow: they import nothing, so the kills meet their work.
Kills are drawn uniformly over the time that an undisturbed round takes; after each the same command is started again. A
campaign ends with a comparison of all that a round leaves with what the undisturbed one left.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pyarrow.parquet as pq
from benchmarks.end_to_end import MICRO, copy_project

from retroformer.files import hash_directory, read_json, resume_folder, write_json
from retroformer.preloaded import SERVE, preloaded
from retroformer.progress import progress
from retroformer.stages import STAGES
from studies.start import first_pins

ROOT = Path(".resume/studies")
PARTS = (*STAGES, "close")
OUTS = ("rollouts", "validated", "batches", "challenger", "training", "evaluation", "decision")
MADE = {"collect": 1, "validate": 2, "curate": 3, "train": 5, "evaluate": 6, "decide": 7, "close": 7}
"""How many of the outputs there are after a part."""
KILLS = 20
"""Of a campaign; of one of the flow, `FLOW_KILLS`."""
FLOW_EVERY, FLOW_KILLS = 5, 6
ALONE_EVERY = 3
"""Every so many campaigns commands import for themselves."""
WAYS = {"all": 0.6, "deepest": 0.25, "leader": 0.15}
"""Who is killed: the command with all that it started, its last child alone (but none in which environments live), or
it alone while its children live."""
LONGEST = 600.0
"""Seconds after which a command that was left alone is taken to hang."""
HOW = f"""\
A micro round (48 episodes, 12 updates) in a fresh copy of the project, each stage by `dvc repro --single-item`, then
`retroformer close --commit`; every {FLOW_EVERY}th round by the flow, and of the others two of {ALONE_EVERY} with
commands that are forks of a preloaded process, as in the flow. SIGKILL at moments drawn uniformly over the time
that an undisturbed round takes (of the flow: over the first half of it), then the same command again; up to {KILLS}
kills a round. Compared at the end: the bytes of every output, the pins, `round.json` and `rounds.csv` without their
seconds, the ids of the history's trajectories, the registry, commits, tags, what is not committed or not pushed, and
what killed writes left. A process in which environments live is not killed by itself: that is no crash of the command
but an episode's error, which is recorded and tried again, so the round has one trajectory more."""
Entry = dict[str, Any]


def folder() -> Path:
    """Where campaigns are run and written down; named by the code and the parameters."""
    return ROOT / resume_folder("crashes", [], [MICRO]).name


def run(kills: int) -> list[Entry]:
    """Run campaigns until `kills` are done; returns what is known of all. One that was interrupted is done again."""
    home = folder()
    home.mkdir(parents=True, exist_ok=True)
    reference = undisturbed(home)
    entries = known(home)
    with progress("crashes", kills, "kills") as shown:
        shown.advance(sum(entry["kind"] == "kill" for entry in entries))
        while (left := kills - sum(entry["kind"] == "kill" for entry in entries)) > 0:
            number = 1 + max((entry["campaign"] for entry in entries), default=0)
            new = campaign(home, number, left, reference)
            with (home / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(entry, sort_keys=True) + "\n" for entry in new))
            entries += new
            different = next(entry["different"] for entry in new if entry["kind"] == "end")
            shown.advance(sum(entry["kind"] == "kill" for entry in new), ", ".join(different) or "same")
    return entries


def known(home: Path) -> list[Entry]:
    """What the campaigns before have written down."""
    path = home / "log.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def undisturbed(home: Path) -> Entry:
    """A round that nobody disturbs: how long each part takes, and all that it leaves."""
    if not (home / "reference.json").is_file():
        root = fresh(home)
        seconds = {part: finish(root, part)[0] for part in PARTS}
        outs = {name: hash_directory(root / "data" / name) for name in OUTS}
        write_json(home / "reference.json", {"seconds": seconds, "outs": outs, "state": state(root)})
    reference = read_json(home / "reference.json")
    if "seconds of forks" not in reference:
        root = fresh(home)
        with served(root):
            reference["seconds of forks"] = {part: finish(root, part)[0] for part in PARTS}
        write_json(home / "reference.json", reference)
    return reference


@contextmanager
def served(root: Path) -> Iterator[None]:
    """Commands in this copy are forks of a process that has imported its package."""
    with mock.patch.dict(os.environ, PYTHONPATH=str(root.resolve() / "src")), preloaded():
        yield


def forks() -> list[psutil.Process]:
    """Commands that are forks, and what they started."""
    found = []
    for one in psutil.Process().children():
        with suppress(psutil.Error):
            if SERVE in one.cmdline():
                found += one.children(recursive=True)
    return found


def fresh(home: Path) -> Path:
    """A copy of the project in which no round was run."""
    root = home / "copy"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    copy_project(root, MICRO)
    for words in (["user.name", "a study"], ["user.email", "study@localhost"]):
        subprocess.run(["git", "config", *words], cwd=root, check=True)
    return root


def start(root: Path, part: str) -> subprocess.Popen[bytes]:
    """The command that runs a part of the round, as the leader of a session of its own."""
    words = ["dvc", "repro", "--single-item", part]
    if part in ("close", "recover"):
        words = [sys.executable, "-m", "retroformer", part, *(["--commit"] if part == "close" else [])]
    elif part == "flow":
        words = [sys.executable, "flows/improve.py", "--rounds", "1", "--commit"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    own = {"PYTHONPATH": str(root.resolve() / "src"), "PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
    with (root.parent / "told.txt").open("ab") as told:
        told.write(f"\n$ {part}\n".encode())
        told.flush()
        return subprocess.Popen(
            words, cwd=root, env=os.environ | own, stdout=told, stderr=told, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip


def finish(root: Path, part: str) -> tuple[float, list[str]]:
    """Run a part to its end; how long that took, and what had to be done besides. Raises SystemExit where it fails."""
    besides: list[str] = []
    for attempt in range(4):
        began = time.monotonic()
        code = start(root, part).wait(LONGEST)
        if code == 0:
            return time.monotonic() - began, besides
        if attempt == 0:
            besides.append("a second start")
            time.sleep(2)
        else:
            besides.append("recover")
            start(root, "recover").wait(LONGEST)
    told = (root.parent / "told.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    raise SystemExit(f"{part} cannot be finished in {root} after a kill; its last words:\n" + "\n".join(told[-25:]))


def campaign(home: Path, number: int, most: int, reference: Entry) -> list[Entry]:
    """Kill a round in a fresh copy again and again; what was killed, and how the round ended."""
    root, chance = fresh(home), random.Random(number)
    (home / "told.txt").unlink(missing_ok=True)
    began, entries, besides = time.monotonic(), [], []
    forked = number % FLOW_EVERY != 2 and number % ALONE_EVERY != 0
    seconds = reference["seconds of forks" if forked else "seconds"]
    if number % FLOW_EVERY == 2:
        whole = sum(seconds.values()) + 20  # Prefect's start
        for _ in range(min(most, FLOW_KILLS)):
            entries.append(kill(root, "flow", whole / 2 * chance.random(), way(chance), reference))
        besides += finish(root, "flow")[1]
    else:
        with served(root) if forked else nullcontext():
            for part, moments in drawn(seconds, min(most, KILLS), chance).items():
                entries += [kill(root, part, moment, way(chance), reference) for moment in moments]
                besides += finish(root, part)[1]
    for entry in entries:
        entry["forked"] = forked
    ended = state(root)
    different = sorted(key for key in reference["state"].keys() | ended.keys() if ended[key] != reference["state"][key])
    if different:
        write_json(home / f"different-{number}.json", ended)
    end = {"kind": "end", "different": different, "besides": besides, "seconds": round(time.monotonic() - began)}
    return [{"campaign": number, **entry} for entry in (*entries, end)]


def drawn(seconds: dict[str, float], count: int, chance: random.Random) -> dict[str, list[float]]:
    """Part -> moments after its start, `count` in all, uniform over the round."""
    moments: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(count):
        left = chance.random() * sum(seconds.values())
        for part in PARTS:
            if left < seconds[part] or part == PARTS[-1]:
                moments[part].append(left)
                break
            left -= seconds[part]
    return moments


def way(chance: random.Random) -> str:
    """Who is to be killed."""
    return chance.choices(list(WAYS), list(WAYS.values()))[0]


def kill(root: Path, part: str, after: float, who: str, reference: Entry) -> Entry:
    """Start a part, kill it after so many seconds, and look whether what was there before is whole.

    One that ended before is no kill.
    """
    leader = start(root, part)
    deadline = time.monotonic() + after
    while time.monotonic() < deadline and leader.poll() is None:
        time.sleep(0.01)
    if leader.poll() is not None:
        return {"kind": "late", "part": part}
    running = kill_now(leader, who)
    if who == "deepest":
        with suppress(subprocess.TimeoutExpired):  # the command meets the death of its child, and ends or goes on
            leader.wait(LONGEST)
    else:
        leader.wait(LONGEST)
    entry = {"kind": "kill", "part": part, "way": who, "after": round(after, 3), "running": running}
    return entry | {"broken": broken(root, part, reference)}


def kill_now(leader: subprocess.Popen[bytes], who: str) -> str:
    """SIGKILL; returns what was running deepest."""
    process = psutil.Process(leader.pid)
    tree = [*process.children(recursive=True), *forks()]
    deepest = next((one for one in reversed(tree) if one.is_running() and not of_environments(one)), process)
    name = named(deepest)
    chosen = {"all": [process, *tree], "deepest": [deepest], "leader": [process]}[who]
    for stop in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none sees the end of another
        for one in chosen:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if stop == signal.SIGKILL or who == "all":
                    one.send_signal(stop)
    return name


def of_environments(process: psutil.Process) -> bool:
    """Whether environments live there. The end of such a process is an episode's error, recorded and tried again."""
    try:
        return "multiprocessing.forkserver" in " ".join(process.cmdline())
    except psutil.Error:
        return True


def named(process: psutil.Process) -> str:
    """A command in one or two words."""
    try:
        words = [Path(word).name for word in process.cmdline() if not word.startswith("-")]
        if SERVE in process.cmdline():
            return "a fork"
    except psutil.Error:
        return "gone"
    known = [word for word in words if word in (*PARTS, "dvc", "git", "retroformer", "uvicorn", "improve.py", "repro")]
    return " ".join(dict.fromkeys(known)) or (words[0] if words else "?")


def broken(root: Path, part: str, reference: Entry) -> list[str]:
    """What a kill has damaged of what was finished before: the pins, and the outputs of the parts before."""
    found = []
    pins = read_json(root / "data/champion.json")
    if pins not in (first_pins(), reference["state"]["pins"]):
        found.append("pins")
    before = 0 if part in ("flow", "collect") else MADE[PARTS[PARTS.index(part) - 1]]
    for name in OUTS[:before]:
        path = root / "data" / name
        if not path.is_dir() or (
            name not in ("training", "decision") and hash_directory(path) != reference["outs"][name]
        ):
            found.append(name)
    return found


def state(root: Path) -> Entry:
    """All that a closed round leaves and that does not say how long it took."""
    data, history = root / "data", root / "data/history/round-0001"
    trained = read_json(data / "training/train.json")
    report = (data / "decision/report.html").read_bytes()
    record = {
        key: value for key, value in read_json(history / "round.json").items() if key not in ("seconds", "around")
    }
    with (data / "rounds.csv").open(newline="", encoding="utf-8") as file:
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
    ids = [id for place in ("validated", "validated/quarantine") for id in ids_of(history / place)]
    whole = ("rollouts", "validated", "batches", "challenger", "evaluation")
    return {
        **{name: hash_directory(data / name) for name in whole},
        "training": [trained, *(digest(data / "training" / name) for name in ("curve.csv", "schedule.csv"))],
        "decision": [read_json(data / "decision/verdict.json"), hashlib.sha256(report).hexdigest()],
        "history": {name: hash_directory(history / name) for name in ("challenger", "evaluation", "validated")},
        "pins": read_json(data / "champion.json"),
        "record": record,
        "table": rows,
        "trajectories": [len(ids), len(set(ids)), hashlib.sha256(repr(sorted(ids)).encode()).hexdigest()],
        "registry": registry(root),
        "commits": output(root, "git", "log", "--format=%s", "--all").splitlines(),
        "tags": output(root, "git", "tag").split(),
        "uncommitted": output(root, "git", "status", "--porcelain").splitlines(),
        "not pushed": sorted(json.loads(output(root, "dvc", "status", "--cloud", "--json"))),
        "left behind": left_behind(root),
    }  # fmt: skip


def ids_of(path: Path) -> list[str]:
    """The ids of a folder's trajectories, as they stand there."""
    return pq.read_table(path / "episodes.parquet", columns=["trajectory_id"])["trajectory_id"].to_pylist()


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def registry(root: Path) -> dict[str, Any]:
    """Versions with their tags, aliases, and runs that are not deleted, as MLflow's store has them."""
    queries = {
        "versions": "SELECT version FROM model_versions ORDER BY version",
        # Without the commit, whose hash holds the time at which the copy was made.
        "tags": "SELECT version, key, value FROM model_version_tags WHERE key != 'git_commit' ORDER BY version, key",
        "aliases": "SELECT alias, version FROM registered_model_aliases ORDER BY alias",
        "runs": "SELECT name FROM runs WHERE lifecycle_stage = 'active'",
    }
    with closing(sqlite3.connect(root / "mlruns/mlflow.db")) as store:
        return {name: [list(row) for row in store.execute(query)] for name, query in queries.items()}


def output(root: Path, *words: str) -> str:
    """What a command prints."""
    return subprocess.run(words, cwd=root, check=True, capture_output=True, text=True).stdout


def left_behind(root: Path) -> list[str]:
    """What killed writes left and nothing cleared away."""
    patterns = ("data/**/.*.writing-*", ".resume/**/.*.writing-*", ".writing-*", "mlruns/.*", ".git/**/*.lock")
    found = {path.relative_to(root).as_posix() for pattern in patterns for path in root.glob(pattern)}
    return sorted(found - {"mlruns/.gitkeep"})


def page(entries: Sequence[Entry]) -> str:
    """What was killed where, and how the rounds ended."""
    kills = [entry for entry in entries if entry["kind"] == "kill"]
    ends = [entry for entry in entries if entry["kind"] == "end"]
    same = sum(not end["different"] for end in ends)
    besides = Counter(one for end in ends for one in end["besides"])
    damaged = [entry for entry in kills if entry["broken"]]
    rows = []
    for part in (*PARTS, "flow"):
        own = Counter(entry["way"] for entry in kills if entry["part"] == part)
        rows.append([part, str(own.total()), *(str(own[who]) for who in WAYS)])
    own = Counter(entry["way"] for entry in kills)
    rows.append(["all", str(own.total()), *(str(own[who]) for who in WAYS)])
    header = ["killed in", "kills", "the command and all that it started", "its last child alone", "the command alone"]
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    running = Counter(entry["running"] for entry in kills).most_common()
    more = ", ".join(f"{what} {count} times" for what, count in besides.items()) or "nothing"
    forked = sum(entry.get("forked", False) for entry in kills)
    told = [
        f"{len(kills)} kills in {len(ends)} rounds, {forked} of them where commands were forks. "
        f"{same} of {len(ends)} rounds ended as the undisturbed one did.",
        f"After a kill, what was finished before was damaged {len(damaged)} times.",
        f"Besides starting the same command again, there was to be done: {more}.",
        *(f"Round {end['campaign']} differs in: {', '.join(end['different'])}." for end in ends if end["different"]),
        "Running deepest when it was killed: " + ", ".join(f"{name} {count}" for name, count in running) + ".",
    ]
    return "\n".join(lines) + "\n\n" + "\n\n".join(told) + "\n"
