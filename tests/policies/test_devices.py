import json

import pytest
import torch

from retroformer.policies import devices
from retroformer.policies.devices import RECORD, SMALL, Choice, choose, probe
from tiny import FAMILIES, tiny_policy, told

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
    assert policy.model.dtype == torch.bfloat16
    for rounded in (mixed, held):
        assert rounded.dtype == torch.float32
        assert not torch.equal(rounded, exact)
        torch.testing.assert_close(rounded, exact, atol=0.2, rtol=0.05)


def test_fp32_is_left_alone():
    policy = tiny_policy()
    batch = policy.collate(policy.windows(SEEN))
    plain = policy.score(batch)
    with Choice().autocast():
        assert torch.equal(policy.score(batch), plain)
    assert torch.equal(Choice().act(policy).score(batch), plain)
