"""Command lines of stages: `--help`, and names checked against the parameters."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

from heima import config

Allowed = Callable[[config.Params], Iterable[str | int]]
Why = Callable[[config.Params, str], str | None]
"""Why a value is not allowed, in words that follow those that are; None: nothing more is known."""


def read(doc: str, /, *, why: Why | None = None, **places: Allowed) -> tuple[str, ...]:
    """The positional arguments of this process, one for each of `places`, in order.

    `doc` is the module's docstring, which `--help` shows. Each place says which values its argument
    may have, and `why` why the first has no other. Ends the process with one line where the
    parameters cannot be used, or where a value is not among those that they allow.
    """
    parser = parser_of(doc)
    for place in places:
        parser.add_argument(place)
    return checked(parser, parser.parse_args(), why=why, **places)


def parser_of(doc: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def checked(
    parser: argparse.ArgumentParser,
    given: argparse.Namespace,
    *,
    why: Why | None = None,
    **places: Allowed,
) -> tuple[str, ...]:
    """`read`, for a parser that has more arguments."""
    try:
        params = config.load_resolved()
    except config.ConfigError as error:
        parser.exit(1, f"error: {error}\n")
    for place, allowed in places.items():
        known = [str(value) for value in allowed(params)]
        if (value := getattr(given, place)) not in known:
            reason = why(params, value) if why and place == next(iter(places)) else None
            told = f": {reason}" if reason else ""
            parser.exit(2, f"error: {place} {value!r} is not one of {', '.join(known)}{told}\n")
    return tuple(getattr(given, place) for place in places)
