"""A server that has imported what stages import, and forks a child for each stage's command.

    python -m stages.warm LISTENER CONTROL MODULE ...

`stages.repro` starts one for as long as it runs: imports cost 3 to 5 s of CPU time a stage, a
forked child some hundredths. LISTENER and CONTROL are open file descriptors: a listening Unix
socket, on which commands hand themselves over (stages/handover.py), and one end of a socket pair.
For each child that has ended a line of JSON goes to CONTROL, with its CPU seconds and its peak
memory; when the other end closes, the server ends all children and itself.

- A child runs `MODULE` as `__main__` in the folder, environment and streams of the command, and may
  replace itself (`os.execv`), as launchers of several processes do.
- A command that ends before its child (killed, say) takes the child with it, and all that the
  child has started. A server that ends takes all (stages/parent_death.py).
- One thread, and no CUDA: both would be broken in a child. `PYTORCH_NVML_BASED_CUDA_CHECK` lets
  libraries ask for GPUs as they are imported without a context of CUDA.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from dataclasses import dataclass, field

from stages import handover, parent_death

LATER: dict[str, tuple[str, ...]] = {
    "stages.prepare": ("heima.toy.benchmarks", "heima.toy.source"),
    "stages.teach": ("heima.toy.teach",),
    "stages.judge": ("eval.judge.reconstructions",),
    "stages.similarity": (
        "eval.similarity",
        "pandas",
        "bert_score.utils",
        "nltk.translate.meteor_score",
    ),
    "stages.predict": ("eval.prediction",),
    "stages.score": ("eval.gateway", "eval.scoring"),
    "stages.latency": ("eval.latency",),
    "stages.tables": ("reports.claims", "reports.tables"),
}
"""What a stage imports only once it runs."""

FETCHING = ("stages.prepare", "stages.teach")
"""Stages that may download: whether they are offline is said by their own environment."""


@dataclass
class Child:
    """A forked child, and the command that waits for it."""

    stage: str
    process: int
    connection: socket.socket = field(repr=False)

    def kill(self) -> None:
        """End it and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)


def warm(modules: list[str], control: socket.socket) -> None:
    """Import the modules, and what they import once they run, for as long as the run goes on."""
    for module in modules:
        for name in (module, *LATER.get(module, ())):
            if _is_closed(control):
                sys.exit("error: the run that started this server has ended")
            importlib.import_module(name)
    gc.collect()
    # What a child never frees is never copied.
    gc.freeze()


def _is_closed(connection: socket.socket) -> bool:
    """Whether the other end is closed; nothing is taken from what it has sent."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False


class Server:
    """Forks and reaps the children of one run."""

    def __init__(self, listener: socket.socket, control: socket.socket) -> None:
        self._listener = listener
        self._control = control
        self._children: dict[int, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._ended, wakeup = os.pipe()
        for end in (self._ended, wakeup):
            os.set_blocking(end, False)
        self._wakeup = wakeup
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for readable in (listener, control, self._ended):
            self._selector.register(readable, selectors.EVENT_READ)

    def serve(self) -> handover.Request | None:
        """Serve until the run ends; in each child, return at once what it is to run."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._control:
                    self._end()
                    return None
                if key.fileobj is self._listener:
                    if (request := self._fork()) is not None:
                        return request
                elif key.fileobj == self._ended:
                    os.read(self._ended, 4096)
                    self._reap()
                else:
                    # A command says nothing more: it has ended.
                    key.data.kill()
                    self._selector.unregister(key.fileobj)

    def _fork(self) -> handover.Request | None:
        """Fork a child for the next command; what it is to run, in the child only."""
        connection, _ = self._listener.accept()
        try:
            request = handover.receive(connection)
        except ConnectionError:
            connection.close()
            return None
        process = os.fork()
        if not process:
            self._leave(connection)
            return request
        for stream in request.streams:
            os.close(stream)
        child = Child(request.environment.get("DVC_STAGE", request.module), process, connection)
        self._children[process] = child
        self._selector.register(connection, selectors.EVENT_READ, child)
        # The child does the same: whichever comes first.
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(process, process)
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(handover.STARTED)
        return None

    def _leave(self, connection: socket.socket) -> None:
        """In a child: a process group of its own, and nothing of the server's."""
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for descriptor in (self._ended, self._wakeup):
            os.close(descriptor)
        for end in (self._listener, self._control, connection):
            end.close()
        for child in self._children.values():
            child.connection.close()

    def _reap(self) -> None:
        """Report the children that have ended."""
        while self._children:
            process, status, usage = os.wait4(-1, os.WNOHANG)
            if not process:
                return
            child = self._children.pop(process)
            # What it has started and left behind ends with it.
            child.kill()
            report = {
                "stage": child.stage,
                "cpu": usage.ru_utime + usage.ru_stime,
                "peak_mb": usage.ru_maxrss / 1024,
            }
            self._control.sendall(json.dumps(report).encode() + b"\n")
            with contextlib.suppress(BrokenPipeError):
                handover.report(child.connection, os.waitstatus_to_exitcode(status))
            with contextlib.suppress(KeyError):
                self._selector.unregister(child.connection)
            child.connection.close()

    def _end(self) -> None:
        for child in self._children.values():
            child.kill()


def run(request: handover.Request, environment: dict[str, str]) -> None:
    """Become the command, and run its module as `__main__`.

    `environment` has what `stages` sets for every stage, which the command has not done yet.
    """
    for stream, at in zip(request.streams, (0, 1, 2), strict=True):
        os.dup2(stream, at)
        os.close(stream)
    # Its last line is shown while it runs.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(environment | request.environment)
    os.chdir(request.folder)
    sys.path[0] = request.folder
    parent_death.watch()
    if request.module in FETCHING:
        # Read once, at its import.
        from huggingface_hub import constants

        offline = request.environment.get("HF_HUB_OFFLINE", "")
        constants.HF_HUB_OFFLINE = offline.upper() in constants.ENV_VARS_TRUE_VALUES
    # `runpy` warns of a module that it runs for the second time.
    sys.modules.pop(request.module, None)
    sys.argv[1:] = request.arguments
    runpy.run_module(request.module, run_name="__main__", alter_sys=True)


def main() -> None:
    listener, control = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    modules = sys.argv[3:]
    environment = dict(os.environ)
    from eval import lmms_start

    lmms_start.quiet()
    warm(modules, control)
    request = Server(listener, control).serve()
    if request is not None:
        run(request, environment)


if __name__ == "__main__":
    main()
