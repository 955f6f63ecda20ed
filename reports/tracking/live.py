"""Curves in MLflow while stages train, from the files that training leaves anyway.

    python -m reports.tracking.live    # `stages.repro` starts it, and tells it by lines of JSON

Nothing in the training code knows of it: the loss is read from a stage's log and from the snapshots
that a killed run goes on from (every `hardware.snapshot_steps` updates), and at its end from
`loss.jsonl`. A stage's run is marked `tags.kind = 'live'` until the mirror replaces it. It is a
process of its own, of a low priority, which imports MLflow when there is a first point. A
fault of MLflow ends it and nothing else; it ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import re
import select
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.finished import TrackingError
from reports.tracking.connection import connected, uri_of

if TYPE_CHECKING:
    from mlflow.entities import Metric

SNAPSHOTS = Path(".cache/training")
LOGS = Path(".cache/logs")
CURVE = "loss.jsonl"
SECONDS = 2.0
"""Between two looks at what trains."""

_NICE = 10
"""At 19, importing MLflow takes minutes beside stages that use every core."""

_LINE = re.compile(r"^step (\d+)/\d+ loss (-?[\d.]+)\s*$", re.MULTILINE)
_LIVE = "tags.kind = 'live' and tags.stage = '{stage}' and tags.folder = '{folder}'"


class Followed:
    """A stage that runs since `started` (seconds since 1970), and what it has shown of its loss.

    `outs` are paths of its outputs.
    """

    def __init__(self, root: Path, stage: str, started: float, outs: Sequence[str]) -> None:
        self.stage = stage
        self.started = started
        self.run_id: str | None = None
        self._root = root
        self._outs = outs
        self._shown: set[int] = set()
        self._read: dict[Path, float] = {}

    def rows(self) -> list[dict[str, float]]:
        """The rows of the curve, {step, loss} and what else is known, that were not shown yet."""
        found = {int(row["step"]): row for row in self._rows()}
        new = [found[step] for step in sorted(found.keys() - self._shown)]
        self._shown |= found.keys()
        return new

    def _rows(self) -> Iterator[dict[str, float]]:
        """The coarsest first: a log rounds, and names every twentieth row."""
        log = self._root / LOGS / f"{self.stage}.log"
        if self._is_new(log):
            text = log.read_text(encoding="utf-8", errors="replace")
            for step, loss in _LINE.findall(text):
                yield {"step": int(step), "loss": float(loss)}
        folder = self._root / SNAPSHOTS / self.stage
        for path in sorted(folder.glob("*/step-*[0-9]/progress.json")):
            if self._is_new(path):
                yield from _json(path, {"curve": []})["curve"]
        for out in self._outs:
            path = self._root / out / CURVE
            if self._is_new(path):
                yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())

    def _is_new(self, path: Path) -> bool:
        """Whether this run has written to a file since the last look."""
        try:
            written = path.stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return False
        # File systems keep coarser times than clocks.
        if written < self.started - 0.1 or self._read.get(path) == written:
            return False
        self._read[path] = written
        return True


def _json(path: Path, otherwise: Any) -> Any:
    """What a file holds; `otherwise` if it was removed meanwhile: old snapshots are."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return otherwise


class Live:
    """The runs of the stages that train, in MLflow at `uri` (default: as the mirror's)."""

    def __init__(self, root: Path, *, uri: str | None = None) -> None:
        self._root = root
        self._uri = uri or uri_of(root)
        self._followed: dict[str, Followed] = {}

    def hear(self, told: Mapping[str, Any]) -> None:
        """A stage has started: {started, at, outs}, or ended: {ended, status}."""
        if "started" in told:
            name = told["started"]
            self._followed[name] = Followed(self._root, name, told["at"], told["outs"])
        elif told["ended"] in self._followed:
            self.look()
            self._end(self._followed.pop(told["ended"]), told["status"])

    def look(self) -> None:
        """Log what is new. Raises `TrackingError`."""
        new = [(one, rows) for one in self._followed.values() if (rows := one.rows())]
        if not new:
            return
        with connected(self._root, self._uri) as (client, experiment):
            for one, rows in new:
                if one.run_id is None:
                    one.run_id = self._create(client, experiment, one)
                client.log_batch(one.run_id, metrics=list(_points(rows)))

    def close(self) -> None:
        """Those that still run are given up."""
        for one in self._followed.values():
            self._end(one, "KILLED")
        self._followed = {}

    def _create(self, client: Any, experiment: str, one: Followed) -> str:
        folder = str(self._root.resolve())
        wanted = _LIVE.format(stage=one.stage, folder=folder.replace("'", "\\'"))
        for earlier in client.search_runs([experiment], wanted):
            client.delete_run(earlier.info.run_id)
        run = client.create_run(
            experiment,
            start_time=round(one.started * 1000),
            run_name=one.stage,
            tags={
                "kind": "live",
                "stage": one.stage,
                "folder": folder,
                "mlflow.note.content": (
                    f"`{one.stage}` as it trains: its loss from its log and its snapshots. The "
                    "mirror replaces this run when the stage is in `dvc.lock`."
                ),
            },
        )
        return str(run.info.run_id)

    def _end(self, one: Followed, status: str) -> None:
        if one.run_id is not None:
            with connected(self._root, self._uri) as (client, _):
                client.set_terminated(one.run_id, status)


def _points(rows: Sequence[Mapping[str, float]]) -> Iterator[Metric]:
    from mlflow.entities import Metric

    now = round(time.time() * 1000)
    for row in rows:
        for key, value in row.items():
            if key != "step":
                yield Metric(key, value, now, int(row["step"]))


def _lines(seconds: float) -> Iterator[list[str]]:
    """The lines that have come on standard input, at least every so many seconds; until its end."""
    rest = b""
    while True:
        lines: list[str] = []
        if select.select([0], [], [], seconds)[0]:
            if not (part := os.read(0, 65536)):
                return
            *whole, rest = (rest + part).split(b"\n")
            lines = [line.decode() for line in whole]
        yield lines


def main() -> int:
    os.nice(_NICE)
    live = Live(Path("."))
    try:
        for lines in _lines(SECONDS):
            for line in lines:
                live.hear(json.loads(line))
            live.look()
        live.close()
    except TrackingError as error:
        print("no more live curves:", " ".join(str(error).split()), file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    # At once: to take all of MLflow down in order lasts seconds, for which a run would wait.
    os._exit(main())
