import csv
import json

import pytest

from retroformer.evaluation.baselines import baseline_bars, baseline_lines
from retroformer.evaluation.episodes import COLUMNS, Played, read_episodes
from retroformer.evaluation.intervals import Estimate, stratified_mean

BEHAVIOUR = Estimate(0.5, 0.4, 0.6, 100)


def played(policy, scores, decoding="sampled", range_="final", mission="true"):
    """Tasks A and B in turn, one seed after the other; x is an episode lost to an error."""
    value = {"0": 0.0, "1": 1.0, "x": None}
    return [
        Played(policy, range_, mission, decoding, "f", "AB"[seed % 2], seed, value[one])
        for seed, one in enumerate(scores)
    ]


def closed(history, number, episodes):
    """What a closed round keeps of its evaluation."""
    folder = history / f"round-{number:04d}/evaluation"
    folder.mkdir(parents=True)
    outcome = {1.0: "success", 0.0: "failure", None: "error"}
    with (folder / "episodes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for one in episodes:
            names = (one.policy, one.range, one.mission, one.decoding, one.family, one.task, one.seed)
            writer.writerow([*names, "" if one.score is None else int(one.score), outcome[one.score], 5])
    summary = [{"policy": name} for name in sorted({one.policy for one in episodes})]
    (folder / "evaluation.json").write_text(json.dumps({"summary": summary}))


def first_round():
    return [
        *played("imitation", "00110011"),
        *played("imitation", "11110011", "greedy"),
        *played("imitation_of_successes", "1111011x"),
        *played("random", "00000001"),
        *played("champion", "01010101"),
        *played("champion", "11111111", range_="gate"),
        *played("imitation", "11111111", mission="other"),
    ]


def test_the_round_that_trained_them_shows_them_beside_the_challenger(tmp_path):
    episodes = first_round() + played("challenger", "11110111") + played("challenger", "11111111", "greedy")
    lines = baseline_lines(episodes, tmp_path, 1, BEHAVIOUR, 0.95)
    assert [(one.policy, one.source) for one in lines] == [
        ("behaviour", "other seeds"),
        ("random", ""),
        ("champion", ""),
        ("imitation", ""),
        ("imitation_of_successes", ""),
        ("challenger", ""),
    ]
    behaviour, random, champion, imitation, successes, challenger = lines
    assert behaviour.success == {"sampled": BEHAVIOUR}
    # Task A has the even seeds, B the odd ones: imitation solves 2 of 4 of each, the challenger 3 and 4 of 4.
    assert imitation.success["sampled"] == stratified_mean({"A": [0, 1, 0, 1], "B": [0, 1, 0, 1]}, 0.95)
    assert challenger.success["sampled"].mean == pytest.approx(7 / 8)
    assert imitation.ahead["sampled"].mean == pytest.approx(3 / 8)
    assert imitation.ahead["greedy"].mean == pytest.approx(2 / 8)
    assert random.ahead["sampled"].mean == pytest.approx(6 / 8)
    assert champion.success["sampled"].mean == 0.5, "the gate's episodes are not the final ones"
    # The lost pair says nothing: A differs in no pair, B in one of the three that are left, where both were solved.
    assert (successes.ahead["sampled"].mean, successes.ahead["sampled"].n) == (0.0, 7)
    assert successes.success["sampled"].n == 7
    assert "greedy" not in successes.success
    assert challenger.ahead == {}


def test_a_later_round_shows_those_of_the_round_that_played_them_on_the_same_seeds(tmp_path):
    closed(tmp_path, 1, first_round() + played("challenger", "11110111"))
    closed(tmp_path, 2, played("challenger", "11111111"))
    own = played("challenger", "11110011") + played("champion", "11111111", range_="gate")
    lines = {one.policy: one for one in baseline_lines(own, tmp_path, 3, None, 0.95)}
    assert list(lines) == ["random", "champion", "imitation", "imitation_of_successes", "challenger"]
    assert {one.source for name, one in lines.items() if name != "challenger"} == {"round 1"}
    assert lines["challenger"].success["sampled"].mean == pytest.approx(6 / 8)
    assert lines["imitation"].ahead["sampled"].mean == pytest.approx(2 / 8)
    assert "greedy" in lines["imitation"].success
    assert "greedy" not in lines["imitation"].ahead, "the challenger was not played greedily"
    assert read_episodes(tmp_path / "round-0001/evaluation/episodes.csv")[0] == first_round()[0]


def test_other_seeds_are_not_compared(tmp_path):
    closed(tmp_path, 1, first_round())
    lines = baseline_lines(played("challenger", "1111"), tmp_path, 2, None, 0.95)
    assert len(lines) == 5
    assert not any(one.ahead for one in lines)


def test_without_baselines_there_is_nothing_to_show(tmp_path):
    closed(tmp_path, 1, played("challenger", "11"))
    closed(tmp_path, 4, first_round())
    assert baseline_lines(played("challenger", "11"), tmp_path, 3, BEHAVIOUR, 0.95) == []
    assert baseline_lines(played("challenger", "11"), tmp_path / "none", 3, BEHAVIOUR, 0.95) == []
    assert baseline_bars([]) is None


def test_all_lost_is_shown_without_a_figure(tmp_path):
    episodes = played("imitation", "xx") + played("challenger", "11")
    imitation = baseline_lines(episodes, tmp_path, 1, None, 0.95)[0]
    assert imitation.success == {}
    assert imitation.ahead == {}
