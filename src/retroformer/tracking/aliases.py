"""MLflow's registry, set from the files: a version for each closed round, and what its aliases stand for.

MLflow cannot compare an alias and set it in one step, so nothing is decided here: the pins are, under a lock, and the
aliases follow them. What disagrees is told by `disagreements` and mended by `reconcile`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retroformer.errors import DataError
from retroformer.pins import Pins
from retroformer.tracking.mlflow_view import (
    NAME,
    client,
    drop_broken,
    is_there,
    log_policy,
    numbers_of,
    place,
    without_password,
)
from retroformer.tracking.promotions import Promotion, read, standing
from retroformer.tracking.record import FIGURES
from retroformer.tracking.versions import Version, version_of, versions_of

REPAIR = "`retroformer models repair` sets the registry from the files"


@contextmanager
def reachable() -> Iterator[None]:
    """What MLflow or SQLite cannot do, as one sentence. Raises DataError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        # The database's own words, where SQLAlchemy puts some of its own before them.
        said = without_password(next((line for line in lines if "Error) " in line), lines[0]))
        if "locked" in said:
            said = "database is locked by another program; try again when that is done"
        raise DataError(f"the registry, {place()}, did not answer: {said}") from error


def wanted(pins: Pins, versions: Sequence[Version]) -> dict[str, str | None]:
    """Alias -> the version that it must stand for, None for nothing.

    `champion` is what is in production, and is not set where that is no version; `challenger` is the newest.
    """
    champion = version_of(pins.champion, versions)
    return {
        "champion": None if champion is None else champion.number,
        "challenger": versions[-1].number if versions else None,
    }


def held_by(store: Any) -> dict[str, str]:
    """Alias -> version, as the registry has them."""
    (model,) = store.search_registered_models(f"name = '{NAME}'") or (None,)
    return {} if model is None else {alias: str(version) for alias, version in model.aliases.items()}


def disagreements(root: Path, pins: Pins, records: Sequence[dict[str, Any]]) -> list[str]:
    """What the registry says otherwise than the files, one sentence each. Nothing is written."""
    versions = versions_of(records)
    if not versions:
        return []
    if not is_there(root):
        return [f"the registry, {place()}, is not here; {REPAIR}"]
    try:
        with reachable():
            store = client(root)
            held, known = held_by(store), numbers_of(store)
    except DataError as error:
        return [str(error)]
    told = []
    for version in versions:
        if (found := known.get(key_of(version.record))) != version.number:
            as_what = "is not in the registry" if found is None else f"is version {found} in the registry"
            told.append(f"version {version.number} {as_what}; {REPAIR}")
    for alias, version in wanted(pins, versions).items():
        if held.get(alias) != version:
            says = f"version {version}" if version else f"{pins.champion.policy}, which is no version"
            is_held = f"version {held[alias]}" if alias in held else "not set"
            told.append(f"the alias {alias} is {is_held}, data/champion.json says {says}; {REPAIR}")
    return told


def reconcile(
    root: Path, pins: Pins, records: Sequence[dict[str, Any]], decided: Promotion | None = None
) -> dict[str, str | None]:
    """Register versions that are missing, set the aliases to what the pins say, and tag who decided it: `decided`, or
    what is recorded.

    Returns the aliases that moved, and where to. Raises DataError where the registry does not answer, or counts its
    versions otherwise than the history does.
    """
    versions = versions_of(records)
    if not versions:
        return {}
    decided = decided or standing(read(root), pins.champion)
    with reachable():
        store = client(root)
        restore(root, store, versions)
        held = held_by(store)
        moved = {alias: version for alias, version in wanted(pins, versions).items() if held.get(alias) != version}
        for alias, version in moved.items():
            if version is None:
                store.delete_registered_model_alias(NAME, alias)
            else:
                store.set_registered_model_alias(NAME, alias, version)
        tags = {"in_production": pins.champion.uri or pins.champion.policy}
        tags |= {"decided_by": decided.by, "decided_because": decided.reason} if decided else {}
        for key, value in tags.items():
            store.set_registered_model_tag(NAME, key, value)
        champion = version_of(pins.champion, versions)
        if champion is not None and decided is not None and decided.action == "promote":
            for key, value in {"promoted_by": decided.by, "promoted_because": decided.reason}.items():
                store.set_model_version_tag(NAME, champion.number, key, value)
    return moved


def key_of(record: dict[str, Any]) -> tuple[str, str]:
    """What a version is known by, whatever its number: round and hash."""
    return str(record["round"]), record["challenger_hash"]


def restore(root: Path, store: Any, versions: Sequence[Version]) -> None:
    """Register from the history what the registry lacks, as in a clone, under the numbers that round.json has."""
    known = numbers_of(store)
    for version in versions:
        found = known.get(key_of(version.record))
        while found is None or int(found) < int(version.number):
            if found is not None:  # of a challenger that was registered and never closed: the number is used up
                store.delete_model_version(NAME, found)
            found = register_again(root, store, version)
        if found != version.number:
            raise DataError(
                f"{version.folder}/round.json says version {version.number}, the registry has it as {found}: "
                f"{place()} is not this history's; move it away, and {REPAIR}"
            )


def register_again(root: Path, store: Any, version: Version) -> str:
    """Log a closed round's policy and figures anew and register it. Returns the version's number."""
    import mlflow

    record, checkpoint = version.record, root / version.pin.policy
    if not checkpoint.is_dir():
        raise DataError(f"{version.pin.policy}, which is version {version.number}, does not exist; try `dvc pull`")
    tags = {key: str(record[key]) for key in ("round", "verdict", "challenger_hash", "dataset_hash")}
    experiment = store.get_experiment_by_name(NAME).experiment_id
    drop_broken(store, experiment, {key: tags[key] for key in ("round", "challenger_hash")})
    with mlflow.start_run(experiment_id=experiment, run_name=f"round-{record['round']}", tags=tags):
        mlflow.log_metrics({key: float(record[key]) for key in FIGURES if record[key] is not None})
        model = log_policy(checkpoint)
    made = mlflow.register_model(model, NAME, tags={**tags, "reason": record["reason"]})
    return str(made.version)
