"""What killed runs leave, cleared before the next one starts, and what a copy of the files lacks.

- DVC's list of files in use (`rwlock`) names processes that have ended; after a restart of the
  machine, or of a container, others may have their numbers.
- Temporary files (`heima.results.files.atomic`) lie beside what they were to become, and scratch
  folders of stages in the system's temporary folder.
- DVC deletes a stage's outputs before it runs. Of those that it has no cache of (metrics, tables)
  a copy is kept until the stage has finished, and brought back where it does not.
- An unpacked archive has no git, without which DVC must be told to work.
- DVC's site cache is unpickled by whoever finds it: nobody else may write there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from dvc.config import Config
from dvc.scm import SCM, SCMError

from heima.results.files import atomic, remove
from stages.parent_death import runs_stages

SITE_CACHE = Path(".cache/dvc/repo")
"""What `core.site_cache_dir` of .dvc/config makes of DVC's site cache."""

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")
_SCRATCH = re.compile(r"stages-(\d+)-.+")
_NOT_OURS = {".git", ".venv", ".dvc", "mlruns", "__pycache__"}
_CLOCK = 2.0
"""Seconds by which a process may seem to have started after it wrote a file."""
_DYING = 5.0
"""Seconds in which the stages of a killed run end by themselves (stages/parent_death.py)."""
_PUBLIC = 0o022


def put_right(root: Path) -> None:
    """Make DVC able to work in `root`, with nobody else's data. Call it before DVC is opened."""
    try:
        SCM(str(root))
    except SCMError:
        config = Config(str(root / ".dvc"), validate=False)
        if not config.get("core", {}).get("no_scm"):
            print("no git repository here: DVC works without (core.no_scm in .dvc/config.local)")
            with config.edit("local") as local:
                local.setdefault("core", {})["no_scm"] = True
    folder = root / SITE_CACHE
    if any(one.exists() and one.stat().st_mode & _PUBLIC for one in (folder, folder.parent)):
        # Others may have written what DVC would unpickle; it is made again.
        for inner in folder.iterdir() if folder.exists() else ():
            if inner.is_dir():
                shutil.rmtree(inner)
    folder.mkdir(parents=True, exist_ok=True)
    for one in (folder, folder.parent, folder.parent.parent):
        one.chmod(one.stat().st_mode & ~_PUBLIC)


def lives(number: int, root: Path, since: float, command: str | None = None) -> bool:
    """Whether the process that did something in `root` at the time `since` still lives.

    One of the same number is another where it started later, works elsewhere, or is no `command`
    (as DVC writes it down; None: any).
    """
    try:
        process = psutil.Process(number)
        if process.status() == psutil.STATUS_ZOMBIE or process.create_time() > since + _CLOCK:
            return False
        if not Path(process.cwd()).is_relative_to(root.resolve()):
            return False
        return command is None or _is_called(process, command)
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False
    except psutil.AccessDenied:
        # Another user's: what it does is unknown, and what it holds stays held.
        return True


def _is_called(process: psutil.Process, command: str) -> bool:
    """`command` is a process's `sys.argv`; a child of `stages.repro` says there what DVC would."""
    if runs_stages(process):
        return True
    return " ".join(process.cmdline()).endswith(command)


def forget_the_dead(path: Path, root: Path) -> list[str]:
    """Take from DVC's list of files in use (`path`) those that nobody uses; who had used them.

    DVC does it too, but for it a process lives as long as any has its number, and until its parent
    has waited for it: the children of a killed run are left to init, which may take its time or,
    in a container, never do it.
    """
    if not path.exists():
        return []
    written = path.stat().st_mtime
    try:
        used = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        # Killed while it wrote: nobody writes now, and DVC would refuse to work.
        used = {}
    reading: Mapping[str, list[dict[str, Any]]] = used.get("read", {})
    writing: Mapping[str, dict[str, Any]] = used.get("write", {})
    users = {
        (int(user["pid"]), str(user["cmd"]))
        for user in (*writing.values(), *(one for users in reading.values() for one in users))
    }
    _await_end({number for number, _ in users}, root, written)
    alive = {one for one in users if lives(one[0], root, written, one[1])}

    def holds(user: Mapping[str, Any]) -> bool:
        return (int(user["pid"]), str(user["cmd"])) in alive

    kept = {file: [user for user in users if holds(user)] for file, users in reading.items()}
    left = {
        "read": {file: users for file, users in kept.items() if users},
        "write": {file: user for file, user in writing.items() if holds(user)},
    }
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(left), encoding="utf-8")
    return sorted(f"{command} (process {number})" for number, command in users - alive)


