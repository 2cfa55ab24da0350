"""Files as records, whatever state they are in."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from retroformer.errors import ConfigError, ContractBroken, DataError
from retroformer.files import hash_directory
from retroformer.importers import records
from retroformer.importers.converting import _received, _sent
from retroformer.importers.importing import import_logs, import_records
from retroformer.importers.records import MARK, UNREAD, Record, files_of, json_records, parse
from retroformer.preloaded import ADDRESS
from retroformer.storage import read_trajectories
from tiny_logs import REFUND, import_chat, quarantined, rules, write_lines


def read(*paths: Path) -> tuple[list[object], int]:
    """What the paths hold (values, or reasons), and how many bytes were announced."""
    told: list[int] = []
    found = []
    for one in json_records(files_of(paths), told.append):
        if isinstance(one, Record) and one.value is UNREAD:
            one = parse(one.raw, one.source)
        found.append(one.value if isinstance(one, Record) else (one.reason, one.source))
    return found, sum(told)


def test_lines_documents_and_lists_plain_and_packed(tmp_path: Path) -> None:
    lines = b'\xef\xbb\xbf{"a": 1}\n\n  \n{"a": 2}'
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.json").write_text(json.dumps({"a": 3}, indent=2))
    (tmp_path / "d.json").write_text(json.dumps([{"a": 4}, {"a": 5}], indent=2))
    (tmp_path / "e.json").write_bytes(lines)
    (tmp_path / "README.md").write_text("not a log")
    (tmp_path / ".hidden.json").write_text("{}")
    found, told = read(tmp_path)
    assert found == [{"a": n} for n in (1, 2, 1, 2, 3, 4, 5, 1, 2)]
    assert told == sum(path.stat().st_size for path in tmp_path.glob("[a-e]*"))


def test_what_is_broken_is_named_with_its_line_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n{"a": "\xff"}\n{"a": "\\ud800"}\n' + b"[" * 5000 + b'\n{"a": 2}\n')
    assert read(path)[0] == [
        {"a": 1},
        ("not_json", f"{path}:2"),
        ("not_utf8", f"{path}:3"),
        ("not_utf8", f"{path}:4"),
        ("not_json", f"{path}:5"),
        {"a": 2},
    ]


def test_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(REFUND).encode("utf-16"))
    assert {reason for reason, _ in read(path)[0]} == {"not_utf8"}


def test_a_packed_file_that_ends_early_or_is_damaged(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"a": 1}\n' * 20000, mtime=0)
    (tmp_path / "cut.jsonl").write_bytes(packed[:-20])
    found, _ = read(tmp_path / "cut.jsonl")
    assert found[:2] == [{"a": 1}] * 2
    assert found[-1] == ("truncated_gzip", f"{tmp_path / 'cut.jsonl'}:{len(found)}")
    (tmp_path / "bad.jsonl").write_bytes(packed[:10] + b"\xff" * 40 + packed[50:])
    assert read(tmp_path / "bad.jsonl")[0][-1][0] == "damaged_gzip"
    (tmp_path / "odd.jsonl").write_bytes(packed[:2] + b"\xff" * 40)
    assert read(tmp_path / "odd.jsonl")[0] == [("damaged_gzip", f"{tmp_path / 'odd.jsonl'}")]


def test_a_message_of_50_megabytes_is_refused_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    huge = {"messages": [{"role": "user", "content": "x" * 50_000_000}]}
    write_lines(path, [REFUND, huge, {**REFUND, "id": "r2"}])
    report = import_logs([path], "openai-chat", tmp_path / "out", rules(), max_quarantined=0.5)
    assert report["reasons"] == {"too_large": 1}
    assert report["accepted"] == 2
    [entry] = quarantined(tmp_path / "out")
    assert entry["detail"].startswith("50000048 bytes, at most ")
    assert len(entry["record"]) == records.SHOWN


def test_a_file_that_is_not_what_its_format_says(tmp_path: Path) -> None:
    path = tmp_path / "picture.jsonl"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20)
    with pytest.raises(ContractBroken, match=r"\d+ of \d+ records could not be imported, .* 0.4 .*jsonl:"):
        import_logs([path], "openai-chat", tmp_path / "out", rules())
    assert not (tmp_path / "out").exists()
    write_lines(path, [{"schema_version": "ATIF-v1.8"}])
    with pytest.raises(ContractBroken, match=r"not_this_format 1; .*picture.jsonl:1: no object with messages"):
        import_logs([path], "openai-chat", tmp_path / "out", rules())


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        import_logs([tmp_path / "nowhere"], "openai-chat", tmp_path / "out", rules())
    (tmp_path / "README.md").touch()
    with pytest.raises(DataError, match="nothing to import in"):
        import_logs([tmp_path], "openai-chat", tmp_path / "out", rules())
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="the files hold no record"):
        import_logs([tmp_path], "openai-chat", tmp_path / "out", rules())


def test_neither_order_nor_files_nor_workers_change_ids(tmp_path: Path) -> None:
    made = [{**REFUND, "id": f"r{n}", "task_id": n % 3} for n in range(8)]
    import_chat(tmp_path, made)
    one = {found.id: found for found in read_trajectories(tmp_path / "out")}
    write_lines(tmp_path / "b.jsonl", made[:2:-1])
    write_lines(tmp_path / "a.jsonl", made[:3])
    import_logs([tmp_path / "b.jsonl", tmp_path / "a.jsonl"], "openai-chat", tmp_path / "parts", rules())
    parts = {found.id: found for found in read_trajectories(tmp_path / "parts")}
    assert one.keys() == parts.keys()
    assert len(one) == 8
    assert len({found.task.seed for found in one.values()}) == 3


def test_workers_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retroformer.importers.converting.CHUNK_RECORDS", 3)
    made = [{**REFUND, "id": f"r{n % 7}", "reward": float(n > 6)} for n in range(10)] + [{"messages": 3}]
    import_chat(tmp_path, made, workers=1)
    before = hash_directory(tmp_path / "out")
    import_chat(tmp_path, made, workers=2, afresh=True)
    assert hash_directory(tmp_path / "out") == before


def test_workers_read_files_of_every_kind_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retroformer.importers.converting.CHUNK_RECORDS", 3)
    monkeypatch.setattr("retroformer.importers.records.MAX_RECORD", 4000)
    lines = [json.dumps({**REFUND, "id": f"r{n}"}).encode() + b"\n" for n in range(9)]
    logs = tmp_path / "logs"
    logs.mkdir()
    odd = [MARK + lines[0], b"\n  \n", lines[1], b'{"id": "' + b"x" * 9000 + b'"}\n', b'{"a": "\xff"}\n', lines[2][:-1]]
    (logs / "a: odd.jsonl").write_bytes(b"".join(odd))
    (logs / "b.jsonl").write_bytes(b"".join(lines[3:6]))
    (logs / "c.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[6:])))
    made = {}
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        report = import_logs([logs], "openai-chat", out, rules(), workers=workers)
        assert (report["accepted"], report["reasons"]) == (9, {"not_utf8": 1, "too_large": 1})
        made[workers] = hash_directory(out)
    assert made[1] == made[2]


def test_a_share_that_is_none_is_refused_whatever_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_quarantined is nan, expected a share"):
        import_records([("a", REFUND)], "openai-chat", tmp_path / "out", rules(), max_quarantined=math.nan)
    assert not (tmp_path / "out").exists()


def test_workers_end_with_the_import_that_was_killed(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{**REFUND, "id": f"r{n}"} for n in range(60_000)])
    words = ["import", "--format", "openai-chat", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out")]
    code = "import sys; from retroformer.importers import importing; importing.SMALL = 0; "
    code += "importing.os.sched_getaffinity = lambda _: {0, 1}; from retroformer.cli import main; main(sys.argv[1:])"
    # What is typed by hand is no fork; one that is ends its own.
    environment = {name: value for name, value in os.environ.items() if name != ADDRESS}
    script = tmp_path / "run.py"
    script.write_text(f'if __name__ == "__main__":\n    {code}\n')
    run = subprocess.Popen([sys.executable, str(script), *words], env=environment, stderr=subprocess.DEVNULL)
    below: list[psutil.Process] = []
    while len(below) < 3 and run.poll() is None:  # two workers and what tracks their resources
        below = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    assert len(below) == 3
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive
    report = import_chat(tmp_path, [REFUND])
    assert report["episodes"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "log.jsonl", "out", "run.py"]


def test_a_file_that_is_cut_meanwhile_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_lines(path, [REFUND])
    chunk = list(json_records([path], lambda count: None))
    sent: Any = _sent(chunk)
    path.write_bytes(b"{")
    with pytest.raises(DataError, match=r"a\.jsonl was cut while it was read"):
        list(_received(sent))


def test_a_second_import_adds_nothing_twice(tmp_path: Path) -> None:
    import_chat(tmp_path, [REFUND, {"messages": 1}])
    before = read_trajectories(tmp_path / "out")
    report = import_chat(tmp_path, [REFUND, {"messages": 1}, REFUND])
    assert (report["read"], report["accepted"], report["repeated"], report["quarantined"]) == (3, 2, 2, 1)
    assert read_trajectories(tmp_path / "out") == before
    assert len(quarantined(tmp_path / "out")) == 1
    report = import_chat(tmp_path, [{**REFUND, "id": "r2"}])
    assert (report["episodes"], report["repeated"]) == (2, 0)
    assert read_trajectories(tmp_path / "out")[:1] == before


def test_an_id_with_other_content_is_refused_also_where_the_first_came_earlier(tmp_path: Path) -> None:
    report = import_chat(tmp_path, [REFUND, {**REFUND, "reward": 0.0}])
    assert (report["accepted"], report["reasons"]) == (1, {"conflicting_id": 1})
    report = import_chat(tmp_path, [{**REFUND, "reward": 0.5}])
    assert report["reasons"] == {"conflicting_id": 1}
    assert [one.total_reward for one in read_trajectories(tmp_path / "out")] == [1.0]


def test_played_episodes_are_not_added_to(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/collect.json").write_text("{}")
    with pytest.raises(DataError, match="holds episodes that were played"):
        import_chat(tmp_path, [REFUND])


def test_progress_is_of_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_chat(tmp_path, [{**REFUND, "id": f"r{n}"} for n in range(4500)])
    size = (tmp_path / "log.jsonl").stat().st_size
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"import: {size}/{size} bytes, ")
    assert line.endswith(" left, 4500 records")


BIG = 123456789012345678901234567890


def test_whole_numbers_of_more_than_64_bits_keep_their_digits(tmp_path: Path) -> None:
    def called(arguments: object) -> dict[str, Any]:
        function = {"name": "find", "arguments": arguments}
        messages = json.loads(json.dumps(REFUND["messages"]))
        messages[2]["tool_calls"][0]["function"] = function
        return {**REFUND, "messages": messages}

    made: list[dict[str, Any]] = [{**REFUND, "id": BIG + n, "task_id": BIG + n} for n in range(2)]
    made += [
        {
            **called({"id": BIG, "share": 1e300}),
            "id": "object",
            "tools": [{"name": "find", "parameters": {"max": BIG}}],
        },
        {**called(json.dumps({"id": BIG, "share": 1e300})), "id": "text"},
        {**called(f'{{"id": {BIG}, "share": NaN}}'), "id": "as it stands"},
        {**called(f'{{"id": {BIG}, "half": "\\ud800"}}'), "id": "half"},
    ]
    report = import_chat(tmp_path, made, redact=["email"])
    assert (report["episodes"], report["reasons"]) == (6, {})
    found = read_trajectories(tmp_path / "out")
    assert len({one.task.seed for one in found[:2]}) == 2
    assert all(f'"id": {BIG}, ' in one.steps[0].action for one in found[2:])
    assert all('"share": 1e+300}' in one.steps[0].action for one in found[2:4])
    assert f'"max": {BIG}' in found[2].task.description


def test_redaction_counts_once_what_is_read_twice(tmp_path: Path) -> None:
    secret = json.loads(json.dumps({**REFUND, "task_id": BIG}).replace("order 7", "order 7 of ann@example.org"))
    assert import_chat(tmp_path, [secret], redact=["email"])["redacted"] == {"email": 1}
