"""What is planted is not run: checkpoints, tables, parameters, MLflow's artifacts, and what a source must never do."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders import make_trajectory
from project import HERE
from retroformer import rounds
from retroformer.config import load_config
from retroformer.errors import ConfigError, DataError, PinMismatch, PolicyError
from retroformer.files import write_json
from retroformer.storage import read_trajectories, write_trajectories


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, where what is planted would leave the file PLANTED."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))


def planted() -> Path:
    return Path("PLANTED").absolute()


class Payload:
    """Makes the file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def code() -> str:
    return f"open({str(planted())!r}, 'w').close()\n"


def test_the_payload_does_what_these_tests_say_that_it_would() -> None:
    pickle.loads(pickle.dumps(Payload(planted()))).close()
    assert planted().is_file()
    planted().unlink()
    exec(code())
    assert planted().is_file()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the project's own. Do not touch it."""
    from tiny import tiny_policy

    folder = tmp_path_factory.mktemp("sound")
    tiny_policy().save(folder)
    return folder


@pytest.fixture
def checkpoint(sound: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(sound, "checkpoint"))


def edit(path: Path, **changes: Any) -> None:
    write_json(path, {**(json.loads(path.read_text()) if path.is_file() else {}), **changes})


def test_pickled_weights_are_not_read(checkpoint: Path) -> None:
    from retroformer.policies.checkpoints import load

    (checkpoint / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.safetensors.index.json", "training_args.bin"):
        (checkpoint / name).write_bytes(pickle.dumps(Payload(planted())))
        with pytest.raises(PolicyError, match="cannot load a language model from checkpoint"):
            load(checkpoint)
    assert not planted().exists()


@pytest.mark.parametrize("zipped", [False, True], ids=["pickle", "torch"])
def test_a_planted_state_of_training_is_thrown_away_unread(tmp_path: Path, zipped: bool) -> None:
    import torch

    from retroformer.training.trainer import Trainer

    state = tmp_path / "trainer.pt"
    if zipped:
        torch.save({"model": Payload(planted())}, state)
    else:
        state.write_bytes(pickle.dumps(Payload(planted()), protocol=2))
    trainer: Any = SimpleNamespace()  # nothing of it is asked for before the file has been read
    assert Trainer._resumed(trainer, state) is False
    assert not planted().exists()
    assert not state.exists()


@pytest.mark.parametrize("kind", ["llama", "unheard_of", "llama with a tokenizer of its own"])
def test_code_that_comes_with_a_model_is_not_run(checkpoint: Path, kind: str) -> None:
    from retroformer.policies.checkpoints import load

    (checkpoint / "evil.py").write_text(code())
    classes = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit(checkpoint / "config.json", auto_map=classes, model_type=kind.split()[0], architectures=["Model"])
    if kind != "llama":
        tokenizer = {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "T"}
        edit(checkpoint / "tokenizer_config.json", **tokenizer)
    with nullcontext() if kind == "llama" else pytest.raises(PolicyError, match="cannot load a language model from"):
        assert type(load(checkpoint).model).__module__.startswith("transformers.")
    assert not planted().exists()
    assert not (planted().parents[1] / "modules").exists(), "transformers has copied the code"


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for c in ().__class__.__base__.__subclasses__() %}{% if 'catch_warnings' in c.__name__ %}"
    "{{ c()._module.__builtins__['open']('PATH', 'w') }}{% endif %}{% endfor %}",
    "{{ cycler.__init__.__globals__.os.system('touch PATH') }}",
    "{{ self._TemplateReference__context.cycler.__init__.__globals__.os.popen('touch PATH').read() }}",
    "{{ messages.append(1) or raise_exception.__globals__['os'].system('touch PATH') }}",
    "{% include 'PATH' %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_chat_template_stays_in_its_sandbox(checkpoint: Path, template: str) -> None:
    from retroformer.policies.checkpoints import load

    (checkpoint / "retroformer.json").unlink()
    edit(checkpoint / "tokenizer_config.json", chat_template=template.replace("PATH", str(planted())))
    (checkpoint / "chat_template.jinja").write_text(template.replace("PATH", str(planted())))
    told = load(checkpoint).layout
    assert "{task}" in told.task
    assert "class" not in told.task + told.observation + told.action
    assert not planted().exists()


