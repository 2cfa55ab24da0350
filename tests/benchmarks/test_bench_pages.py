from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retroformer.files import write_json

REPORT = {
    "name": "act",
    "reps": 7,
    "quick": False,
    "model": {"width": 128},
    "machine": {
        "processor": "a processor", "instructions": "AVX2", "cores": 2, "threads": 1, "load": 0.5,
        "date": "2026-01-02", "torch": "2.13.0",
    },
    "cases": [
        {"case": "500_6", "variant": "ours", "seconds": {"median": 0.05, "least": 0.04, "most": 0.06}, "peak_mb": 41},
        {"case": "500_6", "variant": "naive", "seconds": {"median": 2.5, "least": 2.0, "most": 3.0}, "peak_mb": None},
    ],
    "ratios": {"act_vs_naive_500_20": 49.0, "act_vs_lamorel_cached_500_6": 9.0, "other": 3.0},
    "notes": ["How."],
    "skipped": ["One thing."],
}  # fmt: skip


@pytest.fixture
def pages(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    module = bench("pages")
    monkeypatch.setattr(module, "DOCS", tmp_path)
    write_json(tmp_path / "act.json", REPORT)
    return module


def test_a_page_is_made_from_what_was_measured(pages: Any, tmp_path: Path) -> None:
    pages.write_page("act", tmp_path / "act.json")
    text = (tmp_path / "act.md").read_text()
    assert "| `act_vs_lamorel_cached_500_6` | 9 | 5 | 10 |" in text
    assert "| `act_vs_naive_500_20` | **49, below par** | 50 | 110 |" in text
    assert "| `other` | 3 |  |  |" in text
    assert "| 500_6 | ours | 0.05 (0.04 to 0.06) | 41 |" in text
    assert "One thing." in text
    assert "2026-01-02, a processor (AVX2), 2 cores, 1 in use, load 0.5" in text
    assert (tmp_path / "act.png").stat().st_size > 1000
    assert "| [act](act.md) | `other` | 3 |" in (tmp_path / "README.md").read_text()


def test_where_the_aim_is_lower_more_is_below_par(pages: Any) -> None:
    assert pages.ratio_rows({"orchestration_share": 0.36})[0][1] == "**0.36, below par**"
    assert pages.ratio_rows({"orchestration_share": 0.34})[0][1] == "0.34"


def test_the_breakdown_is_drawn(pages: Any, tmp_path: Path) -> None:
    cases = [
        {"case": "train", "variant": "model", "seconds": 3.0, "kind": "work"},
        {"case": "train", "variant": "imports", "seconds": 1.0, "kind": "orchestration"},
        {"case": "around the stages", "variant": "dvc", "seconds": 2.0, "kind": "orchestration"},
        {"case": "growth of train", "variant": "1000 trajectories", "seconds": 2.0, "peak_mb": 100.0},
        {"case": "growth of train", "variant": "10000 trajectories", "seconds": 9.0, "peak_mb": 110.0},
    ]
    pages.draw({**REPORT, "name": "end-to-end", "cases": cases}, tmp_path / "round.png")
    assert (tmp_path / "round.png").stat().st_size > 1000


def test_a_page_of_nothing_is_refused(
    bench: Any, pages: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench("__main__").main(["train", "--pages"])
    assert "train.json does not exist; measure first" in capsys.readouterr().err
