"""The trainer on another device, in another precision, with adapters; all on the CPU."""

from dataclasses import replace

import pytest
import torch
from test_trainer import ASIDE, MANY, RUN, catalogue, silent, trainer
from torch.utils._python_dispatch import TorchDispatchMode

from retroformer.errors import TrainingStopped
from retroformer.policies import batch
from retroformer.policies.adapters import adapt
from retroformer.policies.devices import Choice
from retroformer.training.trainer import Trainer, new_value_head

FULL = {"baseline": "value", "value": 0.5, "observations": 0.5, "entropy": 0.01, "batch": 6}


class Transfers(TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removeprefix("aten.")
        if name.split(".")[0] in self.WAITS:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


class Crossings(TorchDispatchMode):
    """What is copied from the host to another device, and whether from pinned memory and without waiting."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.pinned, self.seen = [], []
        real = torch.tensor
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: self.pinned.append(tensor) or tensor)
        monkeypatch.setattr(torch, "tensor", lambda *args, **kwargs: real(*args, **kwargs).to(kwargs.get("device")))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = kwargs.get("device")
        if there is not None and args and isinstance(args[0], torch.Tensor) and args[0].device != torch.device(there):
            pinned = any(args[0] is one for one in self.pinned)
            self.seen.append((str(function), kwargs.get("non_blocking", False) and pinned))
        return function(*args, **kwargs)


def on(device, choice=None, rank=0, trajectories=MANY, **options):
    """A trainer whose model is on a device before the trainer sees it, as the stage makes it."""
    one = trainer(trajectories, **{**FULL, **options})
    policy, head = one.policy, new_value_head(8)
    policy.model.to(device)
    if rank:
        adapt(policy, rank, seed=0)
    inputs = (policy, one.replay, catalogue(trajectories), one.config)
    return Trainer(*inputs, seed=0, value_head=head.to(device), choice=choice)


@pytest.mark.parametrize("budget", [None, 1])
def test_an_update_is_on_the_models_device_alone_and_waits_for_nothing(monkeypatch, budget):
    # Tensors of the meta device have no values: one on another device beside them, or a value asked for, is an error.
    real = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, fused, **options: real(*args, capturable=False, **options))
    one = on("meta", Choice("cpu"))
    if budget is not None:
        one._allow(budget)
    for _ in range(2):
        one.update()
    assert one.recent[-1].device.type == "meta"
    assert all(parameter.device.type == "meta" for parameter in one.parameters)


def test_what_an_update_copies_to_the_device_is_pinned_and_not_waited_for(monkeypatch):
    real = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, fused, **options: real(*args, capturable=False, **options))
    one = on("meta", Choice("cpu"))
    # The meta device stands for a GPU: what is copied to it is seen, though it has no memory of its own.
    monkeypatch.setattr(batch, "PINNED", ("meta",))
    with Crossings(monkeypatch) as crossings:
        one.update()
    assert len(crossings.seen) > 12
    assert [name for name, free in crossings.seen if not free] == []


def test_an_update_asks_the_device_for_no_value():
    one = on("cpu")
    one.update()
    with Transfers() as transfers:
        one.update()
        assert transfers.seen == []
        float(one.recent[-1].sum())
    assert transfers.seen == ["_local_scalar_dense.default"]


def test_in_bf16_the_weights_and_the_update_stay_fp32():
    exact, mixed = on("cpu"), on("cpu", Choice("cpu", "bfloat16"))
    for one in (exact, mixed):
        one.update()
    assert {parameter.dtype for parameter in mixed.parameters} == {torch.float32}
    assert {parameter.grad.dtype for parameter in mixed.parameters} == {torch.float32}
    exact_loss, mixed_loss = (one.recent[0][0] for one in (exact, mixed))
    assert exact_loss != mixed_loss
    torch.testing.assert_close(mixed_loss, exact_loss, atol=0.02, rtol=0.05)
    assert mixed.memory.linear < exact.memory.linear


def test_only_adapters_change_and_the_best_of_them_is_kept(tmp_path):
    pytest.importorskip("peft")
    one = on("cpu", rank=2, trajectories=[*MANY, *ASIDE], **RUN)
    frozen = {name: p.clone() for name, p in one.policy.model.named_parameters() if not p.requires_grad}
    start = {name: p.clone() for name, p in one.policy.model.named_parameters() if p.requires_grad}
    one.run(tmp_path, silent)
    now = dict(one.policy.model.named_parameters())
    assert all(torch.equal(now[name], weights) for name, weights in frozen.items())
    assert set(one.best["model"]) == set(start)
    assert any(not torch.equal(now[name], weights) for name, weights in start.items())
    assert all(torch.equal(now[name], weights) for name, weights in one.best["model"].items())
    distances = [row["kl_reference"] for row in one.curve]
    assert distances[0] < distances[-1]


def test_a_run_with_adapters_resumes_to_the_same_bits(tmp_path):
    pytest.importorskip("peft")
    options = {"rank": 2, "trajectories": [*MANY, *ASIDE], **RUN}
    whole = on("cpu", **options)
    whole.run(tmp_path / "whole", silent)
    left = [7]

    def killed(count, note):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on("cpu", **options).run(tmp_path / "killed", killed)
    again = on("cpu", **options)
    again.run(tmp_path / "killed", silent)
    for name, weights in whole.policy.model.state_dict().items():
        assert torch.equal(weights, again.policy.model.state_dict()[name]), name


def test_without_behaviour_probabilities_the_distance_from_the_start_stops_a_bad_update(tmp_path):
    pytest.importorskip("peft")
    quiet = [replace(one, steps=tuple(replace(step, logprob=None) for step in one.steps)) for one in MANY]
    one = on("cpu", rank=2, trajectories=quiet, **{**RUN, "objective": "asymmetric", "max_kl": 1e-9})
    with pytest.raises(TrainingStopped, match="KL to the start is"):
        one.run(tmp_path, silent)
