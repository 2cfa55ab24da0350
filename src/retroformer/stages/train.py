"""Policy gradient on replayed trajectories."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retroformer.config import PolicyConfig, TrainConfig
from retroformer.errors import ConfigError, DataError, EnvironmentFault, TrainingStopped
from retroformer.files import check_replaceable, read_json, replacing, resume_folder, write_json
from retroformer.pins import Pin, read_pins, verify
from retroformer.progress import progress
from retroformer.storage import STEPS, count_trajectories, stream_table, stream_trajectories
from retroformer.types import Trajectory

if TYPE_CHECKING:
    from retroformer.training.trainer import Trainer

VALUE_HEAD = "value_head.safetensors"
BASELINES = "baselines"
"""Below the folder of the training's reports: a checkpoint for each."""
SIZES = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
"""What params.yaml and what a model's config.json call them."""
FITTED = "imitation"
"""The baseline that stands in for the behaviour where its log-probabilities are estimated."""


def train(
    config: TrainConfig,
    policy: PolicyConfig,
    seed: int,
    *,
    batches: Path = Path("data/batches"),
    champion: Path = Path("data/champion.json"),
    out: Path = Path("data/challenger"),
    training: Path = Path("data/training"),
) -> dict[str, Any]:
    """Train the challenger on replayed trajectories, from the candidate that champion.json pins or afresh.

    REINFORCE with the log-probabilities recomputed under the current policy; `objective` says how good and bad
    actions are weighted. The best of several checkpoints on logs kept aside is what remains. A run that was killed
    goes on where it was, to the same weights.

    Where training starts afresh, the `baselines` are trained as well, from the same start on the same data for as many
    updates: what the challenger has to be compared with. They run in worker processes beside it.

    Where the logs lack behaviour log-probabilities and `propensities` says that these are to be estimated, imitation
    of everything is trained first and stands in for the behaviour. Whatever rests on that says so.

    Returns what the training ended with. Raises DataError where the logs lack what the objective needs,
    TrainingStopped where a threshold was passed before the first checkpoint.
    """
    pins = read_pins(champion)
    root = champion.parent.parent
    start = pins.start
    if start is not None:
        verify(start, root)
    for folder in (out, training):
        check_replaceable(folder)
    resume = resume_folder("train", [batches, champion], [config, policy, seed], root)

    from safetensors.torch import save_file

    from retroformer.policies.devices import kind_of_machine
    from retroformer.training.beside import Beside

    names = config.baselines if start is None else ()
    estimates = config.propensities == "estimated" and silent(batches)
    if estimates and FITTED not in names:
        names = (FITTED, *names)
    work = partial(train_baseline, config, policy, seed, batches, champion)
    # A model of the user's own may be too large to be in memory twice: then one after the other.
    workers = 1 if policy.model else os.cpu_count() or 1
    if estimates:
        with Beside(work, [resume / FITTED], 1, config.updates) as first:
            [fit] = first.results("fit the behaviour")
        if fit["chosen_update"] is None:
            raise TrainingStopped(f"the imitation that was to stand in for the behaviour: {fit['stopped']}")
    fitted = resume / FITTED / "policy" if estimates else None
    with Beside(work, [resume / name for name in names], workers, config.updates) as others:
        found = others.results("train baselines") if policy.model else []
        with progress("lay out", count_trajectories(batches), "trajectories") as shown:
            trainer = prepare(config, policy, seed, batches, champion, resume, shown.advance, fitted)
        with progress("train", config.updates, "updates") as shown:
            trainer.run(resume, shown.advance)
        found = found or others.results("train baselines")
    baselines = dict(zip(names, found, strict=True))
    assert trainer.best is not None
    last = trainer.curve[-1]
    model, replay = trainer.policy.model, trainer.replay
    report = {
        "round": pins.round,
        "objective": config.objective,
        "baseline": config.baseline,
        "condition_on_return": config.condition_on_return,
        "start": described(start, policy),
        "layout": {name: getattr(trainer.policy.layout, name) for name in ("task", "observation", "action")},
        "propensities": config.propensities,
        "assumptions": assumed(replay.estimated),
        "updates": trainer.done,
        "trajectories": len(replay.counts),
        "steps": int(replay.counts.sum()),
        "tokens": sum(replay.windows.lengths),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "learning_rate": config.learning_rate,
        "checkpoints": trainer.checkpoints,
        "chosen_update": trainer.best["update"],
        "stopped": trainer.stopped,
        "baselines": baselines,
        "diagnostics": {name: last[name] for name in ("kl", "ess", "clipped", "entropy", "grad_norm", "agreement")},
        **asdict(trainer.choice),
        "machine": kind_of_machine(),
        "scoring": trainer.policy.method,
        # How a batch was cut decides its last bits; where none was, what was free must not make reports differ.
        "batch_bytes": trainer.memory.budget if trainer.most_parts > 1 else None,
        "checkpointing": trainer.checkpointing,
    }
    with replacing(training) as folder:
        write_rows(folder / "curve.csv", trainer.curve)
        write_rows(folder / "schedule.csv", trainer.pacing.schedule)
        write_json(folder / "train.json", report)
        for name in names:
            if (resume / name / "policy").is_dir():
                shutil.copytree(resume / name / "policy", folder / BASELINES / name)
    with replacing(out) as folder:
        trainer.policy.save(folder)
        save_file(trainer.value_head.state_dict(), folder / VALUE_HEAD)
    shutil.rmtree(resume, ignore_errors=True)
    told = {"assumed": "; ".join(report["assumptions"])} if report["assumptions"] else {}
    return {"updates": trainer.done, "chosen_update": trainer.best["update"], **report["diagnostics"], **told}


