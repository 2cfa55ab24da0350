"""Environments that break: at random in every way at once, or in one way reliably. Named by import path.

`fault_at` is known to the tests, so that what should have happened can be told from the outside. Faults are drawn by
seed, step and action, each on SHARE of the steps where `tasks.text` is plain, and never where it is compact.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from typing import Any

FAULTS = ("crash", "hang", "exit", "slow", "type", "infinite", "surrogate", "huge")
HARMLESS = "slow"
SHARE = 0.05
ACTIONS = ("left", "right", "wait")
AT_ONCE = {
    "alarm",
    "closes",
    "daemon",
    "daemon_exits",
    "exit",
    "forks",
    "hang",
    "interrupts",
    "kill",
    "leaves",
    "lies",
    "moves",
    "quits",
    "segfault",
    "worker",
    "workers",
    "writes",
}
"""Tasks of `One` that break in a method of their own."""


def fault_at(seed: int, t: int, action: str, share: float = SHARE) -> str | None:
    """What breaks in step t."""
    place = zlib.crc32(f"{seed} {t} {action} chance".encode()) / 2**32 / share if share else len(FAULTS)
    return FAULTS[int(place)] if place < len(FAULTS) else None


def length(seed: int) -> int:
    """Steps of an episode."""
    return 3 + seed % 4


class Chaos:
    """Ends in success where the last action was right."""

    family = "chaos"
    tasks = ("default",)

    def __init__(self, task: str, text: str):
        self.share = SHARE if text == "plain" else 0.0

    def reset(self, *, seed: int, options: dict[str, Any] | None = None):
        self.seed, self.t = seed, 0
        return f"seed {seed}", {"task": f"get through {seed}", "admissible_actions": ACTIONS}

    def step(self, action: str):
        fault = fault_at(self.seed, self.t, action, self.share)
        self.t += 1
        observation: Any = f"{self.t} steps, last {action}"
        reward: Any = 0.125 * ACTIONS.index(action)
        info: Any = {"admissible_actions": ACTIONS}
        if fault == "crash":
            ctypes.string_at(0)
        elif fault == "hang":
            time.sleep(3600)
        elif fault == "exit":
            os._exit(3)
        elif fault == "slow":
            time.sleep(0.02)
        elif fault == "type":
            observation, info = [{"not": "text"}, None, b"bytes"][self.seed % 3], [info, None][self.seed % 2]
        elif fault == "infinite":
            reward = (float("nan"), float("inf"), "much", 10**400)[self.seed % 4]
        elif fault == "surrogate":
            observation = b"caf\xe9 ".decode("utf-8", "surrogateescape")
        elif fault == "huge":
            observation = "x" * 10_000_000
        last = self.t == length(self.seed)
        if last and fault not in ("type", "surrogate", "huge"):  # what is said at the end nobody reads
            info = {"success": action == "right"}
        elif last:
            info = {"success": "maybe"}
        return observation, reward, last, False, info

    def close(self):
        pass


class One:
    """Breaks in the way that its task names, at the step that the seed names; other seeds are sound."""

    family = "one"
    # fmt: off
    tasks = (
        "sound", "alarm", "closes", "daemon", "daemon_exits", "exit", "exit_in_reset", "forks", "hang", "hang_in_close",
        "hang_in_make", "hang_in_reset", "interrupts", "kill", "leak", "leak_outside", "leaves", "letters", "lies",
        "moves", "none", "port", "quits", "raises_in_close", "segfault", "some_seeds", "thread", "twice", "unlike",
        "worker", "workers", "writes",
    )
    # fmt: on

    def __init__(self, task: str):
        self.task = task
        self.held: list[bytearray] = []
        self.programs: list[subprocess.Popen[bytes]] = []
        if task == "hang_in_make":
            time.sleep(3600)
        if task == "port":
            self.server = socket.create_server(("127.0.0.1", int(os.environ["CHAOS_PORT"])))

    def reset(self, *, seed: int, options: dict[str, Any] | None = None):
        self.seed, self.t = seed, 0
        if self.task == "hang_in_reset" and seed % 3 == 1:
            time.sleep(3600)
        if self.task == "exit_in_reset":
            os._exit(7)
        if self.task == "some_seeds" and seed % 3 == 1:
            raise FileNotFoundError(f"no level {seed}")
        return self.see(), {"task": "go on", "admissible_actions": ACTIONS}

    def see(self) -> str:
        return f"{self.seed} at {self.t}" + (f" in {os.getpid()}" if self.task == "unlike" else "")

    def step(self, action: str):
        self.t += 1
        info: dict[str, Any] = {"admissible_actions": ACTIONS}
        if self.task == "leak":
            self.held.append(bytearray(b"x" * (4 << 20)))
        if self.task == "leak_outside":
            self.leak_outside()
        if self.task == "writes" and self.seed % 3 != 1:
            time.sleep(0.02)  # so that it is in flight when somebody looks who wrote
        if self.seed % 3 == 1 and self.t == 2:
            if self.task in AT_ONCE:
                getattr(self, self.task)()
            wrong = {"twice": ("left", "left"), "none": (), "letters": "left"}
            info["admissible_actions"] = wrong.get(self.task, ACTIONS)
        if self.seed % 3 == 1 and self.t == 2 and self.task in ("thread", "unlike"):
            if self.task == "unlike":
                os._exit(9)
            threading.Timer(0.05, os._exit, [5]).start()
        if self.t == 4:
            return self.see(), 1.0, True, False, {"success": True}
        return self.see(), 0.0, False, False, info

    def expert_action(self):
        return "right"

    def hang(self):
        time.sleep(3600)

    def alarm(self):
        """Guards itself by an alarm that it never takes back."""
        signal.signal(signal.SIGALRM, lambda *_: self.lies())
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)

    def closes(self):
        """Closes every file, as daemons do."""
        os.closerange(3, 200)

    def interrupts(self):
        raise KeyboardInterrupt("stop")

    def moves(self):
        os.chdir("/")

    def writes(self):
        """Writes into every socket that is open."""
        for file in range(3, 50):
            with suppress(OSError):
                if stat.S_ISSOCK(os.fstat(file).st_mode):
                    os.write(file, b"what is no message")

    def segfault(self):
        ctypes.string_at(0)

    def exit(self):
        os._exit(3)

    def quits(self):
        sys.exit("enough")

    def kill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def worker(self):
        """Ends the process that it serves, the first time."""
        mark = os.environ["LEAVES"]
        if not os.path.exists(mark):
            open(mark, "w").close()
            self.workers()

    def workers(self):
        """Ends the process that it serves, every time."""
        os.kill(multiprocessing.parent_process().pid, signal.SIGKILL)
        time.sleep(3600)

    def lies(self):
        raise ValueError("that cannot be done")

    def leaves(self):
        """Starts a program that would outlive it, and hangs."""
        child = subprocess.Popen(["sleep", "3600"])
        with open(os.environ["LEAVES"], "a", encoding="utf-8") as file:
            file.write(f"{child.pid}\n")
        time.sleep(3600)

    def daemon(self):
        """Starts a program that has neither its parent nor its session."""
        subprocess.run('setsid sleep 3600 & echo $! >> "$LEAVES"', shell=True, check=True)

    def daemon_exits(self):
        self.daemon()
        os._exit(3)

    def forks(self):
        """Goes on twice."""
        os.fork()

    def leak_outside(self):
        """Starts a program that holds 8 MiB until it is ended."""
        words = [sys.executable, "-IS", "-c", "held = b'x' * (8 << 20); print(flush=True); input()"]
        program = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert program.stdout is not None
        program.stdout.readline()
        self.programs.append(program)

    def close(self):
        if self.task == "hang_in_close":
            time.sleep(3600)
        if self.task == "raises_in_close":
            raise RuntimeError("cannot close")
