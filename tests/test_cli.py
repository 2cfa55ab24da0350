from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retroformer import cli
from retroformer.cli import stages
from retroformer.config import CollectConfig, CurateConfig, TasksConfig, ValidateConfig
from retroformer.errors import DataError
from retroformer.journal import read_seconds, take_failure
from retroformer.preloaded import ADDRESS
from retroformer.stages import STAGES

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copy(ROOT / "data/champion.json", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def probe(
    config: ValidateConfig,
    tasks: TasksConfig,
    seed: int,
    *,
    rollouts: Path = Path("data/rollouts"),
    out: Path = Path("data/out"),
) -> dict[str, Any]:
    """Say what was asked for."""
    return {"steps": config.max_steps, "train": len(tasks.train), "seed": seed, "rollouts": str(rollouts)}


def failing(error: BaseException) -> Any:
    def probe(config: ValidateConfig) -> dict[str, Any]:
        raise error

    return probe


def use(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    monkeypatch.setattr(stages, "stage_function", lambda name: function)


def test_help_says_the_main_path_and_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    for word in ("make run", "dvc repro", "retroformer close", *STAGES):
        assert word in told
    assert all(stages.summary(name) in told and stages.summary(name) for name in STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_help_with_its_values(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([stage, "--help"])
    assert left.value.code == 0
    told = capsys.readouterr().out
    assert stages.summary(stage) in told
    assert "--out PATH" in told
    assert "Returns" not in told
    assert "Raises" not in told


def test_help_names_type_range_and_the_value_of_params(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "--learning-rate VALUE" in told
    assert "(float >0..1) [0.003]" in told
    assert "--curriculum, --no-curriculum" in told
    assert "(none | mean | task | leave_one_out | value) [value]" in told


def test_flags_override_params_for_one_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    use(monkeypatch, probe)
    before = Path("params.yaml").read_text()
    assert cli.main(["validate", "--max-steps", "7", "--train", "a:b", "c:d", "--seed", "3", "--rollouts", "x"]) == 0
    assert capsys.readouterr().out == "validate: steps 7, train 2, seed 3, rollouts x\n"
    assert Path("params.yaml").read_text() == before
    assert set(read_seconds(1)) == {"validate"}


def test_two_sections_with_the_same_key_get_prefixes() -> None:
    def clash(config: CollectConfig, curate: CurateConfig, *, window: Path = Path("w")) -> None: ...

    names = {flag.name for flag in stages.flags(clash)}
    assert {"collect-temperature", "curate-temperature", "curate-window", "window", "episodes"} <= names
    assert "temperature" not in names


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["colect"], "colect is not a command; did you mean collect?"),
        (
            ["validate", "--max-step", "3"],
            "--max-step is not a flag of retroformer validate; did you mean --max-steps?",
        ),
        (["validate", "--max-steps", "0"], "--max-steps = '0': input should be greater than or equal to 1"),
        (["validate", "--max-steps", "x"], "--max-steps = 'x': input should be a valid integer"),
        (["validate", "--max-steps"], "expected one argument"),
        (["train", "--objective", "best"], "--objective = 'best': input should be"),
        (["close", "--comit"], "did you mean --commit?"),
        (["validate", "--rollouts", "nowhere"], "nowhere/episodes.parquet does not exist"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("retroformer: error: ")
    assert said in told
    assert told.count("\n") == 1
    failure = take_failure()
    assert (failure["command"], failure["code"]) == (arguments[0], 2)


def test_a_misspelt_parameter_in_the_file_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("params.yaml")
    path.write_text(path.read_text().replace("max_steps", "max_stepps"))
    assert cli.main(["validate"]) == 2
    assert "validate.max_stepps is not a parameter; did you mean max_steps?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "data/x"),
            "the disk is full: data/x; nothing of this step was kept",
        ),
        (OSError(errno.EFBIG, "File too large"), "a file would grow beyond the allowed size"),
        (PermissionError(errno.EACCES, "Permission denied", "data/x"), "permission denied: data/x"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left on device"),
        (DataError("a sentence\nover two lines"), "a sentence over two lines"),
    ],
)
def test_the_machines_limits_are_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, failing(error))
    assert cli.main(["validate"]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert read_seconds(1) == {}


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    use(monkeypatch, failing(KeyboardInterrupt()))
    assert cli.main(["validate"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert take_failure()["code"] == 130
    assert take_failure() == {}


def test_a_defect_keeps_its_traceback_and_is_not_taken_for_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, failing(ZeroDivisionError("a defect")))
    with pytest.raises(ZeroDivisionError):
        cli.main(["validate"])
    assert take_failure()["code"] == 1


def test_a_full_terminal_is_not_a_step_that_was_lost(in_a_project: Path) -> None:
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "retroformer", "--help"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "retroformer: error: the disk is full\n")


def test_away_from_a_project_nothing_is_written(in_a_project: Path) -> None:
    (in_a_project / "params.yaml").unlink()
    assert cli.main(["colect"]) == 2
    assert not (in_a_project / ".resume").exists()


def test_an_interrupt_while_modules_are_imported_is_one_line(
    in_a_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)  # a fork imports nothing
    (in_a_project / "yaml.py").write_text("raise KeyboardInterrupt")  # config imports it
    words = [sys.executable, "-c", "from retroformer.__main__ import main; raise SystemExit(main())"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.strip().startswith("retroformer: interrupted")
    assert "Traceback" not in done.stderr


def test_the_first_agent_is_pinned_until_a_round_is_closed(capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    from retroformer.pins import read_pins, verify, write_pins

    assert cli.main(["first-agent", "scripted:expert?noise=0.5"]) == 0
    pins = read_pins()
    assert pins.champion.policy == "scripted:expert?noise=0.5"
    assert verify(pins.champion)
    assert cli.main(["first-agent", "scripted:expret"]) == 2
    assert "no scripted agent 'scripted:expret'; known: scripted:babyai-bot" in capsys.readouterr().err
    write_pins(Path("data/champion.json"), replace(pins, closed_rounds=2))
    assert cli.main(["first-agent", "scripted:random"]) == 2
    assert "data/champion.json has 2 closed rounds" in capsys.readouterr().err
    assert read_pins().champion == pins.champion
