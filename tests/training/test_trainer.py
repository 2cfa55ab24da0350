import errno
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pandas as pd
import pytest
import torch

from builders import ACTIONS, make_trajectory
from retroformer.config import PolicyConfig, load_config
from retroformer.errors import DataError, TrainingStopped
from retroformer.objectives.losses import ASYMMETRIC_SHIFT, OBJECTIVES
from retroformer.policies.checkpoints import build
from retroformer.training.replay import Replay
from retroformer.training.trainer import Trainer, new_value_head, rate
from retroformer.types import Outcome, Step
from tiny import plain_scores

DEFAULTS = load_config(Path(__file__).resolve().parents[2] / "params.yaml").train
WORDS = ("go", "to", "x", "o0", "o1", "o2", *ACTIONS)


def steps(*actions, reward=0.0, logprob=-1.1):
    """The same observations each time, so that good and bad actions compete; the reward comes at the end."""
    last = len(actions) - 1
    return tuple(
        Step(f"o{t}", action, reward * (t == last), ACTIONS, logprob=logprob) for t, action in enumerate(actions)
    )


WON = make_trajectory((0, 1.0), seed=0, steps=steps("left", "right", reward=1.0))
LOST = make_trajectory((0, 0), seed=1, steps=steps("right", "left"), outcome=Outcome.FAILURE)
ASIDE = [
    make_trajectory((0, 1.0), seed=10, split="checkpoint", steps=steps("left", "right", reward=1.0)),
    make_trajectory((0, 0), seed=11, split="checkpoint", steps=steps("left", "left"), outcome=Outcome.FAILURE),
]
MANY = [
    *(
        make_trajectory((0, 1.0), seed=seed, steps=steps("left", action, reward=1.0))
        for seed, action in enumerate(ACTIONS)
    ),
    *(
        make_trajectory((0, 0, 0), seed=seed, steps=steps("right", "left", "forward"), outcome=Outcome.FAILURE)
        for seed in range(3, 6)
    ),
]


def catalogue(trajectories, rounds=MappingProxyType({})):
    """Successes in tier 1, failures in tier 2, all alike within the task; of round 1 but for those in `rounds`."""
    learned = [one for one in trajectories if one.task.split == "train" or one.task.split == "history"]
    rows = [
        {
            "trajectory_id": one.id,
            "round": rounds.get(one.id, 1),
            "task": one.task.name,
            "split": "checkpoint" if one.task.split == "checkpoint" else "train",
            "tier": 1 if one.outcome is Outcome.SUCCESS else 2,
            "probability": 1 / len(learned) if one in learned else 0.0,
        }
        for one in trajectories
    ]
    return pd.DataFrame(rows)


def trainer(trajectories, seed=0, continuing=False, rounds=MappingProxyType({}), **options):
    # All in one batch, no entropy and no value unless asked for.
    plain = {
        "curriculum": False,
        "warmup": 0,
        "entropy": 0.0,
        "value": 0.0,
        "observations": 0.0,
        "baseline": "mean",
        "updates": 1,
        "checkpoints": 1,
        "learning_rate": 0.01,
    }
    config = DEFAULTS.model_copy(update={"batch": 8, **plain, **options})
    policy = build(PolicyConfig(model="", width=8, layers=1, heads=2), WORDS, seed=1)
    replay = Replay(policy, trajectories, config.discount, config.baseline)
    inputs = (policy, replay, catalogue(trajectories, rounds), config)
    made = Trainer(*inputs, seed=seed, value_head=new_value_head(8), continuing=continuing)
    made.pacing.longest = 4
    return made


def silent(count, note):
    """Progress that nobody watches."""


def chosen_logprobs(policy, trajectory):
    with torch.no_grad():
        scores = policy.score(policy.collate(policy.windows(trajectory)))[0]
    return torch.stack([scores[t, ACTIONS.index(step.action)] for t, step in enumerate(trajectory.steps)])


@pytest.mark.parametrize("objective", ["topr", "truncated", "symmetric", "asymmetric"])
def test_one_update_makes_what_was_good_more_probable_and_what_was_bad_less(objective):
    one = trainer([WON, LOST], objective=objective)
    before = [chosen_logprobs(one.policy, trajectory) for trajectory in (WON, LOST)]
    one.update()
    won, lost = (chosen_logprobs(one.policy, trajectory) for trajectory in (WON, LOST))
    assert bool((won > before[0]).all())
    assert bool((lost < before[1]).all())


