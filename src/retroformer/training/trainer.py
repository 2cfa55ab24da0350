"""The one trainer: REINFORCE on replayed trajectories, logits recomputed under the current policy.

Read `Trainer.update` for the algorithm. Budgets are counts of updates, chance comes from one seed, and everything
that the next update depends on is in `Trainer.state`: a run that was killed and resumed ends in the same weights.
"""

from __future__ import annotations

import io
import math
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from retroformer.config import TrainConfig
from retroformer.curriculum.pacing import Pacing
from retroformer.curriculum.sampling import TrajectorySampler
from retroformer.errors import TrainingStopped
from retroformer.objectives import weights
from retroformer.objectives.baselines import advantages, normalise
from retroformer.objectives.losses import (
    NEEDS_ADVANTAGES,
    NEEDS_BEHAVIOUR,
    NORMALISES_ADVANTAGES,
    OBJECTIVES,
    TAKES_MARGIN,
    Batch,
    entropy,
    observation_loss,
    value_loss,
)
from retroformer.objectives.returns import lambda_returns
from retroformer.policies.batch import TreeBatch
from retroformer.policies.devices import Choice
from retroformer.policies.language_model import LanguageModelPolicy
from retroformer.policies.tree import Window
from retroformer.training.memory import allowed, checkpoint_layers, measure
from retroformer.training.replay import Minibatch, Replay, stacked
from retroformer.training.suspects import REMEDY, accusation, first_broken, suspect

BUCKET = 16
"""Batches drawn together and sorted by length, so that padding is small."""
FAILURE_FLOOR = 0.15
"""A task is drawn in proportion to its share of failures in the history plus this."""
POINTS = 100
"""Points of the learning curve, and observations of the curriculum's signal."""
SAVES = 10
"""How often a run writes down where it is."""
CHOOSE_ON = 1000
"""Trajectories that a checkpoint is scored on, at most, the newest of those kept aside: what the policy has to be
better than is what played last, and scoring should not take longer with every round."""
COLUMNS = (
    "loss",
    "policy_loss",
    "value_loss",
    "observation_loss",
    "entropy",
    "kl",
    "ess",
    "clipped",
    "grad_norm",
    "agreement",
)
MAY_LACK = ("entropy", "kl", "ess", "clipped")
"""Empty where the log has no choices among admissible actions, or no behaviour log-probabilities."""


