"""The parameters: one frozen section per stage, each value with its unit and range.

``params.yaml`` holds the values; nothing here has a hidden default that the file does not show.
The descriptions are what ``retroformer STAGE --help`` prints.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from retroformer.errors import ConfigError
from retroformer.types import label

Share = Annotated[float, Field(ge=0, le=1)]
EPISODES = 100_000
"""Most episodes of one split in a round: what its range of seeds holds, see environments/splits.py."""


class Section(BaseModel):
    """Base of the sections: frozen, and a key that is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def numbers_as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """``true`` is not 1, though Python says so, and a count is not written ``1.0``."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind in (int, float):
            raise ValueError("expected a number")
        if isinstance(value, float) and value.is_integer() and kind is int:
            raise ValueError(f"expected a whole number: {value:.0f}, without a decimal point")
        return value


class TasksConfig(Section):
    """What is played, and how it is told to the agent."""

    train: tuple[str, ...] = Field(min_length=1, description="tasks to learn, as package:task")
    held_out: tuple[str, ...] = Field(description="tasks that are evaluated and never trained on")
    text: Literal["compact", "plain"] = Field(description="compact words for a small model, plain English sentences")
    actions: Literal["token", "words"] = Field(description="one token an action (left), or words (turn left)")

    @model_validator(mode="after")
    def each_once(self) -> Self:
        """A task that is there twice would weigh twice; one that is trained on is not held out."""
        for key, names in (("train", self.train), ("held_out", self.held_out)):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"tasks.{key} has {name} {names.count(name)} times, expected once")
        if both := [name for name in self.held_out if name in self.train]:
            raise ValueError(f"tasks.held_out has {both[0]}, which tasks.train has too: held out is not trained on")
        called: dict[str, str] = {}
        for name in (*self.train, *self.held_out):
            package, _, task = name.partition(":")
            other = called.setdefault(label(package, task), name)
            if other != name:
                raise ValueError(f"{other} and {name} would be one task in every table; give one another name")
        return self


class CollectConfig(Section):
    """Play episodes and record them, or import logs."""

    source: Literal["play", "import"] = Field(description="play episodes, or import the logs that lie in data/logs")
    format: Literal["openai-chat", "atif", "mlflow", "otlp", "parquet", "recorded"] = Field(description="of the logs")
    outcome: str = Field(
        description="of a log, where it is: reward:FIELD, success:FIELD, assessment:NAME or package.module:function; "
        "empty looks for fields reward and success"
    )
    reward_range: tuple[float, ...] = Field(
        description="of a log: the smallest and the largest reward that is believed, [LOW, HIGH]; [] believes any"
    )
    redact: tuple[str, ...] = Field(description="what to blot out of logs: all, email, phone, card, api_key and others")
    episodes: int = Field(ge=1, le=EPISODES, description="episodes to play, spread evenly over the tasks")
    policy: Literal["champion", "train_from"] = Field(description="which pinned policy plays")
    temperature: float = Field(gt=0, le=10, description="sampling temperature")
    checkpoint_share: Share = Field(description="share of the episodes kept for checkpoint choice, never trained on")
    environments: int = Field(ge=1, le=4096, description="episodes that advance together in a worker")
    workers: int = Field(ge=0, le=1024, description="worker processes; 0 means one a core")
    cluster: str = Field(
        description="where workers run: empty for this machine, dask for an engine here, dask://HOST:PORT"
    )
    max_seconds: float = Field(gt=0, description="seconds an episode may take, acting included; beyond it is truncated")
    max_step_seconds: float = Field(gt=0, description="seconds of a reset or step; beyond it the environment is ended")
    retries: int = Field(ge=0, le=10, description="times that an episode which ended in error is tried again")
    max_new_tokens: int = Field(ge=1, le=1 << 20, description="most tokens of an action that the policy writes itself")
    max_errors: Share = Field(description="share of episodes (records of logs) that may fail before the stage stops")

    @field_validator("reward_range")
    @classmethod
    def two_rewards_or_none(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        """The smaller and the larger, or nothing."""
        if value and (len(value) != 2 or not value[0] <= value[1]):
            raise ValueError(f"got {list(value)}, expected [LOW, HIGH] or []")
        return value


class ValidateConfig(Section):
    """Check what was collected; quarantine what fails, with its reason."""

    max_quarantined: Share = Field(description="share of trajectories in quarantine above which the contract is broken")
    min_reward: float = Field(description="smallest reward of a step that is believed")
    max_reward: float = Field(description="largest reward of a step that is believed")
    max_steps: int = Field(ge=1, description="most steps that a trajectory may have")

    @model_validator(mode="after")
    def range_of_rewards(self) -> Self:
        """The range holds something."""
        if self.min_reward > self.max_reward:
            raise ValueError(
                f"validate.min_reward = {self.min_reward:g} is above validate.max_reward = {self.max_reward:g}"
            )
        return self


class CurateConfig(Section):
    """Score, rank and tier the history; say how often each trajectory is to be sampled."""

    window: int = Field(ge=1, description="rounds of history that are replayed, this one included")
    tiers: int = Field(ge=1, le=20, description="tiers of quality; the best is admitted first")
    temperature: float = Field(gt=0, description="sampling is in proportion to quality^(1/temperature)")
    success_weight: float = Field(ge=0, description="weight of success in the quality score")
    return_weight: float = Field(ge=0, description="weight of the return's rank within its task")
    length_weight: float = Field(ge=0, description="weight of being short within its task")


class PolicyConfig(Section):
    """The language model whose logits are the policy."""

    model: str = Field(description="local path or hub id of a causal language model; empty builds a small one")
    width: int = Field(ge=8, le=8192, description="width of the built model")
    layers: int = Field(ge=1, le=128, description="layers of the built model")
    heads: int = Field(ge=1, le=128, description="attention heads of the built model")
    lora_rank: int = Field(0, ge=0, le=1024, description="rank of the adapters that are trained; 0 trains all weights")


class TrainConfig(Section):
    """Policy gradient on replayed trajectories."""

    objective: Literal[
        "topr", "truncated", "symmetric", "asymmetric", "reward_weighted", "imitation", "imitation_of_successes"
    ] = Field(description="loss, see objectives/losses.py")
    baseline: Literal["none", "mean", "task", "leave_one_out", "value"] = Field(description="subtracted from returns")
    propensities: Literal["recorded", "estimated"] = Field(
        description="behaviour log-probabilities: as logged, or what the logs lack from an imitation of them"
    )
    baselines: tuple[Literal["imitation", "imitation_of_successes", "reward_weighted"], ...] = Field(
        description="objectives trained for comparison where training starts afresh; empty for none"
    )
    updates: int = Field(ge=1, description="gradient updates")
    batch: int = Field(ge=1, description="trajectories an update")
    learning_rate: float = Field(gt=0, le=1, description="peak of the schedule: warm-up, flat to half, down to a tenth")
    warmup: int = Field(ge=0, description="updates of linear warm-up")
    discount: float = Field(gt=0, le=1, description="per step")
    gae_lambda: float = Field(
        ge=0, le=1, description="with a learned value: 1 blames a step for all that follows, 0 for the next value alone"
    )
    margin: float = Field(
        ge=0,
        description="how far below the baseline an advantage of topr is counted from where training starts afresh, in "
        "units of a batch's root mean square advantage; 0 is plain TOPR, much is imitation",
    )
    entropy: float = Field(ge=0, description="coefficient of the entropy bonus, nats")
    value: float = Field(ge=0, description="coefficient of the value loss")
    observations: float = Field(
        ge=0, description="coefficient of predicting what the environment says next, nats a token; 0 does not look"
    )
    max_grad_norm: float = Field(gt=0, description="gradients are scaled down to this norm")
    curriculum: bool = Field(
        description="where training starts afresh, admit tiers on a measured signal; false samples uniformly"
    )
    condition_on_return: bool = Field(description="tell the policy the return it is to reach, in the prompt")
    checkpoints: int = Field(ge=1, description="how many candidates the choice is among")
    max_kl: float = Field(gt=0, description="KL to the behaviour, nats a step, above which training stops")
    min_ess: Share = Field(description="effective sample size over n below which training stops")

    @model_validator(mode="after")
    def each_baseline_once(self) -> Self:
        """One that is there twice would be trained twice, into the same folder."""
        for name in self.baselines:
            if self.baselines.count(name) > 1:
                raise ValueError(f"train.baselines has {name} {self.baselines.count(name)} times, expected once")
        return self


class EvaluateConfig(Section):
    """Play champion and challenger on the same held-out seeds."""

    first_look: int = Field(ge=2, le=EPISODES, description="episodes a policy before the first look at the difference")
    looks: int = Field(ge=1, le=20, description="looks at most; n doubles from one to the next")
    confidence: float = Field(gt=0.5, lt=1, description="confidence of every interval")
    final: int = Field(ge=2, le=EPISODES, description="episodes of the final figure, on seeds that no gate uses")
    transfer: int = Field(ge=2, le=EPISODES, description="episodes on the held-out tasks")

    @model_validator(mode="after")
    def last_look(self) -> Self:
        """The last look's episodes have seeds."""
        last = self.first_look * 2 ** (self.looks - 1)
        if last > EPISODES:
            raise ValueError(
                f"evaluate.first_look = {self.first_look} doubled over evaluate.looks = {self.looks} looks makes "
                f"{last} episodes, at most {EPISODES} allowed"
            )
        return self