def _await_end(numbers: Collection[int], root: Path, since: float) -> None:
    """Wait for stages of a run that has been killed: they end as soon as they see it."""
    found = []
    for number in numbers:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(number)
            orphan = any("stages." in part for part in process.cmdline())
            if orphan and number != os.getpid() and lives(number, root, since):
                found.append(process)
    psutil.wait_procs(found, timeout=_DYING)


def remove_temporaries(root: Path) -> list[str]:
    """Remove the temporary files and folders of processes that have ended; which they were."""
    removed = []
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_OURS]
        for name in (*folders, *files):
            if not (found := _TEMPORARY.fullmatch(name)):
                continue
            path = Path(place, name)
            if not lives(int(found[1]), root, path.lstat().st_mtime):
                remove(path)
                removed.append(path.relative_to(root).as_posix())
        folders[:] = [name for name in folders if not _TEMPORARY.fullmatch(name)]
    return sorted(removed)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder of this run, in which all its processes make theirs (`TMPDIR`).

    Those of runs that were killed are removed.
    """
    above = Path(tempfile.gettempdir())
    for folder in above.glob("stages-*"):
        found = _SCRATCH.fullmatch(folder.name)
        if found and folder.stat().st_uid == os.getuid() and not psutil.pid_exists(int(found[1])):
            shutil.rmtree(folder, ignore_errors=True)
    before = os.environ.get("TMPDIR"), tempfile.tempdir
    with tempfile.TemporaryDirectory(
        prefix=f"stages-{os.getpid()}-", ignore_cleanup_errors=True
    ) as name:
        os.environ["TMPDIR"] = tempfile.tempdir = name
        try:
            yield Path(name)
        finally:
            tempfile.tempdir = before[1]
            if before[0] is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before[0]


class Before:
    """The outputs of stages that run as they were before, in `folder`, a folder a stage.

    Paths are relative to the repository, which is the working directory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """The stages that began and have not been told of as ended."""
        return sorted(one.name for one in self._folder.glob("*") if one.suffix != ".partial")

    def keep(self, stage: str, outs: Sequence[Path]) -> None:
        """Copy those of `outs` that are there, whole or not at all."""
        partial = self._folder / f"{stage}.partial"
        for left in (partial, self._folder / stage):
            remove(left)
        partial.mkdir(parents=True)
        for number, out in enumerate(outs):
            if out.exists():
                _copy(out, partial / str(number))
        (partial / "outs.json").write_text(json.dumps([str(out) for out in outs]), "utf-8")
        partial.rename(self._folder / stage)

    def bring_back(self, stage: str) -> list[str]:
        """Put what `keep` has copied where it was; which outputs these are."""
        folder = self._folder / stage
        if not folder.exists():
            return []
        outs = json.loads((folder / "outs.json").read_text(encoding="utf-8"))
        brought = []
        for number, out in enumerate(outs):
            if (copy := folder / str(number)).exists():
                with atomic(out) as temporary:
                    _copy(copy, temporary)
                brought.append(out)
        self.forget(stage)
        return brought

    def forget(self, stage: str) -> None:
        """The stage has finished: its outputs are new."""
        folder = self._folder / stage
        if folder.exists():
            # At once: half a copy must not be brought back.
            ended = folder.rename(self._folder / f"{stage}.partial")
            remove(ended)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target)
