"""Mutated records of each format: none ends an import, none is lost, none needs the net for what was overlooked.

Seeds are fixed. The quick form mutates 300 records a format, the slow one 10,000.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_atif import RUN
from test_otlp import FIRST, SECOND, request, root
from test_recorded import EPISODE, REPORT

from builders import make_trajectory
from retroformer.importers.atif_export import document
from retroformer.importers.importing import import_logs
from retroformer.storage import EPISODES, STEPS, episode_row, read_trajectories, step_rows
from tiny_logs import REFUND, quarantined, rules

TRACE = {
    "info": {
        "trace_id": "tr-1",
        "state": "OK",
        "tags": {"retroformer.task": "desk:refund", "retroformer.attempt": "0"},
        "trace_metadata": {},
        "assessments": [{"assessment_name": "solved", "feedback": {"value": True}, "valid": True}],
    },
    "data": {
        "spans": [
            {
                "span_id": "1",
                "start_time_unix_nano": 5,
                "end_time_unix_nano": 9,
                "attributes": {
                    "mlflow.spanType": '"CHAT_MODEL"',
                    "mlflow.spanInputs": {
                        "messages": REFUND["messages"][:2],
                        "tools": REFUND["tools"],
                        "temperature": 0.5,
                    },
                    "mlflow.spanOutputs": {"choices": [{"message": REFUND["messages"][2]}]},
                },
            },
            {
                "span_id": "2",
                "start_time_unix_nano": 10,
                "end_time_unix_nano": 12,
                "attributes": {
                    "mlflow.spanType": '"CHAT_MODEL"',
                    "mlflow.spanInputs": {"messages": REFUND["messages"][:4], "model": "m-1"},
                    "mlflow.spanOutputs": {"choices": [{"message": REFUND["messages"][4]}]},
                },
            },
        ]
    },
}
RICH = {
    **REFUND,
    "attempt": 0,
    "task_id": 7,
    "messages": [
        *REFUND["messages"][:4],
        {**REFUND["messages"][4], "token_ids": [5, 6], "logprobs": [-0.5, -1.0], "timestamp": 3, "reward": 0.5},
    ],
}
EXPORTED = document(make_trajectory(id="n", attempt=1, previous_id="m", seed=3))
SEEDS: dict[str, Any] = {
    "openai-chat": RICH,
    "atif": {**RUN, "extra": {"temperature": 0.5, "task": "desk:refund"}, "subagent_trajectories": [RUN]},
    "atif exported": EXPORTED,
    "mlflow": TRACE,
    "otlp": request(root(reward=1.0), FIRST, SECOND),
    "recorded": [*EPISODE, REPORT],
}
NAMES = {
    "openai-chat": '"r1"',
    "atif": '"t1"',
    "atif exported": '"n"',
    "mlflow": '"tr-1"',
    "otlp": '"t1"',
    "recorded": '"e1"',
}
"""What the log calls the run; each mutant is given a name of its own."""
TEXTS = ("", " ", "\x00", "\u202e", "ä" * 40, "1.0", "{", '{"a": [', "</tool_call>", "<tool_response>", "2026-13-45")
ODD = (None, True, -1, 0, 2**70, 1e308, float("nan"), float("-inf"), *TEXTS, [], {}, [[]], [None], {"": None}, [{}])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place within a value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield from places(one, (*path, key))


def mutated(value: Any, chance: random.Random) -> Any:
    """A copy with one to three places removed, repeated, renamed, moved or made odd."""
    value = copy.deepcopy(value)
    for _ in range(chance.randint(1, 3)):
        *way, last = chance.choice(list(places(value)) or [("x",)])
        target = value
        for key in way:
            target = target[key]
        if not isinstance(target, (dict, list)) or (isinstance(target, dict) and last not in target):
            continue
        match chance.randrange(6):
            case 0:
                del target[last]
            case 1 if isinstance(target, list):
                target.insert(last, copy.deepcopy(target[last]))
            case 2 if isinstance(target, list):
                chance.shuffle(target)
            case 3 if isinstance(target, dict):
                target[chance.choice([*map(str, target), "x"])] = target.pop(last)
            case 4:
                others = list(places(value))
                donor = value
                for key in chance.choice(others):
                    donor = donor[key]
                target[last] = copy.deepcopy(donor)
            case _:
                target[last] = copy.deepcopy(chance.choice(ODD))
    return value


def line(value: Any, chance: random.Random) -> bytes:
    """A record's text, now and then cut, or with some bytes that are not what they were."""
    text = bytearray(json.dumps(value, ensure_ascii=chance.random() < 0.5).encode())
    if chance.random() < 0.1:
        text = text[: chance.randrange(len(text))]
    if chance.random() < 0.1 and text:
        for _ in range(chance.randint(1, 4)):
            text[chance.randrange(len(text))] = chance.randrange(256)
    return bytes(text).replace(b"\n", b" ") + b"\n" if text.strip() else b"0\n"


