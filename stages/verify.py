"""Hash again what dvc.lock and the caches name, and say what differs: `python -m stages.verify`

Reads every file that dvc.lock names (what stages read and made) and has here, every object of DVC's
cache and entry of its run cache, the finished batches in `.cache/predictions`, the judge's replies,
and snapshots of training. DVC does not read a file again whose size and time are the recorded ones,
and what is well-formed but altered becomes a number like any other; here nothing is believed.

A line for each thing that differs, and then the exit code is 1. What dvc.lock names and is neither
here nor in DVC's cache (of an empty clone: nearly everything) is counted, and no fault.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from dvc.fs import localfs
from dvc.repo import Repo
from dvc.stage.cache import _get_cache_hash
from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB
from dvc_data.hashfile.state import StateNoop
from dvc_data.hashfile.tree import Tree
from dvc_objects.errors import ObjectFormatError
from tqdm import tqdm

from eval.judge import JudgeError
from eval.judge.cache import ReplyCache
from heima import config
from heima.results.bars import bar
from heima.training import snapshots
from heima.vlm import kept_answers
from stages import arguments

_OBJECT = re.compile(r"[0-9a-f]{30}(\.dir)?")
_PACKED = ".dir"
"""What the hash of a folder ends with."""


class Verification:
    """What was hashed, and what of it differs."""

    def __init__(self, root: Path, shown: tqdm | None = None) -> None:
        self.hashed = 0
        self._shown = shown
        self.absent: list[str] = []
        self._repo = Repo(str(root))
        self._root = root
        # No state: it is what lets DVC pass over files that look as they did.
        self._database = HashFileDB(localfs, self._repo.cache.local.path, state=StateNoop())

    def differences(self) -> Iterator[str]:
        """A line for each thing that differs."""
        yield from self._of_the_lock()
        yield from self._of_the_cache()
        yield from self._of_the_run_cache()
        for file, why in kept_answers.faults(self._root / kept_answers.ROOT):
            yield f"{self._name(file)}: {why}; delete the file, or predict with --fresh"
        for snapshot in sorted((self._root / snapshots.ROOT).glob("*/*/step-*[0-9]")):
            for why in snapshots.damage(snapshot):
                yield f"{self._name(snapshot)}: {why}; delete the folder"

    def of_replies(self, cache: Path) -> Iterator[str]:
        """The same of the judge's replies in one file."""
        try:
            with ReplyCache(cache) as replies:
                for key in replies.altered():
                    yield f"{cache}: the reply {key} is not what was kept"
        except JudgeError as error:
            yield str(error)

    def _count(self, files: int) -> None:
        self.hashed += files
        if self._shown is not None:
            self._shown.update(files)

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _of_the_lock(self) -> Iterator[str]:
        lock = self._root / "dvc.lock"
        content = yaml.safe_load(lock.read_text(encoding="utf-8")) if lock.exists() else {}
        stages = {stage.addressing for stage in self._repo.index.stages}
        named: dict[tuple[str, str], list[str]] = {}
        for stage, entry in content.get("stages", {}).items():
            if stage not in stages:
                continue  # of another time: dvc.yaml names it no more
            for part, verb in (("outs", "made"), ("deps", "read")):
                for one in entry.get(part, []):
                    users = named.setdefault((one["path"], one["md5"]), [])
                    users.append(f"what {stage} {verb}")
        for (path, expected), users in named.items():
            if (self._root / path).exists():
                yield from self._of_a_path(path, expected, users[0])
            elif not Path(self._database.oid_to_path(expected)).exists():
                self.absent.append(path)

    def _of_a_path(self, path: str, expected: str, user: str) -> Iterator[str]:
        """A file, or a folder, each of whose files is named where its list is in the cache."""
        full = str(self._root / path)
        _, meta, found = build(
            self._database, full, localfs, "md5", ignore=self._repo.dvcignore, dry_run=True
        )
        self._count(meta.nfiles or 1)
        if found.hash_info.value == expected:
            return
        recorded = self._files_of(expected)
        if recorded is None or not isinstance(found, Tree):
            yield f"{path}: is not {user}"
            return
        here = {"/".join(key): info.value for key, (_, info) in found.as_dict().items()}
        for name in sorted(recorded.keys() | here.keys()):
            if name not in here:
                yield f"{path}/{name}: is missing of {user}"
            elif name not in recorded:
                yield f"{path}/{name}: is not among {user}"
            elif recorded[name] != here[name]:
                yield f"{path}/{name}: is not {user}"

    def _files_of(self, folder: str) -> dict[str, str] | None:
        """The hashes of a folder's files; None where its list is not in the cache, or damaged."""
        path = Path(self._database.oid_to_path(folder))
        if not folder.endswith(_PACKED) or not path.exists():
            return None
        if _md5(path) != folder.removesuffix(_PACKED):
            return None
        try:
            tree = Tree.load(self._database, self._database.get(folder).hash_info)
        except ObjectFormatError:
            return None
        return {"/".join(key): info.value for key, (_, info) in tree.as_dict().items()}

    def _of_the_cache(self) -> Iterator[str]:
        folder = Path(self._database.path)
        for file in sorted(folder.glob("[0-9a-f][0-9a-f]/*")):
            if not _OBJECT.fullmatch(file.name):
                continue
            self._count(1)
            if _md5(file) != f"{file.parent.name}{file.name}".removesuffix(_PACKED):
                yield f"{self._name(file)}: an object of DVC's cache does not have its hash"

    def _of_the_run_cache(self) -> Iterator[str]:
        folder = Path(self._repo.stage_cache.cache_dir)
        for file in sorted(folder.glob("*/*/*")):
            if not re.fullmatch("[0-9a-f]{64}", file.name):
                continue
            self._count(1)
            try:
                entry: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError):
                entry = None
            if not isinstance(entry, dict) or _get_cache_hash(entry) != file.name:
                yield f"{self._name(file)}: an entry of DVC's run cache does not have its hash"


def _md5(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "md5").hexdigest()


def main() -> None:
    params = config.load()
    caches = {Path(".cache/judge.sqlite")}
    if isinstance(params.judge, config.OpenAIJudge):
        caches.add(Path(params.judge.cache))
    count = 0
    with bar("hashed", None, "file") as shown:
        verification = Verification(Path.cwd(), shown)
        lines = [verification.differences()]
        lines += [verification.of_replies(cache) for cache in sorted(caches) if cache.exists()]
        for part in lines:
            for line in part:
                print(line, flush=True)
                count += 1
    absent = len(verification.absent)
    print(
        f"{verification.hashed} files hashed; different: {count}; named by dvc.lock and not here: "
        f"{absent}"
    )
    if count:
        sys.exit(1)


if __name__ == "__main__":
    arguments.parser_of(__doc__).parse_args()
    try:
        main()
    except config.ConfigError as error:
        sys.exit(f"error: {error}")
