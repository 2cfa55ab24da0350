from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import retroformer
from project import HERE, TASKS, episodes, run
from retroformer.config import PolicyConfig
from retroformer.errors import DataError, PinMismatch
from retroformer.pins import policy_hash, read_pins
from retroformer.tracking import mlflow_view, record

WORDS = ("go", "to", "the", "ball", "a", "wall", "left", "right")
SITUATION = {
    "description": "go to the ball",
    "history": [["a wall", "left"]],
    "observation": "a ball",
    "admissible_actions": ["left", "right"],
}


def publish(root: Path) -> str:
    pins = read_pins(root / "data/champion.json")
    challenger_hash = policy_hash("data/challenger", root)
    facts = record.build(root, pins, challenger_hash=challenger_hash, dataset_hash="d" * 64, model_version="")
    return mlflow_view.publish(root, facts)


@pytest.fixture(scope="module")
def registered(finished_round: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a real, tiny policy registered as its champion."""
    from retroformer.policies.checkpoints import build

    root = Path(shutil.copytree(finished_round, tmp_path_factory.mktemp("registered") / "project"))
    shutil.rmtree(root / "data/challenger")
    (root / "data/challenger").mkdir()
    build(PolicyConfig(model="", width=8, layers=1, heads=1), WORDS, seed=0).save(root / "data/challenger")
    version = publish(root)
    mlflow_view.client(root).set_registered_model_alias(mlflow_view.NAME, "champion", version)
    return root


def test_a_round_is_a_run_with_figures_params_dataset_and_reports(registered: Path) -> None:
    store = mlflow_view.client(registered)
    version = store.get_model_version_by_alias(mlflow_view.NAME, "champion")
    assert version.tags == {
        "round": "1",
        "verdict": "promote",
        "reason": "because 1",
        "challenger_hash": policy_hash("data/challenger", registered),
        "dataset_hash": "d" * 64,
    }
    run = store.get_run(version.run_id)
    figures = run.data.metrics
    assert (figures["challenger_success"], figures["train.updates"], figures["n"]) == (0.8, 2.0, 400.0)
    assert [(one.step, one.value) for one in store.get_metric_history(version.run_id, "curve.loss")] == [
        (1, 0.5),
        (2, 0.25),
    ]
    assert "curve.note" not in figures
    assert run.data.params["train.objective"] == "topr"
    assert run.data.params["tasks.held_out"].startswith("babyai:P7N3 ")
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.digest == "d" * 32
    assert {tag.key: tag.value for tag in data.tags}["dvc_md5"] == mlflow_view.dvc_md5(registered, "data/batches")
    assert {one.path for one in store.list_artifacts(version.run_id)} >= {"decision", "training", "evaluation"}


def test_publishing_again_finds_the_version(registered: Path) -> None:
    assert publish(registered) == publish(registered) == "1"


def load_and_ask(root: Path) -> None:
    mlflow_view.client(root)
    import mlflow

    from retroformer.policies.checkpoints import load

    served = mlflow.pyfunc.load_model(f"models:/{mlflow_view.NAME}@champion")
    (answer,) = served.predict([SITUATION])
    # The expected probabilities are those of the agent that acts step by step, not of the code that serves.
    from retroformer.policies.agent import Decision

    agent = load(root / "data/challenger").agent(1)
    first = Decision(0, 0, "go to the ball", "a wall", ("left",), 0.0)
    second = Decision(0, 1, "go to the ball", "a ball", ("left", "right"), 0.0)
    agent.act([first])
    (choice,) = agent.act([second])
    assert list(answer["probabilities"]) == ["left", "right"]
    assert list(answer["probabilities"].values()) == pytest.approx(choice.probabilities, rel=1e-4)
    assert answer["action"] == max(answer["probabilities"], key=answer["probabilities"].get)


def test_the_champion_is_served_with_the_probabilities_that_it_acts_by(registered: Path) -> None:
    load_and_ask(registered)


@pytest.mark.long
def test_a_version_brings_the_package_and_asks_an_index_only_for_others(registered: Path, tmp_path: Path) -> None:
    mlflow_view.client(registered)
    import mlflow

    model = Path(mlflow.artifacts.download_artifacts(f"models:/{mlflow_view.NAME}@champion", dst_path=str(tmp_path)))
    asked = [Requirement(line) for line in (model / "requirements.txt").read_text().splitlines()]
    assert {one.name for one in asked} == set(mlflow_view.SERVING)
    assert all(one.specifier.contains(version(one.name)) for one in asked)
    assert not any("+" in str(one) for one in asked)
    # In a process that has no other copy of the package: the installed one is shut out.
    program = f"""
import json, sys
sys.path = [one for one in sys.path if one != {str(HERE / "src")!r}]
import mlflow
served = mlflow.pyfunc.load_model({str(model)!r})
import retroformer
print(json.dumps([retroformer.__file__, served.predict([{SITUATION!r}])[0]["action"]]))
"""
    told = run(tmp_path, sys.executable, "-c", program).splitlines()[-1]
    source, action = json.loads(told)
    assert Path(source).is_relative_to(model / "code")
    assert action in ("left", "right")


def test_the_champion_acts_in_an_application_and_records_its_version(
    registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By alias and by version, from the project's own store and from one that the environment names."""
    import mlflow

    hash = policy_hash("data/challenger", registered)
    below = registered / "data"
    monkeypatch.chdir(below)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    agent = retroformer.load_agent("models:/retroformer@champion", record=tmp_path / "runs")
    assert agent.version == hash[:16]
    assert not mlflow.is_tracking_uri_set(), "the application's own MLflow is left alone"
    with agent.episode("go to the ball") as episode:
        assert episode.act("a wall", ["left", "right"]) in ("left", "right")
    (log,) = (tmp_path / "runs").iterdir()
    assert json.loads(log.read_text().splitlines()[0])["policy"] == hash[:16]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registered / 'mlruns/mlflow.db'}")
    assert retroformer.load_agent("models:/retroformer/1").version == hash[:16]
    with pytest.raises(DataError, match="models:/retroformer@challengr cannot be had from sqlite"):
        retroformer.load_agent("models:/retroformer@challengr")
    with pytest.raises(DataError, match="models:/other/1 cannot be had from"):
        retroformer.load_agent("models:/other/1")
    stored = next(registered.glob("mlruns/artifacts/**/challenger/config.json"))
    sound = stored.read_text()
    stored.write_text(sound + " ")
    try:
        with pytest.raises(PinMismatch, match=f"is version 1 with hash {hash[:16]}, its checkpoint has"):
            retroformer.load_agent("models:/retroformer@champion")
    finally:
        stored.write_text(sound)


