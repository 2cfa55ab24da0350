"""`make test-extras` runs these; each is skipped, with the reason, where its parts are not installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from retroformer.environments import make
from retroformer.environments.protocol import TextEnvironment
from retroformer.errors import EnvironmentFault


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow, so that `make test` takes no longer where they are installed."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("slow")


@pytest.fixture
def made():
    """`make`, that skips where the environment's parts are missing, and closes what it made."""
    opened: list[TextEnvironment] = []

    def make_or_skip(name: str) -> TextEnvironment:
        try:
            opened.append(make(name))
        except EnvironmentFault as error:
            if "install" not in str(error):
                raise
            pytest.skip(str(error))
        return opened[-1]

    yield make_or_skip
    for environment in opened:
        environment.close()
