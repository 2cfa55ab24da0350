from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import filelock
import pytest

from dying import dies
from project import dvc, run
from retroformer import recovery
from retroformer.errors import DataError
from retroformer.files import read_json, replacing, settle, write_json, write_text
from retroformer.recovery import mend_dvc, mend_git

LOCK = """\
schema: '2.0'
stages:
  collect:
    cmd: retroformer collect
    deps:
    - path: data/champion.json
      hash: md5
      md5: 9eb4
      size: 230
    outs:
    - path: data/rollouts
      hash: md5
      md5: 5f1c.dir
      size: 7
      nfiles: 3
"""
PARTITION = "outs:\n- md5: 1a2b.dir\n  size: 12\n  nfiles: 2\n  hash: md5\n  path: round-0001\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with DVC's files in it."""
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    write_text(tmp_path / "dvc.lock", LOCK)
    write_text(tmp_path / "data/history/round-0001.dvc", PARTITION)
    run(tmp_path, "git", "init", "--quiet", "--initial-branch=main")
    monkeypatch.setattr(recovery, "STALE", 0.0)
    return tmp_path


def commit(root: Path) -> None:
    run(root, "git", "add", "dvc.lock", "data")
    identity = ("-c", "user.name=a test", "-c", "user.email=test@example.org")
    run(root, "git", *identity, "commit", "--quiet", "--message", "as it was")


def test_what_is_whole_is_left_alone(root: Path) -> None:
    (root / ".dvc/tmp/rwlock").write_text("{}")
    assert mend_dvc(root) == mend_git(root) == []
    assert (root / "dvc.lock").read_text() == LOCK
    assert (root / "data/history/round-0001.dvc").read_text() == PARTITION
    assert mend_dvc(root / "data") == [], "not a project of DVC"


@pytest.mark.parametrize("length", [0, 1, 12, 25, 130])
@pytest.mark.parametrize("committed", [True, False])
def test_half_a_lock_file_is_again_what_it_was_or_gone(root: Path, length: int, committed: bool) -> None:
    if committed:
        commit(root)
    (root / "dvc.lock").write_text(LOCK[:length])
    (told,) = mend_dvc(root)
    assert told.startswith("dvc.lock was half written by a killed process")
    if committed:
        assert (root / "dvc.lock").read_text() == LOCK
        assert run(root, "git", "status", "--porcelain", "--untracked-files=no") == ""
    else:
        assert not (root / "dvc.lock").exists()


def test_half_a_lock_file_that_dvc_can_read_is_its_own_affair(root: Path, project: Path) -> None:
    """A stage that is listed wrongly or not at all is brought back from DVC's cache of runs, or run again."""
    for length in (60, 100):
        (root / "dvc.lock").write_text(LOCK[:length])
        assert mend_dvc(root) == []
    lock = (project / "dvc.lock").read_text()
    write_text(project / "dvc.lock", lock[: lock.index("cmd: retroformer train") + 12])
    assert mend_dvc(project) == []
    assert {"train", "evaluate", "decide"} <= json.loads(dvc(project, "status", "--json")).keys()


def test_half_a_partition_is_gone_and_closing_writes_it_again(root: Path) -> None:
    for length in (0, 4, 15, 60):
        write_text(root / "data/history/round-0001.dvc", PARTITION[:length])
        (told,) = mend_dvc(root)
        assert told.startswith("data/history/round-0001.dvc was half written")
        assert not (root / "data/history/round-0001.dvc").exists()


def holder(number: int) -> str:
    return json.dumps({"write": {"data/rollouts": {"pid": number, "cmd": "dvc repro"}}, "read": {}})


def test_locks_of_processes_that_are_no_dvc_any_more_go(root: Path) -> None:
    path = root / ".dvc/tmp/rwlock"
    for text in ("", '{"write": {"da', "[]", holder(os.getppid())):
        path.write_text(text)
        assert mend_dvc(root) == [".dvc/tmp/rwlock was left by a killed DVC: removed"], text
        assert not path.exists()
    # One that lives, and is called as DVC is; and one that is gone, which DVC itself forgets.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "dvc"])
    try:
        path.write_text(holder(child.pid))
        assert mend_dvc(root) == []
    finally:
        child.kill()
        child.wait()
    assert mend_dvc(root) == []
    assert path.exists()


def test_while_dvc_is_at_work_nothing_is_touched(root: Path) -> None:
    (root / "dvc.lock").write_text(LOCK[:60])
    with filelock.FileLock(root / ".dvc/tmp/lock"):
        assert mend_dvc(root) == []
    assert (root / "dvc.lock").read_text() == LOCK[:60]