def check(report: dict[str, Any], out: Path, count: int) -> None:
    assert report["read"] == report["accepted"] + report["open"] + report["quarantined"]
    assert report["read"] >= count
    assert "not_understood" not in report["reasons"], report["reasons"]
    assert sum(report["reasons"].values()) == report["quarantined"]
    assert {entry["reason"] for entry in quarantined(out)} == set(report["reasons"])
    assert len(read_trajectories(out)) == report["episodes"]
    # Mutants that break nothing that matters are trajectories, the others are not: both kinds are there.
    assert report["accepted"] > count / 50
    assert report["quarantined"] > count / 50


def fuzz_json(format: str, tmp_path: Path, count: int, seed: int) -> None:
    chance = random.Random(f"{format} {seed}")
    seeds, name = SEEDS[format], NAMES[format]
    format = format.split()[0]
    path = tmp_path / "fuzz.jsonl"
    with path.open("wb") as file:
        for number in range(count):
            named = json.dumps(mutated(seeds, chance)).replace(name, f'"n{number}"')
            value = json.loads(named)
            for one in value if format == "recorded" else [value]:  # each of its events a line
                file.write(line(one, chance))
    options: dict[str, Any] = {"redact": ["all"], "max_quarantined": 1.0, "workers": 1}
    report = import_logs([path], format, tmp_path / "out", rules(1.0), **options)
    check(report, tmp_path / "out", count if format not in ("otlp", "recorded") else 0)


def fuzz_parquet(tmp_path: Path, count: int, seed: int) -> None:
    chance = random.Random(f"parquet {seed}")
    runs = [make_trajectory(seed=number) for number in range(count)]
    episodes, steps = [episode_row(one) for one in runs], [row for one in runs for row in step_rows(one)]
    odd: dict[Any, Callable[[], Any]] = {
        pa.string(): lambda: chance.choice(["", " ", "\x00", "success", "left", "x" * 300, None]),
        pa.float64(): lambda: chance.choice([0.0, -1.0, 7.0, 1e308, float("nan"), float("-inf"), None]),
        pa.int32(): lambda: chance.choice([0, 1, -1, 2**31 - 1, None]),
        pa.int64(): lambda: chance.choice([0, -1, 2**63 - 1, None]),
        pa.list_(pa.string()): lambda: chance.choice([[], [None], ["left"], None]),
        pa.list_(pa.int32()): lambda: chance.choice([[], [-1], [None], [5, 6], None]),
    }
    for rows, schema in ((episodes, EPISODES), (steps, STEPS)):
        for row in rows:
            if chance.random() < 0.3:
                name = chance.choice(schema.names)
                row[name] = odd[schema.field(name).type]()
        for _ in range(count // 50):
            rows.insert(chance.randrange(len(rows)), dict(chance.choice(rows)))
            del rows[chance.randrange(len(rows))]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(episodes, EPISODES), tmp_path / "in/episodes.parquet")
    pq.write_table(pa.Table.from_pylist(steps, STEPS), tmp_path / "in/steps.parquet")
    report = import_logs(
        [tmp_path / "in"], "parquet", tmp_path / "out", rules(1.0), redact=["all"], max_quarantined=1.0
    )
    check(report, tmp_path / "out", count)
    damaged = bytearray((tmp_path / "in/steps.parquet").read_bytes())
    for _ in range(20):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    (tmp_path / "in/steps.parquet").write_bytes(bytes(damaged))
    report = import_logs([tmp_path / "in"], "parquet", tmp_path / "bad", rules(), max_quarantined=1.0)
    assert report["read"] == report["accepted"] + report["quarantined"]


@pytest.mark.parametrize("format", SEEDS)
def test_mutated_records(format: str, tmp_path: Path) -> None:
    fuzz_json(format, tmp_path, 300, seed=0)


def test_mutated_tables(tmp_path: Path) -> None:
    fuzz_parquet(tmp_path, 300, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("format", SEEDS)
def test_ten_thousand_mutated_records(format: str, tmp_path: Path) -> None:
    fuzz_json(format, tmp_path, 10_000, seed=1)


@pytest.mark.slow
def test_ten_thousand_mutated_episodes(tmp_path: Path) -> None:
    fuzz_parquet(tmp_path, 10_000, seed=1)
