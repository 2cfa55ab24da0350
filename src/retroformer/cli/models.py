"""``retroformer models``: the registered versions, and which of them is in production."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retroformer.cli.parsing import Parser, parse, parser_of, short
from retroformer.errors import ConfigError

if TYPE_CHECKING:
    from retroformer.promotion import Moved

HELP = """\
The registered versions, and which of them is in production.

usage: retroformer models COMMAND [flags]

  list                 every version: its verdict, its figures, what it stands as; who moved the champion, and why
  show VERSION         everything of one version
  compare A B          two versions side by side, and B minus A on the seeds that both have played
  promote VERSION      put a version into production, with a reason
  rollback             put back the champion before the last promotion
  repair               set the registry from the files: what a clone lacks, aliases that stand for something else

VERSION is a number, champion, or challenger (the newest). Each has --json, for programs, and --help.
"""
HERE = Path(".")


def models(arguments: Sequence[str]) -> None:
    """Do what the command line after `models` says."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(COMMANDS)}"
        raise ConfigError(f"{name} is not a command of retroformer models; {hint}")
    COMMANDS[name](rest)


def parser_with_json(name: str, described: Callable[..., Any]) -> Parser:
    """The parser of one of these commands; each can print JSON."""
    parser = parser_of(f"models {name}", described)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def print_json(value: Any) -> None:
    """For programs."""
    print(json.dumps(value, indent=2, sort_keys=True, allow_nan=False))


def list_(arguments: Sequence[str]) -> None:
    """Every version: its verdict, its figures, what it stands as; who moved the champion, and why.

    The files decide; where the registry says otherwise, that is told.
    """
    as_json = parse(parser_with_json("list", list_), arguments).json
    from retroformer.pins import read_pins
    from retroformer.tracking import aliases, promotions, versions
    from retroformer.tracking.record import read_records

    pins = read_pins()
    records = read_records(HERE, pins.closed_rounds)
    known = versions.versions_of(records)
    moves = promotions.read(HERE)
    problems = aliases.disagreements(HERE, pins, records)
    if as_json:
        rows = [versions.row(one, known, pins) for one in known]
        pinned = {"champion": asdict(pins.champion), "train_from": pins.train_from and asdict(pins.train_from)}
        told = {"versions": rows, "promotions": [asdict(one) for one in moves], "problems": problems}
        print_json(pinned | told)
        return
    from retroformer.tracking.table import wide_console

    console = wide_console()
    if known:
        console.print(table_of([versions.row(one, known, pins) for one in known]))
    else:
        console.print("No round is closed yet: `dvc repro`, then `retroformer close`; `make run` does both.")
    lines = [f"In production: {versions.named(pins.champion, known)} ({pins.champion.policy})"]
    if last := promotions.standing(moves, pins.champion):
        lines.append(f"  {last.action} by {last.by}, {last.at}: {last.reason}")
    elif moves:
        lines.append(f"  pinned by hand: no line of {promotions.JOURNAL} tells of it")
    lines.append(f"Training goes on from: {versions.named(pins.train_from, known)}")
    lines += [f"Attention: {problem}" for problem in problems]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def table_of(rows: Sequence[dict[str, Any]]) -> Any:
    """Versions below each other."""
    from rich.table import Table

    shown = Table(title="Versions of the registered model")
    for name in ("version", "round"):
        shown.add_column(name, justify="right")
    for name in ("stands as", "verdict", "success on the gate's seeds", "difference to the champion of its day"):
        shown.add_column(name)
    for row in rows:
        shown.add_row(
            row["version"],
            str(row["round"]),
            ", ".join(row["aliases"]),
            row["verdict"].replace("_", " "),
            escaped(interval(row["levels"][0])),
            escaped(difference(row)),
        )
    return shown