def prepare(
    config: TrainConfig,
    policy: PolicyConfig,
    seed: int,
    batches: Path,
    champion: Path,
    folder: Path,
    laid_out: Callable[[int], None] = lambda count: None,
    fitted: Path | None = None,
) -> Trainer:
    """The trainer at its start: policy built or loaded, data laid out in `folder`, threads set.

    `fitted`: a policy that stands in for the behaviour where the log lacks its log-probabilities.
    """
    import torch
    from safetensors.torch import load_file

    from retroformer.curriculum.catalogue import read_catalogue
    from retroformer.policies.adapters import adapt
    from retroformer.policies.checkpoints import build, load
    from retroformer.policies.devices import choose
    from retroformer.policies.layout import Layout
    from retroformer.training.replay import Replay
    from retroformer.training.trainer import Trainer, new_value_head

    pins = read_pins(champion)
    root, start = champion.parent.parent, pins.start
    if not count_trajectories(batches):
        raise DataError(f"{batches} holds no trajectory to learn from; see {batches}/curate.json")
    torch.manual_seed(seed)
    if start is not None:
        model = load(root / start.policy)
    elif policy.model:
        model = load(policy.model, condition_on_return=config.condition_on_return)
    else:
        words, ended, phrases = words_of(stream_trajectories(batches))
        layout = Layout.words(ended=ended, condition_on_return=config.condition_on_return)
        model = build(policy, words, seed=seed, layout=layout, phrases=phrases)
    width = model.model.config.hidden_size
    if start is not None and not policy.model:
        for name, key in SIZES.items():
            size = getattr(model.model.config, key, None)
            if size is not None and size != getattr(policy, name):
                raise ConfigError(
                    f"policy.{name} is {getattr(policy, name)}, {start.policy}, from which data/champion.json trains "
                    f"on, has {size}; a policy keeps its size: set policy.{name} to that, or train_from to null to "
                    "start afresh"
                )
    if model.layout.condition_on_return != config.condition_on_return:
        raise ConfigError(
            f"train.condition_on_return is {config.condition_on_return}, the policy to train on from was made with "
            f"{model.layout.condition_on_return}; a policy keeps the prompt that it began with"
        )
    choice = choose(width, root)
    torch.set_num_threads(choice.threads)
    model.model.to(choice.device)
    if policy.lora_rank:
        adapt(model, policy.lora_rank, seed=seed)
    head = new_value_head(width)
    if start is not None and (root / start.policy / VALUE_HEAD).is_file():
        head.load_state_dict(load_file(root / start.policy / VALUE_HEAD))
    head.to(model.model.device)
    catalogue = read_catalogue(batches / "catalogue.csv")
    trajectories = stream_trajectories(batches)
    replay = Replay(model, trajectories, config.discount, config.baseline, folder=folder, advance=laid_out)
    if fitted is not None:
        behaviour = load(fitted)
        behaviour.model.to(choice.device)
        replay.estimate_behaviour(behaviour)
    return Trainer(
        model,
        replay,
        catalogue,
        config,
        seed=seed * 100 + pins.round,
        value_head=head,
        continuing=start is not None,
        choice=choice,
    )


