from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from project import make_project
from retroformer import rounds
from retroformer.files import write_json
from retroformer.tracking import table


def shown(root: Path) -> str:
    text = io.StringIO()
    table.show(root, Console(file=text, width=140))
    return text.getvalue()


def test_the_table_says_who_did_what_and_where_to_look(project: Path) -> None:
    seconds = {"seconds": {"train": 61.0, "collect": 9.0}, "around": {"train": 2.5, "collect": 1.5}}
    write_json(project / ".resume/seconds.json", {"round": 1, **seconds})
    rounds.close(project)
    told = shown(project)
    levels = {line.split("│")[2].strip(): line for line in told.splitlines() if line.startswith("│")}
    assert list(levels) == ["all levels", "A", "B"]
    for figure in ("0.50 [0.23, 0.77] n 8", "0.50 [0.45, 0.55] n 200", "0.80 [0.75, 0.85] n 200"):
        assert figure in levels["all levels"]
    assert "round 1  promote: because 1" in told
    assert "behind imitation of successes on the final seeds, sampled: -0.100 [-0.150, -0.050], n 800; try" in told
    assert "70 s: collect 9 s, train 61 s; 4 s around them" in told
    for place in ("data/decision/report.html", "data/validated/docs/index.html", "dvc plots show", "mlflow ui"):
        assert place in told
    assert "In production: models:/retroformer/1" in told


def test_before_the_first_round_it_says_how_to_begin(tmp_path: Path) -> None:
    assert "No round is closed yet" in shown(make_project(tmp_path / "new"))
