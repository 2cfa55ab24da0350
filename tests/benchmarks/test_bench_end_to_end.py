from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from project import HERE
from retroformer.files import read_json
from retroformer.pools import end, pool
from retroformer.preloaded import SERVE
from retroformer.rollouts.clusters import spread
from retroformer.training.beside import Beside

FLOW, DVC, STAGE = (
    ["python", "flows/improve.py"],
    ["python", "-c", "from dvc.cli import main"],
    ["python", "bin/retroformer", "collect"],
)
WORKER = ["python", "-m", "joblib.externals.loky.backend.popen_loky_posix"]


def process(bench: Any, started: float, words: list[str], bins: dict[int, dict[tuple[str, str], float]]) -> Any:
    return bench("breakdown").Process(started, words, bins)


def test_what_started_last_is_what_all_wait_for(bench: Any) -> None:
    breakdown = bench("breakdown")
    processes = [
        process(bench, 0.0, FLOW, {0: {("", "imports"): 0.5}, 1: {("", "outside"): 0.5}, 2: {("", "outside"): 0.5}}),
        process(bench, 0.5, DVC, {1: {("", "outside"): 0.5}, 2: {("", "outside"): 0.4}}),
        process(bench, 0.8, STAGE, {1: {("collect", "imports"): 0.2}, 2: {("collect", "environments"): 0.1}}),
    ]
    seconds = breakdown.breakdown(processes, 0.0, 2.0)
    assert seconds == pytest.approx(
        {
            ("", "imports of flow"): 0.5,
            ("collect", "imports"): 0.2,
            ("", "dvc"): 0.3 + 0.4,
            ("collect", "environments"): 0.1,
            ("", "interpreters starting and ending"): 0.5,
        }
    )
    assert breakdown.orchestration(seconds) == pytest.approx(1 - 0.1 / 2.0)


def test_waiting_is_split_as_the_workers_time_was(bench: Any) -> None:
    worker = {("", "environments"): 0.3, ("", "data"): 0.1}
    processes = [
        process(bench, 0.0, STAGE, {place: {("collect", "waiting"): 0.5} for place in (0, 1)}),
        process(bench, 0.1, WORKER, {1: worker}),
        process(bench, 0.1, WORKER, {1: {("", "waiting"): 0.4}}),
    ]
    assert bench("breakdown").breakdown(processes, 0.0, 1.0) == pytest.approx(
        {
            ("collect", "workers starting"): 0.5,
            ("collect", "environments"): 0.5 * 0.3 / 0.8,
            ("collect", "data"): 0.5 * 0.1 / 0.8,
            ("collect", "workers without work"): 0.5 * 0.4 / 0.8,
        }
    )


def test_waiting_for_environments_is_their_work(bench: Any) -> None:
    fork = ["python", "-B", "-c", "from multiprocessing.forkserver import main"]
    apart = process(bench, 0.2, fork, {0: {("", "environments"): 0.2, ("", "waiting"): 0.3}})
    apart.forks = 1
    processes = [
        process(bench, 0.0, STAGE, {0: {("collect", "waiting"): 0.5}}),
        process(bench, 0.1, WORKER, {0: {("", "data"): 0.1, ("", "waiting"): 0.4}}),
        process(bench, 0.1, fork, {0: {("", "outside"): 0.5}}),
        apart,
    ]
    assert bench("breakdown").breakdown(processes, 0.0, 0.5) == pytest.approx(
        {("collect", "data"): 0.1, ("collect", "environments"): 0.2, ("collect", "workers without work"): 0.2}
    )


def test_forks_of_the_preloaded_process_are_what_they_do(bench: Any) -> None:
    words = ["python", "-c", SERVE, "/tmp/socket"]
    kinds = [(words, 0), ([*words, "retroformer", "train"], 1), ([*words, "retroformer", "close"], 1)]
    kinds.append(([*words, "retroformer", "train"], 2))
    found = [bench("breakdown").Process(0.0, said, forks=forks).kind for said, forks in kinds]
    assert found == ["background", "command line", "closing", "worker"]


