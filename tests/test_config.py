from pathlib import Path

import pytest

from retroformer.config import load_config
from retroformer.errors import ConfigError

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"


def test_the_file_of_the_project_is_sound_and_frozen():
    config = load_config(PARAMS)
    assert config.validate_.max_steps > 0
    with pytest.raises(ValueError, match="frozen"):
        config.train.updates = 3


def test_an_override_replaces_one_value():
    config = load_config(PARAMS, {"train.updates": 7, "seed": 3})
    assert (config.train.updates, config.seed) == (7, 3)
    assert config.train.batch == load_config(PARAMS).train.batch


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.learning_rat", 0.1, r"train\.learning_rat is not a parameter; did you mean learning_rate\?"),
        ("trian", {}, r"trian is not a parameter; did you mean train\?"),
        ("validate.max_step", 3, r"validate\.max_step is not a parameter; did you mean max_steps\?"),
        ("decide.zzz", 1, r"decide\.zzz is not a parameter; known: min_improvement, max_regression, max_swapped"),
        ("train.learning_rate", 0, r"train\.learning_rate = 0: input should be greater than 0"),
        ("train.learning_rate", float("nan"), r"train\.learning_rate = nan: input should be"),
        ("collect.checkpoint_share", 1.5, r"collect\.checkpoint_share = 1\.5: .*less than or equal to 1"),
        ("train.updates", "many", r"train\.updates = 'many': .*valid integer"),
        ("train.updates", 2.5, r"train\.updates = 2\.5: .*valid integer"),
        ("train.objective", "tpor", r"train\.objective = 'tpor': .*'topr', .*or 'imitation_of_successes'"),
        ("tasks.train", [], r"tasks\.train = \[\]: .*at least 1 item"),
        ("seed", 100, r"seed = 100: .*less than 100"),
        ("train", 3, r"train = 3: .*TrainConfig"),
        ("seed.x", 3, r"seed\.x is not a parameter; seed is not a section"),
    ],
)
def test_a_bad_parameter_is_named_with_what_is_allowed(key, value, message):
    with pytest.raises(ConfigError, match=message):
        load_config(PARAMS, {key: value})


def test_a_missing_parameter_is_named(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text().replace("  updates: ", "  # updates: "))
    with pytest.raises(ConfigError, match=r"params\.yaml: train\.updates is missing"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("- a", "must hold sections, got list"),
        ("", "must hold sections, got NoneType"),
    ],
)
def test_a_file_that_is_no_parameters_is_named(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"params.yaml.*{message}"):
        load_config(path)


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; run from the project's root"):
        load_config(tmp_path / "params.yaml")


def test_every_parameter_is_described():
    for name, field in type(load_config(PARAMS)).model_fields.items():
        for key, one in getattr(field.annotation, "model_fields", {name: field}).items():
            assert one.description, f"{name}.{key}"
