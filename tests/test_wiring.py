"""dvc.yaml, params.yaml, the stage functions, the command line and the flow say the same."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from retroformer.cli import stages as cli
from retroformer.config import Config, Section
from retroformer.stages import STAGES

ROOT = Path(__file__).resolve().parents[1]
DVC: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
PARAMS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
SOURCE = ROOT / "src/retroformer"
WHERE_AND_HOW = ("config", "errors", "pools", "preloaded", "progress", "recovery")
DECIDES_NOTHING = {f"src/retroformer/{name}.py" for name in WHERE_AND_HOW}
"""The values of config.py are the params; errors and progress are what is shown; pools, preloaded and recovery are
where it is computed, and when that ends."""
INPUTS = {"data/champion.json", "data/history", "data/history/tombstones.jsonl", "data/logs"}
"""What crosses rounds, and logs from elsewhere; no stage makes it."""


def outs(stage: str) -> set[str]:
    return set(DVC["stages"][stage]["outs"])


def deps(stage: str, below: str) -> set[str]:
    return {path for path in DVC["stages"][stage]["deps"] if path.startswith(below)}


def paths(stage: str) -> dict[str, str]:
    """Path parameters of a stage function and their defaults."""
    function = cli.stage_function(stage)
    signature = inspect.signature(function).parameters
    return {name: signature[name].default.as_posix() for name, kind in cli.parameters(function).items() if kind is Path}


def test_the_stages_are_the_same_everywhere() -> None:
    assert tuple(DVC["stages"]) == STAGES
    assert [DVC["stages"][name]["cmd"] for name in STAGES] == [f"retroformer {name}" for name in STAGES]
    modules = {path.stem for path in (ROOT / "src/retroformer/stages").glob("*.py")} - {"__init__"}
    assert modules == set(STAGES)
    assert set(STAGES) <= set(PARAMS)


def test_every_parameter_is_a_field_and_the_reverse() -> None:
    fields = {field.alias or name: field for name, field in Config.model_fields.items()}
    assert set(PARAMS) == set(fields)
    for name, field in fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, Section):
            assert set(PARAMS[name]) == set(field.annotation.model_fields), name


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_knows_the_parameters_that_the_function_takes(stage: str) -> None:
    used = cli.used_sections(cli.stage_function(stage))
    assert {key.split(".")[0] for key in DVC["stages"][stage]["params"]} == set(used)
    for key in DVC["stages"][stage]["params"]:
        value: Any = PARAMS
        for part in key.split("."):
            value = value[part]


@pytest.mark.parametrize("stage", STAGES)
def test_what_the_function_writes_is_what_dvc_tracks(stage: str) -> None:
    defaults = set(paths(stage).values())
    made_before = {path for name in STAGES[: STAGES.index(stage)] for path in outs(name)}
    assert outs(stage) == defaults - made_before - INPUTS, "an output is a path that no stage before has made"


@pytest.mark.parametrize("stage", STAGES)
def test_what_the_function_reads_is_what_dvc_watches(stage: str) -> None:
    read = set(paths(stage).values()) - outs(stage)
    watched = deps(stage, "data/")
    for path in read:
        assert any(dep == path or dep.startswith(f"{path}/") for dep in watched), f"{stage} reads {path} unwatched"
    for dep in watched:
        assert any(dep == path or dep.startswith(f"{path}/") for path in read), f"{stage} watches {dep}, never reads it"


def imported(path: Path) -> set[Path]:
    """The package's own files that a module imports, anywhere in it."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "retroformer":
            base = SOURCE.parent.joinpath(*str(node.module).split("."))
            names = [base, *(base / alias.name for alias in node.names)]
            found |= {file for name in names for file in (name.with_suffix(".py"), name / "__init__.py")}
    return {file for file in found if file.is_file()} - {SOURCE / "__init__.py"}


@pytest.mark.parametrize("stage", STAGES)
def test_all_code_that_a_stage_imports_is_watched(stage: str) -> None:
    own = SOURCE / f"stages/{stage}.py"
    reached, ahead = {own}, [own]
    while ahead:
        new = imported(ahead.pop()) - reached
        reached |= new
        ahead += new
    names = {file if file == own else SOURCE / file.relative_to(SOURCE).parts[0] for file in reached}
    expected = {name.relative_to(ROOT).as_posix() for name in names} - DECIDES_NOTHING
    assert deps(stage, "src/") == expected
    assert DVC["stages"][stage]["deps"] == sorted(DVC["stages"][stage]["deps"])


def test_metrics_and_plots_lie_in_outputs() -> None:
    made = {path for stage in STAGES for path in outs(stage)}
    named = [*DVC["metrics"], *(name for entry in DVC["plots"] for name in entry)]
    assert all(str(Path(name).parent) in made for name in named)


def test_flags_are_unambiguous() -> None:
    for stage in STAGES:
        names = [flag.name for flag in cli.flags(cli.stage_function(stage))]
        assert len(names) == len(set(names)), stage


def test_the_flow_runs_each_stage_under_its_name() -> None:
    flow = (ROOT / "flows/improve.py").read_text(encoding="utf-8")
    assert 'task_run_name="{name}"' in flow
    assert "for name in STAGES" in flow


def test_schedules_name_flows_that_exist() -> None:
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]:
        path, function = deployment["entrypoint"].split(":")
        assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8")
