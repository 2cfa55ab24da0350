"""Where workers run: processes on this machine, or an engine that spreads work over many.

``dask`` starts one on this machine, ``dask://HOST:PORT`` is a running scheduler. Shards come back by the engine's own
ways and are written here. What workers need besides lies where they run: this package and the environments' installed,
and the policy's folder under the same path (a shared file system), unless the policy is a scripted agent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from typing import Any

from retroformer.errors import ConfigError
from retroformer.pools import end, pool


def spread(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], count: int, cluster: str) -> Iterator[Any]:
    """What `function` returns for each of the jobs' arguments, as they finish, in processes.

    Raises BrokenExecutor where a process of this machine dies; a cluster's engine does the work of a worker that is
    gone again by itself.
    """
    if cluster:
        from joblib import Parallel, delayed

        calls = (delayed(function)(*job) for job in jobs)
        options: Any = {"return_as": "generator_unordered", "batch_size": 1}
        with connected(cluster, count):
            yield from Parallel(-1, **options)(calls)
        return
    workers = pool(count)
    try:
        for future in as_completed([workers.submit(function, *job) for job in jobs]):
            yield future.result()
    except BaseException:
        end(workers)
        raise


@contextmanager
def connected(cluster: str, count: int) -> Iterator[None]:
    """joblib's work goes to the cluster in this block. Raises ConfigError where it is not known or not there."""
    from joblib import parallel_config

    engine, colon, address = cluster.partition("://")
    if engine != "dask" or bool(colon) != bool(address):
        raise ConfigError(f"collect.cluster is {cluster!r}, allowed: empty, dask or dask://HOST:PORT")
    try:
        with dask(address, count), parallel_config(engine):
            yield
    except ModuleNotFoundError as error:
        if error.name not in ("dask", "distributed"):
            raise
        raise ConfigError(f"collect.cluster is {cluster!r}, which needs: pip install 'retroformer[dask]'") from None


@contextmanager
def dask(address: str, count: int) -> Iterator[None]:
    """A client of the scheduler at `address`, or of `count` processes here."""
    from distributed import Client, LocalCluster  # pyright: ignore[reportMissingImports]

    if address:
        try:
            client = Client(f"tcp://{address}", timeout=10)
        except OSError as error:
            raise ConfigError(f"collect.cluster: no Dask scheduler answers at {address}: {error}") from None
        with client:
            yield
    else:
        with LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0") as local, Client(local):
            yield
