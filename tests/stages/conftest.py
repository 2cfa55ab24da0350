from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tiny_round import pin, run_evaluate, run_to_batches, run_train, tiny_config


@pytest.fixture(scope="session")
def made_batches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: a project of 24 episodes of the noisy bot, collected, validated and curated. Do not touch it."""
    root = tmp_path_factory.mktemp("batches")
    pin(root)
    run_to_batches(root, tiny_config())
    return root


@pytest.fixture(scope="session")
def made_challenger(made_batches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, trained and evaluated. Do not touch it."""
    root = Path(shutil.copytree(made_batches, tmp_path_factory.mktemp("challenger") / "root"))
    run_train(root, tiny_config())
    run_evaluate(root, tiny_config())
    return root


@pytest.fixture
def batches(made_batches: Path, tmp_path: Path) -> Path:
    """A copy of `made_batches`."""
    return Path(shutil.copytree(made_batches, tmp_path / "root"))


@pytest.fixture
def challenger(made_challenger: Path, tmp_path: Path) -> Path:
    """A copy of `made_challenger`."""
    return Path(shutil.copytree(made_challenger, tmp_path / "root"))
