"""``retroformer lineage`` and ``forget``: what is behind a version or a trajectory, and how to take it out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retroformer.cli.parsing import parse, parser_of
from retroformer.errors import ConfigError

if TYPE_CHECKING:
    from retroformer.lineage.forgetting import Plan

HERE = Path(".")
ROLES = {
    "trained": "drawn for training",
    "checkpoint": "chose the checkpoint",
    "judged": "judged the version",
    "unused": "listed, not learned from",
}
LINKS = {"weights": "was trained on from it", "data": "learned from its runs"}
DATA = ("data/logs", "data/history", "data/rollouts", "data/validated", "data/batches", "data/challenger")
"""Of the hashes, those that a person looks for; --json has every one."""


def lineage(arguments: Sequence[str]) -> None:
    """What is behind a version: git commit, parameters, parent policy, hashes of data, trajectories, lines of logs.

    The other way with --trajectory: where a trajectory was read, and which versions learned from it.
    VERSION is a number, champion, or challenger (the newest).
    """
    parser = parser_of("lineage", lineage)
    parser.add_argument("version", nargs="?", metavar="VERSION")
    parser.add_argument("--trajectory", metavar="ID", help="an id, or as much of it as is unique")
    parser.add_argument("--ids", action="store_true", help="also print every trajectory, with its source")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    asked = parse(parser, arguments)
    if (asked.version is None) == (asked.trajectory is None):
        raise ConfigError("name a version, or a trajectory with --trajectory ID; see `retroformer lineage --help`")
    from retroformer.lineage.telling import trajectory_lineage, version_lineage

    if asked.trajectory is not None:
        told = trajectory_lineage(HERE, asked.trajectory)
        lines = of_trajectory(told)
    else:
        told = version_lineage(HERE, asked.version)
        lines = of_version(told, asked.ids)
    print(json.dumps(told, indent=2, sort_keys=True, allow_nan=False) if asked.json else "\n".join(lines))


def of_version(told: dict[str, Any], ids: bool) -> Iterator[str]:
    """What a person reads of a version and of those it comes from."""
    production = ", in production" if told["in_production"] else ""
    yield f"version {told['version']} of round {told['round']}{production}: {told['verdict'].replace('_', ' ')}"
    yield f"  policy        {told['policy']}  {told['hash'][:16]}"
    yield f"  git           {commit(told['git'])}"
    parent = told["trained_from"]
    yield f"  trained from  {parent['policy'] + '  ' + parent['hash'][:16] if parent else afresh(told['model'])}"
    for name, section in sorted((told["params"] or {"params": "not kept by the round"}).items()):
        values = section if isinstance(section, dict) else {"": section}
        shown = ", ".join(f"{key} {flat(value)}".strip() for key, value in values.items())
        yield f"  {name:<13} {shown}"
    yield f"  dataset       {told['dataset_hash'][:16]} (SHA-256 of data/batches)"
    for path in DATA:
        if path in told["hashes"]:
            yield f"  {path:<17} {told['hashes'][path]}"
    yield f"  {told['history']['path']}  {told['history']['md5'] or 'not tracked by DVC'} (now)"
    yield from of_data(told, ids)
    for one in told["inherited"]:
        how = " and ".join(f"version {link['version']} {LINKS[link['by']]}" for link in one["through"])
        yield f"\ninherited from version {one['version']} of round {one['round']}: {how}"
        yield f"  policy        {one['policy']}  {one['hash'][:16]}"
        yield f"  git           {commit(one['git'])}"
        yield from of_data(one, ids)


def of_data(told: dict[str, Any], ids: bool) -> Iterator[str]:
    """Counts of trajectories by role, who made them, where they were read, and what was forgotten of them."""
    for role, name in ROLES.items():
        mine = told["trajectories"][role]
        if mine:
            rounds = sorted({one["round"] for one in mine})
            spread = ", ".join(f"{sum(one['round'] == n for one in mine)} of round {n}" for n in rounds)
            yield f"  {len(mine)} trajectories {name}: {spread}"
            if ids:
                yield from (f"    {one['id']}  {one['task']}  {one['outcome']}  {one['source']}" for one in mine)
    for one in told["policies"]:
        version = f", which is version {one['version']}" if one["version"] else ""
        yield f"  {one['trajectories']} made by {one['policy']}{version}"
    from retroformer.lineage.sources import ranges

    for file, found in told["sources"].items():
        lines = f", line {shortened(ranges(found['lines']))}" if found["lines"] else ""
        yield f"  {found['trajectories']} read from {file}{lines}"
    for one in told["forgotten"]:
        counts = ", ".join(f"{len(one[role])} {ROLES[role]}" for role in ROLES if role in one)
        yield f"  forgotten on {one['at']} ({one['reason']}): {counts}"


def of_trajectory(told: dict[str, Any]) -> Iterator[str]:
    """What a person reads of a trajectory."""
    yield f"trajectory {told['id']}"
    if told["task"]:
        yield f"  {told['task']}, {told['outcome']}, made by {told['policy']}"
    lines = {
        "same": " (the line is there, and still is this trajectory)",
        "other": " (the line is there, and is not this trajectory any more, or not by the rules in params.yaml)",
        "gone": " (the file or the line is no more)",
    }
    yield f"  read from {told['source'] or 'nowhere that is known'}{lines.get(told['line'], '')}"
    if grave := told["forgotten"]:
        yield f"  forgotten on {grave['at']} by {grave['by']}: {grave['reason']}"
    for one in told["found"]:
        yield f"  round {one['round']}: {one['is']}, in {one['folder']}"
    for role, name in ROLES.items():
        if told[role]:
            yield f"  {name.replace('the version', 'it')}: version {', '.join(told[role])}"
    for one in told["inherited"]:
        how = ", ".join(f"from version {link['version']} by {link['by']}" for link in one["through"])
        yield f"  inherited: version {one['version']}, {how}"
    if not any(told[role] for role in ("trained", "checkpoint", "judged")):
        yield "  no version learned from it"


def forget(arguments: Sequence[str]) -> None:
    """Remove trajectories from the history for good, and leave a tombstone. Without --yes, only say what would be done.

    Each --where is COLUMN, one of = != < <= > >= ~ (a regular expression), and a value; all must hold. Columns are
    those of episodes.parquet (id, task, seed, outcome, policy, source, ...), round, and text, which is everything
    that was said. =@FILE means any of the file's lines. A tombstone in data/history/tombstones.jsonl keeps who, why and
    what, with the conditions on what was said as a hash; what it names is left out of every later round and import.
    """
    parser = parser_of("forget", forget)
    parser.add_argument("--where", action="append", default=[], metavar="CONDITION", help="may be repeated; all hold")
    parser.add_argument("--reason", default="", help="for the tombstone")
    parser.add_argument("--by", default="", help="who decides; git's user.name if left out")
    parser.add_argument(
        "--logs",
        action="store_true",
        help="also empty the lines of the logs they were read from; without --where, of all that was ever forgotten",
    )
    parser.add_argument("--yes", action="store_true", help="do it")
    parser.add_argument("--commit", action="store_true", help="commit the tombstone and the rewritten rounds' pointers")
    parser.add_argument("--json", action="store_true", help="print what is found, or the tombstone, as JSON")
    asked = parse(parser, arguments)
    if not asked.where and not asked.logs:
        raise ConfigError(
            "say what is to be forgotten, for example --where 'text~ACME'; see `retroformer forget --help`"
        )
    if asked.where and asked.yes and not asked.reason.strip():
        raise ConfigError("a tombstone says why: --reason TEXT")
    from retroformer.lineage import aftermath, forgetting
    from retroformer.lineage.where import parse as condition

    if not asked.where:
        emptied = forgetting.empty_logs(HERE, yes=asked.yes)
        print(json.dumps(emptied) if asked.json else "\n".join(of_logs(emptied, asked.yes)))
        return
    conditions = [condition(text) for text in asked.where]
    if not asked.yes:
        planned = forgetting.plan(HERE, conditions)
        print(json.dumps(as_json(planned), indent=2, sort_keys=True) if asked.json else "\n".join(of_plan(planned)))
        return
    done = forgetting.forget(HERE, conditions, asked.reason, by=asked.by, logs=asked.logs, commit_it=asked.commit)
    told = {
        **done,
        "remains": aftermath.remaining(HERE, done, conditions),
        "rerun": aftermath.commands(HERE, done),
    }
    print(json.dumps(told, indent=2, sort_keys=True) if asked.json else "\n".join(of_forgetting(told)))


def of_logs(lines: dict[str, list[int]], done: bool) -> Iterator[str]:
    """What a person reads of emptied lines."""
    from retroformer.lineage.sources import ranges

    if not lines:
        yield "no line of a log is left of what was forgotten"
    for file, numbers in lines.items():
        yield f"{file}, line {ranges(numbers)}: {'emptied' if done else 'would be emptied; --yes does it'}"


def as_json(planned: Plan) -> dict[str, Any]:
    """A plan for programs."""
    names = ("trajectories", "rounds", "open", "touched", "inherited", "refused")
    return {name: getattr(planned, name) for name in names}


def of_plan(planned: Plan) -> Iterator[str]:
    """What a person reads before anything is done."""
    from retroformer.lineage.sources import by_file, ranges

    if not planned.trajectories and not planned.refused:
        yield "these conditions describe no trajectory here"
        return
    yield f"{len(planned.trajectories)} trajectories would be forgotten; nothing was changed, --yes does it"
    counts: dict[int, int] = {}
    for numbers in planned.rounds.values():
        for number in numbers:
            counts[number] = counts.get(number, 0) + 1
    yield from (f"  {count} in round {number}" for number, count in sorted(counts.items()))
    for name in planned.open:
        yield f"  the open round's data/{name} holds some: it would be removed, and `dvc repro` makes it again without"
    for file, found in by_file(planned.trajectories.values()).items():
        lines = f", line {shortened(ranges(found['lines']))}" if found["lines"] else ""
        yield f"  {found['trajectories']} read from {file}{lines}"
    yield from (f"  refused at import, so without an id: {place}" for place in planned.refused)
    yield from of_touched(planned.touched, planned.inherited)


def of_touched(touched: dict[str, dict[str, int]], inherited: dict[str, list[str]]) -> Iterator[str]:
    """Which versions learned from it."""
    for number, roles in touched.items():
        counts = ", ".join(f"{count} {ROLES[role].replace('the version', 'it')}" for role, count in roles.items())
        yield f"  version {number} is touched: {counts}"
    for number, parents in inherited.items():
        yield f"  version {number} is touched: it comes from version {', '.join(parents)}"
    if not touched and not inherited:
        yield "  no version is touched"


def of_forgetting(told: dict[str, Any]) -> Iterator[str]:
    """What a person reads when it is done."""
    count = sum(len(group["ids"]) for group in told["trajectories"])
    yield f"{count} trajectories are forgotten; the tombstone of {told['at']} is in data/history/tombstones.jsonl"
    for number, hashes in told["rounds"].items():
        yield f"  round {number}: {hashes['before'] or 'not tracked'} became {hashes['after']}"
    for name in told["open"]:
        yield f"  data/{name} of the open round was removed"
    purged = told["purged"]
    yield f"  {purged['files']} stored files, {purged['bytes']} bytes, deleted from {', '.join(purged['stores'])}"
    for place in purged["unsearched"]:
        yield f"  {place} is not on this machine: deleted there is only what the cache had too"
    yield from of_touched(told["touched"], told["inherited"])
    yield "still there:"
    yield from (f"  {sentence}" for sentence in told["remains"])
    if told["rerun"]:
        yield "to run, so that nothing in use has learned from it:"
        yield from (f"  {command}" for command in told["rerun"])


def commit(told: dict[str, Any]) -> str:
    """A commit as a person reads it."""
    if told["commit"] is None:
        since = f"; its data is in git since {told['in_git_since'][:12]}" if told["in_git_since"] else ""
        return f"not known: closed without --commit, and no registry here tells of it{since}"
    if told["tag"]:
        return f"{told['commit'][:12]} (tag {told['tag']})"
    changed = ", code or values differed from it" if told["dirty"] else ""
    return f"{told['commit'][:12]} (closed on it without --commit{changed})"


def afresh(model: str | None) -> str:
    """Where training began, if not from a checkpoint of the project."""
    return "nothing, a fresh model" if model in (None, "fresh") else model


def flat(value: Any) -> str:
    """A value on one line."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def shortened(text: str, most: int = 100) -> str:
    """The beginning of a long list."""
    return text if len(text) <= most else text[:most].rpartition(",")[0] + ", ... (--json has all)"
