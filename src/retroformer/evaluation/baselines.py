"""What the challenger stands beside: random actions, imitation, and the agent that it began with, on the final seeds.

The final range is the same every round, so a later round's challenger meets the very seeds that the baselines of an
earlier one have played, and the differences are paired.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from retroformer.evaluation.comparison import Difference, paired_difference
from retroformer.evaluation.episodes import Played, Scores, by_task, read_episodes
from retroformer.evaluation.figures import Row, bars
from retroformer.evaluation.intervals import Estimate, stratified_mean
from retroformer.files import read_json

IMITATIONS = {
    "imitation": "imitation of everything",
    "imitation_of_successes": "imitation of successes",
    "reward_weighted": "reward-weighted imitation",
}
"""Baselines that train makes, as a reader knows them."""
STANDING = ("random", "champion", *IMITATIONS)
DECODINGS = ("sampled", "greedy")


class Line(NamedTuple):
    """One policy: success on the final seeds by decoding, and how far the challenger is ahead of it."""

    policy: str
    name: str
    source: str
    success: dict[str, Estimate]
    ahead: dict[str, Difference]


def baseline_lines(
    episodes: Iterable[Played], history: Path, number: int, behaviour: Estimate | None, confidence: float
) -> list[Line]:
    """The behaviour, what round `number` or else the newest round before it played as baselines, and the challenger.

    `behaviour` is the success of what made this round's data, on other seeds. Empty where no round has baselines.
    """
    own = final_scores(episodes)
    of, theirs = number, own
    if not IMITATIONS.keys() & {policy for policy, _ in own}:
        of, theirs = earlier(history, number)
    if not theirs:
        return []
    here = "" if of == number else f"round {of}"
    challenger = {decoding: own[key] for decoding in DECODINGS if (key := ("challenger", decoding)) in own}
    lines = (
        [Line("behaviour", "made this round's data", "other seeds", {"sampled": behaviour}, {})] if behaviour else []
    )
    for policy in STANDING:
        played = {decoding: theirs[key] for decoding in DECODINGS if (key := (policy, decoding)) in theirs}
        if played:
            ahead = {
                decoding: difference
                for decoding, scores in played.items()
                if (difference := compared(scores, challenger.get(decoding, {}), confidence))
            }
            name = IMITATIONS.get(policy, policy)
            lines.append(Line(policy, name, here, estimates(played, confidence), ahead))
    return [*lines, Line("challenger", "challenger", "", estimates(challenger, confidence), {})]


def behind(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """The imitations that the challenger is proven worse than, sampled, as verdict.json holds them: what the rewards
    add to their example then misleads more than it helps."""
    return [
        {"baseline": line.policy, "difference": ahead.mean, "lower": ahead.lower, "upper": ahead.upper, "n": ahead.n}
        for line in lines
        if line.policy in IMITATIONS and (ahead := line.ahead.get("sampled")) and ahead.upper < 0
    ]


def advice(found: Mapping[str, Any]) -> str:
    """One of `behind`, and what to try."""
    name = IMITATIONS.get(found["baseline"], found["baseline"])
    figures = f"{found['difference']:+.3f} [{found['lower']:+.3f}, {found['upper']:+.3f}], n {found['n']}"
    return (
        f"The challenger is behind {name} on the final seeds, sampled: {figures}; try train.objective="
        f"{found['baseline']}."
    )


def final_scores(episodes: Iterable[Played]) -> dict[tuple[str, str], Scores]:
    """(policy, decoding) -> scores on the final seeds, told the true mission."""
    found: dict[tuple[str, str], Scores] = {}
    for one in episodes:
        if (one.range, one.mission) == ("final", "true"):
            found.setdefault((one.policy, one.decoding), {})[one.task, one.seed] = one.score
    return found


def earlier(history: Path, number: int) -> tuple[int, dict[tuple[str, str], Scores]]:
    """The newest closed round before `number` that has baselines, and what was played on the final seeds there."""
    for folder in sorted(history.glob("round-*"), reverse=True) if history.is_dir() else ():
        report = folder / "evaluation" / "evaluation.json"
        if not (re.fullmatch(r"round-\d+", folder.name) and int(folder.name[6:]) < number and report.is_file()):
            continue
        if IMITATIONS.keys() & {line.get("policy") for line in read_json(report).get("summary", ())}:
            return int(folder.name[6:]), final_scores(read_episodes(folder / "evaluation" / "episodes.csv"))
    return number, {}


def estimates(played: Mapping[str, Scores], confidence: float) -> dict[str, Estimate]:
    """Decoding -> success, tasks weighted equally; without those of which every episode was lost."""
    known = {decoding: scores for decoding, scores in played.items() if any(v is not None for v in scores.values())}
    return {decoding: stratified_mean(by_task(scores), confidence) for decoding, scores in known.items()}


def compared(baseline: Scores, challenger: Scores, confidence: float) -> Difference | None:
    """Challenger minus baseline on the same seeds; None where no pair is left, as after a change of parameters."""
    if not baseline or baseline.keys() != challenger.keys():
        return None
    difference = paired_difference(by_task(baseline), by_task(challenger), confidence, looks=1)
    return difference if difference.n else None


def baseline_bars(lines: Sequence[Line]) -> Markup | None:
    """The lines as bars, sampled and greedy. None where there are none."""
    groups = [
        (
            f"{decoding}, final seeds",
            [Row(one.name, one.policy, *one.success[decoding][:3]) for one in lines if decoding in one.success],
        )
        for decoding in DECODINGS
    ]
    return bars("Challenger and baselines", groups, [(one.policy, one.name) for one in lines]) if lines else None
