"""Pools of worker processes, which stay for the next call of the same command."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.util
import os
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from typing import Any

from retroformer import preloaded

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Workers share the cores among them; a model sets its own number."""
_kept: dict[int, ProcessPoolExecutor] = {}


def pool(count: int) -> Executor:
    """`count` worker processes: joblib's loky, or forks of this process where it was forked with its imports done.

    Raises concurrent.futures' BrokenExecutor (loky's own is one) from what was submitted where a worker dies; the
    next call gives a new pool.
    """
    if not preloaded.forked:
        from joblib.externals.loky import get_reusable_executor

        return _started(lambda: get_reusable_executor(max_workers=count, env=ONE_THREAD))
    if count in _kept:
        try:
            _kept[count].submit(os.getpid)
            return _kept[count]
        except (BrokenExecutor, RuntimeError):
            del _kept[count]
    context = multiprocessing.get_context("fork")
    made = _kept[count] = _started(lambda: ProcessPoolExecutor(count, context, initializer=_begin))
    # A fork's end waits for its own children, and those wait for work.
    multiprocessing.util.Finalize(None, end, args=(made,), exitpriority=10)
    return made


def _started(make: Callable[[], Any]) -> Any:
    """An executor with its workers started. An interrupt that comes meanwhile comes afterwards, and ends them."""
    made = None
    try:
        with preloaded.deaf():
            made = make()
            made.submit(os.getpid)  # the first starts all workers
    except BaseException:
        if made is not None:
            end(made)
        raise
    return made


def end(executor: Any) -> None:
    """End a pool's workers, whatever they are at."""
    if preloaded.forked:
        executor.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.kill()
    else:
        # Not by kill_workers, whose thread ends in a KeyError where jobs are waiting.
        for worker in list(executor._processes.values()):
            preloaded.end(worker.pid)
        executor.shutdown()


def _begin() -> None:
    """First in a fork: it ends with its parent, whose fork server is not its own."""
    preloaded.die_with_parent()
    multiprocessing.forkserver._forkserver.__init__()  # pyright: ignore
