"""A registered version's checkpoint, for whoever acts with it; what MLflow has set for its process stays as it is."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retroformer.errors import DataError, PinMismatch
from retroformer.files import hash_directory
from retroformer.tracking.mlflow_view import ARTIFACTS, DATABASE, answers, follow_move, without_password

URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


@contextmanager
def checkpoint(uri: str) -> Iterator[Path]:
    """The folder of the checkpoint behind ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``, while the block lasts.

    The registry is the one that MLFLOW_TRACKING_URI (or ``mlflow.set_tracking_uri``) names, else that of the project
    which the working folder lies in. Raises DataError where it is not there, and PinMismatch where the checkpoint is
    not the one that a round registered.
    """
    match = URI.fullmatch(uri)
    if match is None:
        raise DataError(f"{uri} names no version, expected models:/NAME@ALIAS or models:/NAME/VERSION")
    for key, value in {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}.items():
        os.environ.setdefault(key, value)
    import mlflow
    from mlflow.exceptions import MlflowException

    stores = {"tracking_uri": mlflow.get_tracking_uri(), "registry_uri": mlflow.get_registry_uri()}
    for url in set(stores.values()):
        answers(url)
    if not mlflow.is_tracking_uri_set():
        stores = dict.fromkeys(stores, project_store())
    try:
        version = _version(mlflow.MlflowClient(**stores), match)
        with tempfile.TemporaryDirectory(prefix="retroformer-") as place:
            folder = _fetched(version, place, stores)
            registered = version.tags.get("challenger_hash")
            if registered and registered != (found := hash_directory(folder)):
                raise PinMismatch(
                    f"{uri} is version {version.version} with hash {registered[:16]}, its checkpoint has {found[:16]}: "
                    "it is damaged, or was changed after the round that registered it"
                )
            yield folder
    except MlflowException as error:
        told = without_password(str(error.message).splitlines()[0])
        raise DataError(f"{uri} cannot be had from {without_password(stores['registry_uri'])}: {told}") from None


def project_store() -> str:
    """The URI of the store of the project around the working folder. Raises DataError where there is none."""
    here = Path.cwd()
    for root in (here, *here.parents):
        if (root / DATABASE).is_file():
            follow_move((root / DATABASE).resolve(), (root / ARTIFACTS).resolve())
            return f"sqlite:///{(root / DATABASE).resolve()}"
    raise DataError(f"there is no {DATABASE} in {here} or above it; set MLFLOW_TRACKING_URI, or work in a project")


def _version(client: Any, match: re.Match[str]) -> Any:
    if match["alias"]:
        found = client.get_model_version_by_alias(match["name"], match["alias"])
    else:
        found = client.get_model_version(match["name"], match["version"])
    found.location = client.get_model_version_download_uri(found.name, found.version)
    return found


def _fetched(version: Any, place: str, stores: dict[str, str]) -> Path:
    """The checkpoint of a version, where it lies or downloaded to `place`."""
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model
    from mlflow.utils.uri import is_local_uri

    local = is_local_uri(version.location, is_tracking_or_registry_uri=False)
    model = download_artifacts(artifact_uri=version.location, dst_path=None if local else place, **stores)
    flavors = Model.load(model).flavors
    artifact = flavors.get("python_function", {}).get("artifacts", {}).get("checkpoint", {}).get("path")
    if artifact is None or not (Path(model) / artifact).is_dir():
        raise DataError(f"version {version.version} of {version.name} holds no checkpoint of this project")
    return Path(model) / artifact
