from dataclasses import replace

import pytest
import torch

from builders import make_trajectory
from retroformer.config import PolicyConfig
from retroformer.errors import DataError
from retroformer.policies.checkpoints import build
from retroformer.policies.layout import Layout
from retroformer.training.replay import Replay

WORDS = ("go", "to", "x", "o0", "o1", "o2", "left", "right", "forward")
WON = make_trajectory((0.0, 0.0, 1.0), seed=0)
LOST = make_trajectory((0.0, 0.0), seed=1)
OTHER = make_trajectory((1.0,), seed=2, name="P5N2", temperature=0.5)


def policy(context=1024, **options):
    made = build(PolicyConfig(model="", width=8, layers=1, heads=2), WORDS, seed=0, layout=Layout(**options))
    made.limit = context
    return made


def test_returns_baselines_and_masks_by_hand():
    replay = Replay(policy(), [WON, LOST, OTHER], discount=0.5, baseline="mean")
    batch = replay.minibatch([LOST.id, WON.id], [2.0, 1.0])
    assert batch.mask_bt.tolist() == [[True, True, False], [True, True, True]]
    assert batch.returns_bt.tolist() == [[0, 0, 0], [0.25, 0.5, 1.0]]
    # Others' mean return to go: (0.25 + 0.5 + 1 + 1) / 4 for the lost, 1 / 3 for the won.
    assert batch.baselines_bt.tolist() == [pytest.approx([2.75 / 4] * 3), pytest.approx([1 / 3] * 3)]
    # Of the same task: the lost one sees the won, and the other way about.
    assert batch.task_baselines_bt[:, 0].tolist() == pytest.approx([1.75 / 3, 0])
    assert batch.behaviour_logprobs_bt[0, :2].tolist() == [-1.0, -1.0]
    assert batch.success_b.tolist() == [False, True]
    assert batch.weights_b.tolist() == [2.0, 1.0]
    assert replay.minibatch([OTHER.id], [1.0]).temperature_b.tolist() == [0.5]
    assert batch.chosen_bt.tolist() == [[0, 1, 0], [0, 1, 2]]


def test_the_baselines_that_the_trainer_may_ask_for():
    attempts = [replace(WON, attempt=n, id=f"a{n}") for n in (1, 2)]
    for kind, expected in (("none", 0), ("value", 0), ("task", (3 + 3) / 8), ("leave_one_out", 1.0)):
        replay = Replay(policy(), [WON, LOST, *attempts], discount=1.0, baseline=kind)
        assert float(replay.baseline[0]) == pytest.approx(expected), kind


def test_a_trajectory_of_several_windows_keeps_its_steps_in_their_places():
    long = make_trajectory((0.0,) * 5 + (1.0,))
    long = replace(
        long, steps=tuple(replace(step, observation="o1", logprob=-float(t)) for t, step in enumerate(long.steps))
    )
    replay = Replay(policy(context=8), [LOST, long], discount=0.5, baseline="none")
    batch = replay.minibatch([long.id, LOST.id], [3.0, 1.0])
    starts = [window.first_step for window in replay.windows[1]]
    assert len(starts) > 1
    steps = [len(window.roots) for window in replay.windows[1]]
    for row, (start, count) in enumerate(zip(starts, steps, strict=True)):
        assert int(batch.mask_bt[row].sum()) == count
        assert batch.returns_bt[row, :count].tolist() == [0.5 ** (5 - t) for t in range(start, start + count)]
        assert batch.behaviour_logprobs_bt[row, :count].tolist() == [-float(t) for t in range(start, start + count)]
    assert batch.weights_b.tolist() == [3.0] * len(starts) + [1.0]
    assert replay.tokens(long.id) == sum(len(window.tokens) for window in replay.windows[1])


def test_what_the_log_does_not_know_is_not_a_number_and_topr_says_what_to_use_instead():
    silent = replace(LOST, steps=tuple(replace(step, logprob=None) for step in LOST.steps))
    replay = Replay(policy(), [WON, silent], discount=1.0, baseline="none")
    assert bool(replay.minibatch([silent.id], [1.0]).behaviour_logprobs_bt.isnan().all())
    with pytest.raises(
        DataError, match=rf"topr needs .* 1 of 2 .* \(first: {silent.id}\); use asymmetric or imitation_of"
    ):
        replay.require_behaviour("topr")
    Replay(policy(), [WON], discount=1.0, baseline="none").require_behaviour("topr")