@pytest.mark.parametrize("objective", ["reward_weighted", "imitation_of_successes", "imitation"])
def test_objectives_without_advantages_raise_what_they_copy(objective):
    one = trainer([WON, LOST], objective=objective)
    before = chosen_logprobs(one.policy, WON).sum()
    for _ in range(3):
        one.update()
    assert chosen_logprobs(one.policy, WON).sum() > before


def test_the_gradient_is_the_mean_over_the_steps_of_the_batch_by_hand(monkeypatch):
    one = trainer(MANY, objective="reward_weighted", discount=0.5, batch=3, max_grad_norm=1e9)
    drawn = [MANY[3].id, MANY[0].id, MANY[1].id]
    one.queue = [drawn]
    monkeypatch.setattr(one.optimizer, "step", lambda: None)
    one.update()
    got = [parameter.grad.clone() for parameter in one.policy.model.parameters()]
    played = [next(trajectory for trajectory in MANY if trajectory.id == id) for id in drawn]
    total, count = torch.tensor(0.0), 0
    for trajectory in played:
        returns = (0.5, 1.0) if trajectory.outcome is Outcome.SUCCESS else (0.0, 0.0, 0.0)
        for weight, step, row in zip(returns, trajectory.steps, plain_scores(one.policy, trajectory), strict=True):
            total = total + weight * row[ACTIONS.index(step.action)]
            count += 1
    expected = torch.autograd.grad(-total / count, list(one.policy.model.parameters()))
    assert count == 3 + 2 + 2
    assert any(float(gradient.abs().max()) > 0 for gradient in expected)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_what_the_environment_says_next_is_learned_beside_by_hand():
    """The loss is the mean over the observations' tokens between two decisions; nothing else of it changes."""
    one, without = (trainer([WON, LOST], objective="imitation", observations=share) for share in (0.5, 0.0))
    for each in (one, without):
        each.queue = [[WON.id, LOST.id]]
        each.update()
    policy = without.policy
    fresh = trainer([WON, LOST]).policy
    expected = []
    for trajectory in (WON, LOST):
        [window] = policy.windows(trajectory)
        # Task, first observation, first action, second observation: the last word before the second decision.
        said = policy.encode(*policy.layout.piece("observation", "o1"))
        assert tuple(window.tokens[place + 1] for place in window.observed) == said
        for place in window.observed:
            with torch.no_grad():
                logits = fresh.model(torch.tensor([window.tokens[: place + 1]])).logits[0, -1]
            expected.append(-logits.log_softmax(-1)[window.tokens[place + 1]])
    loss, policy_loss, _, surprise, *_ = one.recent[0].tolist()
    assert surprise == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)
    assert loss == pytest.approx(policy_loss + 0.5 * surprise, rel=1e-6)
    assert without.recent[0][3] == 0
    assert float(without.recent[0][1]) == pytest.approx(policy_loss, rel=1e-6)


def test_observations_that_are_learned_are_foreseen():
    one = trainer([WON, LOST], objective="imitation", observations=1.0, updates=60)
    for _ in range(60):
        one.update()
    first, last = one.recent[0][3], one.recent[-1][3]
    assert first > 1
    assert last < first / 4


@pytest.mark.parametrize(
    ("objective", "continuing", "alike"),
    [("topr", True, True), ("topr", False, False), ("imitation_of_successes", True, False)],
)
def test_training_that_goes_on_draws_failures_as_often_as_they_happen_where_they_teach(objective, continuing, alike):
    one = trainer(MANY, objective=objective, curriculum=True)
    rows = catalogue(MANY)
    rows["probability"] = [0.25, 0.25, 0.25, 0.125, 0.0625, 0.0625]
    made = Trainer(
        one.policy, one.replay, rows, one.config, seed=0, value_head=new_value_head(8), continuing=continuing
    )
    made.sampler.admit(2)
    stated = [1 / 6] * 6 if alike else rows["probability"].tolist()
    assert made.sampler.probability(rows["trajectory_id"].tolist()) == pytest.approx(stated)


