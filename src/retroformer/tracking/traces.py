"""Traces of agents in an MLflow store, read page by page; importers/mlflow_traces.py says what they mean."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from retroformer.errors import DataError
from retroformer.tracking.mlflow_view import place

PAGE = 100


def read_traces(uri: str, experiments: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every trace of the named experiments (of all, where none is named) with its place, the oldest first.

    Traces are logged in the background: a process that traces calls ``mlflow.flush_trace_async_logging()`` before its
    traces are read. Raises DataError where the store or an experiment is not there.
    """
    for key, value in {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}.items():
        os.environ.setdefault(key, value)
    if uri.startswith("sqlite:///") and not os.path.isfile(uri.removeprefix("sqlite:///")):
        # MLflow would make an empty one.
        raise DataError(f"{uri} does not exist; expected the store that the agent's traces were logged to")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=uri)
        known = {one.name: one.experiment_id for one in client.search_experiments()}
        if unknown := [name for name in experiments if name not in known]:
            raise DataError(f"{uri} has no experiment {unknown[0]!r}; it has {', '.join(sorted(known))}")
        ids = [known[name] for name in experiments or sorted(known)]
        token = None
        while True:
            page = client.search_traces(
                locations=ids, max_results=PAGE, order_by=["timestamp_ms ASC"], page_token=token, include_spans=True
            )
            for trace in page:
                yield f"{place(uri)}:{trace.info.trace_id}", trace.to_dict()
            token = page.token
            if not token:
                return
    except MlflowException as error:
        raise DataError(f"{uri} cannot be read as a store of traces: {error}") from None
