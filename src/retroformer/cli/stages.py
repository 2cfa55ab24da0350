"""A stage as a command: its function's signature is the flags, its docstring the help, params.yaml the values."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroformer.cli.parsing import Parser, description_of, parse, short
from retroformer.config import Config, Section, load_config
from retroformer.errors import ConfigError, RetroformerError, user_fault


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
    path = Path(__file__).parents[1] / "stages" / f"{name}.py"
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
    """Type and range of a value, in words: ``int 1..20``, ``champion | train_from``."""
    annotation = field.annotation
    many = typing.get_origin(annotation) is tuple
    kind = typing.get_args(annotation)[0] if many else annotation
    if typing.get_origin(kind) is typing.Literal:
        return " | ".join(map(str, typing.get_args(kind))) + (" ..." if many else "")
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
        description=description_of(function),
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


def run_stage(name: str, arguments: Sequence[str]) -> None:
    """Run one stage with params.yaml and the flags that override it."""
    from retroformer.journal import record_seconds
    from retroformer.recovery import under_dvc

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
        with under_dvc(name):
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