def test_advantages_are_lambda_returns_minus_the_learned_value_by_hand(monkeypatch):
    options = {"objective": "asymmetric", "baseline": "value", "discount": 0.5, "gae_lambda": 0.5}
    one = trainer([WON, LOST], batch=2, max_grad_norm=1e9, **options)
    torch.nn.init.zeros_(one.value_head.weight)
    torch.nn.init.constant_(one.value_head.bias, 0.4)
    one.queue = [[WON.id, LOST.id]]
    monkeypatch.setattr(one.optimizer, "step", lambda: None)
    one.update()
    got = [parameter.grad.clone() for parameter in one.policy.model.parameters()]
    # Won: 1, and before it .5 (.5 * .4 + .5 * 1) = .35. Lost: 0, and before it .5 (.5 * .4 + .5 * 0) = .1.
    total = torch.tensor(0.0)
    for trajectory, returns in ((WON, (0.35, 1.0)), (LOST, (0.1, 0.0))):
        for mixed, step, row in zip(returns, trajectory.steps, plain_scores(one.policy, trajectory), strict=True):
            total = total + (mixed - 0.4 + ASYMMETRIC_SHIFT) * row[ACTIONS.index(step.action)]
    expected = torch.autograd.grad(-total / 4, list(one.policy.model.parameters()))
    assert any(float(gradient.abs().max()) > 0 for gradient in expected)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("objective", "continuing", "below"), [("topr", False, 0.5), ("topr", True, 0.0), ("truncated", False, 0.0)]
)
def test_topr_counts_advantages_from_below_where_training_starts_afresh(monkeypatch, objective, continuing, below):
    one = trainer([WON, LOST], objective=objective, continuing=continuing, batch=2, discount=1.0, margin=0.5)
    one.queue = [[WON.id, LOST.id]]
    seen, learn = [], OBJECTIVES[objective]
    monkeypatch.setitem(OBJECTIVES, objective, lambda batch: seen.append(batch) or learn(batch))
    one.update()
    # Returns 1 and 0, each minus the other's, are 1 and -1; their root mean square is 1.
    assert seen[0].advantages_bt.tolist() == [[below + 1.0] * 2, [below - 1.0] * 2]


def test_the_value_head_learns_the_return():
    one = trainer([WON], objective="imitation", baseline="value", value=1.0, updates=60)
    for _ in range(60):
        one.update()
    _, values = one.forward(one.replay.minibatch([WON.id], [1.0]))
    assert values[0].tolist() == pytest.approx([0.95, 1.0], abs=0.2)


def test_the_entropy_bonus_keeps_the_policy_wider():
    narrow, wide = trainer([WON], objective="imitation"), trainer([WON], objective="imitation", entropy=1.0)
    for one in (narrow, wide):
        for _ in range(20):
            one.update()
    assert chosen_logprobs(wide.policy, WON).sum() < chosen_logprobs(narrow.policy, WON).sum()


RUN = {
    "updates": 20,
    "checkpoints": 4,
    "curriculum": True,
    "batch": 2,
    "baseline": "value",
    "value": 0.5,
    "entropy": 0.003,
}


def outcome_of(one):
    weights = {**one.policy.model.state_dict(), **{f"v.{k}": v for k, v in one.value_head.state_dict().items()}}
    # The optimiser's moments, the data's cursor and queue, the generator's state and the curriculum are in `state`.
    return weights, one.curve, one.pacing.schedule, one.checkpoints, one.best["update"], one.state()


def assert_same(first, second, where="outcome"):
    """Bit for bit, all the way down."""
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for place, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same(one, other, f"{where}.{place}")
    else:
        assert first == second, where


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    one = trainer([*MANY, *ASIDE], **RUN)
    one.run(tmp_path_factory.mktemp("whole"), silent)
    return outcome_of(one)


def test_two_runs_alike_end_in_the_same_bits(whole, tmp_path):
    again = trainer([*MANY, *ASIDE], **RUN)
    again.run(tmp_path, silent)
    assert_same(outcome_of(again), whole)
    assert len(again.curve) == 20
    assert [row["tiers_admitted"] for row in again.pacing.schedule] == sorted(
        r["tiers_admitted"] for r in again.pacing.schedule
    )
    other = trainer([*MANY, *ASIDE], seed=1, **RUN)
    other.run(tmp_path / "other", silent)
    assert again.pacing.schedule[-1]["tiers_admitted"] == 2
    assert other.curve != again.curve


