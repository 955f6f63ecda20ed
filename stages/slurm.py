"""A stage runs on a Slurm cluster: `srun` starts it on the nodes, and this process waits for it.

The stage's own command stays the parent of all: it starts `srun`, which starts one task a node
(stages/slurm_task.py), passes on what they print, and ends as they do. So DVC sees an ordinary
command, and the files must lie where this machine and the nodes see them alike.

No job outlives the stage, whatever is killed:

- A task holds a connection to this process and ends with it, and so with `dvc`, its parent.
- A shell outside of the stage's process group cancels the job when this process has gone: one that
  waits in the queue has no task yet.
- Where `srun` goes, this process cancels the job.

A job that lost its nodes (they failed, or another was preferred) is submitted again
(`hardware.slurm.requeues`), and goes on from what is kept. Stages inside of an allocation (sbatch,
salloc) ask for jobs of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, NoReturn

from heima.config import Slurm
from stages import handover

PORT, TOKEN = "STAGES_SLURM_PORT", "STAGES_SLURM_TOKEN"
"""Environment variables by which a task finds this process, and says that it is one of its own."""
NODES, NODE, MEETING = "STAGES_SLURM_NODES", "STAGES_SLURM_NODE", "STAGES_SLURM_MEETING"
"""Environment variables of a stage on a node: how many nodes, which one, and ADDRESS:PORT of the
first, where the processes of all meet."""

_TICK = 0.25
_FIRST_LOOK, _LOOKS = 4.0, 30.0
"""Seconds until the queue is looked at, and between two looks, while the job waits."""
_ENDING = 15.0
"""Seconds that `srun` gets to end its job."""
_HELLO = 4096
"""Bytes that a task's greeting has at most."""
_LOST = ("NODE_FAIL", "PREEMPTED", "BOOT_FAIL")
"""Ends of a job (`JobState`) that are no fault of what it ran."""
_HOPELESS = re.compile(
    r"PartitionNodeLimit|PartitionTimeLimit|BadConstraints|InvalidAccount|InvalidQOS"
    r"|(QOS|Assoc)Max\w*PerJob\w*"
)
"""Reasons to wait (squeue(1)) that no waiting takes away."""
_SITE = ("SLURM_CONF",)
"""Of what an allocation sets in the environment, that which is not about the allocation."""
_NOT_FOR_NODES = (handover.ADDRESS, "CUDA_VISIBLE_DEVICES")
"""Variables that are about this machine."""

_WATCHDOG = """
while read -r word; do
  test "$word" = done && exit 0
  srun=$word
done
kill -TERM "$srun" 2> /dev/null
for round in 1 2 3 4 5; do scancel --quiet --name "$1"; sleep 2; done
"""
"""Its input ends when this process does; the job may be submitted while it is cancelled."""


@dataclass
class _Job:
    """One submission: what the tasks have said, and what `srun` has."""

    process: subprocess.Popen[str]
    number: str | None = None
    tasks: dict[int, socket.socket] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)
    meeting: str | None = None
    started: bool = False
    queued: str | None = None
    words: deque[str] = field(default_factory=lambda: deque(maxlen=5))
    hopeless: str | None = None


@dataclass(frozen=True)
class Place:
    """The node of this process, number `number` from 0 of `count`; all meet at the first one's
    `address` and `port`."""

    count: int = 1
    number: int = 0
    address: str = ""
    port: str = ""

    def torchrun(self) -> list[str]:
        """What `torch.distributed.run` must be told."""
        if self.count == 1:
            return ["--standalone"]
        nodes = ["--nnodes", str(self.count), "--node-rank", str(self.number)]
        return [*nodes, "--master-addr", self.address, "--master-port", self.port]

    def accelerate(self) -> list[str]:
        """What `accelerate launch` must be told."""
        if self.count == 1:
            return []
        nodes = ["--num_machines", str(self.count), "--machine_rank", str(self.number)]
        return [*nodes, "--main_process_ip", self.address, "--main_process_port", self.port]


def on_node() -> bool:
    """Whether this process is already on a node, started by a stage's command elsewhere."""
    return MEETING in os.environ


def place() -> Place:
    """Where this process is among the nodes of its job; outside of one, alone."""
    if not on_node():
        return Place()
    address, _, port = os.environ[MEETING].rpartition(":")
    return Place(int(os.environ[NODES]), int(os.environ[NODE]), address, port)


