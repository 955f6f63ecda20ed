"""A stage ends with the `dvc` that started it.

Killed alone, `dvc` leaves its stage running, which then races the next `dvc repro` for the same
outputs. So a stage watches it, and a process of several its launcher, and ends when they have. The
same holds for `stages.repro` and its server (stages/warm.py).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import psutil

_LEVELS = 4
"""dvc, its shell, a launcher, this process: no ancestor that counts is further away."""
_GUARDIANS = ("dvc", "stages.repro", "stages.warm", "stages.slurm_task")
"""How the commands are called that start stages; a forked child of one is called like it."""
_SECONDS = 0.2


def guardians() -> list[psutil.Process]:
    """The ancestors without which this process must not go on; none outside of a pipeline."""
    parents = psutil.Process().parents()[:_LEVELS]
    found = [parent for parent in parents if runs_stages(parent)][:1]
    if "RANK" in os.environ:
        found += parents[:1]
    return found


def runs_stages(process: psutil.Process) -> bool:
    """Whether a process is one of the commands that start stages, or a forked child of one."""
    try:
        return any(Path(part).name in _GUARDIANS for part in process.cmdline()[:3])
    except psutil.Error:
        return False


def watch() -> None:
    """End this process soon after one of its guardians has ended; at once, where one that started
    it has ended before it could look."""
    watched = guardians()
    if _is_started() and not any(runs_stages(one) for one in watched):
        _end()
    if watched:
        threading.Thread(target=_watch, args=(watched,), daemon=True).start()


def _is_started() -> bool:
    """Whether this is no process that somebody has started by hand.

    On a node of a cluster the job's own processes come first, which end with the job.
    """
    if "stages.slurm_task" in sys.orig_argv:
        return False
    return "DVC_STAGE" in os.environ


def _watch(watched: list[psutil.Process]) -> None:
    while all(_lives(one) for one in watched):
        time.sleep(_SECONDS)
    _end()


def _end() -> NoReturn:
    print("error: the process that started this stage has ended", file=sys.stderr, flush=True)
    if os.getpgrp() == os.getpid():
        # A child of `stages.repro` or its server: what it has started ends with it.
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