def show(arguments: Sequence[str]) -> None:
    """Everything that is known of one version: figures, evidence, data, parameters, promotions."""
    parser = parser_with_json("show", show)
    parser.add_argument("version", metavar="VERSION", help="a number, champion, or challenger")
    asked = parse(parser, arguments)
    from retroformer.pins import read_pins
    from retroformer.tracking import versions
    from retroformer.tracking.record import read_records

    pins = read_pins()
    known = versions.versions_of(read_records(HERE, pins.closed_rounds))
    found = versions.describe(HERE, versions.find(asked.version, known, pins), known, pins)
    if asked.json:
        print_json(found)
        return
    lines = {
        "version": f"{found['version']} ({', '.join(found['aliases']) or 'no alias'})",
        "verdict": f"{found['verdict'].replace('_', ' ')}: {found['reason']}",
        "difference": f"{difference(found)}, against {against(found)}",
        "success": interval(found["levels"][0]),
        **{f"  {one['task']}": interval(one) for one in found["levels"][1:]},
        "told another mission": f"{short(found['swapped_success'])} (of the champion that the round left)",
        "trained": ", ".join(
            f"{key} {short(found['training'][key])}"
            for key in ("start", "objective", "updates", "chosen_update")
            if key in found["training"]
        ),
        "data": found["dataset_hash"],
        "policy": f"{found['policy']}, sha256 {found['hash']}",
        "load": f"mlflow.pyfunc.load_model({found['uri']!r})",
        "report": found["report"],
        "promoted": "; ".join(f"by {one['by']}, {one['at']}: {one['reason']}" for one in found["promotions"])
        or "never",
    }
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name:<{width}}  {text}")


