from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from project import make_project, make_round, record_round
from retroformer.preloaded import preloaded

LONG = ("test_readme", "test_gate_on_policies", "test_deployments", "test_improve")
"""Files that take minutes: they begin, so that no process waits for them at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Of all tests in several processes, those that start commands do it hundreds of times: these are forks then."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        forks = ExitStack()
        forks.enter_context(preloaded())
        config.add_cleanup(forks.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long first."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(autouse=True)
def no_store_from_before() -> Iterator[None]:
    """MLflow keeps the store that it was told for the process, and in the environment for those that it starts."""
    yield
    if (mlflow := sys.modules.get("mlflow")) is not None:
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
    for key in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        os.environ.pop(key, None)


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


@pytest.fixture(scope="session")
def made_three_rounds(finished_round: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: a project of three closed rounds, see three_rounds.py. Copy it, do not touch it."""
    from three_rounds import close_three

    root = Path(shutil.copytree(finished_round, tmp_path_factory.mktemp("three") / "project", symlinks=True))
    with pytest.MonkeyPatch.context() as patch:
        return close_three(root, patch)


@pytest.fixture
def three(made_three_rounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `made_three_rounds`, which is the working folder."""
    root = Path(shutil.copytree(made_three_rounds, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(root)
    return root
