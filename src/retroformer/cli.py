"""The command line, derived from the stage functions: their signatures are the flags, their docstrings the help.

A flag overrides params.yaml and is checked by the same rules. What a user did wrong is one line on the terminal
and exit code 2, an interrupt is one line and 130; a traceback is always a defect of this program.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import errno
import importlib
import inspect
import json
import math
import re
import sys
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from retroformer.config import Config, Section, load_config
from retroformer.errors import ConfigError, EnvironmentFault, RetroformerError
from retroformer.stages import STAGES

HELP = """\
Turn the runs that an agent has already made into a better agent, and know that it is better.

usage: retroformer COMMAND [flags]

The main path:
  make run          rounds through Prefect until four are closed, then the table
  dvc repro         one round up to its verdict; again, and nothing changes
  retroformer close register the challenger, append to the history, move the pins: the next round is open

Stages, in order; `dvc repro` runs them, `retroformer STAGE --help` lists their flags:
{stages}

Around them:
  close     close the round that `dvc repro` finished
  status    the table of closed rounds, and where to look
  import    logs of agents that ran elsewhere, as trajectories
  export    trajectories in a format of exchange
  off-policy    how much better a policy is than what made some logs, from the logs alone
  check-environment NAME    play an environment, package:task or an import path, and say what breaks its contract
"""

USER_ERRNOS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would grow beyond the allowed size",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
}
# Libraries written in other languages report a full disk in words of their own, without an errno.
USER_FAULTS = ("no space left on device", "disk is full", "file too large", "disk quota exceeded", "permission denied")


class Parser(argparse.ArgumentParser):
    """argparse that raises instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(message)


@dataclass(frozen=True)
class Flag:
    """One flag of a stage: a value of params.yaml (`key`) or a path (`parameter`)."""

    name: str
    help: str
    key: str | None = None
    parameter: str | None = None
    boolean: bool = False
    many: bool = False
    metavar: str = ""

    @property
    def destination(self) -> str:
        """Where the parsed value is to be found."""
        return self.key or self.parameter or ""


def stage_function(name: str) -> Callable[..., Any]:
    """The function that a stage is."""
    return getattr(importlib.import_module(f"retroformer.stages.{name}"), name)


def summary(name: str) -> str:
    """First line of a stage's docstring, read without importing what the stage needs."""
    path = Path(__file__).parent / "stages" / f"{name}.py"
    if path.is_file():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


