"""`retroformer import` and `export`, as a user types them."""

from __future__ import annotations

import json
import typing
from pathlib import Path

import pytest

from retroformer import cli
from retroformer.config import CollectConfig
from retroformer.importers.formats import FORMATS
from retroformer.storage import read_trajectories
from tiny_logs import REFUND, import_chat, write_lines


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "log.jsonl", [REFUND, {"messages": "none"}, {**REFUND, "id": "r2", "reward": 5}])


def run(*words: str) -> int:
    return cli.main(["import", "log.jsonl", "--format", "openai-chat", "--out", "out", *words])


def test_where_an_export_or_an_import_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    import_chat(tmp_path, [REFUND])
    words = ["import", "log.jsonl", "--format", "openai-chat", "--out", "again"]
    for asked, said in (
        (["export", "out", "--format", "atif", "--out", "out"], "out is a folder; name the file"),
        (["export", "out", "--format", "atif", "--out", "log.jsonl/x"], "log.jsonl/x cannot be written: "),
        ([*words, "--max-quarantined", "nan"], "max_quarantined is nan, expected a share, 0 to 1"),
        ([*words, "--reward-range", "1", "0"], "rewards from 1 to 0: expected the smaller number first"),
    ):
        assert cli.main(asked) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_the_counts_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--reward-range", "0", "1", "--max-quarantined", "0.7", "--redact", "email") == 0
    assert capsys.readouterr().out == (
        "import: read 3, accepted 1, repeated 0, quarantined 2, episodes 1, steps 2, success 1\n"
        "  outcomes: success 1\n"
        "  reasons: not_this_format 1, reward_out_of_range 1\n"
    )
    assert cli.main(["export", "out", "--format", "atif", "--out", "runs.atif.jsonl"]) == 0
    assert json.loads(Path("runs.atif.jsonl").read_text())["schema_version"] == "ATIF-v1.8"
    assert capsys.readouterr().out == "export: 1 trajectories to runs.atif.jsonl\n"


def test_parameters_and_command_know_the_same_formats() -> None:
    assert typing.get_args(CollectConfig.model_fields["format"].annotation) == tuple(FORMATS)


def test_a_field_and_a_function_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_outcomes.py").write_text("def solved(trajectory):\n    return trajectory.steps[-1].action == 'no'\n")
    assert run("--outcome", "my_outcomes:solved") == 0
    assert {one.outcome.value for one in read_trajectories(Path("out"))} == {"failure"}
    assert run("--success", "verified", "--out", "other") == 0
    told = capsys.readouterr()
    assert "success None\n  outcomes: unknown 2\n" in told.out
    assert "import: success:verified is in no record; the names that there are: " in told.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--max-quarantined", "0.1"),
            "1 of 3 records could not be imported, more than the share 0.1 allowed (",
        ),
        (("--outcome", "os:getcwd", "--reward", "x"), "outcomes by reward:x os:getcwd: expected fields to read, or a"),
        (("--outcome", "nowhere:f"), "nowhere:f is not a function to import: No module named 'nowhere'"),
        (("--redact", "mails"), "no pattern 'mails' to redact; known: "),
        (("--formt", "atif"), "--formt is not a flag of retroformer import; did you mean --format?"),
        (("--out", "."), ". is the working folder or above it"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    assert f"retroformer: error: {message}" in capsys.readouterr().err
    assert not Path("out").exists()