class Trainer:
    """Trains `policy` in place on the trajectories of split ``train`` that the catalogue may draw."""

    def __init__(
        self,
        policy: LanguageModelPolicy,
        replay: Replay,
        catalogue: pd.DataFrame,
        config: TrainConfig,
        *,
        seed: int,
        value_head: torch.nn.Linear,
        continuing: bool = False,
        choice: Choice | None = None,
        budget: int | None = None,
    ):
        """`choice`: in which precision; None is fp32. `budget`: bytes a batch may take; None is a share of the free."""
        self.choice = choice or Choice(policy.model.device.type)
        self.policy, self.replay, self.config = policy, replay, config
        self.value_head = value_head
        if config.objective in NEEDS_BEHAVIOUR:
            replay.require_behaviour(config.objective)
        tiers = int(catalogue["tier"].to_numpy().max())
        # A policy that goes on from a candidate has been through the curriculum, needs its failures as often as they
        # happen, where they teach something, and is itself a candidate.
        self.continuing = continuing
        self.pacing = Pacing(tiers=tiers, admitted=1 if config.curriculum and not continuing else tiers)
        drawable = catalogue[(catalogue["split"] == "train") & (catalogue["probability"] > 0)]
        newest = drawable[drawable["round"] == drawable["round"].max()]
        success = replay.per_task(newest["trajectory_id"])
        self.sampler = TrajectorySampler(
            catalogue,
            seed=seed,
            tiers_admitted=self.pacing.admitted,
            uniform=not config.curriculum or (continuing and config.objective in NEEDS_ADVANTAGES),
            task_weights={task: 1 - share + FAILURE_FLOOR for task, share in success.items()},
        )
        by_round = catalogue.sort_values("round", kind="stable")
        self.kept_aside = by_round.loc[by_round["split"] == "checkpoint", "trajectory_id"].tolist()[-CHOOSE_ON:]
        self.parameters = [p for p in (*policy.model.parameters(), *value_head.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        # Without dropout: with it every forward would be another policy than the one that acts.
        policy.model.eval()
        with self.choice.autocast():
            self.memory, self.checkpointing = measure(policy), False
        self._allow(allowed(policy.model.device, self.parameters) if budget is None else budget)
        self.most_parts = 1
        """Of a batch; where it stays 1, the memory that was free has decided nothing."""
        self.done = 0
        self.queue: list[list[str]] = []
        self.recent: list[torch.Tensor] = []
        self.suspects: list[tuple[torch.Tensor, list[tuple[str, int]], int]] = []
        """Of each recent update what `suspect` noted, the batch's windows and its steps."""
        self.curve: list[dict[str, float | None]] = []
        self.checkpoints: list[dict[str, float]] = []
        self.top: dict[str, Any] | None = None
        self.best: dict[str, Any] | None = None
        self.stopped: str | None = None

    def run(self, resume: Path, advance: Callable[[int, str], None]) -> None:
        """Train until the budget of updates is spent or a threshold stops it; the policy ends as its best checkpoint.

        Raises TrainingStopped where a threshold was passed before there was a checkpoint.
        """
        total = self.config.updates
        saved = resume / "trainer.pt"
        if self._resumed(saved):
            advance(self.done, "resumed")
        point, save = max(1, total // POINTS), max(1, total // SAVES)
        choices = {round(total * (k + 1) / self.config.checkpoints) for k in range(self.config.checkpoints)}
        if self.continuing and self.done == 0:
            self._consider()
        while self.done < total and self.stopped is None:
            self.update()
            self.done += 1
            if self.done % point == 0 or self.done in choices:
                self._record()
            if self.done in choices and self.stopped is None:
                self._consider()
            if self.done % save == 0 and self.done < total:
                self._save(saved)
            shown = self.curve[-1] if self.curve else {}
            advance(
                1, " ".join(f"{k} {shown[k]:.2f}" for k in ("agreement", "entropy", "kl") if shown.get(k) is not None)
            )
        if self.best is None:
            raise TrainingStopped(f"training stopped at update {self.done} before its first checkpoint: {self.stopped}")
        self.policy.model.load_state_dict(self.best["model"], strict=self.policy.adapter is None)
        self.value_head.load_state_dict(self.best["value_head"])

    def _save(self, path: Path) -> None:
        """Write down where the run is, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # By way of memory: where the disk is full, torch's own writer hides that this is the reason.
        buffer, new = io.BytesIO(), path.with_suffix(".new")
        torch.save(self.state(), buffer)
        try:
            new.write_bytes(buffer.getbuffer())
            os.replace(new, path)
        except OSError:
            new.unlink(missing_ok=True)
            raise

    def _resumed(self, path: Path) -> bool:
        """Go on from what `_save` left, if it is there and whole; a damaged one is as good as none."""
        if not path.is_file():
            return False
        try:
            state = torch.load(path, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            path.unlink()
            return False
        self.restore(state)
        return True

    def update(self) -> None:
        """One gradient update on one minibatch of replayed trajectories."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * rate(self.done, config.updates, config.warmup)
        batch = self._draw()
        mask, whole = batch.mask_bt, len(batch.trees) == 1
        with torch.set_grad_enabled(whole):
            outputs = logprobs_bta, values_bt, observed_p = self._outputs(batch)
        if not whole:
            for output in outputs:
                output.requires_grad_()
        logprobs_bt = logprobs_bta.gather(-1, batch.chosen_bt[..., None])[..., 0].masked_fill(~mask, 0.0)
        returns_bt, baselines_bt = batch.returns_bt, batch.baselines_bt
        if config.baseline == "value":
            returns_bt = lambda_returns(returns_bt, values_bt, mask, config.discount, config.gae_lambda)
            baselines_bt = values_bt
        advantages_bt = advantages(returns_bt, baselines_bt, mask)
        if config.objective in NORMALISES_ADVANTAGES:
            advantages_bt = normalise(advantages_bt, mask)
        if config.objective in TAKES_MARGIN and not self.continuing:
            advantages_bt = torch.where(mask, advantages_bt + config.margin, 0.0)
        seen = Batch(logprobs_bt, batch.behaviour_logprobs_bt, advantages_bt, batch.returns_bt, batch.success_b, mask)
        policy_loss = OBJECTIVES[config.objective](seen).loss
        choices_bta = batch.action_mask_bta & ~batch.generated_bt[..., None]
        spread = entropy(logprobs_bta, choices_bta)
        miss = value_loss(values_bt, batch.returns_bt, mask, batch.weights_b)
        surprise = observation_loss(observed_p)
        loss = policy_loss - config.entropy * spread + config.value * miss + config.observations * surprise
        self.optimizer.zero_grad(set_to_none=True)
        if whole:
            loss.backward()
        else:
            self._backward_in_parts(batch, *torch.autograd.grad(loss, outputs))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
        if self.optimizer.defaults["fused"]:  # which then leaves the weights as they are, and nobody waits to know
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        with torch.no_grad():
            known = mask & ~batch.behaviour_logprobs_bt.isnan()
            behaviour_bt = batch.behaviour_logprobs_bt.nan_to_num()
            ratios_bt = weights.ratios(logprobs_bt, behaviour_bt, known)
            good = mask & batch.success_b[:, None]
            agreement = torch.where(good, logprobs_bt, 0.0).sum() / good.sum().clamp(min=1)
            kl = weights.kl_from_behaviour(logprobs_bt, behaviour_bt, known)
            ess, clipped = weights.effective_sample_size(ratios_bt, known), weights.clipped_share(ratios_bt, known)
            silent = torch.where(known.any(), 0.0, torch.nan)
            spread = spread + torch.where(choices_bta.any(), 0.0, torch.nan)
            losses = (loss, policy_loss, miss, surprise)
            row = (*losses, spread, kl + silent, ess + silent, clipped + silent, norm, agreement)
            self.recent.append(torch.stack([value.detach() for value in row]))
            self.suspects.append((suspect(batch, logprobs_bt, advantages_bt, values_bt), batch.windows, mask.shape[1]))
            self.last = batch

    def forward(self, batch: Minibatch) -> tuple[torch.Tensor, torch.Tensor]:
        """log pi(a | h) [B, T, A] in nats at the recorded temperatures, and V(h) [B, T] of the value head."""
        silent = [replace(tree, observed_token=None) for tree in batch.trees]
        return self._outputs(replace(batch, trees=silent))[:2]

    def _outputs(self, batch: Minibatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the loss is made of: `forward`'s, and log p of the observations' tokens [P] where they are asked for."""
        parts = [self._part(tree, temperature_b) for tree, temperature_b in self._parts(batch)]
        logprobs, values, observed = zip(*parts, strict=True)
        return stacked(list(logprobs), -torch.inf), stacked(list(values)), torch.cat(observed)

    def _parts(self, batch: Minibatch) -> list[tuple[TreeBatch, torch.Tensor]]:
        sizes = [tree.shape[0] for tree in batch.trees]
        return list(zip(batch.trees, batch.temperature_b.split(sizes), strict=True))

    def _part(self, tree: TreeBatch, temperature_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        b, t, _ = tree.shape
        with self.choice.autocast():
            hidden = self.policy.hidden(tree)
            logprobs_bta = self.policy.logprobs(hidden, tree, temperature_b[:, None, None])
            observed_p = self.policy.observation_logprobs(hidden, tree)
        return logprobs_bta, self.value_head(hidden[: b * t].float()).view(b, t), observed_p

    def _backward_in_parts(
        self, batch: Minibatch, logprobs_grad: torch.Tensor, values_grad: torch.Tensor, observed_grad: torch.Tensor
    ) -> None:
        """Carry the loss's gradient with respect to scores and values through the model, part by part.

        The loss, whose means are over the whole batch, was computed from all scores; each part is computed again, so
        the gradient is that of one batch, whatever the objective (the scheme of Gao et al. 2021, arXiv 2101.06983).
        """
        start = first = 0
        for tree, temperature_b in self._parts(batch):
            b, t, a = tree.shape
            rows = slice(start, start + b)
            logprobs_bta, values_bt, observed_p = self._part(tree, temperature_b)
            outputs = [(logprobs_bta, logprobs_grad[rows, :t, :a]), (values_bt, values_grad[rows, :t])]
            if observed_p.requires_grad:
                outputs.append((observed_p, observed_grad[first : first + len(observed_p)]))
            tensors, gradients = zip(*outputs, strict=True)
            torch.autograd.backward(tensors, gradients)
            start, first = start + b, first + len(observed_p)

    def _draw(self) -> Minibatch:
        """The next minibatch; trajectories of a like length go together."""
        if not self.queue:
            size = self.config.batch
            ids = self.sampler.draw(BUCKET * size)
            ids.sort(key=self.replay.tokens)
            batches = [ids[at : at + size] for at in range(0, len(ids), size)]
            self.queue = [batches[place] for place in self.sampler.generator.permutation(len(batches))]
        ids = self.queue.pop()
        phase = self.sampler.generator.random() if self.config.observations else None
        return self.replay.minibatch(ids, self.sampler.inverse_weights(ids), self._split, observations=phase)

    def _allow(self, budget: int) -> None:
        """Take no more than `budget` bytes for a batch, with gradient checkpointing if one window alone would."""
        self.memory = replace(self.memory, budget=budget)
        rows, length = self.replay.largest
        self.checkpointing = self.memory.rows(length) < rows and checkpoint_layers(self.policy.model)

    def _split(self, windows: list[Window]) -> list[list[Window]]:
        parts = self.memory.parts(windows, self.policy, self.checkpointing)
        self.most_parts = max(self.most_parts, len(parts))
        return parts

    def _record(self) -> None:
        """One point of the curve: the means since the last; admit the next tier, or stop a bad update."""
        recent = torch.stack(self.recent)
        suspects, self.recent, self.suspects = self.suspects, [], []
        row: dict[str, Any] = dict(zip(COLUMNS, recent.mean(0).tolist(), strict=True))
        finite_n = recent[:, [name not in MAY_LACK for name in COLUMNS]].isfinite().all(1).tolist()
        known = dict(zip(COLUMNS, recent.nanmean(0).tolist(), strict=True))
        row |= {name: None if math.isnan(known[name]) else known[name] for name in MAY_LACK}
        row["kl_reference"] = self._kl_reference()
        tiers = self.pacing.observe(self.done, row["agreement"])
        now = {"learning_rate": self.optimizer.param_groups[0]["lr"], "tiers": float(self.sampler.tiers_admitted)}
        self.curve.append({"update": self.done, **row, **now, "score": None})
        if tiers != self.sampler.tiers_admitted:
            self.sampler.admit(tiers)
            self.queue = []
        config = self.config
        kl, whose = (row["kl_reference"], "start") if row["kl"] is None else (row["kl"], "behaviour")
        if not all(finite_n):
            first = finite_n.index(False)
            noted, windows, width = suspects[first]
            losses = dict(zip(COLUMNS, recent[first].isfinite().tolist(), strict=True))
            if losses["policy_loss"] and losses["value_loss"] and not losses["observation_loss"]:
                why = f"the model gives no number to an observation's token: {REMEDY}, or set train.observations to 0"
            else:
                why = accusation(noted.tolist(), windows, width, self.replay.breaking(self.policy))
            at = self.done - len(finite_n) + 1 + first
            self.stopped = f"the loss or its gradient is not finite at update {at}; {why}"
        elif kl is not None and kl > config.max_kl:
            self.stopped = f"KL to the {whose} is {kl:.2f} nats a step at update {self.done}, limit {config.max_kl}"
        elif row["ess"] is not None and row["ess"] < config.min_ess:
            self.stopped = f"effective sample size is {row['ess']:.3f} at update {self.done}, limit {config.min_ess}"

    @torch.no_grad()
    def _kl_reference(self) -> float | None:
        """KL of the policy that training began with to this one on the last batch, nats a step; None without adapter.

        Over the actions that were logged, as if they were the start's: what is left where the logs lack the
        behaviour's log-probabilities.
        """
        if self.policy.adapter is None:
            return None
        batch = self.last
        now_bta, _ = self.forward(batch)
        with self.policy.reference():
            start_bta, _ = self.forward(batch)
        now_bt, start_bt = (
            logprobs_bta.gather(-1, batch.chosen_bt[..., None])[..., 0].masked_fill(~batch.mask_bt, 0.0)
            for logprobs_bta in (now_bta, start_bta)
        )
        return float(weights.kl_from_behaviour(now_bt, start_bt, batch.mask_bt))

    def _consider(self) -> None:
        """Score this checkpoint on the logs kept aside; it stays unless an earlier one is better beyond doubt.

        Beyond doubt is by more than one standard error of their difference (after the rule of Breiman et al. 1984, here
        in favour of the newest: most differences between checkpoints are noise). With no logs kept aside the last
        stays.
        """
        value, influence = self.score() if self.kept_aside else (0.0, torch.zeros(1))
        self.checkpoints.append({"update": self.done, "score": value, "error": float(influence.norm())})
        if self.curve:
            self.curve[-1]["score"] = value
        top = self.top
        if top is None or value >= top["score"]:
            self.top = {"score": value, "influence": influence}
        if top is None or value >= top["score"] - float((influence - top["influence"]).norm()):
            self.best = {
                "update": self.done,
                "model": {name: tensor.clone() for name, tensor in self._weights().items()},
                "value_head": {name: tensor.clone() for name, tensor in self.value_head.state_dict().items()},
            }

    @torch.no_grad()
    def score(self) -> tuple[float, torch.Tensor]:
        """What the policy is worth on the newest logs of split ``checkpoint``, and each one's influence on that, [B].

        The surrogate advantage over the behaviour (`weights.surrogate_advantage`) where the logs have its
        probabilities, else the mean log-likelihood of successful actions. One measure for all objectives.
        """
        ids = sorted(self.kept_aside, key=lambda id: (self.replay.tokens(id), id))
        size, longest = 4 * self.config.batch, self.replay.longest
        parts: list[list[torch.Tensor]] = [[], [], [], [], []]
        windows: list[tuple[str, int]] = []
        for some in (ids[at : at + size] for at in range(0, len(ids), size)):
            batch = self.replay.minibatch(some, [1.0] * len(some), self._split)
            mask = batch.mask_bt
            windows += batch.windows
            logprobs_bta, _ = self.forward(batch)
            logprobs_bt = logprobs_bta.gather(-1, batch.chosen_bt[..., None])[..., 0].masked_fill(~mask, 0.0)
            known = mask & ~batch.behaviour_logprobs_bt.isnan()
            good = mask & batch.success_b[:, None]
            advantages_bt = advantages(batch.returns_bt, batch.task_baselines_bt, mask)
            behaviour_bt = torch.where(known, batch.behaviour_logprobs_bt, 0.0)
            for part, tensor in zip(parts, (logprobs_bt, behaviour_bt, advantages_bt, known, good), strict=True):
                part.append(torch.nn.functional.pad(tensor, (0, longest - tensor.shape[1])))
        logprobs_bt, behaviour_bt, advantages_bt, known, good = (torch.cat(part) for part in parts)
        if broken := first_broken(logprobs_bt, windows, self.replay.breaking(self.policy)):
            raise TrainingStopped(f"{broken}, kept aside to choose checkpoints, at update {self.done}: {REMEDY}")
        if bool(known.any()):
            estimate, influence = weights.surrogate_advantage(logprobs_bt, behaviour_bt, advantages_bt, known)
            return float(estimate), influence.cpu()
        count = good.sum().clamp(min=1)
        mean = torch.where(good, logprobs_bt, 0.0).sum() / count
        return float(mean), (torch.where(good, logprobs_bt - mean, 0.0).sum(1) / count).cpu()

    def _weights(self) -> dict[str, torch.Tensor]:
        """The model's; with an adapter those of the adapter alone."""
        every = self.policy.model.state_dict()
        if self.policy.adapter is None:
            return every
        return {name: every[name] for name, one in self.policy.model.named_parameters() if one.requires_grad}

    def state(self) -> dict[str, Any]:
        """All that the next update depends on: tensors, numbers, texts."""
        return {
            "model": self._weights(),
            "value_head": self.value_head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state(),
            "pacing": self.pacing.state(),
            "budget": self.memory.budget,
            "most_parts": self.most_parts,
            "done": self.done,
            "queue": self.queue,
            "recent": self.recent,
            "suspects": self.suspects,
            "curve": self.curve,
            "checkpoints": self.checkpoints,
            "top": self.top,
            "best": self.best,
            "stopped": self.stopped,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.policy.model.load_state_dict(state["model"], strict=self.policy.adapter is None)
        self.value_head.load_state_dict(state["value_head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.restore(state["sampler"])
        self.pacing = Pacing(**state["pacing"])
        self._allow(state["budget"])
        for name in (
            "most_parts",
            "done",
            "queue",
            "recent",
            "suspects",
            "curve",
            "checkpoints",
            "top",
            "best",
            "stopped",
        ):
            setattr(self, name, state[name])


def rate(update: int, total: int, warmup: int) -> float:
    """Share of the peak learning rate: linear warm-up, flat to half of the updates, linear down to a tenth."""
    if update < warmup:
        return (update + 1) / warmup
    return 1.0 - 0.9 * max(0.0, 2 * update / total - 1)


def new_value_head(width: int) -> torch.nn.Linear:
    """V(h) = w h + b of the policy's own hidden state at the decision, 0 at the start."""
    head = torch.nn.Linear(width, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return head