@pytest.mark.parametrize("value", ["{task.__class__}", "{task!r:>{task}}", "{0.__init__.__globals__}{task}", "{}", 7])
def test_a_layout_is_words_alone(checkpoint: Path, value: Any) -> None:
    from retroformer.policies.checkpoints import load

    layout = json.loads((checkpoint / "retroformer.json").read_text())["layout"]
    edit(checkpoint / "retroformer.json", layout={**layout, "task": value})
    with pytest.raises(PolicyError, match=r"retroformer.json: layout.task is .* expected text with \{task\} in it"):
        load(checkpoint)


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!python/object/apply:os.system ['touch PATH']",
        "seed: !!python/object/new:os.system ['touch PATH']",
        "!!python/object/apply:subprocess.Popen [['touch', PATH]]",
        "seed: !!python/name:os.system",
    ],
)
def test_parameters_are_values_alone(text: str) -> None:
    Path("params.yaml").write_text(text.replace("PATH", str(planted())))
    with pytest.raises(ConfigError, match=r"params\.yaml is not YAML: could not determine a constructor for the tag"):
        load_config()
    assert not planted().exists()


def test_a_table_is_values_alone() -> None:
    folder = Path("table")
    folder.mkdir()
    written = [make_trajectory((0.0, 1.0), seed=seed) for seed in range(3)]
    write_trajectories(folder, written)
    payload = pickle.dumps(Payload(planted()))
    for name in ("episodes", "steps"):
        path = folder / f"{name}.parquet"
        table = pq.read_table(path)
        of_schema = {b"pandas": payload, b"retroformer_schema": payload, b"__reduce__": payload}
        of_field = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": payload}
        fields = [field.with_metadata(of_field) for field in table.schema]
        pq.write_table(table.cast(pa.schema(fields, metadata=of_schema)), path)
    assert read_trajectories(folder) == sorted(written, key=lambda one: one.id)
    assert not planted().exists()


