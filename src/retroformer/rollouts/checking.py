"""The checker in a process of its own: an environment that hangs, crashes or exits is told like any other fault."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from retroformer.environments import known
from retroformer.environments.checker import Report, check_environment
from retroformer.errors import EnvironmentFault
from retroformer.rollouts.processes import CONTEXT, Gone, Process, alone, call, only_once
from retroformer.rollouts.trial import START

LOOK = 0.5
"""Seconds between looks at what it is doing."""
MOST = 400
"""Bytes kept of a call."""


def check_package(name: str, seconds: float) -> Iterator[Report]:
    """The report of ``package:task``, or of every task of a package or import path.

    A call of an environment that takes more than `seconds` hangs. Raises EnvironmentFault where the environment is
    unknown or cannot start.
    """
    tasks = [name]
    if ":" not in name:
        listed = alone(known, name, what=f"environment package {name}", seconds=START + seconds)
        tasks = [f"{name}:{task}" for task in listed]
    for task in tasks:
        yield check_apart(task, seconds)


def check_apart(name: str, seconds: float) -> Report:
    """What `check_environment` finds, or where the environment ended it."""
    until, doing = CONTEXT.RawArray("d", [time.monotonic() + START]), CONTEXT.RawArray("c", MOST)
    process = Process(check, name, seconds, until, doing, names=[name])
    try:
        while not process.connection.poll(LOOK):
            if time.monotonic() > until[0]:
                return ended(name, doing, f"no answer within {seconds:g} s{process.where_it_is()}")
        report, error = process.receive()
    except Gone as gone:
        return ended(name, doing, str(gone))
    finally:
        process.end()
    if error is not None:
        raise error if isinstance(error, EnvironmentFault) else EnvironmentFault(f"{name} cannot be checked: {error}")
    return report


def check(connection: Any, name: str, seconds: float, until: Any, doing: Any) -> None:
    """Runs in the process: the check, which says what it is doing and until when that may take."""

    def say(what: str, calls: int = 1) -> None:
        only_once()
        doing.value = what.encode(errors="replace")[: MOST - 1]
        until[0] = time.monotonic() + calls * seconds

    call(connection, lambda: check_environment(name, doing=say), ())


def ended(name: str, doing: Any, how: str) -> Report:
    """The report of a check that did not come to its end."""
    report = Report(name)
    report.add("Episode", f"{doing.value.decode(errors='replace') or 'its import'}: {how}")
    return report