def run(options: Slurm, module: str, *arguments: str) -> NoReturn:
    """Run `python -m module arguments` on `options.nodes` nodes, and end as it does there."""
    what = " ".join((module, *arguments))
    if lacking := [name for name in ("srun", "scancel", "scontrol") if not shutil.which(name)]:
        sys.exit(
            f"error: hardware.slurm is set, and this machine has no {', '.join(lacking)}; run this "
            "on a login node of the cluster, or take hardware.slurm away to compute here"
        )
    words = re.sub(r"[^\w.-]+", "-", "-".join((module.rpartition(".")[2], *arguments)))
    name = f"heima-{words}-{secrets.token_hex(4)}"
    with _watchdog(name) as watched:
        for again in range(options.requeues + 1):
            job = _submitted(options, name, watched, module, *arguments)
            status = _status(job, options.nodes)
            if status == 0:
                break
            state = _state(job.number)
            _asked("scancel", "--quiet", f"--name={name}")
            if state not in _LOST or again == options.requeues:
                _say_why(job, state, what, options)
                break
            print(
                f"{what}: job {job.number} has lost its nodes ({state}); it is submitted again "
                f"({again + 1} of {options.requeues}) and goes on from what is kept",
                flush=True,
            )
    sys.exit(status)


def _status(job: _Job, nodes: int) -> int:
    """The exit code of a job: 0 only where every task says so, as `srun` ends with 0, too, where it
    has lost a node."""
    status = job.process.returncode
    if status == 0:
        return 0 if job.ended == dict.fromkeys(range(nodes), "0") else 1
    return 128 - status if status < 0 else status


