"""What `srun` starts on each node for a stage: python -m stages.slurm_task MODULE [ARGUMENT ...]

It tells the stage's command (stages/slurm.py) that it is here, is told where the nodes meet, runs
`python -m MODULE ARGUMENT ...` until that ends, and tells how. When the connection breaks, that
command has ended, or has given this job up: what runs here is killed, and the job is cancelled.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from stages import slurm

_TICK = 0.25
_CONNECTING = 60.0
_STARTING = 600.0
"""Seconds until all nodes must be there."""


def connected() -> socket.socket:
    """The connection to the command that has submitted this job."""
    address = os.environ["SLURM_LAUNCH_NODE_IPADDR"], int(os.environ[slurm.PORT])
    try:
        connection = socket.create_connection(address, timeout=_CONNECTING)
    except OSError as error:
        sys.exit(
            f"error: {os.uname().nodename} does not reach the machine that submitted this job at "
            f"{address[0]}:{address[1]} ({error}); srun needs the way, too: see SrunPortRange in "
            "slurm.conf(5)"
        )
    slurm.hold(connection)
    return connection


def met(connection: socket.socket) -> str:
    """Say who this is; ADDRESS:PORT of the first node when all are there."""
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    said = {
        "token": os.environ.pop(slurm.TOKEN),
        "node": int(os.environ["SLURM_NODEID"]),
        "job": os.environ["SLURM_JOB_ID"],
        "port": port,
    }
    connection.sendall(json.dumps(said).encode())
    connection.settimeout(_STARTING)
    try:
        answer = connection.makefile().readline().strip()
    except TimeoutError:
        sys.exit(f"error: after {_STARTING:.0f} s not all nodes of this job are there")
    if not answer:
        sys.exit("error: the command that submitted this job has ended")
    return answer


def run(command: list[str], connection: socket.socket, environment: dict[str, str]) -> int:
    """Run a command until it ends; its exit code, or 1 where the connection has broken."""
    child = subprocess.Popen(command, env=environment)
    while (status := child.poll()) is None:
        if select.select([connection], [], [], _TICK)[0]:
            print("error: the command that submitted this job has ended", file=sys.stderr)
            end(child.pid)
            if shutil.which("scancel"):
                subprocess.run(["scancel", "--quiet", os.environ["SLURM_JOB_ID"]])
            return 1
    status = 128 - status if status < 0 else status
    with contextlib.suppress(OSError):
        connection.sendall(f"{status}\n".encode())
    return status


def end(number: int) -> None:
    """Kill a process and all that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(number)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def main() -> None:
    connection = connected()
    environment = {
        **os.environ,
        slurm.MEETING: met(connection),
        slurm.NODE: os.environ["SLURM_NODEID"],
    }
    del environment[slurm.PORT], environment[slurm.TOKEN]
    if not Path(environment.get("TMPDIR", "/")).is_dir():
        # A folder of the machine that submitted this.
        del environment["TMPDIR"]
    sys.exit(run([sys.executable, "-m", *sys.argv[1:]], connection, environment))


if __name__ == "__main__":
    main()
