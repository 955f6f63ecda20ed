"""Reproduce the pipeline, its branches side by side, and say how it goes.

    python -m stages.repro                     # all of dvc.yaml
    python -m stages.repro tables --jobs 2     # what the tables need

Runs what `dvc repro` would run and leaves the same dvc.lock, which plain `dvc repro` goes on from,
and the other way round (stages/pipeline.py). Stages that do not depend on each other run at once,
up to `--jobs` (default: as many as there are GPUs, else CPU cores), those that begin the longest
chain first. What a stage runs on is its `meta: {needs: cpu | gpu | machine}` in dvc.yaml: a stage
that needs `gpu` gets as many GPUs as `hardware.processes` says, by default all; with `processes: 1`
such stages run side by side, one a GPU. One that needs `machine` measures times and runs alone.
With `hardware.slurm` such stages are jobs of a cluster (docs/clusters.md).

A stage that fails stops only what depends on it; the exit code is 1 at the end, unless no other
failed than those that `--may-fail` names. Ctrl-C ends all stages. After that, or after any kill,
the same command goes on: finished stages stay finished.
Output of stages, and of their libraries, is in `.cache/logs/<stage>.log`, what each took in
`.cache/logs/durations.json`, when it ran in `reports/<profile>/times.json`. With `track` among the
stages, curves appear in MLflow while they train (stages/watching.py). From the second stage on, a
process that has imported everything once runs the stages' commands as forked children
(stages/warm.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import FrameType
from typing import Any

from dvc.exceptions import DvcException

from heima import config
from heima.results import machine
from reports import times
from stages import (
    canary,
    gpus,
    handover,
    leftovers,
    other_profiles,
    parent_death,
    progress,
    runs,
    schedule,
    spending,
)
from stages.pipeline import Pipeline
from stages.progress import Ended, Progress, Result, Working
from stages.schedule import Needs, Slots
from stages.watching import Watcher

_TICK = 0.25
"""Seconds between two looks at what runs."""
_LOCK_SECONDS = 30.0
"""dvc.lock is written at most so often, and at the end: each time takes about a second."""
_NAMES = 12
"""How many stages that were not run are named."""
_ENDS = (signal.SIGINT, signal.SIGTERM)
"""Signals that end a run."""
_FORK = multiprocessing.get_context("fork")


class Interrupted(BaseException):
    """A signal that ends the run."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass
class Running:
    """A stage that a child of this process runs; `usage` is what the server's children took."""

    process: ForkProcess
    results: Connection
    gpus: tuple[str, ...]
    since: float = field(default_factory=time.monotonic)
    usage: list[dict[str, float]] = field(default_factory=list)

    def kill(self) -> None:
        """End the child and what it has started."""
        self.process.kill()
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


