"""The stage that says promote, keep, or not enough evidence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from retroformer.config import DecideConfig, EvaluateConfig
from retroformer.errors import DataError
from retroformer.evaluation.baselines import baseline_lines, behind
from retroformer.evaluation.comparison import paired_difference
from retroformer.evaluation.episodes import Played, Scores, by_task, read_episodes
from retroformer.evaluation.gate import Verdict, judge, judge_on_logs
from retroformer.evaluation.intervals import Estimate, stratified_mean
from retroformer.evaluation.report import write_report
from retroformer.files import read_json, replacing, write_json


def decide(
    config: DecideConfig,
    evaluate: EvaluateConfig,
    *,
    evaluation: Path = Path("data/evaluation"),
    training: Path = Path("data/training"),
    batches: Path = Path("data/batches"),
    validated: Path = Path("data/validated"),
    rollouts: Path = Path("data/rollouts"),
    history: Path = Path("data/history"),
    out: Path = Path("data/decision"),
) -> dict[str, Any]:
    """Judge the challenger: promote, keep, or not enough evidence.

    The difference is computed anew from the episodes that champion and challenger played on the same seeds of the
    gate range, sampled, told the true mission; no summary is trusted. Its interval holds at each of the planned looks.
    Success under a shuffled mission says whether the challenger follows its task. The imitations that it is proven
    behind on the final seeds are named; they do not decide, since they are not what is in production.

    Where evaluate could only ask the logs, the verdict is on its off-policy report.

    Writes verdict.json, and report.html, which shows the whole round; the stages before and the closed rounds are read
    for the report alone, and what is missing there is named in it.

    Raises DataError where an episode is missing, doubled or contradicts itself.
    """
    report = read_json(evaluation / "evaluation.json")
    try:
        round_number, looks = int(report["round"]), len(report["looks"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{evaluation}/evaluation.json lacks a round or its looks: {error}") from None
    if looks > evaluate.looks:
        raise DataError(
            f"{evaluation}/evaluation.json looked {looks} times, evaluate.looks plans {evaluate.looks}: "
            "the intervals would not hold; evaluate again"
        )
    of_logs = report.get("off_policy")
    if of_logs:
        judged, lines = judge_on_logs(of_logs, config), []
    else:
        path = evaluation / "episodes.csv"
        played = read_episodes(path)
        judged = judge_episodes(path, played, config, evaluate, set(report.get("one_mission", ())))
        lines = baseline_lines(played, history, round_number, None, evaluate.confidence)
    verdict = {"round": round_number, **judged.to_dict(), "behind": behind(lines)}
    with replacing(out) as folder:
        write_json(folder / "verdict.json", verdict)
        write_report(
            folder / "report.html",
            verdict=verdict,
            evaluation=evaluation,
            training=training,
            batches=batches,
            validated=validated,
            rollouts=rollouts,
            history=history,
        )
    return {key: verdict[key] for key in ("verdict", "reason", "difference", "lower", "upper", "n")}


def judge_episodes(
    path: Path, played: Sequence[Played], config: DecideConfig, evaluate: EvaluateConfig, one_mission: set[str]
) -> Verdict:
    """The verdict on `played`, what episodes.csv holds. `one_mission`: the tasks whose mission cannot be swapped."""
    gate = [one for one in played if (one.range, one.decoding) == ("gate", "sampled")]
    champion = scores(path, gate, "champion", "true")
    challenger = scores(path, gate, "challenger", "true")
    # The control compares the tasks that can be played with another mission, told either.
    controlled = {key: score for key, score in challenger.items() if key[0] not in one_mission}
    swapped = scores(path, gate, "challenger", "shuffled") if controlled else {}
    unpaired = sorted(champion.keys() ^ challenger.keys())
    if unpaired:
        task, seed = unpaired[0]
        who = "champion" if unpaired[0] in champion else "challenger"
        raise DataError(f"{path}: {len(unpaired)} episodes are unpaired; {task} seed {seed} was played by {who} alone")
    other_tasks = by_task(controlled).keys() ^ by_task(swapped).keys()
    if other_tasks:
        raise DataError(f"{path}: {min(other_tasks)} was not played with both the true and the shuffled mission")
    difference = paired_difference(by_task(champion), by_task(challenger), evaluate.confidence, evaluate.looks)
    true, told_wrong = (mean_over_tasks(found, evaluate.confidence) for found in (controlled, swapped))
    return judge(difference, true, told_wrong, config, controlled=bool(controlled))


def scores(path: Path, episodes: Iterable[Played], policy: str, mission: str) -> Scores:
    """(task, seed) -> score of one policy told one mission. Raises DataError where one is doubled or none is there."""
    found: Scores = {}
    for one in episodes:
        if (one.policy, one.mission) == (policy, mission):
            if (one.task, one.seed) in found:
                raise DataError(f"{path}: {policy} played {one.task} seed {one.seed} ({mission} mission) twice")
            found[one.task, one.seed] = one.score
    if not found:
        raise DataError(f"{path} has no sampled episode of the {policy} in the gate range with the {mission} mission")
    return found


def mean_over_tasks(found: Scores, confidence: float) -> Estimate | None:
    """Success with tasks weighted equally, None where every episode was lost."""
    if all(score is None for score in found.values()):
        return None
    return stratified_mean(by_task(found), confidence)
