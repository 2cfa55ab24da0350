from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from project import make_project, make_round, record_round


@pytest.fixture(scope="session")
def finished_round(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: a project whose first round has its verdict and is not closed. Copy it, do not touch it."""
    from retroformer.tracking import mlflow_view

    root = make_project(tmp_path_factory.mktemp("finished"))
    make_round(root / "data", 1)
    mlflow_view.client(root)  # ten seconds, once; the copies find their store moved
    record_round(root)
    return root


@pytest.fixture
def project(finished_round: Path, tmp_path: Path) -> Path:
    """A copy of `finished_round`."""
    return Path(shutil.copytree(finished_round, tmp_path / "project", symlinks=True))
