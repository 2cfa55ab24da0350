from __future__ import annotations

from typing import Any

import pytest
import torch


def test_variants_take_turns(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = bench("measure")
    monkeypatch.setattr(measure, "LONG_ENOUGH", 1e-9)
    clock = iter(range(100))
    monkeypatch.setattr(measure.time, "process_time", lambda: float(next(clock)))
    order: list[str] = []
    variants = {name: lambda name=name: order.append(name) for name in "ab"}
    taken = measure.interleave(variants, 3, {"a": lambda: order.append("before a")})
    assert order == ["before a", "a", "b", "b", "before a", "a", "before a", "a", "b"]
    assert taken["a"].as_json() == {"median": 1.0, "least": 1.0, "most": 1.0}


def test_what_is_fast_is_repeated(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = bench("measure")
    clock = iter(0.08 * tick for tick in range(100))
    monkeypatch.setattr(measure.time, "process_time", lambda: next(clock))
    runs: list[int] = []
    taken = measure.interleave({"a": lambda: runs.append(1)}, 1)
    assert len(runs) == 3
    assert taken["a"].median == pytest.approx(0.08)


def test_peak_memory_is_what_was_held_at_once(bench: Any) -> None:
    measure = bench("measure")

    def run() -> None:
        for _ in range(3):
            torch.ones(25_000_000)  # 100 MB, freed before the next

    peak = measure.peak_megabytes(run)
    if peak is None:
        pytest.skip("no /proc/self/clear_refs here")
    assert 95 < peak < 130


def test_a_child_that_fails_measures_nothing(bench: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert bench("measure").peak_megabytes(lambda: 1 / 0) is None
    capfd.readouterr()


def test_list_names_every_benchmark(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    main = bench("__main__")
    main.main(["list"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(main.BENCHMARKS)