class DecideConfig(Section):
    """Promote, keep, or not enough evidence."""

    min_improvement: float = Field(ge=0, le=1, description="the interval's lower end must be above this")
    max_regression: float = Field(ge=0, le=1, description="fall of one task that keeps the champion, if proven")
    max_swapped: Share = Field(description="success with the wrong mission, over that with the true one, allowed")


class Config(Section):
    """All of params.yaml."""

    seed: int = Field(ge=0, lt=100, description="of every random number in the round")
    tasks: TasksConfig
    policy: PolicyConfig
    collect: CollectConfig
    validate_: ValidateConfig = Field(alias="validate")
    curate: CurateConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    decide: DecideConfig


class OneOfEachKey(yaml.SafeLoader):
    """YAML in which a key that is there twice is an error, not the last of the two."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping; raises YAMLError that names the key and its line."""
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(problem=f"{name} is there twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def load_config(path: Path = Path("params.yaml"), overrides: dict[str, Any] | None = None) -> Config:
    """Read and check params.yaml. `overrides` maps ``section.key`` to a value.

    Raises ConfigError that names the file, the key, what was got and what is allowed.
    """
    path = Path(path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), OneOfEachKey)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; run from the project's root") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text in UTF-8: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold sections, got {type(values).__name__}")
    for key, value in (overrides or {}).items():
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ConfigError(f"{path}: {key} is not a parameter; {section} is not a section")
        target[last] = value
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(explain(path, item) for item in error.errors())) from None


def explain(path: Path, item: Any) -> str:
    """One sentence for one of pydantic's complaints, with the nearest known key for a misspelt one."""
    import difflib

    key = ".".join(str(part) for part in item["loc"])
    if item["type"] in ("extra_forbidden", "missing"):
        model: Any = Config
        for part in item["loc"][:-1]:
            known = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
            model = known.get(part, model)
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        last = str(item["loc"][-1])
        if item["type"] == "missing":
            meaning = fields[last].description
            return f"{path}: {key} is missing{f' ({meaning})' if meaning else ''}"
        near = difflib.get_close_matches(last, fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(fields)}"
        return f"{path}: {key} is not a parameter; {hint}"
    if item["type"] == "value_error" and isinstance(item["input"], dict):
        return f"{path}: {item['ctx']['error']}"  # between parameters, which it names
    return f"{path}: {key} = {item['input']!r}: {item['msg'][:1].lower()}{item['msg'][1:]}"
