"""What stands in for the behaviour has to fit the logs: otherwise two policies near each other look like evidence."""

from dataclasses import replace

import numpy as np
import pytest
from test_off_policy_command import ACTIONS, built, made_by

from retroformer.config import DecideConfig
from retroformer.evaluation.gate import judge_on_logs
from retroformer.evaluation.off_policy.assessment import evaluate_on_logs
from retroformer.evaluation.off_policy.logs import Logs, Scored, score
from retroformer.evaluation.off_policy.stand_in import MAX_MISFIT, Fit, counted, fit, refusal
from retroformer.evaluation.off_policy.table import tables

MU = {"red": (0.9, 0.05, 0.05), "blue": (0.05, 0.9, 0.05)}
"""What made the logs: it goes by what it sees."""


def logged(trajectories, seed=0):
    """The same observations, acted upon by MU without a word on probabilities."""
    generator, found = np.random.default_rng(seed), []
    for one in trajectories:
        steps = [
            replace(step, action=ACTIONS[generator.choice(3, p=MU[step.observation])], logprob=None)
            for step in one.steps
        ]
        steps[-1] = replace(steps[-1], reward=float(steps[-1].action == "right"))
        found.append(replace(one, steps=tuple(steps)))
    return found


@pytest.fixture(scope="module")
def silent():
    return logged(made_by(built(), n=240))


def view(trajectories, of):
    """`of` observation -> probabilities, as a language model would say it."""
    probabilities_sa = np.array([of[step.observation] for one in trajectories for step in one.steps])
    return Scored(np.log(probabilities_sa), np.zeros((len(probabilities_sa), 1)))


def gain(trajectories, of):
    logs = Logs(trajectories)
    return fit(logs, view(trajectories, of), np.isnan(logs.behaviour_s))


def test_two_untrained_policies_near_each_other_are_no_evidence(silent):
    """Every ratio is 1 and the effective sample size all of the logs, whatever made them."""
    policy = built()
    report = evaluate_on_logs(silent, policy, temperature=1, confidence=0.95, behaviour=policy)
    assert "the stand-in for the behaviour does not fit the logs" in report["refused"]
    assert "train it longer" in report["refused"]
    assert report["stand_in"]["gain"] > 0.3
    assert "evidence" not in report
    verdict = judge_on_logs(report, DecideConfig(min_improvement=0.0, max_regression=0.1, max_swapped=0.6))
    assert verdict.verdict == "not_enough_evidence"
    assert "does not fit the logs" in verdict.reason
    [rows] = [table["rows"] for table in tables(report) if table["title"] == "Logs"]
    assert "nats a trajectory" in dict(rows)["what counting predicts better than the stand-in"]


def test_the_policy_that_made_the_logs_stands_in_for_itself():
    policy = built()
    own = [replace(one, steps=tuple(replace(step, logprob=None) for step in one.steps)) for one in made_by(policy, 240)]
    report = evaluate_on_logs(own, policy, temperature=1, confidence=0.95, behaviour=policy)
    assert report["refused"] is None
    assert report["stand_in"]["gain"] < MAX_MISFIT


def test_where_the_log_probabilities_are_recorded_nothing_stands_in():
    policy = built()
    recorded = made_by(policy, 80)
    alone = evaluate_on_logs(recorded, policy, temperature=1, confidence=0.95)
    beside = evaluate_on_logs(recorded, policy, temperature=1, confidence=0.95, behaviour=built(seed=1))
    assert alone == beside
    assert "stand_in" not in alone


def test_a_good_stand_in_is_let_through_and_one_that_saw_too_little_is_not(silent):
    uniform = dict.fromkeys(MU, (1 / 3, 1 / 3, 1 / 3))
    near = {"red": (0.86, 0.08, 0.06), "blue": (0.07, 0.85, 0.08)}
    # Its entropy is that of the logs, and it answers to nothing that is seen.
    blind = dict.fromkeys(MU, (0.475, 0.475, 0.05))
    assert refusal(gain(silent, MU)) is None
    assert refusal(gain(silent, near)) is None
    assert refusal(gain(silent, uniform)) is not None
    assert refusal(gain(silent, blind)) is not None


