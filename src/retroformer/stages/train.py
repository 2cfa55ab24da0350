"""Policy gradient on replayed trajectories."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

from retroformer.config import PolicyConfig, TrainConfig
from retroformer.errors import ConfigError, DataError, EnvironmentFault
from retroformer.pins import Pin, read_pins, verify
from retroformer.progress import progress
from retroformer.storage import check_replaceable, read_trajectories, replacing, resume_folder, write_json

VALUE_HEAD = "value_head.safetensors"


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

    Returns what the training ended with. Raises DataError where the logs lack what the objective needs,
    TrainingStopped where a threshold was passed before the first checkpoint.
    """
    pins = read_pins(champion)
    root = champion.parent.parent
    start = pins.train_from or (None if pins.champion.scripted else pins.champion)
    if start is not None:
        verify(start, root)
    for folder in (out, training):
        check_replaceable(folder)
    resume = resume_folder("train", [batches, champion], [config, policy, seed], root)

    import torch
    from safetensors.torch import load_file, save_file

    from retroformer.curriculum.catalogue import read_catalogue
    from retroformer.policies.checkpoints import build, load
    from retroformer.policies.layout import Layout
    from retroformer.training.replay import Replay
    from retroformer.training.trainer import Trainer, new_value_head, threads_for

    trajectories = read_trajectories(batches)
    if not trajectories:
        raise DataError(f"{batches} holds no trajectory to learn from; see {batches}/curate.json")
    torch.manual_seed(seed)
    if start is not None:
        model = load(root / start.policy)
    elif policy.model:
        model = load(policy.model, layout=Layout.sentences(condition_on_return=config.condition_on_return))
    else:
        layout = Layout(condition_on_return=config.condition_on_return)
        model = build(policy, words_of(trajectories), seed=seed, layout=layout)
    width = model.model.config.hidden_size
    if start is not None and not policy.model and width != policy.width:
        raise ConfigError(
            f"policy.width is {policy.width}, {start.policy}, from which data/champion.json trains on, has {width}; "
            "a policy keeps its size: set policy.width to that, or train_from to null to start afresh"
        )
    if model.layout.condition_on_return != config.condition_on_return:
        raise ConfigError(
            f"train.condition_on_return is {config.condition_on_return}, the policy to train on from was made with "
            f"{model.layout.condition_on_return}; a policy keeps the prompt that it began with"
        )
    torch.set_num_threads(threads_for(width))
    head = new_value_head(width)
    if start is not None and (root / start.policy / VALUE_HEAD).is_file():
        head.load_state_dict(load_file(root / start.policy / VALUE_HEAD))
    head.to(model.model.device)
    catalogue = read_catalogue(batches / "catalogue.csv")
    with progress("lay out", len(trajectories), "trajectories") as shown:
        replay = Replay(model, trajectories, config.discount, config.baseline)
        shown.advance(len(trajectories))
    trainer = Trainer(
        model,
        replay,
        catalogue,
        config,
        seed=seed * 100 + pins.round,
        learning_rate=config.learning_rate if start is None else config.later_learning_rate,
        value_head=head,
        continuing=start is not None,
    )
    with progress("train", config.updates, "updates") as shown:
        trainer.run(resume, shown.advance)
    assert trainer.best is not None
    last = trainer.curve[-1]
    report = {
        "round": pins.round,
        "objective": config.objective,
        "baseline": config.baseline,
        "condition_on_return": config.condition_on_return,
        "start": described(start, policy),
        "updates": trainer.done,
        "trajectories": len(trajectories),
        "steps": sum(len(one.steps) for one in trajectories),
        "tokens": sum(replay.tokens(one.id) for one in trajectories),
        "parameters": sum(parameter.numel() for parameter in model.model.parameters()),
        "learning_rate": trainer.learning_rate,
        "checkpoints": trainer.checkpoints,
        "chosen_update": trainer.best["update"],
        "stopped": trainer.stopped,
        "diagnostics": {name: last[name] for name in ("kl", "ess", "clipped", "entropy", "grad_norm", "agreement")},
        "threads": torch.get_num_threads(),
        "dtype": str(model.model.dtype).removeprefix("torch."),
    }
    with replacing(training) as folder:
        write_rows(folder / "curve.csv", trainer.curve)
        write_rows(folder / "schedule.csv", trainer.pacing.schedule)
        write_json(folder / "train.json", report)
    with replacing(out) as folder:
        model.save(folder)
        save_file(head.state_dict(), folder / VALUE_HEAD)
    shutil.rmtree(resume, ignore_errors=True)
    return {"updates": trainer.done, "chosen_update": trainer.best["update"], **report["diagnostics"]}


def words_of(trajectories: list[Any]) -> list[str]:
    """Every word of the history and, where its environments can name them, those that they may still say."""
    from retroformer.environments import lexicon

    names = sorted({f"{one.task.environment}:{one.task.name}" for one in trajectories})
    words = {word for one in trajectories for word in one.task.description.split()}
    words |= {word for one in trajectories for step in one.steps for word in step.observation.split()}
    actions = {action for one in trajectories for step in one.steps for action in step.admissible_actions or ()}
    words |= {word for action in actions for word in action.split()}
    for text in ("compact", "plain"):
        try:
            known = lexicon(names, text, "words" if any(" " in action for action in actions) else "token")
        except EnvironmentFault:  # logs of an environment that is not here
            break
        if words <= set(known):
            return sorted(known)
    return sorted(words)


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
