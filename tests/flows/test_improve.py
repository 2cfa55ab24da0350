from __future__ import annotations

import contextlib
import errno
import html
import importlib.util
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import pytest

from browser import PAYLOADS
from project import HERE, hear_interrupts, make_project, replace_stages
from retroformer.config import load_config
from retroformer.files import write_json
from retroformer.journal import alone
from retroformer.pins import read_pins
from retroformer.tracking import mlflow_view

FLOW = HERE / "flows/improve.py"


@pytest.fixture(scope="session")
def improve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The flow's module, with Prefect's database in a temporary folder and one server for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        patch.syspath_prepend(str(FLOW.parent))
        spec = importlib.util.spec_from_file_location("improve", FLOW)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["improve"] = module
        spec.loader.exec_module(module)
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=120):
            yield module
        del sys.modules["improve"]


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_project(tmp_path_factory.mktemp("stand_ins"))
    replace_stages(root)
    mlflow_view.client(root)
    return root


@pytest.fixture
def root(stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import shutil

    copy = Path(shutil.copytree(stand_ins, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(copy)
    return copy


@pytest.mark.long
def test_a_killed_stage_is_tried_again_and_the_round_is_closed(improve: ModuleType, root: Path) -> None:
    (root / "trouble-evaluate").write_text("killed")
    improve.run_stage.retry_delay_seconds = 0
    state = improve.improve(1, return_state=True)
    assert state.is_completed(), state.message
    assert read_pins().closed_rounds == 1
    assert (root / "data/rounds.csv").is_file()
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        keys = {artifact.key for artifact in client.read_artifacts()}
        names = [run.name for run in client.read_task_runs() if run.name in improve.STAGES]
    assert {"rounds", "report", "round-1"} <= keys
    assert sorted(names) == sorted(improve.STAGES)


def test_words_in_an_artifact_are_words(improve: ModuleType) -> None:
    from markdown_it import MarkdownIt

    for text in (
        *PAYLOADS,
        "P5N2 [x](javascript:alert(1)) ![x](http://x) `c` **b** # h\n\n- a",
        "-0.1 (interval -0.2)",
    ):
        shown = MarkdownIt("commonmark", {"html": True}).render(improve.literal(text)).strip()
        assert re.fullmatch(r"<p>[^<]*</p>", shown)
        assert html.unescape(shown)[3:-4] == " ".join(text.split())


def test_its_server_listens_to_this_machine_alone(improve: ModuleType) -> None:
    family = [one for one in psutil.Process().children(recursive=True) if one.is_running()]
    open_ports = [
        own.laddr for one in family for own in one.net_connections("inet") if own.status == psutil.CONN_LISTEN
    ]
    assert open_ports
    assert {address.ip for address in open_ports} == {"127.0.0.1"}


def test_a_users_mistake_is_not_tried_again_and_told(improve: ModuleType, root: Path) -> None:
    (root / "trouble-validate").write_text("params.yaml: validate.max_steps is too small")
    state = improve.improve(1, return_state=True)
    assert state.is_failed()
    assert state.message == "round 1, validate: params.yaml: validate.max_steps is too small"
    assert not (root / "trouble-validate").exists()
    assert not (root / "data/validated").exists(), "a second attempt would have succeeded"
    assert read_pins().closed_rounds == 0


def test_what_stops_dvc_itself_is_told_and_not_tried_again(
    improve: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    execute = improve.execute
    monkeypatch.setattr(improve, "execute", lambda words, name, told: calls.append(name) or execute(words, name, told))
    (root / "dvc.yaml").write_text((root / "dvc.yaml").read_text().replace("- collect\n", "- colect\n"))
    state = improve.improve(1, return_state=True)
    assert state.message == (
        "round 1, collect: failed to reproduce 'collect': Parameters 'colect' are missing from 'params.yaml'."
    )
    assert calls == ["collect"]


@pytest.mark.parametrize(
    ("said", "passes"),
    [
        ("failed to run: retroformer train, exited with -9", True),
        ("failed to run: retroformer train, exited with 137", True),
        ("'data/rollouts' is busy, it is being blocked by:", True),
        ("Unable to acquire lock. Most likely another DVC process is running", True),
        ("(sqlite3.OperationalError) database is locked", True),
        ("failed to run: retroformer train, exited with 2", False),
        ("failed to run: retroformer train, exited with 127", False),
        ("Parameters 'train' are missing from 'params.yaml'.", False),
    ],
)
def test_only_a_signal_or_a_lock_is_tried_again(improve: ModuleType, said: str, passes: bool) -> None:
    assert bool(improve.PASSES.search(said)) is passes


@pytest.mark.parametrize(("right", "wrong"), [("\ntrain:", "\ntrian:"), ("seed: 0", "seed: [0")])
def test_a_mistake_in_the_parameters_is_one_line_before_anything_starts(root: Path, right: str, wrong: str) -> None:
    params = root / "params.yaml"
    params.write_text(params.read_text().replace(right, wrong))
    done = subprocess.run([sys.executable, FLOW], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("improve: error: params.yaml")
    assert done.stderr.count("\n") == 1
    assert not (root / ".resume").exists()


def test_where_the_rounds_are_closed_nothing_runs(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, FLOW, "--rounds", "0"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "No round is closed yet" in done.stdout


def test_a_second_run_is_refused_and_told_who_is_at_work(improve: ModuleType, root: Path) -> None:
    with alone("improve quick-fox"):
        done = subprocess.run([sys.executable, FLOW], capture_output=True, text=True, check=False)
        state = improve.improve_once(return_state=True)
    told = f"another run of rounds is under way here (run improve quick-fox, pid {os.getpid()}, since "
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"improve: error: {told}")
    assert done.stderr.count("\n") == 1, "before Prefect's server was started"
    assert (state.type.value, state.name) == ("CANCELLED", "Refused")
    assert state.message.startswith(told)
    assert not (root / "data/rollouts").exists()


def test_a_run_that_was_killed_gets_its_state_from_the_next(improve: ModuleType, root: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Running

    with get_client(sync_client=True) as client:
        gone = client.create_flow_run(improve.improve_once, state=Running())
        write_json(root / ".resume/run.json", {"run": "a run", "id": str(gone.id), "pid": 1234, "since": "yesterday"})
        assert improve.improve(0, return_state=True).is_completed()
        state = client.read_flow_run(gone.id).state
    assert state.is_crashed()
    assert "1234" in state.message
    assert not (root / ".resume/run.json").exists()
    write_json(root / ".resume/run.json", {"run": "a run", "id": str(uuid4()), "pid": 1, "since": "yesterday"})
    assert improve.improve(0, return_state=True).is_completed(), "one that this server never had"


@pytest.mark.parametrize(
    ("waits", "new", "rounds", "name"),
    [([], [False], 0, "Nothing new"), ([False], [True], 1, "Completed"), ([True, False], [True, True], 2, "Completed")],
    ids=["every log was read", "one delivery", "another in the meantime"],
)
def test_rounds_of_logs_go_on_while_there_is_something_new(
    improve: ModuleType, monkeypatch: pytest.MonkeyPatch, waits: list[bool], new: list[bool], rounds: int, name: str
) -> None:
    from prefect.states import Completed

    done: list[str] = []
    imported = load_config(HERE / "params.yaml", {"collect.source": "import"})
    monkeypatch.setattr(improve, "load_config", lambda: imported)
    monkeypatch.setattr(improve, "begun", lambda: False)
    monkeypatch.setattr(improve, "take_in", lambda format: done.append(f"take in {format}"))
    monkeypatch.setattr(improve, "nothing_new", lambda: not new.pop(0))
    monkeypatch.setattr(improve, "waiting", lambda format: waits.pop(0))
    monkeypatch.setattr(improve, "close_until", lambda *_: done.append("a round") or Completed())
    monkeypatch.setattr(improve, "read_pins", lambda _: read_pins(HERE / "data/champion.json"))
    assert improve.close_what_is_new(True).name == name
    assert done == (["take in openai-chat", "a round"] * rounds or ["take in openai-chat"])


def test_a_schedule_tells_what_is_wrong_with_the_parameters(improve: ModuleType, root: Path) -> None:
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("seed: 0", "seed: x"))
    state = improve.improve_once(return_state=True)
    assert state.is_failed()
    assert state.message.startswith("params.yaml: seed = 'x'")


@pytest.mark.long
def test_an_interrupt_ends_the_stage_and_leaves_130(root: Path) -> None:
    (root / "endless").touch()
    environment = {**os.environ, "PREFECT_HOME": str(root / ".prefect")}
    flow = subprocess.Popen(
        [sys.executable, FLOW, "--rounds", "1"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not (stage := (root / "endless").read_text()):
            assert flow.poll() is None
            time.sleep(0.1)
        os.killpg(flow.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
        _, told = flow.communicate(timeout=120)
    finally:
        flow.kill()
    assert flow.returncode == 130
    assert "improve: interrupted" in told
    with pytest.raises(ProcessLookupError):
        os.kill(int(stage), 0)


def test_an_interrupt_while_prefect_is_imported_is_one_line() -> None:
    words = [sys.executable, "-X", "importtime", FLOW, "--rounds", "1"]
    flow = subprocess.Popen(words, cwd=HERE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts)
    try:
        assert flow.stderr is not None
        while "prefect" not in (line := flow.stderr.readline()):
            assert line
        flow.send_signal(signal.SIGINT)
        _, told = flow.communicate(timeout=60)
    finally:
        flow.kill()
    assert flow.returncode == 130
    assert [line for line in told.splitlines() if line and "import time:" not in line] == ["improve: interrupted"]


@pytest.mark.parametrize("where", ["alone", "publish", "execute"])
def test_a_full_disk_is_told_by_the_flow_too(
    improve: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_args: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "data/some")

    monkeypatch.setattr(improve, where, full)
    monkeypatch.setattr(improve, "STAGES", ["collect"] if where == "execute" else [])
    monkeypatch.setattr(improve, "close_round", lambda _commit, return_state: improve.Completed())
    state = improve.improve(1, return_state=True)
    assert state.is_failed()
    assert state.message == ("round 1, " if where == "execute" else "") + "the disk is full: data/some"
    assert "Traceback" not in caplog.text


def test_a_number_of_rounds_that_is_none_is_refused(
    improve: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["improve.py", "--rounds", "-1"])
    with pytest.raises(SystemExit, match="2"):
        improve.main()
    assert "--rounds is -1, expected a number from 0" in capsys.readouterr().err


def test_a_run_that_a_script_put_in_the_background_can_be_ended() -> None:
    code = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it starts with &
sys.path.insert(0, "flows")
import improve
sys.exit(improve.shielded(lambda: print("at work", flush=True) or time.sleep(600) or 0))
"""
    run = subprocess.Popen([sys.executable, "-c", code], cwd=HERE, stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout is not None
        assert run.stdout.readline() == "at work\n"
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=60) == 130
    finally:
        run.kill()


ANSWERS = """
import http.server, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
server = http.server.HTTPServer(("", 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=int(sys.argv[2]))
server.serve_forever()
"""


def test_its_own_server_is_asked_directly_and_ends_with_it(tmp_path: Path) -> None:
    code = f"""
import os, sys
sys.path.insert(0, "flows")
import improve
from prefect.settings import PREFECT_API_URL
improve.SERVER = {ANSWERS!r}
improve.start_server()
assert PREFECT_API_URL.value() == os.environ["PREFECT_API_URL"]
print(os.environ["PREFECT_API_URL"], os.environ["no_proxy"])
"""
    without = {key: value for key, value in os.environ.items() if not key.lower().endswith(("_proxy", "api_url"))}
    environment = {"PREFECT_HOME": str(tmp_path), "http_proxy": "http://127.0.0.1:9", "NO_PROXY": "a.host"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=HERE, env=without | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    url, direct = done.stdout.split()
    assert direct == "a.host,127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", urlsplit(url).port))


def test_a_locked_database_of_prefect_is_one_sentence_and_the_same_command_helps(root: Path) -> None:
    home = root / ".prefect"
    home.mkdir()
    waiting = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "5", "PREFECT_HOME": str(home)}
    words = [sys.executable, FLOW, "--rounds", "1"]
    with contextlib.closing(sqlite3.connect(home / "prefect.db")) as held:
        held.execute("BEGIN EXCLUSIVE")
        done = subprocess.run(words, env=os.environ | waiting, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if line.startswith("improve: error: ")]
    assert len(told) == 1
    assert f"Prefect's server did not answer within 5 s; its database, {home}/prefect.db, may be locked" in told[0]
    assert "Traceback" not in done.stderr
    assert read_pins().closed_rounds == 0
