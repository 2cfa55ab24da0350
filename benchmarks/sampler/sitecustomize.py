"""Python loads this in every process of a measured round: it notes what the main thread does, 100 times a second.

A thread looks at the main thread's stack and adds the wall time since its last look to what it sees, in bins of half a
second. Nothing of the project is changed or wrapped; Python hands the interpreter over sooner while a look waits.
Standard library alone, since everything pays for it.
"""

import atexit
import json
import os
import sys
import threading
import time

FOLDER = os.environ.get("RETROFORMER_SAMPLES", "")
INTERVAL = 0.01
SWITCH = 1e-5
BIN = 0.5
RULES = (
    ("/great_expectations/", "contract"),
    ("/mlflow/", "tracking"),
    ("/minigrid/", "environments"),
    ("/gymnasium/", "environments"),
    ("/retroformer/environments/", "environments"),
    ("/retroformer/policies/scripted.py", "environments"),
    ("/torch/serialization.py", "data"),
    ("/torch/", "model"),
    ("/transformers/", "model"),
    ("/retroformer/objectives/", "model"),
    ("/retroformer/policies/language_model.py", "model"),
    ("/retroformer/policies/attention.py", "model"),
    ("/retroformer/policies/cache.py", "model"),
    ("/joblib/", "waiting"),
    ("/multiprocessing/", "waiting"),
    ("/concurrent/futures/", "waiting"),
    ("/retroformer/rollouts/clusters.py", "waiting"),
    ("/retroformer/rollouts/processes.py", "waiting"),
    ("/retroformer/training/beside.py", "waiting"),
    ("/retroformer/stages/", "data"),
    ("/retroformer/rollouts/", "data"),
    ("/retroformer/training/", "data"),
)
"""What a frame in such a file does; the innermost frame with a rule decides. What is left of a stage is data."""
forks = 0
"""How many forks this process is from the start of its interpreter."""
IMPORTS = "<frozen importlib._bootstrap>"
STAGES = "/retroformer/stages/"


def classify(files):
    """(stage or empty, what is done) from the files of a stack, innermost first."""
    stage = next((name.rpartition("/")[2][:-3] for name in reversed(files) if STAGES in name), "")
    if IMPORTS in files:
        return stage, "imports"
    for name in files:
        for part, doing in RULES:
            if part in name:
                return stage, doing
    return stage, "outside"


def stack(frame):
    """The files of a stack, innermost first."""
    files = []
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    return files


class Sampler:
    """The thread, and what it has seen since it last wrote."""

    def __init__(self):
        self.path = os.path.join(FOLDER, f"{os.getpid()}-{time.time_ns()}.jsonl")
        self.main = threading.get_ident()
        self.seen = {}
        self.last = time.time()
        self.lock = threading.Lock()
        self.told = False
        self.started = self.last
        # Else Python lets a look wait for as long as 5 ms, and then it falls on whatever lets go of the interpreter
        # first: a system call, again and again the same.
        sys.setswitchinterval(SWITCH)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        """Look until the process ends."""
        while True:
            time.sleep(INTERVAL)
            with self.lock:
                self.look()

    def look(self):
        """Add the time since the last look to what the main thread is doing now."""
        frame = sys._current_frames().get(self.main)
        if frame is None:
            return
        now = time.time()
        key = "/".join(classify(stack(frame)))
        # A look that comes late spans bins.
        while self.last < now:
            end = min(now, (self.last // BIN + 1) * BIN)
            if end <= self.last:  # rounding
                end = now
            self.seen[key] = self.seen.get(key, 0.0) + end - self.last
            if end // BIN > self.last // BIN:
                self.flush(int(self.last // BIN))
            self.last = end

    def flush(self, place):
        """Write the bin at `place`."""
        if self.seen:
            self.write({"bin": place, "seconds": self.seen})
            self.seen = {}

    def write(self, line):
        """Append one line; before the first, who this is: a fork learns its arguments only after it began."""
        lines = [line]
        if not self.told:
            words = [*sys.orig_argv, *(sys.argv if forks else ())]
            lines.insert(0, {"pid": os.getpid(), "started": self.started, "words": words, "forks": forks})
            self.told = True
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(one) + "\n" for one in lines))

    def finish(self):
        """What the last bin holds."""
        with self.lock:
            self.look()
            self.flush(int(self.last // BIN))


def start():
    """Begin in this process."""
    global sampler
    sampler = Sampler()


def start_in_fork():
    """Begin anew, one fork farther."""
    global forks
    forks += 1
    start()


if FOLDER:
    start()
    os.register_at_fork(after_in_child=start_in_fork)
    atexit.register(lambda: sampler.finish())
