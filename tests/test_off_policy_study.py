"""How the study of off-policy evaluation re-scores logs, on numbers worked out by hand."""

import importlib

import numpy as np
import pytest

from project import HERE
from retroformer.evaluation.off_policy.logs import Scored


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))  # the studies are no part of the installed package
    found = importlib.import_module("studies.off_policy")
    # Three decisions of a bot with noise .3: two of three actions and of two it knows, of three it does not.
    mu = np.array([[0.1, 0.1, 0.8], [0.85, 0.15, 0.0], [1 / 3, 1 / 3, 1 / 3]], dtype=np.float32)
    logprobs = np.log(np.array([[0.2, 0.2, 0.6], [0.5, 0.5, 1e-300], [0.1, 0.1, 0.8]]))
    logprobs[1, 2] = -np.inf
    monkeypatch.setattr(found, "pool", lambda behaviour: ([], [], mu))
    monkeypatch.setattr(found, "plain_scores", lambda behaviour, name: Scored(logprobs, np.zeros((3, 4))))
    return found


def test_a_bot_with_other_noise(study):
    found = study.scored(study.BOT, study.Agent("bot", 0.6), slice(0, 3))
    assert np.exp(found.logprobs_sa) == pytest.approx(
        np.array([[0.2, 0.2, 0.6], [0.7, 0.3, 0.0], [1 / 3, 1 / 3, 1 / 3]]), abs=1e-6
    )


def test_a_policy_at_another_temperature(study):
    found = study.scored(study.BOT, study.Agent("topr", 2.0), slice(0, 3))
    roots = np.sqrt([0.2, 0.2, 0.6])
    assert np.exp(found.logprobs_sa[0]) == pytest.approx(roots / roots.sum())
    assert np.exp(found.logprobs_sa[1]) == pytest.approx([0.5, 0.5, 0.0])


def test_errors_and_reasons(study):
    assert study.root_mean_square([3.0, -4.0]) == pytest.approx(12.5**0.5)
    assert np.isnan(study.root_mean_square([]))
    assert study.kind_of("the 5 trajectories are worth 2 of the policy's own") == "effective sample size"
    assert study.kind_of("9% of the policy's decisions lie where the behaviour never acts") == "support"
