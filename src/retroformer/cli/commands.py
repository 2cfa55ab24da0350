"""What a user asks for around the stages: closing, status, logs in and out, evidence from logs, environments."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from retroformer.cli.parsing import parse, parser_of, short
from retroformer.errors import ConfigError, EnvironmentFault


def close(arguments: Sequence[str]) -> None:
    """Close the round that `dvc repro` finished."""
    from retroformer.rounds import close as close_round

    parser = parser_of("close", close_round)
    parser.add_argument(
        "--commit",
        action="store_true",
        help="commit the round in git with the tag round/N, and push its data to the DVC remote",
    )
    record = close_round(commit=parse(parser, arguments).commit)
    print(f"round {record['round']} is closed: {record['verdict']}, {record['reason']}")


def status(arguments: Sequence[str]) -> None:
    """The table of closed rounds, and where to look."""
    parse(parser_of("status", status), arguments)
    from retroformer.tracking.table import show

    show()


def reproduce(arguments: Sequence[str]) -> None:
    """Run a closed round again from git and the DVC remote alone, in a clone, and compare bit for bit."""
    from retroformer import reproducing

    parser = parser_of("reproduce", reproducing.reproduce)
    parser.add_argument("number", type=int, metavar="N", help="of the round; it was closed with --commit")
    parser.add_argument("--clone", type=Path, metavar="DIR", help="where to clone to, and to keep it")
    asked = parse(parser, arguments)
    reproducing.reproduce(asked.number, clone=asked.clone)


def recover(arguments: Sequence[str]) -> None:
    """Make good what killed commands left of DVC's and git's own files, and say what that was.

    The flow and `close` do so by themselves; ask for it where `dvc` or `git` stops on a lock or half a file of its own.
    """
    from retroformer.recovery import mend_dvc, mend_git

    parse(parser_of("recover", recover), arguments)
    print("\n".join([*mend_dvc(), *mend_git()]) or "nothing was left to make good")


def check_environment(arguments: Sequence[str]) -> None:
    """Play an environment and say in plain words what breaks the contract, and which part of it.

    It is played at random, by its expert where it has one, with its mission swapped, and again in another process.
    A process of its own plays it, so one that hangs, crashes or exits is told too. The exit code is 2 where something
    was found.
    """
    parser = parser_of("check-environment", check_environment)
    parser.add_argument("name", help="package:task or my_module.MyEnvironment:task; without :task, all of its tasks")
    parser.add_argument(
        "--max-step-seconds", type=float, default=30.0, metavar="S", help="a call that takes longer hangs (30)"
    )
    asked = parse(parser, arguments)
    name, seconds = asked.name, asked.max_step_seconds
    if not seconds > 0:
        raise ConfigError(f"--max-step-seconds is {seconds:g}, expected a number of seconds above 0")
    from retroformer.rollouts.checking import check_package

    broken, checked = 0, 0
    for report in check_package(name, seconds):
        print("\n".join(report.lines()), flush=True)
        checked, broken = checked + 1, broken + bool(report.problems)
    if broken:
        raise EnvironmentFault(f"{broken} of {checked} tasks of {name} break the contract, see above")


def first_agent(arguments: Sequence[str]) -> None:
    """Say which scripted agent is the first champion: the one that round 1 learns from and is to beat.

    scripted:expert?noise=0.5 asks the environment's expert_action() and errs in half of the steps; scripted:random
    needs nothing of the environment. It can be changed until the first round is closed. Where the first history is logs
    of an agent that ran elsewhere, none is needed: see docs/from-your-logs.md.
    """
    from retroformer.pins import first_pins, read_pins, write_pins
    from retroformer.policies.scripted import load_scripted

    parser = parser_of("first-agent", first_agent)
    parser.add_argument("agent", help="scripted:NAME?noise=SHARE; quote it, as ? is the shell's too")
    agent = parse(parser, arguments).agent
    load_scripted(agent)
    path = Path("data/champion.json")
    if path.exists() and (closed := read_pins(path).closed_rounds):
        raise ConfigError(f"{path} has {closed} closed rounds, so there is a first agent; promote another by models")
    write_pins(path, first_pins(agent))
    print(f"{path}: the first champion is {agent}")


def import_(arguments: Sequence[str]) -> None:
    """Import logs of agents that ran elsewhere as trajectories."""
    from retroformer.environments.splits import of_instance
    from retroformer.importers.conversation import Rules
    from retroformer.importers.formats import FORMATS
    from retroformer.importers.importing import import_logs, import_records
    from retroformer.importers.outcomes import OutcomeRule, imported
    from retroformer.importers.redaction import PATTERNS
    from retroformer.tombstones import forgotten_ids

    parser = parser_of("import", import_)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files or folders; for mlflow also the URI of a store")
    parser.add_argument("--format", required=True, choices=list(FORMATS))
    parser.add_argument("--out", required=True, type=Path, help="folder to write, or of an earlier import to add to")
    parser.add_argument("--reward", default="", metavar="FIELD", help="of a record, a number; above 0 is a success")
    parser.add_argument("--success", default="", metavar="FIELD", help="of a record, a truth value")
    parser.add_argument("--assessment", default="", metavar="NAME", help="feedback of a trace, a truth value or reward")
    parser.add_argument(
        "--outcome", default="", metavar="MODULE:FUNCTION", help="in place of fields: trajectory to outcome"
    )
    parser.add_argument("--reward-range", nargs=2, type=float, default=(-math.inf, math.inf), metavar=("LOW", "HIGH"))
    parser.add_argument("--redact", nargs="+", default=[], metavar="NAME", help=", ".join(["all", *PATTERNS]))
    parser.add_argument("--experiment", nargs="+", default=[], metavar="NAME", help="of the MLflow store; default all")
    parser.add_argument("--max-quarantined", type=float, default=0.4, metavar="SHARE", help="beyond it nothing is kept")
    asked = parse(parser, arguments)
    if asked.outcome:
        imported(asked.outcome)
    rule = OutcomeRule(asked.reward, asked.success, asked.assessment, asked.outcome, *asked.reward_range)
    rules = Rules(rule, of_instance)
    options = {
        "redact": asked.redact,
        "max_quarantined": asked.max_quarantined,
        "forgotten": forgotten_ids(),
    }
    if asked.format == "mlflow" and any("://" in path for path in asked.paths):
        from retroformer.tracking.traces import read_traces

        traces = (trace for uri in asked.paths for trace in read_traces(uri, asked.experiment))
        report = import_records(traces, "mlflow", asked.out, rules, **options)
    else:
        report = import_logs(map(Path, asked.paths), asked.format, asked.out, rules, **options)
    open_ = ("open",) if report["open"] else ()
    shown = ("read", "accepted", "repeated", *open_, "quarantined", "episodes", "steps", "success")
    print("import: " + ", ".join(f"{key} {short(report[key])}" for key in shown))
    if "forgotten" in report:
        print(f"  left out, named by a tombstone: {report['forgotten']}")
    for title in ("outcomes", "reasons", "redacted"):
        if report[title]:
            print(f"  {title}: " + ", ".join(f"{name} {count}" for name, count in report[title].items()))


def off_policy(arguments: Sequence[str]) -> None:
    """Estimate from logs alone how much better a policy is than what made them, or say that they cannot tell."""
    from retroformer.evaluation.off_policy import command

    parser = parser_of("off-policy", off_policy)
    parser.add_argument(
        "--logs", required=True, type=Path, help="folder of trajectories; their split evaluation is used"
    )
    parser.add_argument("--policy", required=True, metavar="CHECKPOINT", help="the policy to judge")
    parser.add_argument(
        "--champion", metavar="CHECKPOINT", help="compare with this policy, not with what made the logs"
    )
    parser.add_argument(
        "--behaviour", metavar="CHECKPOINT", help="fitted to other logs, for log-probabilities that lack"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="at which the policies are to act (1.0)")
    parser.add_argument("--confidence", type=float, default=0.95, help="of every interval (0.95)")
    parser.add_argument("--unseen", action="store_true", help="use all the logs: the policy's training saw none")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    asked = vars(parse(parser, arguments))
    as_json = asked.pop("json")
    report = command.ask(**asked)
    if as_json:
        print(json.dumps(report, indent=2, sort_keys=True, allow_nan=False))
    else:
        command.show(report)


def export(arguments: Sequence[str]) -> None:
    """Write a folder's trajectories in a format of exchange."""
    from retroformer.importers.importing import export_atif

    parser = parser_of("export", export)
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder with episodes.parquet and steps.parquet")
    parser.add_argument("--format", required=True, choices=["atif"])
    parser.add_argument("--out", required=True, type=Path, help="file to write, one JSON document a line")
    asked = parse(parser, arguments)
    print(f"export: {export_atif(asked.directory, asked.out)} trajectories to {asked.out}")
