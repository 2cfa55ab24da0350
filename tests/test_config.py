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
        ("seed", True, r"seed = True: value error, expected a number"),
        ("train.batch", True, r"train\.batch = True: .*expected a number"),
        ("seed", 1.0, r"seed = 1\.0: .*expected a whole number: 1, without a decimal point"),
        ("train.updates", 7.0, r"train\.updates = 7\.0: .*expected a whole number: 7, without a decimal point"),
        ("train.baselines", ["imitation"] * 2, r"train\.baselines has imitation 2 times, expected once"),
        ("train.baselines", ["imitate"], r"train\.baselines\.0 = 'imitate': .*'imitation', .* or 'reward_weighted'"),
        ("decide.min_improvement", False, r"decide\.min_improvement = False: .*expected a number"),
        ("tasks.train", ["babyai:P5N2", "babyai:P5N2"], r"tasks\.train has babyai:P5N2 2 times, expected once"),
        ("tasks.held_out", ["babyai:P7N3"] * 3, r"tasks\.held_out has babyai:P7N3 3 times, expected once"),
        ("tasks.held_out", ["babyai:P6N3"], r"tasks\.held_out has babyai:P6N3, which tasks\.train has too"),
        (
            "tasks.held_out",
            ["mine:P6N3"],
            r"babyai:P6N3 and mine:P6N3 would be one task in every table; give one another name",
        ),
        ("validate.min_reward", 2, r"validate\.min_reward = 2 is above validate\.max_reward = 1"),
        ("collect.episodes", 100_001, r"collect\.episodes = 100001: .*less than or equal to 100000"),
        ("evaluate.first_look", 100_001, r"evaluate\.first_look = 100001: .*less than or equal to 100000"),
        ("evaluate.final", 100_001, r"evaluate\.final = 100001: .*less than or equal to 100000"),
        ("evaluate.transfer", 100_001, r"evaluate\.transfer = 100001: .*less than or equal to 100000"),
        (
            "evaluate.looks",
            9,
            r"evaluate\.first_look = 512 doubled over evaluate\.looks = 9 looks makes 131072 episodes, at most 100000",
        ),
        ("seed.x", 3, r"seed\.x is not a parameter; seed is not a section"),
    ],
)
def test_a_bad_parameter_is_named_with_what_is_allowed(key, value, message):
    with pytest.raises(ConfigError, match=message):
        load_config(PARAMS, {key: value})


def test_a_missing_parameter_is_named(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text().replace("  updates: ", "  # updates: "))
    with pytest.raises(ConfigError, match=r"params\.yaml: train\.updates is missing \(gradient updates\)"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("- a", "must hold sections, got list"),
        ("", "must hold sections, got NoneType"),
        ("seed: 0\nseed: 1", "is not YAML: seed is there twice .* line 2"),
        ("train: {batch: 1, batch: 2}", "is not YAML: batch is there twice"),
        ("[a]: 1", "is not YAML: .*unhashable key"),
    ],
)
def test_a_file_that_is_no_parameters_is_named(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"params.yaml.*{message}"):
        load_config(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=f"{tmp_path} cannot be read as text in UTF-8: .*directory"):
        load_config(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_bytes(b"seed: \xff")
    with pytest.raises(ConfigError, match=r"params\.yaml cannot be read as text in UTF-8: .*0xff"):
        load_config(path)


def test_the_largest_counts_have_seeds():
    large = {"collect.episodes": 100_000, "evaluate.first_look": 50_000, "evaluate.looks": 2}
    assert load_config(PARAMS, large).evaluate.looks == 2


def test_classes_without_tasks_are_told_apart():
    names = ["mine.Parrot:default", "mine.Ladder:default"]
    assert load_config(PARAMS, {"tasks.train": names}).tasks.train == tuple(names)


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; run from the project's root"):
        load_config(tmp_path / "params.yaml")


def test_every_parameter_is_described():
    for name, field in type(load_config(PARAMS)).model_fields.items():
        for key, one in getattr(field.annotation, "model_fields", {name: field}).items():
            assert one.description, f"{name}.{key}"
