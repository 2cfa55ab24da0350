"""Arguments as every command reads them: what is wrong with them is one sentence."""

from __future__ import annotations

import argparse
import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from retroformer.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """argparse that raises instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(message)


def parser_of(name: str, described: Callable[..., Any]) -> Parser:
    """The parser of a command, its help the docstring of the function that does it."""
    return Parser(
        prog=f"retroformer {name}",
        description=description_of(described),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def description_of(function: Callable[..., Any]) -> str:
    """The docstring of a command's function without what is for callers in Python: what it returns and raises."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(text for text in paragraphs if not text.startswith(("Returns ", "Raises ")))


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


def short(value: Any) -> str:
    """A figure as a person reads it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