def test_the_server_in_the_background_is_waited_for_by_nobody(bench: Any) -> None:
    server = process(bench, 1.0, ["python", "-m", "uvicorn", "prefect.server.api"], {0: {("", "outside"): 0.5}})
    flow = process(bench, 0.0, FLOW, {0: {("", "outside"): 0.5}})
    assert bench("breakdown").breakdown([flow, server], 0.0, 0.5) == pytest.approx({("", "flow"): 0.5})


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        (["json/decoder.py", "/retroformer/stages/curate.py", "/retroformer/cli.py"], ("curate", "data")),
        (
            ["/x/torch/_tensor.py", "/retroformer/training/trainer.py", "/retroformer/stages/train.py"],
            ("train", "model"),
        ),
        (
            ["/x/torch/__init__.py", "<frozen importlib._bootstrap>", "/retroformer/stages/train.py"],
            ("train", "imports"),
        ),
        (["/x/pandas/a.py", "/x/great_expectations/b.py", "/retroformer/stages/validate.py"], ("validate", "contract")),
        (["/retroformer/policies/tree.py", "/retroformer/rollouts/engine.py", "/x/joblib/a.py"], ("", "data")),
        (["threading.py", "/x/joblib/parallel.py", "/retroformer/stages/collect.py"], ("collect", "waiting")),
        (["subprocess.py", "/x/dvc/cli.py"], ("", "outside")),
    ],
)
def test_a_stack_says_what_is_done(stack: list[str], expected: tuple[str, str], bench: Any) -> None:
    assert bench("sampler.sitecustomize").classify(stack) == expected