def _last_word(connection: socket.socket) -> str:
    """The exit code that a task has told; nothing where it was killed before."""
    try:
        return connection.recv(_HELLO).decode().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def _watchdog(name: str) -> Iterator[IO[str]]:
    """A shell that cancels jobs of this name if this process ends within the block.

    It is told of each `srun` by a line with its process number.
    """
    process = subprocess.Popen(
        ["sh", "-c", _WATCHDOG, "stages.slurm", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        text=True,
        start_new_session=True,
    )
    pipe = process.stdin
    assert pipe is not None
    yield pipe
    # Not after an error: then the pipe closes without a word, and the shell does its work.
    with contextlib.suppress(BrokenPipeError):
        pipe.write("done\n")
        pipe.close()
    process.wait()


def _submitted(options: Slurm, name: str, watched: IO[str], module: str, *arguments: str) -> _Job:
    """Submit the job, serve its tasks, and return when `srun` has ended."""
    token = secrets.token_hex(16)
    with socket.create_server(("", 0)) as listener:
        srun = [
            "srun",
            f"--job-name={name}",
            *options.options(),
            "--ntasks-per-node=1",
            "--kill-on-bad-exit=1",
            "--input=none",
            "--mpi=none",
            "--export=ALL",
        ]
        process = subprocess.Popen(
            [*srun, sys.executable, "-m", "stages.slurm_task", module, *arguments],
            env={
                **environment(os.environ),
                PORT: str(listener.getsockname()[1]),
                TOKEN: token,
                NODES: str(options.nodes),
            },
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        job = _Job(process)
        telling = threading.Thread(target=_pass_on, args=(job,), daemon=True)
        telling.start()
        try:
            watched.write(f"{process.pid}\n")
            watched.flush()
            _serve(job, listener, token, options.nodes, name)
        finally:
            # What ends here by an error or Ctrl-C ends its job first.
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=_ENDING)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            for node, connection in job.tasks.items():
                job.ended[node] = _last_word(connection)
                connection.close()
        telling.join(timeout=_ENDING)
    return job


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment for `srun`: nothing of an allocation, a server or GPUs of this machine."""
    inside = "SLURM_JOB_ID" in given
    return {
        name: value
        for name, value in given.items()
        if name not in _NOT_FOR_NODES
        and not (inside and name.startswith("SLURM_") and name not in _SITE)
    }


def _pass_on(job: _Job) -> None:
    """What `srun` and the tasks write to stderr; the last words of `srun` are kept."""
    assert job.process.stderr is not None
    for line in job.process.stderr:
        sys.stderr.write(line)
        sys.stderr.flush()
        if line.startswith("srun: "):
            job.words.append(line.removeprefix("srun: ").removeprefix("error: ").strip())


def _serve(job: _Job, listener: socket.socket, token: str, nodes: int, name: str) -> None:
    """Until `srun` ends: let the tasks know each other, and tell of the queue while they wait."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    look = time.monotonic() + _FIRST_LOOK
    while job.process.poll() is None:
        for key, _ in selector.select(_TICK):
            if key.fileobj is listener:
                connection, _ = listener.accept()
                connection.settimeout(_TICK)
                selector.register(connection, selectors.EVENT_READ)
            else:
                assert isinstance(key.fileobj, socket.socket)
                # A task says one thing, and then holds on.
                selector.unregister(key.fileobj)
                _greet(job, key.fileobj, token)
        if not job.started and len(job.tasks) == nodes:
            job.started = True
            for connection in job.tasks.values():
                with contextlib.suppress(OSError):  # it has ended: `srun` will say so
                    connection.sendall(f"{job.meeting}\n".encode())
        if not job.tasks and time.monotonic() > look:
            look = time.monotonic() + _LOOKS
            _look(job, name)
            if job.hopeless:
                return


def _greet(job: _Job, connection: socket.socket, token: str) -> None:
    """Read who a task is. What is none of them is sent away."""
    try:
        said = json.loads(connection.recv(_HELLO))
    except (OSError, ValueError):
        said = None
    known = said.get("token") if isinstance(said, dict) else None
    if not secrets.compare_digest(str(known).encode(), token.encode()):
        connection.close()
        return
    hold(connection)
    job.number = str(said["job"])
    job.tasks[int(said["node"])] = connection
    if int(said["node"]) == 0:
        # As this machine sees the first node, `srun` does, and so do the others.
        job.meeting = f"{connection.getpeername()[0]}:{said['port']}"


def hold(connection: socket.socket) -> None:
    """Have a connection break within 20 s after the other machine has gone without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _look(job: _Job, name: str) -> None:
    """Tell why the job waits; where waiting is in vain, say so."""
    found = _asked("squeue", "--noheader", f"--name={name}", "--format=%i|%T|%r")
    if not found:
        return
    job.number, state, reason = found.splitlines()[0].split("|", maxsplit=2)
    if state != "PENDING" or reason == job.queued:
        return
    job.queued = reason
    print(f"job {job.number} waits in Slurm's queue: {reason}", flush=True)
    if _HOPELESS.fullmatch(reason):
        job.hopeless = reason


def _asked(*command: str) -> str:
    """What a command of Slurm says; nothing where its controller does not answer."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_ENDING)
    except subprocess.TimeoutExpired:
        return ""
    return ended.stdout.strip() if ended.returncode == 0 else ""


def _state(number: str | None) -> str:
    """How Slurm says that a job has ended (`JobState`); `unknown` where it does not."""
    state, until = "", time.monotonic() + _ENDING
    while state in ("", "COMPLETING") and time.monotonic() < until:
        said = _asked("scontrol", "show", "job", number or "0", "-o")
        found = re.search(r"JobState=(\w+)", said)
        if not found:
            return "unknown"
        state = found[1]
        time.sleep(_TICK)
    return state


def _say_why(job: _Job, state: str, what: str, options: Slurm) -> None:
    """One sentence, with what to do."""
    asks = " ".join(options.options())
    said = "; ".join(dict.fromkeys(job.words)) or "srun said nothing"
    status = job.process.returncode
    if not job.tasks:
        why = job.hopeless or said
        text = (
            f"Slurm did not start {what} ({why}); hardware.slurm asks for {asks}, and "
            "`sinfo -N -o '%N %P %c %m %G %T'` says what the cluster has"
        )
    elif status == -signal.SIGKILL:
        text = f"srun was killed, and job {job.number} of {what} with it; run it again"
    elif state == "TIMEOUT":
        text = (
            f"job {job.number} of {what} ran into its time limit; run it again, it goes on from "
            f"what is kept, or raise hardware.slurm.time (now {options.time or 'the default'})"
        )
    elif state in _LOST:
        text = (
            f"job {job.number} of {what} has lost its nodes ({state}); run it again, it goes on "
            f"from what is kept (hardware.slurm.requeues = {options.requeues} does it by itself)"
        )
    else:
        text = (
            f"job {job.number} of {what} ended as {state} ({said}); what it printed is above, and "
            "the same command goes on from what is kept"
        )
    print(f"error: {text}", file=sys.stderr, flush=True)
