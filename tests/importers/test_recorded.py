"""What an agent at work recorded, from whatever state its files are in."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from retroformer.environments.splits import of_instance
from retroformer.files import hash_directory, read_json
from retroformer.importers import recorded
from retroformer.importers.importing import import_logs
from retroformer.storage import read_trajectories
from retroformer.types import Outcome, Step, StopReason, Trajectory
from tiny_logs import quarantined, rules

EPISODE: list[dict[str, Any]] = [
    {
        "event": "start", "format": 1, "id": "e1", "time": 1.0, "task": "app:find", "task_id": "7", "attempt": 0,
        "description": "find it", "policy": "p1", "temperature": 0.5,
    },
    {
        "event": "step", "id": "e1", "t": 0, "time": 2.0, "observation": "a wall", "action": "left", "logprob": -0.5,
        "admissible_actions": ["left", "right"], "token_ids": None,
    },
    {"event": "reward", "id": "e1", "t": 0, "reward": 0.25},
    {
        "event": "step", "id": "e1", "t": 1, "time": 3.0, "observation": "a key", "action": "take it", "logprob": -1.5,
        "admissible_actions": None, "token_ids": [5, 6, 7],
    },
    {"event": "end", "id": "e1", "time": 4.0},
]  # fmt: skip
REPORT: dict[str, Any] = {"event": "outcome", "id": "e1", "time": 9.0, "success": True, "reward": 0.5}


def named(name: str, *events: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**event, "id": name} for event in events or EPISODE]


def text(events: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)


def write(path: Path, *events: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(list(events)), encoding="utf-8")
    return path


def run(tmp_path: Path, out: str = "out", **options: Any) -> dict[str, Any]:
    options = {"max_quarantined": 1.0, **options}
    report = import_logs([tmp_path / "runs"], "recorded", tmp_path / out, rules(), **options)
    assert report["read"] == report["accepted"] + report["open"] + report["quarantined"]
    return report


def found(tmp_path: Path, out: str = "out") -> dict[str, Trajectory]:
    return {one.id: one for one in read_trajectories(tmp_path / out)}


def test_an_episode_and_the_outcome_that_came_later(tmp_path: Path) -> None:
    path = write(tmp_path / "runs/b-0000.jsonl", *EPISODE)
    write(tmp_path / "runs/a-0000.jsonl", REPORT)
    report = run(tmp_path)
    assert (report["read"], report["accepted"], report["open"], report["with_logprobs"]) == (1, 1, 0, 1)
    (one,) = found(tmp_path).values()
    assert one.steps == (
        Step("a wall", "left", 0.25, ("left", "right"), None, -0.5),
        Step("a key", "take it", 0.5, None, (5, 6, 7), -1.5),
    )
    assert (one.id, one.task.environment, one.task.name, one.task.description) == ("e1", "app", "find", "find it")
    assert (one.outcome, one.stop_reason, one.policy, one.temperature) == ("success", "terminated", "p1", 0.5)
    assert one.task.split == of_instance(one.task.id)
    assert one.source == f"{path}:1"


def test_attempts_at_an_instance_have_its_split_and_follow_each_other(tmp_path: Path) -> None:
    later = [{**EPISODE[0], "attempt": 1}, *EPISODE[1:], REPORT]
    write(tmp_path / "runs/a.jsonl", *named("e2", *later), *EPISODE, REPORT)
    run(tmp_path)
    both = found(tmp_path)
    assert both["e1"].task == both["e2"].task
    assert both["e2"].previous_id == "e1"


def test_an_open_episode_is_counted_and_complete_when_it_is_imported_again(tmp_path: Path) -> None:
    """The ledger never sees an episode as something that it is not any more later."""
    write(tmp_path / "runs/a.jsonl", *EPISODE, *named("e2"), *named("e3", *EPISODE[:3]))
    write(tmp_path / "runs/b.jsonl", {**REPORT, "id": "e2"})
    report = run(tmp_path)
    assert (report["read"], report["accepted"], report["open"], report["quarantined"]) == (3, 1, 2, 0)
    assert list(found(tmp_path)) == ["e2"]
    first = found(tmp_path)["e2"]
    write(tmp_path / "runs/c.jsonl", REPORT)
    report = run(tmp_path)
    assert (report["accepted"], report["repeated"], report["open"], report["reasons"]) == (2, 1, 1, {})
    assert found(tmp_path) == {"e1": found(tmp_path)["e1"], "e2": first}
    # The process of the third had died; what it had done is there once somebody says how the task ended.
    write(tmp_path / "runs/d.jsonl", {**REPORT, "id": "e3", "success": False})
    report = run(tmp_path)
    assert (report["accepted"], report["repeated"], report["open"], report["episodes"]) == (3, 2, 0, 3)
    assert found(tmp_path)["e3"].stop_reason is StopReason.LOG_END
    assert len(found(tmp_path)["e3"].steps) == 1


def test_an_open_episode_that_a_function_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge_recorded.py").write_text("def took(one):\n    return one.steps[-1].action == 'take it'\n")
    write(tmp_path / "runs/a.jsonl", *EPISODE, *named("e2", *EPISODE[:4]))
    asked = rules(function="judge_recorded:took")
    report = import_logs([tmp_path / "runs"], "recorded", tmp_path / "out", asked)
    assert (report["accepted"], report["open"]) == (1, 1), "what has not ended may go on"
    assert found(tmp_path)["e1"].outcome is Outcome.SUCCESS


def test_the_last_report_counts_and_a_corrected_one_is_told(tmp_path: Path) -> None:
    write(tmp_path / "runs/a.jsonl", {**REPORT, "time": 20, "success": False, "reward": 0}, *EPISODE, REPORT)
    run(tmp_path)
    assert found(tmp_path)["e1"].outcome is Outcome.FAILURE
    write(tmp_path / "runs/b.jsonl", {**REPORT, "time": 30})
    assert run(tmp_path)["reasons"] == {"conflicting_id": 1}
    assert run(tmp_path, "new")["reasons"] == {}
    assert found(tmp_path, "new")["e1"].outcome is Outcome.SUCCESS


def test_a_torn_last_line_is_no_record_any_other_is(tmp_path: Path) -> None:
    whole = text([*EPISODE, REPORT])
    torn = text(named("e2", *EPISODE[:2])) + '{"event":"step","id":"e2","t":1,"obser'
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/a.jsonl").write_text(whole)
    (tmp_path / "runs/b.jsonl").write_text(torn)
    report = run(tmp_path)
    assert (report["accepted"], report["open"], report["quarantined"]) == (1, 1, 0)
    (tmp_path / "runs/b.jsonl").write_text(torn + "\n" + text(named("e3", EPISODE[0])))
    report = run(tmp_path)
    assert report["reasons"] == {"not_json": 1}
    assert quarantined(tmp_path / "out")[0]["source"] == f"{tmp_path / 'runs/b.jsonl'}:3"
    # A last line that is whole but for its newline is one.
    (tmp_path / "runs/b.jsonl").write_text(text(named("e2"))[:-1])
    write(tmp_path / "runs/c.jsonl", {**REPORT, "id": "e2"})
    run(tmp_path)
    assert found(tmp_path)["e2"].stop_reason is StopReason.TERMINATED


def test_copies_packed_and_in_other_folders_add_nothing(tmp_path: Path) -> None:
    events = [*EPISODE, REPORT, *named("e2", *EPISODE[:2]), {**REPORT, "id": "e2"}]
    write(tmp_path / "runs/a.jsonl", *events)
    (tmp_path / "runs/host").mkdir()
    (tmp_path / "runs/host/b.jsonl.gz").write_bytes(gzip.compress(text(events).encode()))
    report = run(tmp_path)
    assert (report["read"], report["accepted"], report["repeated"], report["episodes"]) == (4, 4, 2, 2)


def test_an_episode_goes_on_in_the_next_file(tmp_path: Path) -> None:
    for place, event in enumerate(EPISODE):
        write(tmp_path / f"runs/a-{place:04d}.jsonl", event)
    write(tmp_path / "runs/x/a-0099.jsonl", REPORT)
    run(tmp_path)
    assert len(found(tmp_path)["e1"].steps) == 2


def test_workers_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retroformer.importers.converting.CHUNK_RECORDS", 3)
    lines = [event for n in range(8) for event in (*named(f"e{n}"), {**REPORT, "id": f"e{n}"})]
    write(tmp_path / "runs/a.jsonl", *lines, {"event": "other"})
    for workers in (1, 2):
        run(tmp_path, f"out{workers}", workers=workers)
    assert hash_directory(tmp_path / "out1") == hash_directory(tmp_path / "out2")
    assert read_json(tmp_path / "out2/collect.json")["episodes"] == 8


START, LEFT, _, TAKE, END = EPISODE


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([LEFT, REPORT], "no_start"),
        ([START, REPORT], "no_agent_step"),
        ([START, TAKE, REPORT], "steps_out_of_order"),
        ([START, LEFT, LEFT, REPORT], "steps_out_of_order"),
        ([START, LEFT, {**EPISODE[2], "t": 1}, REPORT], "steps_out_of_order"),
        ([START, LEFT, {**EPISODE[2], "reward": "much"}, REPORT], "reward_not_a_number"),
        ([START, LEFT, {**EPISODE[2], "reward": 1e308}, {**EPISODE[2], "reward": 1e308}, REPORT], "reward_not_finite"),
        ([START, LEFT, {**REPORT, "reward": float("nan")}], "reward_not_finite"),
        ([START, LEFT, {**REPORT, "success": "perhaps"}], "success_not_a_truth_value"),
        ([START, {**LEFT, "action": "up"}, REPORT], "inadmissible_action"),
        ([START, {**LEFT, "admissible_actions": "left"}, REPORT], "malformed_field"),
        ([START, {**LEFT, "observation": " "}, REPORT], "empty_text"),
        ([START, {**LEFT, "logprob": 0.5}, REPORT], "invalid_logprob"),
        ([START, {**LEFT, "token_ids": [-1]}, REPORT], "invalid_token_ids"),
        ([{**START, "temperature": -1}, LEFT, REPORT], "invalid_temperature"),
        ([{**START, "attempt": "one"}, LEFT, REPORT], "invalid_attempt"),
        ([{**REPORT, "id": "e9"}], "unknown_episode"),
        ([{**REPORT, "time": None}], "timestamp_not_a_number"),
        ([{"event": "step"}], "not_this_format"),
        ([{"event": "step", "id": 3}], "not_this_format"),
    ],
)
def test_what_cannot_be_believed(tmp_path: Path, events: list[Any], reason: str) -> None:
    write(tmp_path / "runs/a.jsonl", *events, *named("sound"), {**REPORT, "id": "sound"})
    report = run(tmp_path)
    assert report["reasons"] == {reason: 1}
    assert list(found(tmp_path)) == ["sound"]
    (line,) = quarantined(tmp_path / "out")
    assert line["source"].startswith(f"{tmp_path / 'runs/a.jsonl'}:1")
    assert line["record"]


def test_an_episode_that_never_ends_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "MAX_RECORD", 2000)
    write(tmp_path / "runs/a.jsonl", START, *({**LEFT, "t": t} for t in range(100)), REPORT)
    assert run(tmp_path)["reasons"] == {"too_large": 1}


def test_what_is_redacted_keeps_its_id(tmp_path: Path) -> None:
    said = {**LEFT, "observation": "mail ann@example.org"}
    events = [START, said, {**TAKE, "action": "write to ann@example.org", "token_ids": None}, END]
    many = [event for n in range(10) for event in named(f"e4111111111111111{n}", *events, REPORT)]
    write(tmp_path / "runs/a.jsonl", *many)
    assert run(tmp_path, redact=["all"])["episodes"] == 10
    assert {one.steps[0].observation for one in found(tmp_path).values()} == {"mail [email]"}


def test_any_interleaving_is_the_same(tmp_path: Path) -> None:
    """Seeds 0 to 4: five episodes' events in any order that keeps each one's own."""
    expected = None
    for seed in range(5):
        chance = random.Random(seed)
        left = [[*named(f"e{n}"), {**REPORT, "id": f"e{n}", "success": n % 2 == 0}] for n in range(5)]
        mixed = []
        while any(left):
            mixed.append(chance.choice([one for one in left if one]).pop(0))
        write(tmp_path / "runs/a.jsonl", *mixed)
        run(tmp_path, f"out{seed}")
        told = {id: (one.steps, one.outcome, one.task) for id, one in found(tmp_path, f"out{seed}").items()}
        assert len(told) == 5
        assert expected in (None, told)
        expected = told
