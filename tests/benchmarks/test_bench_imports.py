from __future__ import annotations

from pathlib import Path
from typing import Any


def test_the_file_that_is_read_is_sound(bench: Any, tmp_path: Path) -> None:
    imports = bench("imports")
    count = imports.write_runs(tmp_path / "runs.jsonl", 20_000, 100)
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert len(lines) == count > 5
    imports.loop(tmp_path / "runs.jsonl")
    imports.here(tmp_path / "runs.jsonl")
    imports.typed(tmp_path / "runs.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["runs.jsonl"]


def test_quick_report(bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    imports = bench("imports")
    monkeypatch.setattr(imports, "write_runs", small(imports.write_runs))
    monkeypatch.setattr("benchmarks.measure.LONG_ENOUGH", 1e-6)
    report = imports.measure(quick=True)
    cases = ("short_results", "long_results")
    assert set(report.ratios) == {f"import_{case}{one}" for case in cases for one in ("", "_1")}
    assert all(ratio > 0 for ratio in report.ratios.values())
    assert [case["case"] for case in report.cases] == [case for case in cases for _ in range(2)]


def small(write_runs: Any) -> Any:
    return lambda path, size, characters: write_runs(path, 30_000, characters)