@pytest.mark.parametrize("at", [1, 3, 10, 19])
def test_a_run_that_was_killed_and_resumed_ends_in_the_same_bits(whole, tmp_path, at):
    def killed(count, note):
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    left = at
    with pytest.raises(KeyboardInterrupt):
        trainer([*MANY, *ASIDE], **RUN).run(tmp_path, killed)
    told = []
    torch.manual_seed(99)  # chance that is not in the state would now be another
    resumed = trainer([*MANY, *ASIDE], **RUN)
    resumed.run(tmp_path, lambda count, note: told.append((count, note)))
    assert_same(outcome_of(resumed), whole)
    assert {"queue", "sampler", "optimizer", "pacing"} <= whole[-1].keys()
    assert whole[-1]["sampler"]["generator"]["state"]["state"] > 0
    assert len(whole[-1]["optimizer"]["state"]) == len(resumed.parameters)
    # A tenth of the updates is what a kill can cost.
    kept = at // 2 * 2
    assert told[0] == (kept, "resumed") if kept else told[0][0] == 1
    assert sum(count for count, _ in told) == 20


def scripted_scores(monkeypatch, values):
    """Scores in turn; any two differ with a standard error of .05."""
    left = list(values)

    def score(self):
        influence = torch.zeros(8)
        influence[len(left)] = 0.05 / 2**0.5
        return left.pop(0), influence

    monkeypatch.setattr(Trainer, "score", score)


@pytest.mark.parametrize(
    ("values", "chosen"),
    [((0.1, 0.5, 0.2, 0.3), 10), ((0.1, 0.2, 0.3, 0.4), 20), ((0.5, 0.1, 0.1, 0.1), 5), ((0.1, 0.5, 0.46, 0.3), 15)],
)
def test_the_best_checkpoint_stays_the_newest_of_those_as_good(monkeypatch, tmp_path, values, chosen):
    scripted_scores(monkeypatch, values)
    one = trainer([*MANY, *ASIDE], **RUN)
    seen = {}

    def watch(count, note):
        seen[one.done] = {name: tensor.clone() for name, tensor in one.policy.model.state_dict().items()}

    one.run(tmp_path, watch)
    assert one.best["update"] == chosen
    assert [row["score"] for row in one.checkpoints] == list(values)
    assert [(row["update"], row["score"]) for row in one.curve if row["score"] is not None] == list(
        zip((5, 10, 15, 20), values, strict=True)
    )
    for name, tensor in one.policy.model.state_dict().items():
        assert torch.equal(tensor, seen[chosen][name])


@pytest.mark.parametrize(("values", "chosen"), [((0.5, 0.1, 0.1, 0.1, 0.1), 0), ((0.1, 0.5, 0.2, 0.3, 0.49), 20)])
def test_a_policy_that_goes_on_is_a_candidate_itself_and_starts_with_every_tier(monkeypatch, tmp_path, values, chosen):
    scripted_scores(monkeypatch, values)
    one = trainer([*MANY, *ASIDE], continuing=True, **{**RUN, "curriculum": True})
    before = {name: tensor.clone() for name, tensor in one.policy.model.state_dict().items()}
    assert one.sampler.tiers_admitted == one.pacing.tiers
    one.run(tmp_path, silent)
    assert one.best["update"] == chosen
    assert [row["update"] for row in one.checkpoints] == [0, 5, 10, 15, 20]
    same = all(torch.equal(tensor, before[name]) for name, tensor in one.policy.model.state_dict().items())
    assert same == (chosen == 0)


def test_checkpoints_are_scored_on_the_newest_of_what_was_kept_aside(monkeypatch):
    monkeypatch.setattr("retroformer.training.trainer.CHOOSE_ON", 2)
    older = [replace(one, id=f"older-{one.id}") for one in ASIDE]
    one = trainer([*MANY, older[0], *ASIDE, older[1]], rounds={one.id: 0 for one in older})
    assert one.kept_aside == [one.id for one in ASIDE]
    assert len(one.score()[1]) == 2


