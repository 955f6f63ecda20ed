"""A stage ends with what started it, also where that ended before the stage could look for it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT

ORPHAN = textwrap.dedent(
    """
    import os, sys, time
    while os.getppid() == int(sys.argv[2]):
        time.sleep(0.02)
    import stages
    open(sys.argv[1], "w").close()
    """
)


@pytest.mark.parametrize(
    ("started", "lives"),
    [({"DVC_STAGE": "teach@base"}, False), ({}, True)],
    ids=["a stage's command", "by hand"],
)
def test_whose_parent_has_ended_already(tmp_path, started, lives):
    """A command of the pipeline ends; one that a shell has left behind goes on."""
    mark = tmp_path / "went on"
    environment = {key: value for key, value in os.environ.items() if key != "DVC_STAGE"}
    _leave_behind(ORPHAN, mark, {**environment, **started})
    assert mark.exists() is lives


def test_a_warm_server_whose_run_has_ended_already_imports_nothing():
    """It would import for seconds before it sees that nobody asks."""
    ours, control = socket.socketpair()
    with control, socket.socket(socket.AF_UNIX) as listener:
        ours.close()
        numbers = [one.fileno() for one in (listener, control)]
        server = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "stages.warm", *map(str, numbers), "torch"],
            cwd=ROOT,
            pass_fds=numbers,
            capture_output=True,
            text=True,
        )
    assert server.returncode == 1
    assert "the run that started this server has ended" in server.stderr
    assert " torch._tensor" not in server.stderr


def _leave_behind(code: str, mark: Path, environment: dict[str, str]) -> None:
    """Have a shell start the code and end; wait until the code has ended, too."""
    shell = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" "$2" $$ >/dev/null 2>&1 & echo $!', sys.executable, code, mark],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    _wait_for_the_end(int(shell.stdout))


def _wait_for_the_end(process: int) -> None:
    end = time.monotonic() + 60
    while psutil.pid_exists(process) and _is_alive(process):
        assert time.monotonic() < end, Path(f"/proc/{process}/cmdline").read_text()
        time.sleep(0.05)


def _is_alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
