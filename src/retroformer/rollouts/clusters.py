"""Where workers run: joblib's processes on this machine, or an engine that spreads work over many.

``dask`` and ``ray`` start their engine on this machine; ``dask://HOST:PORT`` is a running scheduler, ``ray://HOST:PORT``
or ``ray://auto`` a running cluster. What workers need besides the shard lies where they run: this package and the
environments' installed, and the policy's folder under the same path (a shared file system).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from retroformer.errors import ConfigError

EXTRAS = {"dask": "distributed", "ray": "ray"}


def spread(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], count: int, cluster: str) -> Iterator[Any]:
    """What `function` returns for each of the jobs' arguments, as they finish, in processes.

    Raises loky's BrokenProcessPool where a process of this machine dies; a cluster's engine does the work of a worker
    that is gone again by itself.
    """
    from joblib import Parallel, delayed

    calls = (delayed(function)(*job) for job in jobs)
    options: Any = {"return_as": "generator_unordered", "batch_size": 1}
    if not cluster:
        with Parallel(count, inner_max_num_threads=1, **options) as pool:
            yield from pool(calls)
        return
    with connected(cluster, count):
        yield from Parallel(-1, **options)(calls)


@contextmanager
def connected(cluster: str, count: int) -> Iterator[None]:
    """joblib's work goes to the cluster in this block. Raises ConfigError where it is not known or not there."""
    from joblib import parallel_config

    engine, _, address = cluster.partition("://")
    if engine not in EXTRAS:
        raise ConfigError(
            f"collect.cluster is {cluster!r}, allowed: empty, {', '.join(EXTRAS)}, or one with ://ADDRESS"
        )
    try:
        start = {"dask": dask, "ray": ray}[engine]
        with start(address, count), parallel_config(engine):
            yield
    except ModuleNotFoundError as error:
        if error.name not in ("dask", "distributed", "ray"):
            raise
        raise ConfigError(
            f"collect.cluster is {cluster!r}, which needs {EXTRAS[engine]}: pip install 'retroformer[{engine}]'"
        ) from None


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


@contextmanager
def ray(address: str, count: int) -> Iterator[None]:
    """A connection to the cluster at `address`, or `count` processes here."""
    import ray  # pyright: ignore[reportMissingImports]
    from ray.util.joblib import register_ray  # pyright: ignore[reportMissingImports]

    where = {"address": "auto" if address == "auto" else f"ray://{address}"} if address else {"num_cpus": count}
    try:
        ray.init(**where, log_to_driver=False, include_dashboard=None if address else False)
    except (ConnectionError, RuntimeError) as error:
        raise ConfigError(f"collect.cluster: no Ray cluster answers at {address}: {error}") from None
    try:
        register_ray()
        yield
    finally:
        ray.shutdown()