def test_with_nothing_kept_aside_the_last_is_the_best(tmp_path):
    one = trainer(MANY, **RUN)
    one.run(tmp_path, silent)
    assert one.best["update"] == 20


def test_a_checkpoint_that_falls_between_two_points_of_the_curve_has_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("retroformer.training.trainer.POINTS", 2)
    one = trainer([*MANY, *ASIDE], **{**RUN, "updates": 12})
    one.run(tmp_path, silent)
    assert [(row["update"], row["score"] is None) for row in one.curve] == [
        (3, False),
        (6, False),
        (9, False),
        (12, False),
    ]


def test_a_policy_that_moves_from_the_behaviour_at_once_is_stopped_before_its_first_checkpoint(tmp_path):
    with pytest.raises(TrainingStopped, match=r"stopped at update 1 before its first checkpoint: KL .* limit 1e-09"):
        trainer(MANY, **{**RUN, "max_kl": 1e-9}).run(tmp_path, silent)
    # A behaviour that is surer of each step than of the one before: ratios to a fresh policy differ.
    surer = [
        replace(one, steps=tuple(replace(step, logprob=-1.5 / (t + 1)) for t, step in enumerate(one.steps)))
        for one in MANY
    ]
    with pytest.raises(TrainingStopped, match=r"effective sample size is 0\.\d+ at update 1, limit 1"):
        trainer(surer, **{**RUN, "min_ess": 1.0}).run(tmp_path, silent)


def without_number(policy, word):
    """Let the model give no number wherever it has read the word."""
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[policy.encode(word)[0]] = torch.nan


def test_a_loss_that_is_no_number_stops_and_names_the_step_and_the_remedy(tmp_path):
    one = trainer(MANY, **{**RUN, "curriculum": False, "batch": 8})
    without_number(one.policy, "o2")  # which the failures alone have come to, at their third step
    lost = "|".join(trajectory.id for trajectory in MANY[3:])
    told = (
        rf"not finite at update \d; trajectory ({lost}), step 2 \(log-probability nan, .*, return 0, value nan\): "
        "the model gives no number there: lower train.learning_rate, or start from another checkpoint"
    )
    with pytest.raises(TrainingStopped, match=told):
        one.run(tmp_path, silent)


def test_where_only_observations_have_no_number_no_trajectory_is_accused(tmp_path):
    one = trainer(MANY, **{**RUN, "curriculum": False, "batch": 8, "observations": 0.5})
    with torch.no_grad():
        one.policy.model.lm_head.weight[one.policy.encode("x")[0]] = torch.nan  # which is no action's
    told = r"not finite at update \d; the model gives no number to an observation's token: .*, or set train.obs"
    with pytest.raises(TrainingStopped, match=told):
        one.run(tmp_path, silent)


@pytest.mark.parametrize(
    ("reward", "remedy"),
    [
        (torch.inf, "mend the rewards and log-probabilities of that trajectory"),
        (1e38, "lower train.learning_rate, or look"),
    ],
)
def test_a_reward_beyond_all_numbers_is_named(tmp_path, reward, remedy):
    wild = replace(WON, id="wild", steps=(WON.steps[0], replace(WON.steps[1], reward=reward)))
    one = trainer([*MANY, wild], **{**RUN, "baseline": "none", "objective": "symmetric", "value": 0.5})
    with pytest.raises(TrainingStopped, match=rf"at update \d+; trajectory wild, step [01] .*: {remedy}"):
        one.run(tmp_path, silent)


def test_the_update_that_broke_is_told_from_its_neighbours_and_changes_no_weight(tmp_path):
    options = {**RUN, "updates": 300, "curriculum": False, "batch": 8}  # three to a point of the curve
    one = trainer(MANY[3:], **options)
    one.update()
    one.done = 1
    kept = one.policy.model.lm_head.weight.clone()
    assert kept.isfinite().all()
    without_number(one.policy, "o2")
    again = trainer(MANY[3:], **options)
    again.restore(one.state())  # what is noted outlasts a kill
    assert len(again.suspects) == 1
    with pytest.raises(TrainingStopped, match=r"stopped at update 3 .* not finite at update 2; trajectory .*, step 2 "):
        again.run(tmp_path, silent)
    assert torch.equal(again.policy.model.lm_head.weight, kept)


