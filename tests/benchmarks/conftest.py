from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import pytest

from project import HERE


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a module of the benchmarks, which are no part of the installed package."""
    monkeypatch.syspath_prepend(str(HERE))
    return lambda name: importlib.import_module(f"benchmarks.{name}")
