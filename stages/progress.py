"""What a run prints: a line for each stage that has ended, one live line for each that runs.

On a terminal the live lines stay below and are drawn anew; elsewhere a line a minute says what
runs. How far a stage is comes from its log and its snapshots (stages/advance.py). A stage's own
output is in its log, `.cache/logs/<stage>.log`.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text
from tabulate import tabulate

from heima.results.files import atomic
from stages import advance

LOGS = Path(".cache/logs")
DURATIONS = LOGS / "durations.json"

Left = tuple[float, int]
"""Seconds until the run ends, and the number of stages in it that were never timed."""

_LAST_LINES = 15
"""Of the log of a stage that has failed."""
_SECONDS_BETWEEN_WORDS = 60.0
_TAIL_BYTES = 8192
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Result(StrEnum):
    """How a stage of this run has ended."""

    RAN = "ran"
    RESTORED = "restored"
    """DVC had the results of the same inputs in its run cache."""
    FAILED = "failed"


@dataclass(frozen=True)
class Ended:
    """A stage that has ended: seconds by the clock and of CPU, and the peak of its memory (MB).

    A stage that was killed has said nothing of its CPU time. `gpus` is how many it held.
    """

    name: str
    result: Result
    wall: float
    cpu: float | None = None
    peak_mb: float | None = None
    why: str = ""
    gpus: int = 0


@dataclass(frozen=True)
class Working:
    """A stage that runs, since when (`time.monotonic`) and on which GPUs."""

    name: str
    since: float
    gpus: tuple[str, ...] = ()


def log_of(name: str) -> Path:
    return LOGS / f"{name}.log"


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log that say something; of a bar that was drawn anew, its last state."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in _ESCAPES.sub("", text).split("\n")]
    return [line.rstrip() for line in lines if line.strip()][-count:]


def durations() -> dict[str, float]:
    """Seconds by the clock that each stage took when it last ran."""
    if not DURATIONS.exists():
        return {}
    found = json.loads(DURATIONS.read_text(encoding="utf-8"))
    return {name: taken["wall"] for name, taken in found.items()}


def recorded(files: Mapping[str, Path]) -> dict[str, float]:
    """Seconds that stages took where their results were made, as their metrics files say.

    What a clone that has run nothing goes by. `files` are the metrics of stages; those of stages
    that take no time worth noting have none.
    """
    found = {}
    for name, path in files.items():
        if not path.is_file():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        seconds = content.get("provenance", {}).get("seconds")
        times = [row.get("seconds_per_sample") for row in content.get("cells", {}).values()]
        decoding = sum(time["value"] * time["n"] for time in times if time)
        if seconds or decoding:
            found[name] = float(seconds or decoding)
    return found


def remember(ended: Sequence[Ended]) -> None:
    """Put what these stages took beside what others took when they last ran."""
    found = json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.exists() else {}
    for one in ended:
        if one.result is Result.RAN:
            taken = asdict(one)
            found[one.name] = {key: taken[key] for key in ("wall", "cpu", "peak_mb")}
    text = json.dumps(dict(sorted(found.items())), indent=1)
    with atomic(DURATIONS) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def clock(seconds: float) -> str:
    """
    >>> clock(9.42), clock(75), clock(3725)
    ('9.4 s', '1:15 min', '1:02 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes}:{round(seconds) % 60:02} min"
    return f"{minutes // 60}:{minutes % 60:02} h"


class Progress:
    """Tells of a run of `total` stages."""

    def __init__(self, total: int, console: Console | None = None) -> None:
        # A pipe has no width: lines there are whole.
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._total = total
        self._started = time.monotonic()
        self._spoken = self._started
        self._live: Live | None = None

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def ended(self, one: Ended, finished: int, left: Left) -> None:
        """A line for a stage that has ended; of one that has failed, the end of its log too."""
        cpu = f", CPU {one.cpu:.1f} s" if one.cpu is not None else ""
        width = len(str(self._total))
        self.say(
            f"[{finished:{width}}/{self._total}] {one.name} {one.result} in {clock(one.wall)}{cpu}"
            f"{one.why}; {self._position(left)}"
        )
        if one.result is Result.FAILED:
            for line in last_lines(log_of(one.name), _LAST_LINES):
                self.say(f"    {line}")
            self.say(f"    all of it: {log_of(one.name)}")

    def tick(self, working: Sequence[Working], finished: int, left: Callable[[], Left]) -> None:
        """Draw what runs; call it a few times a second."""
        if self._console.is_terminal:
            self._draw(working, finished, left())
        elif time.monotonic() - self._spoken > _SECONDS_BETWEEN_WORDS:
            self._spoken = time.monotonic()
            running = "; ".join(self._line(one) for one in working)
            self.say(f"{finished} of {self._total}, {self._position(left())}: {running}")

    def close(self) -> None:
        """Take the live lines away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self, working: Sequence[Working], finished: int, left: Left) -> None:
        if self._live is None:
            # No thread draws: one would break the children that are forked.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        lines = [f"{finished} of {self._total} stages, {self._position(left)}"]
        lines += [f"  {self._line(one)}" for one in working]
        text = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
        self._live.update(text, refresh=True)

    def _line(self, one: Working) -> str:
        last = last_lines(log_of(one.name), _LAST_LINES)
        gpus = f" on GPU {','.join(one.gpus)}" if one.gpus else ""
        spent = time.monotonic() - one.since
        parts = [f"{one.name}{gpus}, {clock(spent)}"]
        if (found := advance.read(last, one.name)) is not None:
            left = found.left(spent)
            parts.append(f"{found}" + ("" if left is None else f", about {clock(left)} left"))
        said = f": {last[-1].strip()}" if last else ""
        return f"{' '.join(parts)}{said}"

    def _position(self, left: Left) -> str:
        elapsed = clock(time.monotonic() - self._started)
        seconds, untimed = left
        if untimed and not seconds:
            return f"{elapsed} elapsed, {untimed} stages never timed"
        more = f" and what {untimed} stages take that were never timed" if untimed else ""
        return f"{elapsed} elapsed, about {clock(seconds)} left{more}"

    def table(self, all_ended: Sequence[Ended], places: Mapping[str, int]) -> str:
        """What each stage took, in the order of the pipeline, and all together."""
        rows = sorted(all_ended, key=lambda one: places[one.name])
        cells: list[tuple[str, ...]] = [
            (one.name, one.result, f"{one.wall:.1f}", _number(one.cpu), _number(one.peak_mb, 0))
            for one in rows
        ]
        elapsed = time.monotonic() - self._started
        cpu = sum(one.cpu or 0.0 for one in rows)
        peak = max((one.peak_mb or 0.0 for one in rows), default=0.0)
        total = f"{sum(one.wall for one in rows):.1f}"
        cells.append((f"all ({elapsed:.1f} s)", "", total, _number(cpu), _number(peak, 0)))
        headers = ("stage", "", "wall s", "CPU s", "peak MB")
        return tabulate(
            cells, headers, disable_numparse=True, colalign=("left", "left", *["right"] * 3)
        )


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"
