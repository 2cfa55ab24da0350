import json
from dataclasses import replace

import pytest
import torch

from retroformer.policies import devices
from retroformer.policies.agent import Decision
from retroformer.policies.devices import RECORD, SMALL, Choice, choose, probe
from retroformer.policies.layout import Layout
from retroformer.policies.text import TextActions
from retroformer.types import Step
from tiny import FAMILIES, tiny_policy, told

CHOICE, TEXT = 0.02, 0.2
"""Nats by which acting and training may differ in bf16: of one choice, of one text of up to 16 tokens."""
SEEN = told([("w1", ("w2", "w3 w4 w5"), 0), ("w6", ("w2", "w3 w4"), 1)])


def timed(monkeypatch, **table):
    """Seconds of the probe's products, by precision and threads: ``float32_2=0.5``."""

    def seconds(width, dtype, threads):
        return table[f"{str(dtype).removeprefix('torch.')}_{threads}"]

    monkeypatch.setattr(devices, "seconds", seconds)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_small_model_is_not_timed_and_gets_one_thread_in_fp32(monkeypatch, tmp_path):
    timed(monkeypatch)
    assert choose(64, tmp_path) == choose(SMALL - 1, tmp_path) == Choice("cpu", "float32", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("cores", "times", "native", "expected"),
    [
        (4, {"float32_1": 1.0, "float32_2": 0.5, "float32_4": 0.48}, False, Choice("cpu", "float32", 2)),
        (3, {"float32_1": 1.0, "float32_2": 0.7, "float32_3": 0.5}, False, Choice("cpu", "float32", 3)),
        (2, {"float32_1": 1.0, "float32_2": 0.95, "bfloat16_1": 0.9}, True, Choice("cpu", "float32", 1)),
        (1, {"float32_1": 1.0, "bfloat16_1": 0.6}, True, Choice("cpu", "bfloat16", 1)),
    ],
)
def test_threads_and_precision_are_those_that_measured_faster_by_enough(monkeypatch, cores, times, native, expected):
    timed(monkeypatch, **times)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert probe(SMALL) == expected


@pytest.mark.parametrize(
    ("width", "supported", "dtype"), [(64, True, "float32"), (4096, True, "bfloat16"), (4096, False, "float32")]
)
def test_a_gpu_is_taken_where_there_is_one_with_bf16_if_it_computes_in_it(monkeypatch, width, supported, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert choose(width) == Choice("cuda", dtype, 1)


def test_what_was_chosen_is_written_down_and_taken_again(monkeypatch, tmp_path):
    timed(monkeypatch, float32_1=1.0, float32_2=0.5)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    first = choose(1024, tmp_path)
    assert first.threads == 2
    timed(monkeypatch, float32_1=0.5, float32_2=1.0)
    assert choose(1024, tmp_path) == first
    assert choose(2048, tmp_path).threads == 1
    for damage in ("[]", "{", "null", json.dumps({devices.fingerprint(1024): {"speed": 1}})):
        (tmp_path / RECORD).write_text(damage)
        assert choose(1024, tmp_path).threads == 1


def test_the_real_probe_restores_the_threads_and_is_quick(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = torch.get_num_threads()
    assert probe(SMALL).device == "cpu"
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_in_bf16_scores_as_fp32_does_up_to_its_rounding(family):
    policy = tiny_policy(family)
    batch = policy.collate(policy.windows(SEEN))
    with torch.no_grad():
        exact = policy.score(batch)
        with Choice("cpu", "bfloat16").autocast():
            mixed = policy.score(batch)
        held = Choice("cpu", "bfloat16").act(policy).score(policy.collate(policy.windows(SEEN)))
    types = {name: one.dtype for name, one in policy.model.named_parameters()}
    assert {types[name] for name in types if "embed" in name or "wte" in name or "norm" in name} == {torch.float32}
    if family != "gpt2":  # whose layers are no linear ones
        assert {types[name] for name in types if "proj" in name} == {torch.bfloat16}
    for rounded in (mixed, held):
        assert rounded.dtype == torch.float32
        assert not torch.equal(rounded, exact)
        torch.testing.assert_close(rounded, exact, atol=0.2, rtol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bf16_acting_and_training_are_one_policy_up_to_what_products_of_other_shapes_round(family):
    half = Choice("cpu", "bfloat16")
    trains, acts = tiny_policy(family), half.act(tiny_policy(family))
    for policy in (trains, acts):
        policy.layout = Layout(action="{action} w11")
        policy.text = TextActions(policy.tokenizer, policy.layout, policy.encode)
    agent, gaps = acts.agent(1), {"choice": 0.0, "text": 0.0}
    for mode, admissible in (("choice", ("w2", "w3 w4 w5", "w3 w4 w6", "w7 w8")), ("text", None)):
        for seed in range(8):
            decision = Decision(0, 0, "w0 w1", f"w{seed} w3 w9", admissible, (seed + 0.5) / 8)
            (choice,) = agent.act([decision])
            step = Step(decision.observation, choice.action, 0.0, admissible, choice.token_ids)
            trajectory = replace(SEEN, steps=(step,))
            with torch.no_grad(), half.autocast():
                batch = trains.collate(trains.windows(trajectory))
                found = trains.score(batch)[0, 0, batch.chosen_bt[0, 0]]
            gaps[mode] = max(gaps[mode], abs(float(found) - choice.logprob))
    assert gaps["choice"] + gaps["text"] > 0.0
    assert gaps["choice"] < CHOICE
    assert gaps["text"] < TEXT


def test_logits_are_fp32_in_bf16_too():
    policy = tiny_policy("llama")
    hidden = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), Choice("cpu", "bfloat16").autocast():
        logits = policy.logits(hidden)
        each = policy.token_logits(hidden, torch.arange(3), torch.tensor([1, 5, 7]))
    weight = policy.model.lm_head.weight.to(torch.bfloat16).float()
    torch.testing.assert_close(logits, hidden @ weight.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(each, logits[[0, 1, 2], [1, 5, 7]], atol=1e-5, rtol=0)


def test_fp32_is_left_alone():
    policy = tiny_policy()
    batch = policy.collate(policy.windows(SEEN))
    plain = policy.score(batch)
    with Choice().autocast():
        assert torch.equal(policy.score(batch), plain)
    assert torch.equal(Choice().act(policy).score(batch), plain)
