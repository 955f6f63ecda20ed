"""The pipeline as DVC sees it: stages, their order, what is stale, and running one of them.

A stage runs as under `dvc --wait-for-lock repro -s STAGE`, by the same code (`Stage.reproduce` with
the repository's lock), in a child forked from a process that has loaded the pipeline. The command
itself costs 1.5 to 2.5 s of CPU time at a hundred stages: imports, reading dvc.yaml and dvc.lock,
and writing dvc.lock again, as YAML in pure Python. A forked child finds all that done, and the
parent alone writes dvc.lock, for several stages at a time: .2 s a stage in all. What is finished
and not yet in dvc.lock is noted in `.dvc/tmp`, from where the next run takes it if this one is
killed. (DVC's run cache holds no stage that has an out with `cache: false`.)
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dvc.lock import LockBase
from dvc.repo import Repo, lock_repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.stage import PipelineStage
from dvc.stage.serialize import to_lockfile
from dvc.utils.serialize import dump_yaml, load_yaml

from heima.results.files import atomic
from stages import leftovers

LOCK = Path("dvc.lock")


class _Turns(LockBase):
    """DVC's lock of the repository, for which the processes of a run queue.

    DVC itself asks for it twice a second, and whoever asks at the right moment has it: among stages
    that are quickly done, one can wait for many seconds.
    """

    def __init__(self, lock: LockBase, path: str) -> None:
        super().__init__(path)
        self._lock = lock
        self._queue: int | None = None

    def lock(self) -> None:
        # The system releases it should this process be killed.
        self._queue = os.open(self._lockfile, os.O_WRONLY | os.O_CREAT, 0o644)
        fcntl.flock(self._queue, fcntl.LOCK_EX)
        self._lock.lock()

    def unlock(self) -> None:
        self._lock.unlock()
        if self._queue is not None:
            os.close(self._queue)
            self._queue = None

    @property
    def is_locked(self) -> bool:
        return self._lock.is_locked

    def __enter__(self) -> None:
        self.lock()

    def __exit__(self, *exception: object) -> None:
        self.unlock()


class Pipeline:
    """The stages that `targets` need (none: all of dvc.yaml), by name."""

    def __init__(self, targets: Sequence[str] = ()) -> None:
        # No bar of DVC's on the screen while another process holds its lock.
        logging.getLogger("dvc.progress").setLevel(logging.CRITICAL)
        logging.getLogger("dvc").setLevel(logging.WARNING)
        os.chdir(Repo.find_root())
        root = Path.cwd()
        leftovers.put_right(root)
        self._repo = Repo(_wait_for_lock=True)
        folder = Path(self._repo.tmp_dir)
        self._repo.lock = _Turns(self._repo.lock, str(folder / "stages.lock"))
        self._wait_for_other_runs(folder / "stages.run")
        with lock_repo(self._repo):
            for user in leftovers.forget_the_dead(folder / "rwlock", root):
                print(f"has ended, and held files of DVC's until now: {user}")
        for name in leftovers.remove_temporaries(root):
            print(f"removed what a killed stage has left: {name}")
        self._noted = folder / "stages.finished"
        self._before = leftovers.Before(folder / "stages.before")
        finished = self._entries_noted()
        for name in self._before.names():
            if name in finished:
                self._before.forget(name)
            else:
                self.bring_back(name)
        self._everything: list[str] = []
        self.write_lock({})
        index = self._repo.index
        graph = get_active_graph(index.graph)
        everything = plan_repro(graph, list(index.stages))
        self._everything = [stage.addressing for stage in everything]
        wanted = everything
        if targets:
            # DVC reads both files again for a target: what is known by name need not be looked up.
            known = {stage.addressing: stage for stage in everything}
            found = [
                stage
                for target in targets
                for stage in ([known[target]] if target in known else self._collect(target))
            ]
            wanted = plan_repro(graph, found)
        self._stages: dict[str, PipelineStage] = {stage.addressing: stage for stage in wanted}
        self.upstream: dict[str, frozenset[str]] = {
            name: frozenset(one.addressing for one in graph.successors(stage))
            for name, stage in self._stages.items()
        }
        """For each stage, in an order in which they can run, those that it depends on."""

    def _wait_for_other_runs(self, path: Path) -> None:
        """Two runs at once would take each other's stages; held until this run has ended."""
        mark = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another stages.repro runs here: waiting until it has ended", flush=True)
            fcntl.flock(mark, fcntl.LOCK_EX)

    def _collect(self, target: str) -> list[PipelineStage]:
        return collect_stages(self._repo, [target])

    def meta(self, name: str) -> Mapping[str, Any]:
        return self._stages[name].meta or {}

    def command(self, name: str) -> str:
        return str(self._stages[name].cmd)

    def outs(self, name: str) -> list[Path]:
        """The paths of a stage's outputs, from the root of the repository."""
        return [Path(one.fs_path).relative_to(Path.cwd()) for one in self._stages[name].outs]

    @property
    def metrics(self) -> dict[str, Path]:
        """The metrics file of each stage that has one below `metrics/`."""
        return {
            name: Path(out.fs_path)
            for name, stage in self._stages.items()
            for out in stage.outs
            if Path(out.fs_path).is_relative_to(Path.cwd() / "metrics")
        }

    def written(self) -> set[Path]:
        """The paths that any stage of dvc.yaml writes, from the root of the repository."""
        return {Path(one.fs_path).relative_to(Path.cwd()) for one in self._repo.index.outs}

    def keep(self, name: str) -> None:
        """Copy those outputs of a stage that DVC deletes as it starts and has no cache of."""
        outs = [Path(one.fs_path) for one in self._stages[name].outs if not one.use_cache]
        self._before.keep(name, [one.relative_to(Path.cwd()) for one in outs])

    def bring_back(self, name: str) -> list[str]:
        """What `keep` has copied, of a stage that did not finish; which outputs are back."""
        return self._before.bring_back(name)

    def in_cache(self, name: str) -> bool:
        """Whether an output of the stage is gone that `dvc checkout` brings back."""
        with lock_repo(self._repo):
            return any(
                one.use_cache
                and not one.exists
                and one.hash_info
                and self._repo.cache.local.exists(one.hash_info.value)
                for one in self._stages[name].outs
            )

    def stale(self, names: Iterable[str]) -> list[str]:
        """Those of the stages that `dvc repro` would run; what they depend on must be finished."""
        with lock_repo(self._repo):
            return [name for name in names if self._stages[name].changed()]

    def reproduce(self, name: str) -> dict[str, Any]:
        """Run the stage in this process, a child, as DVC does; its entry for `write_lock`.

        Raises `DvcException` if it fails.
        """
        # DVC's locks name who holds them.
        sys.argv = ["dvc", "repro", "-s", name]
        logging.getLogger("dvc").setLevel(logging.INFO)
        stage = self._stages[name]
        with lock_repo(self._repo), self._repo.scm_context(quiet=True):
            stage.reproduce()
            return to_lockfile(stage)

    def note(self, entry: Mapping[str, Any]) -> None:
        """Keep the entry of a finished stage until `write_lock`, also if this process is killed."""
        with self._noted.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        for name in entry:
            self._before.forget(name)

    def write_lock(self, entries: Mapping[str, Any]) -> None:
        """Put the entries of finished stages into dvc.lock, at once or not at all.

        All entries stand in the order in which plain `dvc repro` runs and appends them, so that the
        file does not depend on which of two stages was finished first.
        """
        with lock_repo(self._repo):
            # Those of a killed run first; its last line may have been cut short.
            entries = {**self._entries_noted(), **entries}
            if not entries:
                return
            content: dict[str, Any] = load_yaml(str(LOCK)) if LOCK.exists() else {"schema": "2.0"}
            stages = content.setdefault("stages", {})
            stages.update(entries)
            known = [name for name in self._everything if name in stages]
            others = [name for name in stages if name not in set(known)]
            content["stages"] = {name: stages[name] for name in (*known, *others)}
            with atomic(LOCK) as temporary:
                dump_yaml(str(temporary), content)
            self._noted.unlink(missing_ok=True)

    def _entries_noted(self) -> dict[str, Any]:
        if not self._noted.exists():
            return {}
        found: dict[str, Any] = {}
        for line in self._noted.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                found |= json.loads(line)
        return found
