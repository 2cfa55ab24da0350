from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from retroformer import cli
from retroformer.tracking import mlflow_view
from three_rounds import PATHS, SITUATION


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command says that goes well."""
    code = cli.main(["models", *words])
    told = capsys.readouterr()
    assert code == 0, told.err
    return told.out


def read(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    return json.loads(asked(capsys, *words, "--json"))


def test_the_list_says_which_version_is_what_and_who_decided(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = asked(capsys, "list")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.splitlines() if line.startswith("│")]
    assert rows == [
        ["1", "1", "champion", "promote", "0.80 [0.75, 0.85] n 200", "+0.300 [+0.200, +0.400] n 400"],
        ["2", "2", "", "keep", "0.80 [0.75, 0.85] n 200", "+0.300 [+0.200, +0.400] n 400"],
        [
            "3",
            "3",
            "challenger, train_from",
            "not enough evidence",
            "0.80 [0.75, 0.85] n 200",
            "+0.300 [+0.200, +0.400] n 400",
        ],
    ]
    assert f"In production: version 1 ({PATHS[0]})" in told
    assert "promote by gate, " in told
    assert ": because 1" in told
    assert "Training goes on from: version 3" in told
    assert "Attention" not in told

    found = read(capsys, "list")
    assert [(one["version"], one["aliases"]) for one in found["versions"]] == [
        ("1", ["champion"]),
        ("2", []),
        ("3", ["challenger", "train_from"]),
    ]
    assert found["champion"]["policy"] == PATHS[0]
    assert found["promotions"][0]["by"] == "gate"
    assert found["problems"] == []


def test_the_list_tells_where_the_registry_disagrees_and_repair_mends_it(
    three: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = mlflow_view.client(three)
    store.set_registered_model_alias(mlflow_view.NAME, "champion", "3")
    store.delete_registered_model_alias(mlflow_view.NAME, "challenger")
    told = asked(capsys, "list")
    assert "Attention: the alias champion is version 3, data/champion.json says version 1; `retroformer models" in told
    assert "Attention: the alias challenger is not set, data/champion.json says version 3" in told
    assert asked(capsys, "repair") == "champion is version 1 now\nchallenger is version 3 now\n"
    assert asked(capsys, "repair") == "the registry agrees with the files\n"
    assert read(capsys, "list")["problems"] == []


def test_promote_and_rollback_say_what_is_in_production(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = asked(capsys, "promote", "3", "--reason", "support asked for it", "--by", "an owner")
    assert told == (
        "version 3 is in production (it was version 1), decided by an owner: support asked for it\n"
        "training goes on from version 3; round 4 is open, `dvc repro` runs it from there\n"
    )
    again = asked(capsys, "promote", "champion", "--reason", "again")
    assert again == "version 3 is in production already; the registry agrees\n"
    found = read(capsys, "rollback", "--reason", "complaints", "--expected", "3")
    assert (found["champion"]["policy"], found["train_from"]["policy"]) == (PATHS[0], PATHS[0])
    assert (found["promotion"]["action"], found["promotion"]["by"]) == ("rollback", "a test")
    told = asked(capsys, "rollback")
    assert "scripted:babyai-bot?noise=0.7 is in production (it was version 1), decided by a test" in told
    assert "training goes on from a fresh model" in told
    told = asked(capsys, "list")
    assert "In production: scripted:babyai-bot?noise=0.7" in told
    assert "rollback by a test" in told
    assert "Attention" not in told


def test_show_has_everything_of_one_version(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = asked(capsys, "show", "champion")
    for words in (
        "1 (champion)",
        "promote: because 1",
        "against scripted:babyai-bot?noise=0.7",
        "mlflow.pyfunc.load_model('models:/retroformer/1')",
        "data/history/round-0001/decision/report.html",
        f"{PATHS[0]}, sha256 ",
        "by gate, ",
    ):
        assert words in told
    found = read(capsys, "show", "3")
    assert found["training"]["updates"] == 2
    assert found["params"]["train.updates"] == 2502
    assert found["promotions"] == []
    assert [level["task"] for level in found["levels"]] == [None, "A", "B"]
    assert read(capsys, "show", "challenger") == found


def test_compare_pairs_what_both_played_on_seeds_that_no_gate_saw(
    three: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read(capsys, "compare", "champion", "challenger")
    (pair,) = found["paired"]
    # A: 3 better of 9 (one of them on a seed that the champion played in round 3 alone), 0 worse, by hand; B: 1 of 7.
    assert {task["task"]: (task["mean"], task["n"]) for task in pair["per_task"]} == {
        "A": (pytest.approx(3 / 9), 9),
        "B": (pytest.approx(1 / 7), 7),
    }
    assert pair["mean"] == pytest.approx((3 / 9 + 1 / 7) / 2)
    assert pair["lower"] < pair["mean"] < pair["upper"]
    assert (pair["range"], pair["n"], pair["confidence"]) == ("final", 16, 0.95)
    assert found["params"] == {"train.updates": [2500, 2502]}
    assert found["same_data"]
    told = asked(capsys, "compare", "1", "3")
    assert "version 1 (champion)" in told
    assert "On the same seeds (final), version 3 minus version 1: +0.238 [" in told
    assert "Parameter train.updates: 2500 -> 2502" in told
    (turned,) = read(capsys, "compare", "3", "1")["paired"]
    assert turned["mean"] == pytest.approx(-pair["mean"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lst"], "lst is not a command of retroformer models; did you mean list?"),
        (["show", "7"], "'7' is not a version; known: champion, challenger, 1, 2, 3"),
        (["show"], "the following arguments are required: VERSION"),
        (["compare", "1", "x"], "'x' is not a version"),
        (["promote", "3"], "the following arguments are required: --reason"),
        (["promote", "3", "--reason", " "], "--reason is empty; expected why"),
        (["promote", "2", "--reason", "x"], "version 2 was rejected in round 2: because 2 --force promotes it"),
        (["rollback", "--expected", "3"], "version 3 is not in production, version 1 is"),
        (["rollback", "--exected", "3"], "did you mean --expected?"),
    ],
)
def test_a_mistake_is_one_line_and_moves_nothing(
    three: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (three / "data/champion.json").read_bytes()
    assert cli.main(["models", *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("retroformer: error: ")
    assert said in told
    assert told.count("\n") == 1
    assert (three / "data/champion.json").read_bytes() == before


def test_a_pin_that_is_none_is_named(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (three / "data/champion.json").write_text('{"champion": {}}')
    for words in (["list"], ["show", "1"], ["promote", "1", "--reason", "x"], ["rollback"]):
        assert cli.main(["models", *words]) == 2
        assert "data/champion.json is not a lockfile of pins" in capsys.readouterr().err


def test_before_the_first_round_the_list_says_how_to_begin(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    told = asked(capsys, "list")
    assert "No round is closed yet" in told
    assert "In production: scripted:babyai-bot?noise=0.7" in told
    assert cli.main(["models", "show", "champion"]) == 2
    assert "no round is closed yet, so there is no version" in capsys.readouterr().err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    told = asked(capsys)
    for name in ("list", "show VERSION", "compare A B", "promote VERSION", "rollback", "repair"):
        assert f"\n  {name} " in told
    with pytest.raises(SystemExit) as left:
        cli.main(["models", "rollback", "--help"])
    assert left.value.code == 0
    told = capsys.readouterr().out
    assert "Put back the champion before the last promotion" in told
    assert "--expected VERSION" in told


@pytest.mark.long
def test_the_champion_is_served_over_http(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The server that MLflow brings, on the alias, after a promotion."""
    asked(capsys, "promote", "3", "--reason", "to be served")
    mlflow_view.client(three)
    import mlflow

    (expected,) = mlflow.pyfunc.load_model("models:/retroformer@champion").predict([SITUATION])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = "models serve --model-uri models:/retroformer@champion --env-manager local --host 127.0.0.1 --port"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    store = f"sqlite:///{mlflow_view.DATABASE}"
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words.split(), str(port)],
        env={**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": store, "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=(three / "server.log").open("w"),
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    try:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": [SITUATION]}).encode(),
            {"Content-Type": "application/json"},
        )
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as reply:
                    (answer,) = json.load(reply)["predictions"]
                break
            except urllib.error.HTTPError as error:
                raise AssertionError(error.read().decode()) from error
            except OSError:
                assert server.poll() is None, (three / "server.log").read_text()
                time.sleep(0.2)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)
    assert answer["action"] == expected["action"]
    assert answer["probabilities"] == pytest.approx(expected["probabilities"], rel=1e-4)
