"""Where workers run: processes on this machine, or an engine that spreads work over many.

``dask`` starts one on this machine, ``dask://HOST:PORT`` is a running scheduler. Shards come back by the engine's own
ways and are written here. What workers need besides lies where they run: this package, which the scheduler needs too,
the environments' packages, and the policy's folder under the same path (a shared file system), unless the policy is a
scripted agent.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from contextlib import contextmanager
from pkgutil import resolve_name
from queue import SimpleQueue
from typing import Any

from retroformer.errors import ConfigError
from retroformer.pools import end, pool
from retroformer.preloaded import deaf

ANSWER = 10.0
"""Seconds in which a scheduler has to answer, and to have a worker."""
WORKERLESS = 60.0
"""Seconds without a result after which it is asked whether there are workers at all."""


def spread(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], count: int, cluster: str) -> Iterator[Any]:
    """What `function` returns for each of the jobs' arguments, as they finish, in processes.

    Raises BrokenExecutor where a process of this machine dies. A cluster's engine does the work of a worker that is
    gone again by itself; where it gives up or is lost, BrokenExecutor comes after all that could be finished.
    """
    if cluster:
        with connected(cluster, count) as client:
            yield from results(client, function, jobs)
        return
    workers, done = pool(count), SimpleQueue[Future[Any]]()
    try:
        # An interrupt must not come between taking a future's lock and giving it back, as it may in as_completed: the
        # pool could not end.
        with deaf():
            for job in jobs:
                workers.submit(function, *job).add_done_callback(done.put)
        for _ in jobs:
            yield done.get().result()
    except BaseException:
        end(workers)
        raise


def results(client: Any, function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """`spread` over the workers of a Dask client."""
    from distributed import KilledWorker  # pyright: ignore[reportMissingImports]

    _try_import(client, f"{function.__module__}:{function.__qualname__}")
    executor = client.get_executor(pure=False)
    left = {executor.submit(function, *job) for job in jobs}
    broken = ""
    while left:
        done, left = wait(left, WORKERLESS, FIRST_COMPLETED)
        if not done and not client.ncores():
            raise BrokenExecutor("all workers have left the cluster")
        for future in done:
            try:
                result = future.result()
            except (KilledWorker, CancelledError) as error:
                broken = str(error) or "the scheduler was lost"
            else:
                yield result
    if broken:
        raise BrokenExecutor(broken)


def _try_import(client: Any, name: str) -> None:
    """Raises ConfigError where the cluster cannot import what it is about to be sent, which would end its workers."""
    try:
        client.run_on_scheduler(resolve_name, name)
        for found in client.run(resolve_name, name, on_error="return").values():
            if isinstance(found, (ImportError, AttributeError)):
                raise found
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"collect.cluster: the cluster cannot import {name} ({error}): "
            "install retroformer for its scheduler and its workers, in the version that is installed here"
        ) from None


@contextmanager
def connected(cluster: str, count: int) -> Iterator[Any]:
    """A client of the cluster. Raises ConfigError where that is not known or not there."""
    engine, colon, address = cluster.partition("://")
    if engine != "dask" or bool(colon) != bool(address):
        raise ConfigError(f"collect.cluster is {cluster!r}, allowed: empty, dask or dask://HOST:PORT")
    try:
        with dask(address, count) as client:
            yield client
    except ModuleNotFoundError as error:
        if error.name not in ("dask", "distributed"):
            raise
        raise ConfigError(f"collect.cluster is {cluster!r}, which needs: pip install 'retroformer[dask]'") from None


@contextmanager
def dask(address: str, count: int) -> Iterator[Any]:
    """A client of the scheduler at `address`, or of `count` processes here.

    Raises BrokenExecutor where one of those dies as it starts.
    """
    from distributed import Client, LocalCluster  # pyright: ignore[reportMissingImports]

    if not address:
        try:
            local = LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0")
        except RuntimeError as error:
            raise BrokenExecutor(f"a worker was ended as it started: {error}") from error
        with local, Client(local) as client:
            yield client
        return
    then = "; nothing that was played is lost: run the same command again once there is one"
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what it loses is told here, in one sentence
    try:
        client = Client(f"tcp://{address}", timeout=ANSWER)
    except OSError as error:
        raise ConfigError(f"collect.cluster: no Dask scheduler answers at {address} ({error}){then}") from None
    with client:
        try:
            # A cluster that grows with its work has no worker before there is some.
            _ = client.ncores() or client.submit(os.getpid, pure=False).result(ANSWER)
        except OSError:
            raise ConfigError(f"collect.cluster: the Dask scheduler at {address} has no worker{then}") from None
        yield client