def compare(arguments: Sequence[str]) -> None:
    """Two versions side by side, and the difference, B minus A, on the seeds that both have played.

    Those are seeds that no gate looks at. The interval is of one comparison: the best of many is partly luck.
    """
    parser = parser_with_json("compare", compare)
    parser.add_argument("one", metavar="A", help="a number, champion, or challenger")
    parser.add_argument("other", metavar="B", help="a number, champion, or challenger")
    asked = parse(parser, arguments)
    from retroformer.pins import read_pins
    from retroformer.tracking import versions
    from retroformer.tracking.record import read_records

    pins = read_pins()
    known = versions.versions_of(read_records(HERE, pins.closed_rounds))
    one, other = (versions.find(name, known, pins) for name in (asked.one, asked.other))
    found = versions.compare(HERE, one, other, known, pins)
    if asked.json:
        print_json(found)
        return
    from retroformer.tracking.table import wide_console

    console = wide_console()
    console.print(side_by_side(*found["versions"]))
    for line in compared(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def side_by_side(one: dict[str, Any], other: dict[str, Any]) -> Any:
    """What each was measured to be in its own round."""
    from rich.table import Table

    shown = Table(title="Each as its own round measured it")
    shown.add_column("")
    for row in (one, other):
        aliases = f" ({', '.join(row['aliases'])})" if row["aliases"] else ""
        shown.add_column(f"version {row['version']}{aliases}")
    for key in ("round", "verdict"):
        shown.add_row(key, *(str(row[key]).replace("_", " ") for row in (one, other)))
    shown.add_row("against", *(escaped(against(row)) for row in (one, other)))
    shown.add_row("difference", *(escaped(difference(row)) for row in (one, other)))
    levels = [{level["task"]: level for level in row["levels"]} for row in (one, other)]
    for task in dict.fromkeys([*levels[0], *levels[1]]):
        shown.add_row(task or "success, all levels", *(escaped(interval(level.get(task, {}))) for level in levels))
    return shown


def compared(found: dict[str, Any]) -> list[str]:
    """What differs between two versions, in lines."""
    one, other = (row["version"] for row in found["versions"])
    lines = []
    for pair in found["paired"]:
        lines.append(
            f"On the same seeds ({pair['range']}), version {other} minus version {one}: "
            f"{difference({'difference': pair['mean'], **pair})} pairs, {pair['confidence']:.0%} interval"
        )
        lines += [f"  {task['task']}: {difference({'difference': task['mean'], **task})}" for task in pair["per_task"]]
    if not found["paired"]:
        lines.append("No seed was played by both: nothing can be paired.")
    lines.append("Trained on the same data." if found["same_data"] else "Trained on different data.")
    if found["params"] is None:
        lines.append("Parameters: a round did not keep them.")
    elif not found["params"]:
        lines.append("Parameters: the same.")
    else:
        lines += [f"Parameter {key}: {first} -> {second}" for key, (first, second) in found["params"].items()]
    return lines


def promote(arguments: Sequence[str]) -> None:
    """Put a version into production."""
    from retroformer import promotion

    parser = parser_with_json("promote", promotion.promote)
    parser.add_argument("version", metavar="VERSION", help="a number, or challenger")
    parser.add_argument("--reason", required=True, help="why; it is recorded")
    decide(parser)
    parser.add_argument("--force", action="store_true", help="though the gate rejected it; it is recorded")
    asked = vars(parse(parser, arguments))
    as_json = asked.pop("json")
    if not asked["reason"].strip():
        raise ConfigError("--reason is empty; expected why this version is to be in production")
    tell(promotion.promote(**asked), as_json)


def rollback(arguments: Sequence[str]) -> None:
    """Put back the champion before the last promotion."""
    from retroformer import promotion

    parser = parser_with_json("rollback", promotion.rollback)
    parser.add_argument("--reason", default="", help="why; it is recorded")
    parser.add_argument("--expected", default="", metavar="VERSION", help="only if this is what is in production")
    decide(parser)
    asked = vars(parse(parser, arguments))
    as_json = asked.pop("json")
    tell(promotion.rollback(**asked), as_json)


def decide(parser: Parser) -> None:
    """The flags of whatever moves the champion."""
    parser.add_argument("--by", default="", metavar="NAME", help="who or what decides; default git's user.name")
    parser.add_argument("--train-from", default="", metavar="VERSION", help="train on from this one instead")
    parser.add_argument("--commit", action="store_true", help="commit the pins and their record in git")


def tell(moved: Moved, as_json: bool) -> None:
    """What was done."""
    if as_json:
        print_json(
            {
                "champion": asdict(moved.after.champion),
                "train_from": moved.after.train_from and asdict(moved.after.train_from),
                "promotion": moved.promotion and asdict(moved.promotion),
            }
        )
    else:
        print(moved.sentence())


def repair(arguments: Sequence[str]) -> None:
    """Set the registry from the files."""
    from retroformer import promotion

    as_json = parse(parser_with_json("repair", promotion.repair), arguments).json
    changed = promotion.repair()
    if as_json:
        print_json(changed)
    elif not changed:
        print("the registry agrees with the files")
    for alias, version in {} if as_json else changed.items():
        print(f"{alias} is {'not set' if version is None else f'version {version}'} now")


def interval(level: dict[str, Any]) -> str:
    """``0.62 [0.58, 0.66] n 800``, a dash where it was not measured."""
    if level.get("success") is None:
        return "-"
    return f"{level['success']:.2f} [{level['lower']:.2f}, {level['upper']:.2f}] n {level['n']}"


def difference(row: dict[str, Any]) -> str:
    """``+0.045 [+0.007, +0.083] n 512``, a dash where it was not measured."""
    if row["difference"] is None:
        return "-"
    return f"{row['difference']:+.3f} [{row['lower']:+.3f}, {row['upper']:+.3f}] n {row['n']}"


def against(row: dict[str, Any]) -> str:
    """The champion that a version was measured against."""
    rival = row["against"]
    return rival["policy"] if rival["version"] is None else f"version {rival['version']}"


def escaped(text: str) -> str:
    """Brackets that rich does not take for markup."""
    return text.replace("[", r"\[")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "list": list_,
    "show": show,
    "compare": compare,
    "promote": promote,
    "rollback": rollback,
    "repair": repair,
}