def silent(batches: Path) -> bool:
    """Whether a step was logged without the behaviour's log-probability."""
    return any(batch.column("logprob").null_count for batch in stream_table(batches / "steps.parquet", STEPS))


def assumed(estimated: float) -> list[str]:
    """What the result rests on and nobody has checked; `estimated`: share of the steps."""
    if not estimated:
        return []
    return [
        f"the behaviour's log-probabilities of {estimated:.0%} of the steps, estimated by an imitation fitted to the "
        "same logs, are exact"
    ]


def train_baseline(
    config: TrainConfig, policy: PolicyConfig, seed: int, batches: Path, champion: Path, folder: Path, parent: int
) -> dict[str, Any]:
    """Train one baseline, named as `folder` is, to ``folder/policy``; in a worker. Returns how it ended.

    What a killed run has finished is not trained again, what it has begun goes on. One that a threshold stopped
    before its first checkpoint leaves no policy and says why.
    """
    from retroformer.training.beside import counted

    with counted(folder, parent) as advance:
        if (folder / "train.json").is_file():
            advance(config.updates, "")
            return read_json(folder / "train.json")
        # Imitation of everything leans to nothing: its trajectories are drawn alike.
        curriculum = config.curriculum and folder.name != "imitation"
        own = config.model_copy(update={"objective": folder.name, "curriculum": curriculum})
        trainer = prepare(own, policy, seed, batches, champion, folder)
        try:
            trainer.run(folder, advance)
        except TrainingStopped as error:
            report: dict[str, Any] = {"updates": trainer.done, "chosen_update": None, "stopped": str(error)}
        else:
            with replacing(folder / "policy") as new:
                trainer.policy.save(new)
            chosen = (trainer.best or {})["update"]
            report = {"updates": trainer.done, "chosen_update": chosen, "stopped": trainer.stopped}
    write_json(folder / "train.json", report)
    return report


def words_of(trajectories: Iterable[Trajectory]) -> tuple[list[str], bool, bool]:
    """Every word of the history and, where its environments can name them, those that they may still say.

    Also whether an action needs an end, because it was generated or because one that could be chosen goes on where
    another stops (``take book``, ``take book from shelf``), and whether one that could be chosen has several words.
    """
    from retroformer.environments import lexicon

    names: set[str] = set()
    texts: set[str] = set()
    words: set[str] = set()
    generated = False
    for one in trajectories:
        names.add(f"{one.task.environment}:{one.task.name}")
        words.update(one.task.description.split())
        for step in one.steps:
            words.update(step.observation.split())
            if step.admissible_actions is None:
                generated = True
                words.update(step.action.split())
            else:
                texts.update(step.admissible_actions)
    words |= {word for text in texts for word in text.split()}
    listed: set[str] = set()
    phrases = any(" " in action for action in texts)
    in_order = sorted(tuple(action.split()) for action in texts)
    open_ended = any(longer[: len(shorter)] == shorter for shorter, longer in pairwise(in_order) if shorter != longer)
    for text in ("compact", "plain"):
        try:
            known = set(lexicon(sorted(names), text, "words" if phrases else "token"))
        except EnvironmentFault:  # logs of an environment that is not here
            break
        listed = max(listed, known, key=lambda one: len(one & words))
    return sorted(words | listed), generated or open_ended, phrases


def described(start: Pin | None, policy: PolicyConfig) -> str:
    """Where training began."""
    if start is not None:
        return start.policy
    return policy.model or "fresh"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as CSV, nine significant digits; None is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{cell:.9g}" if isinstance(cell, float) else cell for name, cell in row.items()})