def test_what_the_log_lacks_is_estimated_by_a_fitted_policy_and_what_it_has_is_kept():
    long = make_trajectory((0.0,) * 5 + (1.0,), temperature=0.5)
    long = replace(long, id="long", steps=tuple(replace(step, observation="o1", logprob=None) for step in long.steps))
    half = replace(WON, id="half", steps=(WON.steps[0], *(replace(step, logprob=None) for step in WON.steps[1:])))
    made = policy(context=8)
    replay = Replay(made, [long, LOST, half], discount=1.0, baseline="none")
    assert len(replay.windows[0]) > 1
    replay.estimate_behaviour(made)
    assert replay.estimated == pytest.approx(8 / 11)
    replay.require_behaviour("topr")
    assert replay.minibatch([LOST.id], [1.0]).behaviour_logprobs_bt.tolist() == [[-1.0, -1.0]]
    assert replay.minibatch([half.id], [1.0]).behaviour_logprobs_bt[0, 0] == -1.0
    for one in (long, half):
        batch = replay.minibatch([one.id], [1.0])
        [tree] = batch.trees
        own_bta = made.score(tree, batch.temperature_b[:, None, None])
        own_bt = own_bta.gather(-1, batch.chosen_bt[..., None])[..., 0]
        estimated = batch.behaviour_logprobs_bt != -1.0
        assert batch.behaviour_logprobs_bt[batch.mask_bt & estimated].tolist() == pytest.approx(
            own_bt[batch.mask_bt & estimated].tolist(), abs=1e-5
        )
        assert int((batch.mask_bt & estimated).sum()) == sum(step.logprob is None for step in one.steps)


def test_a_fitted_policy_that_gives_no_number_is_told_with_the_step():
    made = policy()
    half = replace(LOST, id="half", steps=(LOST.steps[0], replace(LOST.steps[1], logprob=None)))
    with torch.no_grad():
        made.model.get_input_embeddings().weight[made.encode("o1")[0]] = torch.nan
    with pytest.raises(
        DataError, match=r"no finite log-probability for trajectory half, step 1, .* lower train\.learn"
    ):
        Replay(made, [WON, half], discount=1.0, baseline="none").estimate_behaviour(made)


def test_the_return_that_was_reached_stands_in_the_prompt_where_asked():
    conditioned = policy(condition_on_return=True)
    openings = [conditioned.tokenizer.decode(conditioned.windows(one)[0].tokens[:5]) for one in (WON, LOST)]
    assert openings == ["return 1.0 go to x", "return 0.0 go to x"]
    assert policy().tokenizer.decode(policy().windows(WON)[0].tokens[:4]) == "go to x o0"


def test_success_by_task():
    replay = Replay(policy(), [WON, LOST, OTHER], discount=1.0, baseline="none")
    assert replay.per_task([WON.id, LOST.id, OTHER.id]) == {"P5N2": 1.0, "P6N3": 0.5}
    assert torch.equal(replay.success, torch.tensor([True, False, True]))


def test_steps_of_both_modes_lie_side_by_side_and_the_generated_ones_are_marked():
    made = build(PolicyConfig(model="", width=8, layers=1, heads=2), WORDS, seed=0, layout=Layout.words(ended=True))
    written = replace(WON, steps=tuple(replace(step, admissible_actions=None, logprob=None) for step in WON.steps))
    mixed = replace(OTHER, id="mixed", steps=(*LOST.steps, written.steps[0]))
    replay = Replay(made, [replace(written, id="written"), mixed, LOST], discount=1.0, baseline="none")
    batch = replay.minibatch(["written", "mixed", LOST.id], [1.0] * 3)
    assert batch.generated_bt.tolist() == [[True] * 3, [False, False, True], [False] * 3]
    assert batch.action_mask_bta.sum(-1).tolist() == [[1, 1, 1], [3, 3, 1], [3, 3, 0]]
    assert batch.behaviour_logprobs_bt.isnan().tolist() == [[True] * 3, [False, False, True], [False, False, True]]
    assert not replay.minibatch([LOST.id], [1.0]).generated_bt.any()