def test_the_ledger_of_an_import_is_numbers_alone() -> None:
    from retroformer.environments.splits import of_instance
    from retroformer.importers.conversation import Rules
    from retroformer.importers.importing import import_logs
    from retroformer.importers.outcomes import OutcomeRule

    log = Path("log.jsonl")
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    log.write_text(json.dumps({"messages": turns, "reward": 1.0}) + "\n")
    rules = Rules(OutcomeRule(reward="reward"), of_instance)
    import_logs([log], "openai-chat", Path("out"), rules)
    np.save("out/ledger.npy", np.array([Payload(planted())], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"out/ledger.npy is not the ledger of an import"):
        import_logs([log], "openai-chat", Path("out"), rules)
    assert not planted().exists()


NAMES = ("../../outside", "/tmp/outside", "..", "a/b", "a\\b", "a\x00b", "con", "~root", "$(touch outside)", "x" * 5000)


def test_names_in_data_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from retroformer.config import ValidateConfig
    from retroformer.stages.curate import curate
    from retroformer.stages.train import words_of
    from retroformer.stages.validate import validate
    from tiny_round import pin, tiny_config

    docs = SimpleNamespace(failures={"episodes": {}, "steps": {}}, expectations=[])
    # Great Expectations takes seconds; its pages have fixed names.
    monkeypatch.setattr("retroformer.quality.contract.check", lambda *_arguments: docs)
    Path("evil.py").write_text(code())
    hostile = []
    for seed, name in enumerate(NAMES):
        one = make_trajectory((0.0, 1.0), seed=seed)
        where = replace(one.task, environment="evil.Evil", name=name, family=name, split="train")
        hostile.append(replace(one, id=name, task=where, policy=name, source=name))
    Path("data/rollouts").mkdir(parents=True)
    write_trajectories(Path("data/rollouts"), hostile)
    write_json(Path("data/rollouts/collect.json"), {})
    pin(Path())
    before = {path for path in tmp_path.rglob("*") if Path("data").absolute() not in path.parents}
    config = tiny_config()
    validate(ValidateConfig(**{**config.validate_.model_dump(), "max_quarantined": 1.0}), out=Path("data/validated"))
    curate(config.curate, out=Path("data/batches"))
    words_of(hostile)
    assert (Path("data/validated/quarantine/reasons.csv").read_text()) == "trajectory_id,reason,detail\n"
    made = {path.relative_to("data").as_posix() for path in Path("data").rglob("*") if path.is_file()}
    assert made == {
        "champion.json",
        *(f"rollouts/{name}" for name in ("collect.json", "episodes.parquet", "steps.parquet")),
        *(f"validated/{name}" for name in ("validate.json", "episodes.parquet", "steps.parquet")),
        *(f"validated/quarantine/{name}" for name in ("reasons.csv", "episodes.parquet", "steps.parquet")),
        *(f"batches/{name}" for name in ("catalogue.csv", "curate.json", "episodes.parquet", "steps.parquet")),
    }
    assert {path for path in tmp_path.rglob("*") if Path("data").absolute() not in path.parents} == before
    assert not planted().exists()


def test_what_lies_in_the_registry_is_not_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing, status and the next round's stages read files with their hashes; no model is loaded from MLflow."""
    from retroformer.pins import read_pins, verify
    from retroformer.tracking import table

    rounds.close(project)
    payload = pickle.dumps(Payload(planted()))
    models = list((project / "mlruns").rglob("MLmodel"))
    assert models
    for model in models:
        for name in ("python_model.pkl", "model.pkl", "input_example.pkl", "served_policy.py", "sitecustomize.py"):
            (model.parent / name).write_bytes(code().encode() if name.endswith(".py") else payload)
        model.write_text(
            "flavors:\n  python_function:\n    loader_module: served_policy\n    python_model: python_model.pkl\n"
        )
    monkeypatch.chdir(project)
    rounds.close(project)
    table.show(project)
    pinned = read_pins(project / "data/champion.json").champion
    verify(pinned, project)
    (project / pinned.policy / "evil.py").write_text(code())
    with pytest.raises(PinMismatch, match="the policy or the pin was edited"):
        verify(pinned, project)
    assert not planted().exists()


# What no source of the package may do. Named where it may.

FORBIDDEN = {
    *("eval", "exec", "os.system", "os.popen", "runpy.run_path", "mlflow.pyfunc.load_model"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "pandas.read_pickle", "pd.read_pickle"),
    *("cloudpickle.load", "cloudpickle.loads", "marshal.loads", "dill.load", "shelve.open"),
    *("yaml.unsafe_load", "yaml.full_load", "tarfile.open", "shutil.unpack_archive"),
}
READS_ITS_OWN = {"training/windows.py": "pickle.load"}
"""What the same process wrote to a file without a name."""
REQUIRED = {"torch.load": ("weights_only", True), "AutoTokenizer.from_pretrained": ("trust_remote_code", False)}
REQUIRED |= {"AutoModelForCausalLM.from_pretrained": ("trust_remote_code", False)}
SOURCES = [*sorted((HERE / "src").rglob("*.py")), *sorted((HERE / "flows").glob("*.py"))]


def test_no_source_runs_what_it_reads() -> None:
    seen = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name, where = ast.unparse(node.func), f"{path.relative_to(HERE)}:{node.lineno}"
            options = {one.arg: one.value.value for one in node.keywords if isinstance(one.value, ast.Constant)}
            if name in FORBIDDEN:
                own = path.relative_to(HERE / "src/retroformer").as_posix() if "src" in path.parts else ""
                assert READS_ITS_OWN.get(own) == name, f"{where} calls {name}"
                seen.add(name)
            if name in REQUIRED:
                seen.add(name)
                option, value = REQUIRED[name]
                assert options.get(option) is value, f"{where}: {name} without {option}={value}"
            assert options.get("shell") is not True, f"{where} uses a shell"
            assert options.get("allow_pickle") is not True, f"{where} allows pickles"
            assert options.get("trust_remote_code") is not True, f"{where} runs remote code"
            if name == "yaml.load":
                loader = ast.unparse(node.args[1])
                assert loader == "OneOfEachKey" or "CSafeLoader" in loader, f"{where} loads YAML by {loader}"
        text = path.read_text(encoding="utf-8")
        assert "0.0.0.0" not in text, f"{path} binds a server to every interface"
    assert {"pickle.load", *REQUIRED} <= seen, "the names above are those of the sources"