class WarmServer:
    """The process that has imported what the stages import; it ends with this object."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="stages-")
        address = str(Path(self._folder.name) / "warm")
        self._control, theirs = socket.socketpair()
        with socket.socket(socket.AF_UNIX) as listener, theirs:
            listener.bind(address)
            listener.listen(128)
            numbers = (listener.fileno(), theirs.fileno())
            with progress.log_of("warm").open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "stages.warm", *map(str, numbers), *modules],
                    env={**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
                    pass_fds=numbers,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        self._control.setblocking(False)
        self._rest = b""
        # Stages that start from now on hand themselves over.
        os.environ[handover.ADDRESS] = address

    def reports(self) -> list[dict[str, Any]]:
        """What the children that have ended since the last call took."""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while part := self._control.recv(65536):
                self._rest += part
        *lines, self._rest = self._rest.split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """End the server and its children."""
        os.environ.pop(handover.ADDRESS, None)
        self._control.close()
        try:
            self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            # It imports, and has no children yet.
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


class Run:
    """One run of the pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        slots: Slots,
        wanted: Callable[[str], int],
        tick: Callable[[], None] = lambda: None,
        *,
        live: bool = False,
    ) -> None:
        self.failed: list[str] = []
        self.not_run: list[str] = []
        self.ended: list[Ended] = []
        self._pipeline = pipeline
        self._slots = slots
        self._wanted = wanted
        self._needs = {name: _needs(name, pipeline) for name in pipeline.upstream}
        self._running: dict[str, Running] = {}
        self._finished: set[str] = set()
        self._stale: set[str] = set()
        self._unknown = list(pipeline.upstream)
        self.stopped: list[str] = []
        self._entries: dict[str, Any] = {}
        self._written = time.monotonic()
        self._server: WarmServer | None = None
        self._tick = tick
        self._watcher = Watcher(wanted=live)
        self._times: dict[str, times.Ran] = {}
        self._seconds = progress.recorded(pipeline.metrics) | progress.durations()
        self._progress = Progress(len(pipeline.upstream))

    def run(self) -> None:
        """Run all that is stale and can run; whatever ends it ends all stages."""
        try:
            self._settle()
            self._progress.say(
                f"{len(self._finished)} of {len(self._pipeline.upstream)} stages are up to date"
            )
            while self._start():
                self._wait()
                self._settle()
        finally:
            for running in self._running.values():
                running.kill()
            for name, running in self._running.items():
                running.process.join()
                self._pipeline.bring_back(name)
                self.stopped.append(name)
            if self._server is not None:
                self._server.close()
            self._watcher.close()
            self._progress.close()
            self._watcher.tell(self._progress.say)
            self._write_lock()
            if self.ended:
                progress.remember(self.ended)
        self.not_run = [*self._unknown, *self._stale]

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self._progress.elapsed

    def table(self) -> str:
        places = {name: place for place, name in enumerate(self._pipeline.upstream)}
        return self._progress.table(self.ended, places)

    def _settle(self) -> None:
        """Ask DVC of each stage whose upstream is finished whether it is stale."""
        while ready := [
            name for name in self._unknown if self._pipeline.upstream[name] <= self._finished
        ]:
            stale = set(self._pipeline.stale(ready))
            self._stale |= stale
            self._finished |= set(ready) - stale
            self._unknown = [name for name in self._unknown if name not in set(ready)]
            if stale == set(ready):
                return

    def _start(self) -> bool:
        """Start what may start; whether anything runs."""
        chains = self._chains()
        places = {name: place for place, name in enumerate(self._pipeline.upstream)}
        ready = sorted(self._stale, key=lambda name: (-chains[name], places[name]))
        taken = {name: running.gpus for name, running in self._running.items()}
        chosen = schedule.admitted(ready, taken, self._needs, self._slots, self._wanted)
        for name, devices in chosen.items():
            # One stage alone is sooner done than the imports of all.
            if self._server is None and (self.ended or self._running):
                self._server = WarmServer(self._modules)
            self._stale.discard(name)
            results, theirs = _FORK.Pipe(duplex=False)
            process = _FORK.Process(target=_child, args=(self._pipeline, name, devices, theirs))
            with _undisturbed():
                self._pipeline.keep(name)
                process.start()
                self._running[name] = Running(process, results, devices)
            theirs.close()
            self._watcher.started(name, self._pipeline.outs(name))
        return bool(self._running)

    def _wait(self) -> None:
        """Wait until a stage has ended, and tell of those that run."""
        while not (
            done := wait([running.results for running in self._running.values()], timeout=_TICK)
        ):
            working = [
                Working(name, running.since, running.gpus)
                for name, running in self._running.items()
            ]
            self._progress.tick(working, self._count(), self._left)
            self._watcher.tell(self._progress.say)
            self._tick()
        for name in [name for name, one in self._running.items() if one.results in done]:
            with _undisturbed():
                self._end(name)
        if time.monotonic() - self._written > _LOCK_SECONDS:
            self._write_lock()

    def _end(self, name: str) -> None:
        running = self._running[name]
        try:
            entry, cpu, peak_mb = running.results.recv()
        except EOFError:
            entry = cpu = peak_mb = None
        running.process.join()
        # What it has left behind ends with it, its part in the server too.
        running.kill()
        self._collect_usage()
        del self._running[name]
        wall = time.monotonic() - running.since
        if cpu is not None:
            cpu += sum(usage["cpu"] for usage in running.usage)
            peak_mb = max([peak_mb, *(usage["peak_mb"] for usage in running.usage)])
        if entry is None:
            status = running.process.exitcode
            why = "" if status == 1 else f" (exit code {status})"
            one = Ended(name, Result.FAILED, wall, cpu, peak_mb, why, gpus=len(running.gpus))
            self.failed.append(name)
            self._pipeline.bring_back(name)
        else:
            log = progress.log_of(name).read_text(encoding="utf-8", errors="replace")
            ran = f"Running stage '{name}':" in log
            how = Result.RAN if ran else Result.RESTORED
            one = Ended(name, how, wall, cpu, peak_mb, gpus=len(running.gpus))
            self._pipeline.note(entry)
            self._entries.update(entry)
            self._finished.add(name)
            self._seconds[name] = wall
            if ran:
                self._times[name] = times.Ran(entry[name], time.time() - wall, time.time())
        self._watcher.ended(name, failed=entry is None)
        self.ended.append(one)
        self._progress.ended(one, self._count(), self._left())

    def _collect_usage(self) -> None:
        if self._server is not None:
            for usage in self._server.reports():
                if usage["stage"] in self._running:
                    self._running[usage["stage"]].usage.append(usage)

    def _write_lock(self) -> None:
        if self._entries:
            self._pipeline.write_lock(self._entries)
            times.record(Path("."), self._times)
            self._entries, self._times = {}, {}
        self._written = time.monotonic()

    def _count(self) -> int:
        return len(self._finished) + len(self.failed)

    @cached_property
    def _modules(self) -> list[str]:
        """The stages' modules, from their commands."""
        commands = "\n".join(self._pipeline.command(name) for name in self._pipeline.upstream)
        return sorted(set(re.findall(r"python -m (stages\.\w+)", commands)))

    @cached_property
    def _dependents(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {name: [] for name in self._pipeline.upstream}
        for name, upstream in self._pipeline.upstream.items():
            for one in upstream & found.keys():
                found[one].append(name)
        return found

    def _chains(self) -> dict[str, float]:
        order = list(self._pipeline.upstream)
        estimates = {name: schedule.estimated(name, self._seconds) for name in order}
        known = {name: seconds for name, seconds in estimates.items() if seconds is not None}
        return schedule.priorities(self._dependents, order, known)

    def _left(self) -> tuple[float, int]:
        """`schedule.remaining`, if what is not known to be up to date has to run."""
        left = {
            name: schedule.estimated(name, self._seconds) for name in [*self._unknown, *self._stale]
        }
        for name, running in self._running.items():
            whole = schedule.estimated(name, self._seconds)
            spent = time.monotonic() - running.since
            left[name] = None if whole is None else max(0.0, whole - spent)
        return schedule.remaining(left, self._chains(), self._slots.jobs)


def _child(pipeline: Pipeline, name: str, gpus: tuple[str, ...], results: Connection) -> None:
    """In a process of its own: run the stage, with all output in its log."""
    os.setsid()
    for number in _ENDS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
    log = os.open(progress.log_of(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    parent_death.watch()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    entry = None
    try:
        entry = pipeline.reproduce(name)
    except DvcException as error:
        sys.exit(f"error: {error}")
    finally:
        usages = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        cpu = sum(usage.ru_utime + usage.ru_stime for usage in usages)
        results.send((entry, cpu, usages[1].ru_maxrss / 1024))


def _needs(name: str, pipeline: Pipeline) -> Needs:
    stated = pipeline.meta(name).get("needs", Needs.CPU)
    if stated not in list(Needs):
        allowed = ", ".join(Needs)
        raise SystemExit(f"error: dvc.yaml: {name}: meta: needs: {stated!r} is none of {allowed}")
    return Needs(stated)


def _say_whether_the_bits_are_the_recorded_ones() -> None:
    """One line; where that has to be found out, by a process of its own, which imports torch."""
    if line := canary.known():
        print(line, flush=True)
    else:
        subprocess.run([sys.executable, "-m", "stages.canary"], stderr=subprocess.DEVNULL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Once is enough: what follows ends the stages.
    for one in _ENDS:
        signal.signal(one, signal.SIG_IGN)
    raise Interrupted(number)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals that end the run wait until the block has ended."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)


def _say_how_to_go_on(name: str, run: Run | None, pipeline: Pipeline | None) -> None:
    """After a signal: what was stopped, what became of its outputs, and the command."""
    stopped = run.stopped if run else []
    words = [f"{name}: {', '.join(stopped) or 'no stage'} stopped; finished stages stay finished"]
    if gone := [one for one in stopped if pipeline and pipeline.in_cache(one)]:
        words.append(f"their metrics are as before; dvc checkout {shlex.join(gone)} has the rest")
    again = shlex.join(["python", "-m", "stages.repro", *sys.argv[1:]])
    words.append(f"`make repro` goes on from there (or: {again})")
    print("", *words, sep="\n", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="stages (default: all)")
    parser.add_argument("--jobs", type=int, help="stages at once (default: GPUs, else cores)")
    parser.add_argument(
        "--may-fail",
        action="append",
        default=[],
        metavar="STAGE",
        help="a stage whose failure is told, and leaves the exit code 0",
    )
    parser.add_argument(
        "--no-live", action="store_true", help="no curves in MLflow while stages train"
    )
    parser.add_argument("--gpu-hour-price", type=float, help="US dollars, for what it took")
    arguments = parser.parse_args()
    if arguments.jobs is not None and arguments.jobs < 1:
        parser.error("--jobs must be at least 1")
    for number in _ENDS:
        signal.signal(number, _interrupt)
    # Commands of stages say `python`: this one, also where its environment is not active.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    devices = () if gpus.on_a_cluster() else gpus.visible()
    jobs = arguments.jobs or len(devices) or len(os.sched_getaffinity(0))
    pipeline = run = account = params = None
    try:
        with leftovers.scratch():
            if Path("params.yaml").exists():
                # dvc.yaml reads what to repeat stages over from this list, before any stage runs.
                runs.write(params := config.load())
            if machine.wants_pins():
                _say_whether_the_bits_are_the_recorded_ones()
            pipeline = Pipeline(arguments.targets)
            if params and (removed := other_profiles.clear(params, pipeline.written)):
                print(removed, flush=True)
            if unknown := sorted(set(arguments.may_fail) - pipeline.upstream.keys()):
                parser.error(f"--may-fail: not among the stages to run: {', '.join(unknown)}")
            progress.LOGS.mkdir(parents=True, exist_ok=True)
            # Whoever does not ask for the mirror wants no part of it.
            live = not arguments.no_live and "track" in pipeline.upstream
            account = spending.Account(params, devices, arguments.gpu_hour_price)
            slots = Slots(jobs, devices)
            run = Run(pipeline, slots, gpus.wanted(devices), account.meter.tick, live=live)
            run.run()
    except DvcException as error:
        sys.exit(f"error: {error}")
    except config.ConfigError as error:
        sys.exit(f"error: {error}")
    except Interrupted as interrupted:
        _say_how_to_go_on(str(interrupted), run, pipeline)
        sys.exit(128 + interrupted.number)
    finally:
        joules = account.meter.close() if account else {}
    if run.ended:
        print(f"\n{run.table()}\n")
        print(*account.report(run.ended, run.elapsed, joules), sep="\n", flush=True)
    if run.failed:
        print(f"\nfailed: {', '.join(run.failed)}", file=sys.stderr)
        for name in run.failed:
            print(f"  {progress.log_of(name)}", file=sys.stderr)
        if run.not_run:
            names = ", ".join(run.not_run[:_NAMES]) + (", …" if len(run.not_run) > _NAMES else "")
            print(f"{len(run.not_run)} not run, for want of them: {names}", file=sys.stderr)
        if not set(run.failed) <= set(arguments.may_fail):
            sys.exit(1)


if __name__ == "__main__":
    main()