def sections() -> dict[type, str]:
    """Section classes and their names in params.yaml."""
    return {
        field.annotation: field.alias or name
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of a stage function and their types."""
    hints = typing.get_type_hints(function)
    return {name: hints[name] for name in inspect.signature(function).parameters}


def used_sections(function: Callable[..., Any]) -> list[str]:
    """The keys of params.yaml that a stage function takes, sections and `seed`."""
    known = sections()
    return [known.get(kind, name) for name, kind in parameters(function).items() if kind is not Path]


def kind_of(field: Any) -> str:
    """Type and range of a value, in words: ``int 1..20``, ``champion|train_from``."""
    annotation = field.annotation
    many = typing.get_origin(annotation) is tuple
    kind = typing.get_args(annotation)[0] if many else annotation
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(map(str, typing.get_args(kind))) + (" ..." if many else "")
    if many:
        return "str ..."
    bounds = ((name, getattr(item, name, None)) for item in field.metadata for name in ("ge", "gt", "le", "lt"))
    limits = {name: value for name, value in bounds if value is not None}
    low = f"{limits['ge']:g}" if "ge" in limits else f">{limits['gt']:g}" if "gt" in limits else ""
    high = f"{limits['le']:g}" if "le" in limits else f"<{limits['lt']:g}" if "lt" in limits else ""
    name = getattr(annotation, "__name__", str(annotation))
    return f"{name} {low}..{high}" if low or high else name


def flags(function: Callable[..., Any]) -> list[Flag]:
    """What a stage function's signature asks for, as flags; a section prefixes its name only where two would clash."""
    known = sections()
    found: list[tuple[str, Flag]] = []
    signature = inspect.signature(function)
    for name, kind in parameters(function).items():
        if kind is Path:
            default = signature.parameters[name].default
            found.append(("", Flag(name, f"path, default {default}", parameter=name, metavar="PATH")))
        elif kind in known:
            for key, field in kind.model_fields.items():
                found.append((known[kind], field_flag(key, field, f"{known[kind]}.{key}")))
        else:
            found.append(("", field_flag(name, Config.model_fields[name], name)))
    names = [flag.name for _, flag in found]
    return [
        Flag(**{**vars(flag), "name": f"{section}-{flag.name}"}) if section and names.count(flag.name) > 1 else flag
        for section, flag in found
    ]


def field_flag(name: str, field: Any, key: str) -> Flag:
    """One value of params.yaml as a flag."""
    return Flag(
        name.replace("_", "-"),
        f"{field.description} ({kind_of(field)})",
        key=key,
        boolean=field.annotation is bool,
        many=typing.get_origin(field.annotation) is tuple,
        metavar="VALUE",
    )


def current_value(key: str) -> str:
    """What params.yaml says now, for the help; nothing where it cannot be read."""
    try:
        value: Any = load_config().model_dump(by_alias=True)
    except ConfigError:
        return ""
    for part in key.split("."):
        value = value[part]
    shown = " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    return f" [{shown or 'empty'}]"


def stage_parser(name: str, function: Callable[..., Any], *, with_values: bool) -> Parser:
    """The parser of one stage; `with_values` shows params.yaml's values in the help."""
    parser = Parser(
        prog=f"retroformer {name}",
        description=inspect.getdoc(function),
        epilog="Values in brackets are those of params.yaml, which a flag overrides for this run alone.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for flag in flags(function):
        text = flag.help + (current_value(flag.key) if with_values and flag.key else "")
        options: dict[str, Any] = {"dest": flag.destination, "help": text.replace("%", "%%"), "default": None}
        if flag.boolean:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"metavar": flag.metavar} | ({"nargs": "*"} if flag.many else {})
        parser.add_argument(f"--{flag.name}", **options)
    return parser


def parse(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse, and name the nearest flag for one that does not exist."""
    values, unknown = parser.parse_known_args(arguments)
    if unknown:
        given = next((item for item in unknown if item.startswith("-")), unknown[0]).partition("=")[0]
        known = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(given, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"see `{parser.prog} --help`"
        raise ConfigError(f"{given} is not a flag of {parser.prog}; {hint}")
    return values


def run_stage(name: str, arguments: Sequence[str]) -> None:
    """Run one stage with params.yaml and the flags that override it."""
    from retroformer.journal import record_seconds

    function = stage_function(name)
    values = vars(parse(stage_parser(name, function, with_values=bool({"-h", "--help"} & set(arguments))), arguments))
    asked = flags(function)
    overrides = {flag.key: values[flag.key] for flag in asked if flag.key and values[flag.key] is not None}
    try:
        config = load_config(overrides=overrides)
    except ConfigError as error:
        message = str(error)
        for flag in asked:
            if flag.key in overrides:
                message = re.sub(rf"params\.yaml: {re.escape(flag.key)}(\.\d+)?(?= )", f"--{flag.name}", message)
        raise ConfigError(message) from None
    by_section = {field.alias or key: getattr(config, key) for key, field in Config.model_fields.items()}
    known = sections()
    call: dict[str, Any] = {}
    for parameter, kind in parameters(function).items():
        if kind is not Path:
            call[parameter] = by_section[known.get(kind, parameter)]
        elif values[parameter] is not None:
            call[parameter] = Path(values[parameter])
    started = time.monotonic()
    try:
        result = function(**call)
    except OSError as error:
        # A stage's outputs are written whole or not at all; what goes wrong after it is another matter.
        if told := user_fault(error):
            raise RetroformerError(f"{told}; nothing of this step was kept") from error
        raise
    record_seconds(name, time.monotonic() - started)
    if result:
        print(f"{name}: " + ", ".join(f"{key} {short(value)}" for key, value in result.items() if scalar(value)))


def scalar(value: Any) -> bool:
    """Whether a result fits on the stage's one line."""
    return value is None or isinstance(value, (str, int, float))


def short(value: Any) -> str:
    """A figure as a person reads it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def close(arguments: Sequence[str]) -> None:
    """Close the round that `dvc repro` finished."""
    from retroformer.rounds import close as close_round

    parser = Parser(
        prog="retroformer close",
        description=inspect.getdoc(close_round),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--commit",
        action="store_true",
        help="commit the round in git with the tag round/N, and push its data to the DVC remote",
    )
    record = close_round(commit=parse(parser, arguments).commit)
    print(f"round {record['round']} is closed: {record['verdict']}, {record['reason']}")


def status(arguments: Sequence[str]) -> None:
    """The table of closed rounds, and where to look."""
    parse(Parser(prog="retroformer status", description=inspect.getdoc(status), allow_abbrev=False), arguments)
    from retroformer.tracking.table import show

    show()


def check_environment(arguments: Sequence[str]) -> None:
    """Play an environment and say in plain words what breaks the contract, and which part of it.

    It is played at random, by its expert where it has one, with its mission swapped, and again in another process.
    The exit code is 2 where something was found.
    """
    parser = Parser(
        prog="retroformer check-environment",
        description=inspect.getdoc(check_environment),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", help="package:task or my_module.MyEnvironment:task; without :task, all of its tasks")
    name = parse(parser, arguments).name
    from retroformer.environments.checker import check_package

    broken, checked = 0, 0
    for report in check_package(name):
        print("\n".join(report.lines()), flush=True)
        checked, broken = checked + 1, broken + bool(report.problems)
    if broken:
        raise EnvironmentFault(f"{broken} of {checked} tasks of {name} break the contract, see above")


def import_(arguments: Sequence[str]) -> None:
    """Import logs of agents that ran elsewhere as trajectories."""
    from retroformer.environments.splits import of_instance
    from retroformer.importers.conversation import Rules
    from retroformer.importers.formats import FORMATS
    from retroformer.importers.importing import import_logs, import_records
    from retroformer.importers.outcomes import OutcomeRule, imported
    from retroformer.importers.redaction import PATTERNS

    parser = Parser(prog="retroformer import", description=inspect.getdoc(import_), allow_abbrev=False)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files or folders; for mlflow also the URI of a store")
    parser.add_argument("--format", required=True, choices=list(FORMATS))
    parser.add_argument("--out", required=True, type=Path, help="folder to write, or of an earlier import to add to")
    parser.add_argument("--reward", default="", metavar="FIELD", help="a number; above 0 is a success")
    parser.add_argument("--success", default="", metavar="FIELD", help="a truth value")
    parser.add_argument("--assessment", default="", metavar="NAME", help="feedback of a trace, a truth value or reward")
    parser.add_argument("--outcome", default="", metavar="MODULE:FUNCTION", help="from a trajectory to its outcome")
    parser.add_argument("--reward-range", nargs=2, type=float, default=(-math.inf, math.inf), metavar=("LOW", "HIGH"))
    parser.add_argument("--redact", nargs="+", default=[], metavar="NAME", help=", ".join(["all", *PATTERNS]))
    parser.add_argument("--experiment", nargs="+", default=[], metavar="NAME", help="of the MLflow store; default all")
    parser.add_argument("--max-quarantined", type=float, default=0.4, metavar="SHARE", help="beyond it nothing is kept")
    asked = parse(parser, arguments)
    if asked.outcome:
        imported(asked.outcome)
    rule = OutcomeRule(asked.reward, asked.success, asked.assessment, asked.outcome, *asked.reward_range)
    rules = Rules(rule, of_instance)
    options = {"redact": asked.redact, "max_quarantined": asked.max_quarantined}
    if asked.format == "mlflow" and any("://" in path for path in asked.paths):
        from retroformer.tracking.traces import read_traces

        traces = (trace for uri in asked.paths for trace in read_traces(uri, asked.experiment))
        report = import_records(traces, "mlflow", asked.out, rules, **options)
    else:
        report = import_logs(map(Path, asked.paths), asked.format, asked.out, rules, **options)
    shown = ("read", "accepted", "repeated", "quarantined", "episodes", "steps", "success")
    print("import: " + ", ".join(f"{key} {short(report[key])}" for key in shown))
    for title in ("outcomes", "reasons", "redacted"):
        if report[title]:
            print(f"  {title}: " + ", ".join(f"{name} {count}" for name, count in report[title].items()))


def off_policy(arguments: Sequence[str]) -> None:
    """Estimate from logs alone how much better a policy is than what made them, or say that they cannot tell."""
    from retroformer.evaluation.off_policy import command

    parser = Parser(prog="retroformer off-policy", description=inspect.getdoc(off_policy), allow_abbrev=False)
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

    parser = Parser(prog="retroformer export", description=inspect.getdoc(export), allow_abbrev=False)
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder with episodes.parquet and steps.parquet")
    parser.add_argument("--format", required=True, choices=["atif"])
    parser.add_argument("--out", required=True, type=Path, help="file to write, one JSON document a line")
    asked = parse(parser, arguments)
    print(f"export: {export_atif(asked.directory, asked.out)} trajectories to {asked.out}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "close": close,
    "status": status,
    "import": import_,
    "export": export,
    "off-policy": off_policy,
    "check-environment": check_environment,
}


def dispatch(arguments: Sequence[str]) -> None:
    """Do what the command line says."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP.format(stages="\n".join(f"  {name:<9} {summary(name)}" for name in STAGES)), end="")
        return
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        from retroformer import __version__

        print(f"retroformer {__version__}")
    elif name in COMMANDS:
        COMMANDS[name](rest)
    elif name in STAGES:
        run_stage(name, rest)
    else:
        near = difflib.get_close_matches(name, [*STAGES, *COMMANDS], n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join([*STAGES, *COMMANDS])}"
        raise ConfigError(f"{name} is not a command; {hint}")


def user_fault(error: BaseException) -> str | None:
    """One line for what is not this program's fault, None for what is."""
    if isinstance(error, RetroformerError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in USER_ERRNOS:
        place = f": {error.filename}" if error.filename else ""
        return f"{USER_ERRNOS[error.errno]}{place}"
    words = str(error).lower()
    if isinstance(error, Exception) and any(fault in words for fault in USER_FAULTS):
        return " ".join(str(error).split())
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0, 2 for what a user can mend, 130 for an interrupt."""
    from retroformer.journal import record_failure

    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else ""
    try:
        dispatch(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code, message = 130, "interrupted; what was finished is kept, run the same command again to go on"
        print(f"\nretroformer: {message}", file=sys.stderr)
    except BrokenPipeError:
        # The reader of `retroformer --help | head` left; nothing more can be said to it.
        sys.stderr.close()
        return 0
    except Exception as error:
        code, message = 1, f"{type(error).__name__}: {error}"
        told = user_fault(error)
        if told is None:
            record_failure(name, code, message)
            raise
        code, message = 2, told
        print(f"retroformer: error: {message}", file=sys.stderr)
    else:
        return 0
    record_failure(name, code, message)
    return code
