"""MLflow as a view of the files: each closed round is a run, each challenger a version of the registered model.

Everything here is read from files and can be made again from them; no stage needs it. The store is SQLite under
``mlruns/`` and no server runs, unless MLFLOW_TRACKING_URI names another store.
"""

from __future__ import annotations

import csv
import logging
import math
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import yaml

from retroformer.errors import DataError
from retroformer.files import read_json
from retroformer.storage import EPISODES, read_table
from retroformer.tracking.record import FIGURES

NAME = "retroformer"
"""Of the experiment and of the registered model."""
DATABASE = Path("mlruns/mlflow.db")
ARTIFACTS = Path("mlruns/artifacts")
DATABASES = ("sqlite:", "postgresql", "mysql", "mssql")
REPORTS = (
    "rollouts/collect.json",
    "validated/validate.json",
    "batches/curate.json",
    "training/train.json",
    "evaluation/evaluation.json",
    "decision/verdict.json",
)
FILES = (*REPORTS, "training/curve.csv", "training/schedule.csv", "decision/report.html")

SERVING = (
    "mlflow",
    "numpy",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
"""What served_policy.py needs, with all that it imports of this package."""


def uri(version: str) -> str:
    """How the registry names a version."""
    return f"models:/{NAME}/{version}"


def elsewhere() -> str:
    """The store that MLFLOW_TRACKING_URI names, empty for the one below the project."""
    return os.environ.get("MLFLOW_TRACKING_URI", "")


def is_there(root: Path) -> bool:
    """Whether there is a store already; that of another place is taken at its word."""
    return bool(elsewhere()) or (root / DATABASE).is_file()


def place(url: str = "") -> str:
    """A store's name for people, by default this one's: without the password that a URI may hold."""
    return without_password(url or elsewhere()) or str(DATABASE)


def without_password(text: str) -> str:
    """A URI, or what was said of one, without who asks and with which password."""
    return re.sub(r"(?<=://)\S*@", "", text)


def answers(url: str) -> None:
    """Connect once, if it is a database's: MLflow tries for two minutes, in silence, also where the password is wrong.

    Raises DataError.
    """
    if not url.startswith(DATABASES[1:]):
        return
    import sqlalchemy.exc

    try:
        engine = sqlalchemy.create_engine(url)
    except ModuleNotFoundError as error:
        raise DataError(f"the registry, {place(url)}, needs the module {error.name}: pip install it") from None
    except (ValueError, sqlalchemy.exc.ArgumentError):  # their words may have a part of the password
        raise DataError(
            f"the registry, {place(url)}, has no address that can be read; in a password, @ is written %40, "
            "and other special characters likewise"
        ) from None
    try:
        engine.connect().close()
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise DataError(f"the registry, {place(url)}, did not answer: {str(error).splitlines()[0]}") from None
    finally:
        engine.dispose()


def client(root: Path) -> Any:
    """A client of the store, which is made below `root` if it is not there, or of the one MLFLOW_TRACKING_URI names.

    The registry is in the same store, or where MLFLOW_REGISTRY_URI says. A server keeps artifacts where it was told to;
    of a database they are below `root`.
    """
    # Read when mlflow is imported: no telemetry, no look-ups at a hub, no progress bars among our own.
    for key, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",  # half a minute of attempts; by default, four minutes
    }.items():
        os.environ.setdefault(key, value)
    url = elsewhere()
    answers(url)
    database, artifacts = (root / DATABASE).resolve(), (root / ARTIFACTS).resolve()
    served = "://" in url and not url.startswith(DATABASES)
    if not served:
        artifacts.mkdir(parents=True, exist_ok=True)
    if not url and database.is_file():
        follow_move(database, artifacts)

    import mlflow

    for name in ("mlflow", "alembic"):  # their news about tables and versions is not the user's
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints what it also raises
    if not url and not database.is_file():
        make_store(database)
    # MLflow puts what it is told into the environment, for processes that it starts; they may stand in other projects.
    asked = {key: os.environ.get(key) for key in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    mlflow.set_tracking_uri(url or f"sqlite:///{database}")
    mlflow.set_registry_uri(asked["MLFLOW_REGISTRY_URI"] or url or f"sqlite:///{database}")
    for key, value in asked.items():
        os.environ.pop(key, None)
        os.environ.update({} if value is None else {key: value})
    found = mlflow.MlflowClient()
    if found.get_experiment_by_name(NAME) is None:
        found.create_experiment(NAME, artifact_location=None if served else str(artifacts))
    return found


def make_store(database: Path) -> None:
    """Let MLflow make its tables under another name: killed among its migrations, it could never finish them."""
    import mlflow

    new = database.with_name(f".{database.name}.new")
    for left in database.parent.glob(f"{new.name}*"):
        left.unlink()
    mlflow.MlflowClient(f"sqlite:///{new}", f"sqlite:///{new}").search_registered_models()
    os.replace(new, database)


def follow_move(database: Path, artifacts: Path) -> None:
    """MLflow stores where artifacts lie as absolute paths; where the project was moved or copied, rewrite them."""
    places = {
        "experiments": "artifact_location",
        "runs": "artifact_uri",
        "logged_models": "artifact_location",
        "model_versions": "storage_location",
    }
    with closing(sqlite3.connect(database)) as store:
        try:
            row = store.execute("SELECT artifact_location FROM experiments WHERE name = ?", (NAME,)).fetchone()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise
            return  # no tables yet
        if row is None or row[0] == str(artifacts):
            return
        with store:
            for table, column in places.items():
                store.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (str(artifacts), len(row[0]) + 1, len(row[0]), row[0]),
                )


