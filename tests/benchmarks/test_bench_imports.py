from __future__ import annotations

from pathlib import Path
from typing import Any


def test_the_file_that_is_read_is_sound(bench: Any, tmp_path: Path) -> None:
    imports = bench("imports")
    count = imports.write_runs(tmp_path / "runs.jsonl", 20_000, 100)
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert len(lines) == count > 5
    imports.loop(tmp_path / "runs.jsonl")
    imports.imported(tmp_path / "runs.jsonl", workers=1)
    assert not (tmp_path / "runs.out").exists()


def test_quick_report(bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    imports = bench("imports")
    monkeypatch.setattr(imports, "write_runs", small(imports.write_runs))
    monkeypatch.setattr("benchmarks.measure.LONG_ENOUGH", 1e-6)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0})  # starting workers takes seconds
    report = imports.measure(quick=True)
    cases = ("short_results", "long_results")
    assert set(report.ratios) == {f"import_{case}_{way}" for case in cases for way in ("1", "workers")}
    assert all(ratio > 0 for ratio in report.ratios.values())
    assert [case["case"] for case in report.cases] == list(cases)


def small(write_runs: Any) -> Any:
    return lambda path, size, characters: write_runs(path, 30_000, characters)
