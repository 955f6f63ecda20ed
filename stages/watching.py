"""Curves in MLflow while stages train: `stages.repro` tells a process of its own what runs.

That process (reports/tracking/live.py) reads what training leaves in files; no stage knows of it,
and whatever becomes of it changes no result. Its output is in `.cache/logs/live.log`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages import progress

_PATIENCE = 5.0
"""Seconds in which it may end by itself."""


class Watcher:
    """The process, once there is something to tell it; none if it is not `wanted`."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._process: subprocess.Popen[bytes] | None = None
        self._said: str | None = None

    def started(self, name: str, outs: Sequence[Path]) -> None:
        """A stage has started that writes these outputs."""
        if self._wanted and self._process is None:
            with progress.log_of("live").open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "reports.tracking.live"],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            assert self._process.stdin is not None
            # It is told, and never waited for.
            os.set_blocking(self._process.stdin.fileno(), False)
        self._write({"started": name, "at": time.time(), "outs": [str(one) for one in outs]})

    def ended(self, name: str, *, failed: bool) -> None:
        self._write({"ended": name, "status": "FAILED" if failed else "FINISHED"})

    def tell(self, say: Callable[[str], None]) -> None:
        """Say in one line, and once, if the process has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._said is not None:
            say(self._said)
            self._said = None

    def close(self) -> None:
        """End the process; what still trains is marked as killed there."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            if self._process.wait(timeout=_PATIENCE):
                log = progress.log_of("live")
                words = " ".join(progress.last_lines(log, 1))
                self._said = f"no live curves in MLflow ({log}): {words}"
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._wanted = False

    def _write(self, what: Mapping[str, Any]) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError, BlockingIOError):
                os.write(self._process.stdin.fileno(), json.dumps(what).encode() + b"\n")