def test_locks_that_a_killed_git_left_go(root: Path) -> None:
    commit(root)
    left = [".git/index.lock", ".git/HEAD.lock", ".git/refs/heads/main.lock", ".git/refs/tags/round/1.lock"]
    for name in left:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    told = mend_git(root)
    assert sorted(told) == sorted(f"{root / name} was left by a killed git: removed" for name in left)
    assert run(root, "git", "status", "--porcelain", "--untracked-files=no") == ""


def test_a_lock_of_a_git_at_work_stays(root: Path) -> None:
    (root / ".git/index.lock").touch()
    at_work = subprocess.Popen(["git", "hash-object", "--stdin"], cwd=root / "data", stdin=subprocess.PIPE)
    try:
        with pytest.raises(DataError, match=rf"index.lock is held by git \(process {at_work.pid}\); try again"):
            mend_git(root)
        assert (root / ".git/index.lock").exists()
    finally:
        at_work.communicate(b"")


PARENT = textwrap.dedent(
    """
    import os, subprocess, sys, time
    code = '''
    import os, subprocess, sys, time
    from retroformer.recovery import leave_with
    leave_with(int(sys.argv[1]))
    own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(os.getpid(), own.pid, flush=True)
    time.sleep(60)
    '''
    subprocess.Popen([sys.executable, "-c", code, str(os.getpid())])
    time.sleep(60)
    """
)


def test_what_was_started_leaves_when_its_parent_is_killed() -> None:
    import psutil

    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    with parent.stdout as told:
        family = [psutil.Process(int(number)) for number in told.readline().split()]
        assert len(family) == 2
        parent.kill()
        parent.wait()
        _, alive = psutil.wait_procs(family, timeout=60)
    for one in alive:
        one.kill()
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_a_stage_under_dvc_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = (
        "import sys, time; from retroformer.recovery import under_dvc\n"
        "with under_dvc('train'): print('in', flush=True); time.sleep(float(sys.argv[1])); print('out', flush=True)"
    )

    def begin(seconds: float, stage: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", code, str(seconds)]
        return subprocess.Popen(words, env=os.environ | {"DVC_STAGE": stage}, stdout=subprocess.PIPE, text=True)

    first = begin(60, "train")
    assert first.stdout
    assert first.stdout.readline() == "in\n"
    second = begin(0, "dvc.yaml:train")
    other = begin(0, "")  # by hand, with an output of its own perhaps
    assert other.communicate(timeout=60)[0] == "in\nout\n"
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(0.5)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert second.communicate(timeout=60)[0] == "in\nout\n"


# What the package writes itself.


def write(target: Path) -> None:
    with replacing(target) as new:
        write_json(new / "train.json", {"updates": 2})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("call", "after", "kept"), [(1, False, True), (1, True, True), (2, True, False)])
def test_a_folder_whose_replacement_was_killed_is_there_again(
    tmp_path: Path, call: int, after: bool, kept: bool
) -> None:
    """Before and after the old one is moved away, and before it is removed."""
    target = tmp_path / "out"
    with replacing(target) as new:
        write_json(new / "train.json", {"updates": 1})
    dies(lambda: write(target), os, "rename", call, after=after)
    assert len(names(tmp_path)) > 1
    settle(target)
    assert names(tmp_path) == ["out"]
    assert read_json(target / "train.json") == {"updates": 1 if kept else 2}
    write(target)
    assert names(tmp_path) == ["out"]


def test_a_file_whose_writing_was_killed_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "champion.json"
    write_json(path, 1)
    dies(lambda: write_json(path, 2), os, "replace")
    assert len(names(tmp_path)) == 2
    assert read_json(path) == 1
    write_json(path, 3)
    assert names(tmp_path) == ["champion.json"]


def test_what_a_living_process_writes_is_not_cleared_away(tmp_path: Path) -> None:
    for stranger in (".out.original", ".out.writing-notes", ".outer.writing-abcdefgh", "out.writing-abcdefgh"):
        (tmp_path / stranger).mkdir()
    before = names(tmp_path)
    with replacing(tmp_path / "out") as new:
        settle(tmp_path / "out")
        assert new.is_dir()
        (new / "train.json").touch()
        dies(lambda: write(tmp_path / "out"), os, "rename")
    assert (tmp_path / "out/train.json").exists()
    settle(tmp_path / "out")
    assert names(tmp_path) == sorted([*before, "out"])