def test_the_stand_in_that_is_the_behaviour_is_hardly_ever_refused():
    blank = made_by(built(), n=60)
    found = [gain(logged(blank, seed), MU) for seed in range(200)]
    # Gibbs' inequality: on average no rival predicts better than what made the logs.
    assert np.mean([one.gain for one in found]) < 0
    assert not any(refusal(one) for one in found)


def test_only_decisions_without_a_log_probability_count(silent):
    logs = Logs(silent)
    uniform = view(silent, dict.fromkeys(MU, (1 / 3, 1 / 3, 1 / 3)))
    assert fit(logs, uniform, np.zeros(len(logs.chosen_s), dtype=bool)) == Fit(0.0, 0.0)


def test_a_few_silent_logs_among_many_are_judged_by_themselves(silent):
    recorded = [replace(one, steps=tuple(replace(step, logprob=-1.0) for step in one.steps)) for one in silent[40:]]
    logs = Logs([*silent[:40], *recorded])
    uniform = dict.fromkeys(MU, (1 / 3, 1 / 3, 1 / 3))
    found = fit(logs, view(logs.trajectories, uniform), np.isnan(logs.behaviour_s))
    assert refusal(found) is not None
    assert found.gain == pytest.approx(gain(silent, uniform).gain, rel=0.3)


def test_texts_that_were_sampled_by_several_token_sequences_are_several_actions(silent):
    one = replace(silent[0], steps=silent[0].steps[:1])
    written = [
        replace(
            one,
            id=str(place),
            task=replace(one.task, name="T", seed=place),
            steps=(replace(one.steps[0], action="ab", admissible_actions=None, token_ids=ids),),
        )
        for place, ids in enumerate([(1, 2, 9), (3, 9)] * 100)
    ]
    exact = Scored(np.log(np.full((200, 1), 0.5)), np.zeros((200, 1)))
    assert refusal(fit(Logs(written), exact, np.ones(200, dtype=bool))) is None


def test_counts_by_hand(silent):
    """One step each, all alike: the counts of four folds predict the fifth, which they have not seen."""
    one = replace(silent[0], steps=silent[0].steps[:1])
    step = replace(one.steps[0], observation="red", action="left")
    alike = [
        replace(one, id=str(place), task=replace(one.task, name="T", seed=place), steps=(step,)) for place in range(5)
    ]
    uniform = view(alike, dict.fromkeys(MU, (1 / 3, 1 / 3, 1 / 3)))
    depth = (4 + 10 / 3) / (4 + 10)
    assert counted(Logs(alike), uniform) == pytest.approx([(4 + 10 * depth) / (4 + 10)] * 5)


def test_generated_actions_begin_with_the_stand_ins_probability(silent):
    one = replace(silent[0], steps=silent[0].steps[:1])
    texts = ["done", "done", "done", "done", "never"]
    written = [
        replace(
            one,
            id=str(place),
            task=replace(one.task, name="T", seed=place),
            steps=(replace(one.steps[0], action=text, admissible_actions=None),),
        )
        for place, text in enumerate(texts)
    ]
    own = Scored(np.log(np.full((5, 1), 0.01)), np.zeros((5, 1)))
    found = counted(Logs(written), own)
    seen, unseen = (3 + 10 * (3 + 0.1) / 14) / 14, (10 * 0.1 / 14) / 14
    assert found == pytest.approx([seen] * 4 + [unseen])


def test_a_policy_stands_in_at_the_temperature_of_the_logs_for_the_check_too():
    policy = built()
    warm = [
        replace(one, steps=tuple(replace(step, logprob=None) for step in one.steps))
        for one in made_by(policy, n=80, temperature=2.0)
    ]
    report = evaluate_on_logs(warm, policy, temperature=1, confidence=0.95, behaviour=policy)
    logs = Logs(warm)
    assert report["stand_in"] == fit(logs, score(policy, warm, None), np.isnan(logs.behaviour_s)).to_dict()
