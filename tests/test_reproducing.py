from __future__ import annotations

from pathlib import Path

import pytest

from project import dvc, run
from retroformer import cli, rounds
from retroformer.errors import DataError
from retroformer.reproducing import because, reproduce, share_remote


@pytest.fixture
def closed(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The round is closed and committed; its stages are what made it: commands that copy what it left."""
    made = project.parent / "made"
    text = (project / "dvc.yaml").read_text()
    copies = {"train": ("challenger", "training")}
    copies |= {"collect": ("rollouts",), "validate": ("validated",), "curate": ("batches",)}
    copies |= {"evaluate": ("evaluation",), "decide": ("decision",)}
    for stage, outs in copies.items():
        told = " && ".join(f"cp -r {made}/{out} data/{out}" for out in outs)
        text = text.replace(f"cmd: retroformer {stage}\n", f"cmd: {told}\n")
    (project / "dvc.yaml").write_text(text)
    (project / "data").joinpath("training/train.json").write_text('{"machine": {"torch": "2.13.0"}, "updates": 2}')
    dvc(project, "commit", "--force", "--quiet")
    run(project.parent, "cp", "-r", "project/data", "made")
    run(project, "git", "add", "--all")
    run(project, "git", "commit", "--quiet", "--message", "start")
    rounds.close(project, commit=True)
    monkeypatch.chdir(project)
    return project


@pytest.mark.slow
def test_a_round_is_run_again_in_a_clone_and_compared(
    closed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run(closed, "git", "status", "--porcelain"), run(closed, "git", "rev-parse", "HEAD")
    assert cli.main(["reproduce", "1", "--clone", str(tmp_path / "clone")]) == 0
    assert "round 1 is the same, bit for bit: 7 outputs, data/challenger " in capsys.readouterr().out
    assert run(tmp_path / "clone", "git", "status", "--porcelain") == ""
    assert (run(closed, "git", "status", "--porcelain"), run(closed, "git", "rev-parse", "HEAD")) == before

    (tmp_path / "made/training/train.json").write_text('{"machine": {"torch": "2.14.0"}, "updates": 2}')
    (tmp_path / "made/challenger/model.txt").write_text("other weights")
    assert cli.main(["reproduce", "1", "--clone", str(tmp_path / "other")]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("retroformer: error: round 1: data/challenger, data/training differ; ")
    assert "it was made with torch 2.13.0 then, 2.14.0 here; both are in " in told


def test_what_cannot_be_reproduced_is_said_before_anything_starts(project: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no tag round/1: round 1 was not closed with --commit"):
        reproduce(1, project)
    run(project, "git", "add", "dvc.lock")
    run(project, "git", "commit", "--quiet", "--message", "start")
    run(project, "git", "tag", "round/1")
    (tmp_path / "made").mkdir()
    with pytest.raises(DataError, match=r"made exists; name a folder that is to be made"):
        reproduce(1, project, tmp_path / "made")


def test_a_remote_that_lacks_the_round_is_told_and_no_clone_is_left(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(project, "git", "add", "--all")
    run(project, "git", "commit", "--quiet", "--message", "start")
    run(project, "git", "tag", "round/1")
    (tmp_path / "clones").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "clones"))
    with pytest.raises(DataError, match=r"round 1 cannot be had from the DVC remote \(\S+\), .*`dvc push --all-tags`"):
        reproduce(1, project)
    assert list((tmp_path / "clones").iterdir()) == []


def test_why_it_may_differ() -> None:
    then = {"processor": "x86_64, AVX512", "torch": "2.13.0"}
    assert because(then, dict(then)).startswith("type of machine and versions are the same: look at limits of time")
    assert because(then, {**then, "processor": "aarch64, DEFAULT"}) == (
        "it was made with processor x86_64, AVX512 then, aarch64, DEFAULT here"
    )
    assert because({}, {"torch": "2"}) == "it was made with torch unknown then, 2 here"


def test_a_clone_finds_a_remote_by_all_its_settings_and_not_by_those_of_its_commit(
    project: Path, tmp_path: Path
) -> None:
    run(project, "git", "add", "--all")
    run(project, "git", "commit", "--quiet", "--message", "start")
    run(project, "git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    dvc(project, "remote", "modify", "local", "url", "s3://bucket/retroformer")
    dvc(project, "remote", "modify", "--local", "local", "endpointurl", "https://minio.example.org")
    dvc(project, "remote", "add", "--default", "second", "../second")
    share_remote(project, tmp_path / "clone")
    found = dvc(tmp_path / "clone", "config", "--list").splitlines()
    assert "remote.local.url=s3://bucket/retroformer" in found
    assert "remote.local.endpointurl=https://minio.example.org" in found
    assert "core.remote=second" in found
    assert f"remote.second.url={project.parent / 'second'}" in found
