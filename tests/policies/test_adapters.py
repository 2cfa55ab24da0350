import builtins

import pytest
import torch

from retroformer.errors import ConfigError
from retroformer.files import hash_directory
from retroformer.policies.adapters import adapt
from retroformer.policies.checkpoints import load
from tiny import FAMILIES, tiny_policy, told

SEEN = told([("w1", ("w2", "w3 w4 w5"), 0), ("w6", ("w2", "w3 w4"), 1)])


def scores(policy):
    with torch.no_grad():
        return policy.score(policy.collate(policy.windows(SEEN)))


def trained(policy):
    """As if some updates had been made."""
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_start_at_the_model_and_off_they_are_it(family):
    pytest.importorskip("peft")
    policy = tiny_policy(family)
    base, weights = scores(policy), {n: p.clone() for n, p in policy.model.named_parameters()}
    adapt(policy, 2, seed=0)
    assert torch.equal(scores(policy), base)
    new = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    assert 0 < sum(map(torch.numel, new)) < sum(map(torch.numel, weights.values()))
    trained(policy)
    on = scores(policy)
    assert float((on - base).nan_to_num().abs().max()) > 0.01
    with policy.reference():
        assert torch.equal(scores(policy), base)
    assert torch.equal(scores(policy), on)
    assert [parameter for parameter in policy.model.parameters() if parameter.requires_grad] == new


@pytest.mark.parametrize("family", ["llama", "llama-grouped", "gpt2"])
def test_what_is_saved_is_an_ordinary_checkpoint_with_the_same_scores(family, tmp_path):
    pytest.importorskip("peft")
    policy = tiny_policy(family)
    names = [name for name, _ in policy.model.named_parameters()]
    adapt(policy, 2, seed=0)
    trained(policy)
    on = scores(policy)
    policy.save(tmp_path / "saved")
    assert [name for name, _ in policy.model.named_parameters()] == names
    assert policy.adapter is None
    loaded = load(tmp_path / "saved")
    assert torch.equal(scores(loaded), scores(policy))
    torch.testing.assert_close(scores(loaded), on, atol=1e-4, rtol=1e-4)
    loaded.save(tmp_path / "again")
    assert hash_directory(tmp_path / "again") == hash_directory(tmp_path / "saved")


def test_the_same_seed_gives_the_same_adapters_and_leaves_chance_alone():
    pytest.importorskip("peft")
    made = []
    for seed in (0, 0, 1):
        policy = tiny_policy()
        torch.manual_seed(5)
        adapt(policy, 2, seed=seed)
        made.append(torch.cat([p.detach().flatten() for p in policy.model.parameters() if p.requires_grad]))
        after = torch.rand(1)
        torch.manual_seed(5)
        assert torch.equal(torch.rand(1), after)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_without_the_library_the_remedy_is_told(monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments, **options):
        if name.split(".")[0] == "peft":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"peft is not installed: pip install 'retroformer\[lora\]', or set it to 0"):
        adapt(tiny_policy(), 2, seed=0)
