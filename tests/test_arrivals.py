from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from project import make_project, make_round, record_round, run
from retroformer import arrivals, rounds
from retroformer.errors import ConfigError, DataError

LINES = "openai-chat"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("empty"))


def log(path: Path, text: str = "{}\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_files_and_folders_are_received_whole(tmp_path: Path) -> None:
    there = [log(tmp_path / "shipped/one.jsonl"), log(tmp_path / "shipped/day/two.json.gz").parent]
    received = arrivals.receive(there, LINES, tmp_path)
    assert received == [tmp_path / "data/inbox/one.jsonl", tmp_path / "data/inbox/day"]
    assert names(tmp_path / "data/inbox") == ["day/two.json.gz", "one.jsonl"]
    assert arrivals.receive(there, LINES, tmp_path) == received, "the same again is the same"
    log(there[0], "{}\n{}\n")
    assert arrivals.receive(there[:1], LINES, tmp_path) == received[:1], "it has grown"
    assert received[0].read_text() == "{}\n{}\n"
    log(there[0], "[]\n")
    (other,) = arrivals.receive(there[:1], LINES, tmp_path)
    assert other.name.startswith("one-")
    assert other.suffixes == [".jsonl"]
    assert (other.read_text(), received[0].read_text()) == ("[]\n", "{}\n{}\n")


def test_a_folder_that_has_grown_replaces_its_files_and_another_gets_a_name_of_its_own(tmp_path: Path) -> None:
    folder = log(tmp_path / "shipped/runs/a.jsonl").parent
    arrivals.receive([folder], LINES, tmp_path)
    log(folder / "a.jsonl", "{}\n{}\n")
    log(folder / "later/b.jsonl")
    arrivals.receive([folder], LINES, tmp_path)
    inbox = tmp_path / "data/inbox"
    assert names(inbox) == ["runs/a.jsonl", "runs/later/b.jsonl"]
    assert (inbox / "runs/a.jsonl").read_text() == "{}\n{}\n"
    log(folder / "a.jsonl", "[]\n")
    (other,) = arrivals.receive([folder], LINES, tmp_path)
    assert other.name.startswith("runs-")
    assert (inbox / "runs/a.jsonl").read_text() == "{}\n{}\n"


@pytest.mark.parametrize(
    ("name", "format", "error", "told"),
    [
        ("missing.jsonl", LINES, DataError, "missing.jsonl does not exist"),
        ("notes.txt", LINES, DataError, "notes.txt: expected a name that ends in .jsonl"),
        ("one.jsonl", "parquet", DataError, "one.jsonl: expected a name that ends in episodes.parquet"),
        ("one.jsonl", "csv", ConfigError, "no format 'csv'"),
    ],
)
def test_what_is_no_log_is_refused_and_nothing_is_copied(
    tmp_path: Path, name: str, format: str, error: type[Exception], told: str
) -> None:
    good, _ = log(tmp_path / "one.jsonl"), log(tmp_path / "notes.txt")
    with pytest.raises(error, match=told):
        arrivals.receive([good, tmp_path / name], format, tmp_path)
    assert not (tmp_path / "data").exists()


def test_what_waits_becomes_a_log_that_dvc_tracks(empty: Path) -> None:
    inbox, logs = empty / "data/inbox", empty / "data/logs"
    for name in ("a.jsonl", "day/b.jsonl", ".unfinished.jsonl", "README.md"):
        log(inbox / name, f'{{"of": "{name}"}}\n')
    log(logs / "by hand.jsonl")
    log(logs / "in git.jsonl")
    run(empty, "git", "add", "data/logs/in git.jsonl")
    assert arrivals.take_in(LINES, empty) == [logs / "a.jsonl", logs / "day"]
    assert names(inbox) == [".unfinished.jsonl", "README.md"]
    tracked = ["a.jsonl.dvc", "by hand.jsonl.dvc", "day.dvc"]
    assert [name for name in names(logs) if name.endswith(".dvc")] == tracked
    log(inbox / "a.jsonl", '{"of": "another day"}\n')
    (second,) = arrivals.take_in(LINES, empty)
    assert second.name.startswith("a-")
    log(inbox / "a.jsonl", '{"of": "a.jsonl"}\n')
    assert arrivals.take_in(LINES, empty) == [logs / "a.jsonl"], "delivered twice"
    before = (logs / "day.dvc").read_text()
    log(inbox / "day/b.jsonl", '{"of": "day/b.jsonl"}\n{"of": "the evening"}\n')
    assert arrivals.take_in(LINES, empty) == [logs / "day"]
    assert (logs / "day.dvc").read_text() != before, "tracked as it is now"
    assert names(inbox) == [".unfinished.jsonl", "README.md"]
    assert len(list(logs.glob("*.dvc"))) == 4


def test_an_inbox_on_another_disk(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def across(source: Path, target: Path) -> None:
        if "inbox" in Path(source).parts and "logs" in Path(target).parts:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", across)
    monkeypatch.setattr(arrivals, "dvc", lambda *_: "")
    file = log(empty / "data/inbox/far.jsonl")
    folder = log(empty / "data/inbox/far/one.jsonl").parent
    assert len(arrivals.take_in(LINES, empty)) == 2
    assert (empty / "data/logs/far.jsonl").read_text() == (empty / "data/logs/far/one.jsonl").read_text() == "{}\n"
    assert not file.exists()
    assert not folder.exists()


def test_a_round_commits_its_logs_and_the_next_needs_something_new(project: Path) -> None:
    log(project / "data/inbox/day.jsonl")
    arrivals.take_in(LINES, project)
    record_round(project)
    assert arrivals.begun(project)
    assert not arrivals.nothing_new(project), "the first round is open"
    rounds.close(project, commit=True)
    assert "data/logs/day.jsonl.dvc" in run(project, "git", "ls-tree", "-r", "--name-only", "round/1")
    assert not arrivals.begun(project)
    assert arrivals.nothing_new(project)

    log(project / "data/logs/more.jsonl")
    assert not arrivals.nothing_new(project)
    make_round(project / "data", 2)
    assert arrivals.begun(project)
    assert not arrivals.nothing_new(project), "the second round is open"
