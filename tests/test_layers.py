"""Imports go down only, as docs/architecture.md draws it, and heavy libraries stay in their room."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (
    ("types", "errors", "progress", "chat"),
    ("files",),
    ("config", "storage"),
    ("pins", "tombstones"),
    ("preloaded",),
    ("journal", "recovery", "pools"),
    ("environments", "importers", "objectives", "quality", "curriculum"),
    ("policies",),
    ("rollouts",),
    ("training", "evaluation"),
    ("stages",),
    ("tracking",),
    ("rounds", "serving"),
    ("promotion", "lineage", "reproducing", "arrivals"),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ROOMS = {
    "transformers": {"policies"},
    "great_expectations": {"quality"},
    "mlflow": {"tracking"},
    "prefect": set(),
    "minigrid": {"environments"},
}
FILES = [path for path in sorted((ROOT / "src/retroformer").rglob("*.py")) if path.name != "__init__.py"] + sorted(
    path for path in (ROOT / "src/retroformer").glob("*/__init__.py")
)


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            if node.module == "retroformer":
                yield from (f"retroformer.{name.name}" for name in node.names if name.name in LEVEL)


def room(path: Path) -> str:
    return path.relative_to(ROOT / "src/retroformer").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "src/retroformer")))
def test_imports_go_down(path: Path) -> None:
    own = room(path)
    assert own in LEVEL, f"{own} has no place in the layers"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "retroformer" and len(parts) > 1 and parts[1] != own:
            assert LEVEL[parts[1]] < LEVEL[own], f"{path.name} imports {name}, which is not below {own}"
        if parts[0] in ROOMS:
            assert own in ROOMS[parts[0]], f"{path.name} imports {parts[0]}, which lives in {ROOMS[parts[0]]} only"


def test_objectives_know_neither_records_nor_parameters() -> None:
    below = {name for path in (ROOT / "src/retroformer/objectives").glob("*.py") for name in imported(path)}
    assert {"retroformer.types", "retroformer.config", "retroformer.storage"}.isdisjoint(below)
    assert "torch" in below


def test_nothing_imports_the_flows() -> None:
    for path in FILES:
        assert {"flows", "improve", "evaluate_champion"}.isdisjoint(name.split(".")[0] for name in imported(path))
