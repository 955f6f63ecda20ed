"""Bars on what may take longer than ten seconds: one on a terminal, a line a minute in a log.

They say how far something is and decide nothing, so no fingerprint of a stage holds this module.
`stages.repro` reads the newest of these lines from a stage's log and tells what is left.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

DELAY = 10.0
"""Seconds for which nothing is shown: what is done by then needs no bar."""

BETWEEN_LINES = 60.0

T = TypeVar("T")


class _Bar(tqdm):
    """Without tqdm's thread, which a process that forks must not have."""

    monitor_interval = 0


class _Lines:
    """A log, in which each state of a bar is a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if said := text.strip("\r\n "):
            self._stream.write(f"{said}\n")

    def flush(self) -> None:
        self._stream.flush()


def bar(name: str, total: int | None, unit: str, *, show: bool = True) -> tqdm:
    """A bar on standard error, to be used as a context and told of progress with `update`.

    `total` None: unknown. `show` is False in all processes but one of those that share a work.
    """
    stream = sys.stderr
    terminal = stream.isatty()
    return _Bar(
        total=total,
        desc=name,
        unit=unit,
        file=stream if terminal else _Lines(stream),
        mininterval=0.5 if terminal else BETWEEN_LINES,
        # Where a bar knows no width it would print nothing but numbers.
        ncols=None if terminal else 79,
        ascii=not terminal,
        miniters=1,
        delay=DELAY,
        # lmms-eval's bars are turned off by a variable, which is not meant for these.
        disable=not show,
    )


def tracked(
    items: Iterable[T], name: str, total: int | None, unit: str, *, show: bool = True
) -> Iterator[T]:
    """The items, with a bar that counts them as they are finished."""
    with bar(name, total, unit, show=show) as shown:
        for item in items:
            yield item
            shown.update()
