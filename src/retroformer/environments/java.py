"""One Java machine for all environments of a process, for the benchmarks that are written in Java and reached by py4j.

They start a machine for each environment, which takes a second or more and 100 MB and up; collection has dozens.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from retroformer.errors import EnvironmentFault

OPTIONS = "-XX:+UnlockExperimentalVMOptions -XX:hashCode=2"
"""Every object hashes alike, so that a set of objects has one order: ScienceWorld lists and names things in that order,
and without this some of its variations differ from run to run."""
_hosts: dict[type, Any] = {}


def share(kind: type, interface: str) -> Any:
    """An environment of `kind` whose simulator, the Java class `interface`, runs in the machine of the first.

    Raises EnvironmentFault where there is no Java.
    """
    if shutil.which("java") is None:
        raise EnvironmentFault(
            f"{kind.__name__} needs Java, and there is no java on PATH: apt-get install default-jre-headless"
        )
    host = _hosts.get(kind)
    if host is None or host._gateway.java_process.poll() is not None:
        with java_options():
            host = _hosts[kind] = kind()
    guest = type(kind.__name__, (kind,), {"__init__": lambda _: None, "close": lambda _: None})()
    simulator: Any = host._gateway.jvm
    for part in interface.split("."):
        simulator = getattr(simulator, part)
    vars(guest).update(vars(host), server=simulator())
    return guest


@contextmanager
def java_options() -> Iterator[None]:
    """Java started in this block gets `OPTIONS` too; from Java 9 on."""
    before = os.environ.get("JDK_JAVA_OPTIONS")
    os.environ["JDK_JAVA_OPTIONS"] = f"{before or ''} {OPTIONS}".strip()
    try:
        yield
    finally:
        if before is None:
            del os.environ["JDK_JAVA_OPTIONS"]
        else:
            os.environ["JDK_JAVA_OPTIONS"] = before