def publish(root: Path, facts: dict[str, Any], about: dict[str, str] | None = None) -> str:
    """Log the round as a run and register its challenger, once: a version with this round and hash is found again.

    `about` are tags that do not identify the version, such as the commit. Returns the version's number.
    """
    store = client(root)
    import mlflow

    tags = {key: str(facts[key]) for key in ("round", "verdict", "challenger_hash", "dataset_hash")}
    identity = {key: tags[key] for key in ("round", "challenger_hash")}
    if found := numbers_of(store).get((identity["round"], identity["challenger_hash"])):
        return found
    tags |= about or {}
    experiment = store.get_experiment_by_name(NAME).experiment_id
    drop_broken(store, experiment, identity)
    with mlflow.start_run(experiment_id=experiment, run_name=f"round-{facts['round']}", tags=tags) as run:
        log_dataset(root, facts)
        store.log_batch(run.info.run_id, metrics=list(metrics(root, facts)), params=list(params(root)))
        for name in FILES:
            if (root / "data" / name).is_file():
                store.log_artifact(run.info.run_id, str(root / "data" / name), str(Path(name).parent))
        model = log_policy(root / "data/challenger")
    registered = mlflow.register_model(model, NAME, tags={**tags, "reason": facts["reason"]})
    return str(registered.version)


def versions(store: Any) -> list[Any]:
    """All versions of the registered model, none if it does not exist."""
    return list(store.search_model_versions(f"name = '{NAME}'"))


def numbers_of(store: Any) -> dict[tuple[str, str], str]:
    """(round, hash of the policy) -> number of its version."""
    return {
        (one.tags.get("round", ""), one.tags.get("challenger_hash", "")): str(one.version) for one in versions(store)
    }


def drop_broken(store: Any, experiment: str, identity: dict[str, str]) -> None:
    """Delete the runs that were killed before their version was registered."""
    words = " and ".join(f"tags.{key} = '{value}'" for key, value in identity.items())
    for broken in store.search_runs([experiment], words):
        store.delete_run(broken.info.run_id)


def log_policy(checkpoint: Path) -> str:
    """Log a checkpoint as a model that chooses actions; its URI."""
    import mlflow

    info = mlflow.pyfunc.log_model(
        name="policy",
        python_model=str(Path(__file__).with_name("served_policy.py")),
        artifacts={"checkpoint": str(checkpoint.resolve())},
        # This package itself travels with the model: its name on an index need not be this project.
        code_paths=[str(Path(__file__).parents[1])],
        pip_requirements=[f"{name}=={release(name)}" for name in SERVING],
    )
    return info.model_uri


def release(package: str) -> str:
    """The installed version as an index knows it, without what was built locally (``+cpu``)."""
    return version_of(package).partition("+")[0]


def log_dataset(root: Path, facts: dict[str, Any]) -> None:
    """Log what was trained on as the run's input: its digest, and the hash by which DVC brings it back."""
    import mlflow
    from mlflow.data.pandas_dataset import from_pandas

    path = root / "data/batches/episodes.parquet"
    frame = read_table(path, EPISODES).select(["trajectory_id", "task", "outcome", "total_reward"]).to_pandas()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a path is a local path
        data = from_pandas(frame, source=str(path), name="batches", digest=facts["dataset_hash"][:32])
    mlflow.log_input(data, context="training", tags={"dvc_md5": dvc_md5(root, "data/batches")})


def dvc_md5(root: Path, out: str) -> str:
    """The hash under which dvc.lock records an output."""
    lock = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))
    for stage in lock["stages"].values():
        for entry in stage.get("outs", ()):
            if entry["path"] == out:
                return entry["md5"]
    raise DataError(f"dvc.lock does not know {out}; run `dvc repro`")


def metrics(root: Path, facts: dict[str, Any]) -> Iterator[Any]:
    """The round's figures, the numbers of its reports as `stage.key`, and the learning curve by update."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    for key in FIGURES:
        if facts[key] is not None:
            yield Metric(key, float(facts[key]), now, 0)
    for stage, seconds in facts["seconds"].items():
        yield Metric(f"seconds.{stage}", seconds, now, 0)
    for name in REPORTS:
        if (root / "data" / name).is_file():
            for key, value in numbers(Path(name).stem, read_json(root / "data" / name)):
                yield Metric(key, value, now, 0)
    curve = root / "data/training/curve.csv"
    if curve.is_file():
        with curve.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for key, text in row.items():
                    value = number(text)
                    if key != "update" and value is not None:
                        yield Metric(f"curve.{key}", value, now, int(float(row["update"])))


def number(text: str | None) -> float | None:
    """A finite number, or None for anything else that a table may hold."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def numbers(prefix: str, value: Any) -> Iterator[tuple[str, float]]:
    """The finite numbers in nested dicts, under dotted names; lists are tables and left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(f"{prefix}.{key}", inner)
    elif isinstance(value, (int, float)) and math.isfinite(value):
        yield prefix, float(value)


def params(root: Path) -> Iterator[Any]:
    """params.yaml under dotted names."""
    from mlflow.entities import Param

    def flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from flat(f"{prefix}.{key}" if prefix else key, inner)
        else:
            yield prefix, " ".join(map(str, value)) if isinstance(value, list) else str(value)

    values = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    return (Param(key, value) for key, value in flat("", values))