def test_a_moved_project_finds_its_models(registered: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(registered, tmp_path / "else where"))
    hidden = registered.rename(registered.with_name("gone"))
    try:
        load_and_ask(moved)
        assert publish(moved) == "1"
    finally:
        hidden.rename(registered)


def test_another_store_by_its_uri_alone(
    finished_round: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.db"
    shutil.copy(finished_round / "mlruns/mlflow.db", other)
    with closing(sqlite3.connect(other)) as store, store:
        store.execute("DELETE FROM experiments WHERE name = ?", (mlflow_view.NAME,))
    own = (project / "mlruns/mlflow.db").read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    assert publish(project) == "1"
    assert [str(one.version) for one in mlflow_view.versions(mlflow_view.client(project))] == ["1"]
    assert (project / "mlruns/mlflow.db").read_bytes() == own
    assert list((project / "mlruns/artifacts").iterdir())
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert mlflow_view.versions(mlflow_view.client(project)) == []
    assert "MLFLOW_TRACKING_URI" not in os.environ, "a process that is started may stand in another project"


def test_the_behaviour_counts_only_tasks_that_ended(finished_round: Path) -> None:
    found = record.behaviour_of(finished_round, 0.95)
    assert {name: (one["success"], one["n"]) for name, one in found.items()} == {
        None: (0.5, 8),
        "A": (0.75, 4),
        "B": (0.25, 4),
    }
    assert len(episodes()) == 9
    assert set(TASKS) < set(found)


def test_figures_that_were_not_measured_are_empty(tmp_path: Path) -> None:
    row = dict.fromkeys(record.COLUMNS) | {"round": 1, "seconds": {}}
    record.write_rounds(tmp_path / "rounds.csv", [row])
    assert (tmp_path / "rounds.csv").read_text().splitlines()[1] == "1" + "," * (len(record.COLUMNS) - 1)


def test_numbers_leave_out_what_is_no_figure() -> None:
    value = {"a": 1, "b": {"c": 0.5, "d": "word", "e": None, "f": [1, 2], "g": float("nan")}, "h": True}
    assert dict(mlflow_view.numbers("x", value)) == {"x.a": 1.0, "x.b.c": 0.5, "x.h": 1.0}


def test_a_database_that_does_not_answer_is_told_at_once_and_without_its_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sqlalchemy

    def refuse(url: str) -> None:
        raise ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2")

    with monkeypatch.context() as changed:
        changed.setattr(sqlalchemy, "create_engine", refuse)
        changed.setenv("MLFLOW_TRACKING_URI", "postgresql://who:secret@127.0.0.1:1/mlflow")
        with pytest.raises(
            DataError, match=r"127\.0\.0\.1:1/mlflow, needs the module psycopg2: pip install it"
        ) as told:
            mlflow_view.client(tmp_path)
        assert "secret" not in str(told.value)
    with pytest.raises(DataError, match=r"postgresql://127\.0\.0\.1:port/mlflow, has no address") as told:
        mlflow_view.answers("postgresql://who:sec@ret@127.0.0.1:port/mlflow")
    assert "sec" not in str(told.value)
    said = "unsupported URI 'postgres://who:secret@host/db' for a registry"
    assert mlflow_view.without_password(said) == "unsupported URI 'postgres://host/db' for a registry"


@pytest.mark.slow
def test_a_wrong_port_of_postgresql_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://who:secret@127.0.0.1:1/mlflow")
    with pytest.raises(DataError, match=r"the registry, postgresql://127\.0\.0\.1:1/mlflow, did not"):
        mlflow_view.client(tmp_path)
