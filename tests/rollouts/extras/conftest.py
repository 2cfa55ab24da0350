"""`make test-extras` runs these; each is skipped, with the reason, where its parts are not installed."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow, so that `make test` takes no longer where they are installed."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("slow")