def eventually(found: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not (there := found()) and time.monotonic() < until:
        time.sleep(0.01)
    return there


def at_work(folder: Path, _parent: int = 0) -> None:
    """In a worker: until it is seen."""
    (folder / "at work").touch()
    eventually((folder / "seen").exists, 60)


@pytest.mark.parametrize("beside", [False, True])
def test_who_waits_for_workers_is_seen_waiting(bench: Any, tmp_path: Path, beside: bool) -> None:
    """By the frames that it really has then: how it waits is in the project's code, the rules are here."""
    sampler = bench("sampler.sitecustomize")
    main = threading.get_ident()
    seen: list[bool] = []

    def waiting() -> bool:
        return sampler.classify(sampler.stack(sys._current_frames()[main]))[1] == "waiting"

    def look() -> None:
        eventually((tmp_path / "at work").exists, 240)
        # From then on all the time, and not only where it happens to pass something that is called so.
        seen.append(eventually(waiting, 10))
        for _ in range(20):
            time.sleep(0.01)
            seen.append(waiting())
        (tmp_path / "seen").touch()

    looking = threading.Thread(target=look)
    looking.start()
    if beside:
        with Beside(at_work, [tmp_path], 1, 1) as trainings:
            trainings.results("train")
    else:
        list(spread(at_work, [(tmp_path,)], 1, ""))
        end(pool(1))
    looking.join()
    assert seen == [True] * 21


def sampled(bench: Any, source: str, samples: Path, *path: Path) -> list[Any]:
    """The processes of a script that ran with the sampler, and with `path` to import from."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (HERE / "benchmarks/sampler", *path))),
        "RETROFORMER_SAMPLES": str(samples),
    }
    subprocess.run([sys.executable, "-c", source], env=environment, check=True)
    return bench("breakdown").read_samples(samples)


IDLE_ENVIRONMENTS = """
import time
from retroformer.rollouts.apart import Apart
from retroformer.rollouts.episodes import Conditions, Episode
from retroformer.rollouts.lanes import Order
lanes = Apart(Conditions(0, "compact", "token", environments=1))
lanes.do([Order(0, Episode("babyai:P5N2", 0, "train"))])
time.sleep(2)
lanes.close()
"""


def test_environments_that_are_asked_nothing_do_nothing(bench: Any, tmp_path: Path) -> None:
    """Nor does the process above them, which waits for their end."""
    found = sampled(bench, IDLE_ENVIRONMENTS, tmp_path, HERE / "src")
    inside = [one for one in found if one.kind == "environments"]
    assert len(inside) == 2
    for one in inside:
        doing = {what: sum(seen.get(("", what), 0.0) for seen in one.bins.values()) for what in ("waiting", "data")}
        assert doing["waiting"] > 2 * doing["data"], one


BURSTS = """
import os, time
from minigrid.burning import burn
until = time.monotonic() + 2
while time.monotonic() < until:
    burn()
    os.fstat(0)
"""


def test_short_work_between_system_calls_is_seen(bench: Any, tmp_path: Path) -> None:
    """Not only the calls, at which Python hands the interpreter over."""
    package, samples = tmp_path / "minigrid", tmp_path / "samples"
    package.mkdir()
    samples.mkdir()
    (package / "__init__.py").touch()
    (package / "burning.py").write_text("def burn():\n    for _ in range(20_000):\n        pass\n")
    [one] = sampled(bench, BURSTS, samples, tmp_path)
    seen = {
        what: sum(spent.get(("", what), 0.0) for spent in one.bins.values()) for what in ("environments", "outside")
    }
    assert seen["environments"] > 3 * seen["outside"]


def test_samples_add_up_to_the_life_of_a_process(bench: Any, tmp_path: Path) -> None:
    source = "import time, os\ntime.sleep(0.7)\nif os.fork():\n    os.wait()\nelse:\n    time.sleep(0.3)\n"
    (tmp_path / "ended as it began.jsonl").touch()
    parent, child = sorted(sampled(bench, source, tmp_path), key=lambda one: one.started)
    lives = [sum(sum(seen.values()) for seen in one.bins.values()) for one in (parent, child)]
    assert 0.9 < lives[0] < 5
    assert 0.2 < lives[1] < lives[0]
    assert parent.kind == "flow"
    assert {key for seen in parent.bins.values() for key in seen} <= {("", "outside"), ("", "imports")}


def test_a_copy_has_no_rounds(bench: Any, tmp_path: Path) -> None:
    end_to_end = bench("end_to_end")
    root = tmp_path / "copy"
    end_to_end.copy_project(root, end_to_end.MICRO)
    assert read_json(root / "data/champion.json")["closed_rounds"] == 0
    assert not list(root.glob("data/**/*.dvc"))
    assert "updates: 12\n" in (root / "params.yaml").read_text()
    told = subprocess.run(["git", "status", "--porcelain"], cwd=root, check=True, capture_output=True, text=True)
    assert told.stdout == ""


def test_growth_of_a_small_history(bench: Any, tmp_path: Path) -> None:
    folder = tmp_path / "30"
    for step in ("write", "curate", "train"):
        taken = bench("growth").measure(step, folder, 30, 2)
        assert taken["seconds"] > 0
        assert taken["peak_mb"] >= 0
    assert len(read_json(folder / "training/train.json")["checkpoints"]) == 1


@pytest.mark.slow
def test_quick_report(bench: Any, tmp_path: Path) -> None:
    told = json.loads(json.dumps(bench("end_to_end").measure(True).as_json()))
    assert 0.3 < told["ratios"]["orchestration_share_micro"] < 1
    booked = sum(case["seconds"] for case in told["cases"] if case.get("kind") in ("work", "orchestration"))
    assert booked == pytest.approx(told["model"]["wall_seconds"], rel=1e-6)
    stages = {case["case"] for case in told["cases"] if case.get("kind") == "check"}
    assert stages == {"collect", "validate", "curate", "train", "evaluate", "decide"}