def test_a_step_kept_aside_that_has_no_number_is_named(tmp_path):
    apart = replace(ASIDE[1], id="apart", steps=(ASIDE[1].steps[0], replace(ASIDE[1].steps[1], observation="o2")))
    won = [one for one in MANY if one.outcome is Outcome.SUCCESS]  # never come to o2
    one = trainer([*won, ASIDE[0], apart], **RUN)
    without_number(one.policy, "o2")
    told = "for trajectory apart, step 1, kept aside to choose checkpoints, at update 5: lower train.learning"
    with pytest.raises(TrainingStopped, match=told):
        one.run(tmp_path, silent)


def test_a_stop_after_a_checkpoint_keeps_it_and_says_why_also_when_resumed(whole, tmp_path):
    kl = [row["kl"] for row in whole[1]]
    passed = next(update for update in range(6, 20) if kl[update] > max(kl[:update]))
    limit = (kl[passed] + max(kl[:passed])) / 2
    options = {**RUN, "max_kl": limit}
    one = trainer([*MANY, *ASIDE], **options)
    one.run(tmp_path / "whole", silent)
    assert one.done == passed + 1
    assert f"nats a step at update {passed + 1}, limit" in one.stopped
    assert one.best["update"] % 5 == 0
    # Killed after the stop was written down, it does not go on.
    again = trainer([*MANY, *ASIDE], **options)
    again.restore(one.state())
    again.run(tmp_path / "again", silent)
    assert (again.done, again.stopped) == (one.done, one.stopped)


def test_logs_without_behaviour_log_probabilities_train_with_asymmetric_alone(tmp_path):
    quiet = [replace(one, steps=tuple(replace(step, logprob=None) for step in one.steps)) for one in (*MANY, *ASIDE)]
    with pytest.raises(DataError, match="use asymmetric or imitation_of_successes"):
        trainer(quiet, objective="topr")
    one = trainer(quiet, **{**RUN, "objective": "asymmetric"})
    one.run(tmp_path, silent)
    assert one.done == 20
    assert {one.curve[-1][name] for name in ("kl", "ess", "clipped")} == {None}
    unsolved = [one for one in quiet if one.task.split != "checkpoint" or one.outcome is Outcome.FAILURE]
    one = trainer(unsolved, **{**RUN, "objective": "asymmetric"})
    one.run(tmp_path / "unsolved", silent)
    assert one.best["update"] == 20


def test_dropout_is_off(tmp_path):
    one = trainer([*MANY, *ASIDE], **RUN)
    modes = []
    one.run(tmp_path, lambda count, note: modes.append(one.policy.model.training))
    assert not any(modes)


def test_the_learning_rate_by_hand():
    assert [rate(update, 100, 10) for update in (0, 4, 9, 10, 50)] == pytest.approx([0.1, 0.5, 1, 1, 1])
    assert [rate(update, 100, 10) for update in (75, 100)] == pytest.approx([0.55, 0.1])
    assert rate(0, 100, 0) == 1


def test_the_failures_of_a_task_draw_it_more_often():
    solved = [replace(one, id=f"s{n}", task=replace(one.task, name="P5N2")) for n, one in enumerate(MANY[:3])]
    one = trainer([*MANY, *solved])
    drawn = one.sampler.draw(4000)
    share = sum(id.startswith("s") and len(id) == 2 for id in drawn) / 4000
    # Half of P6N3 failed, none of P5N2: weights 0.65 and 0.15.
    assert share == pytest.approx(0.15 / 0.8, abs=0.03)


def test_a_damaged_resume_file_is_as_good_as_none(tmp_path):
    whole = trainer([*MANY, *ASIDE], **RUN)
    whole.run(tmp_path / "whole", silent)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "trainer.pt").write_bytes(b"PK\x03\x04 cut short")
    told = []
    again = trainer([*MANY, *ASIDE], **RUN)
    again.run(broken, lambda count, note: told.append(note))
    assert "resumed" not in told
    assert_same(outcome_of(again), outcome_of(whole))


def test_a_full_disk_says_so_and_leaves_no_half_of_a_resume_file(tmp_path, monkeypatch):
    def full(self, data):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device"):
        trainer([*MANY, *ASIDE], **RUN).run(tmp_path, silent)
    assert list(tmp_path.iterdir()) == []
