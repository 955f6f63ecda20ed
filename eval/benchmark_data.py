"""Where a benchmark's data lies, and which edition of it that is.

`prepare` writes down what it found of given data (`source.json`: where from, the hub's commit, each
file's bytes and SHA-256). Whoever reads the data later reads all of it anyway, so `revisions`
hashes it once more (1.5 GB/s) and refuses what is no longer the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from heima.config import DatasetSource, Params, given
from heima.data import hub_cache
from heima.results.files import read_json

FOLDER = Path("data/benchmarks")
"""What `prepare` writes: toy editions, converted files, and where given data came from."""
SOURCE = "source.json"
"""Data name -> {path | id and revision, edition, files: {name: {bytes, sha256}}}."""
PATTERNS = ("*.parquet", "README.md", "dataset_infos.json")
"""The files of a data set that `datasets.load_dataset` reads, for the hub's `allow_patterns`."""
AGAIN = "run `dvc repro -f prepare`"

Files = dict[str, dict[str, Any]]


class BenchmarkDataError(RuntimeError):
    """Benchmark data that cannot be had, or is not what `prepare` found; says what to do."""


def folder_of(params: Params, name: str) -> Path:
    """The data set folder of that name, as `datasets.load_dataset` reads it.

    Raises `BenchmarkDataError` where the hub's data is no longer in its cache, or where `prepare`
    has not run on these parameters.
    """
    if params.source.kind == "toy":
        return FOLDER / name
    source = params.source.benchmarks[name]
    if source.path is not None:
        return FOLDER / name if is_tsv(source) else Path(source.path)
    commit = _recorded(name, source)["revision"]
    folder = cached_snapshot(given(source.id, "id"), commit)
    if folder is None:
        raise BenchmarkDataError(
            f"the data set {name} ({source.id} at {commit}) is not in the hub's cache any more: "
            f"{AGAIN}, or set HF_HOME to where it was downloaded"
        )
    return folder


def is_tsv(source: DatasetSource) -> bool:
    """Whether this is a file of VLMEvalKit, which `prepare` converts."""
    return source.path is not None and source.path.endswith(".tsv")


def cached_snapshot(repository: str, commit: str) -> Path | None:
    """The folder of a data set's commit in the hub's cache, if all of it is there."""
    return hub_cache.cached("dataset", repository, commit, PATTERNS)


def revision_of(folder: Path) -> str:
    """A short SHA-256 over the names and bytes of a benchmark's parquet files.

    Raises `FileNotFoundError` where there are none.
    """
    return inspect(folder)[0]


def inspect(folder: Path) -> tuple[str, Files]:
    """The edition of a data set folder (see `revision_of`), and its files' bytes and SHA-256.

    Raises `FileNotFoundError` where there is no parquet file.
    """
    found = {file.relative_to(folder): file for part in PATTERNS for file in folder.rglob(part)}
    if not any(name.suffix == ".parquet" for name in found):
        raise FileNotFoundError(f"{folder} holds no parquet file of this benchmark")
    whole, files = hashlib.sha256(), {}
    for name, file in sorted(found.items()):
        counts = name.suffix == ".parquet"
        if counts:
            whole.update(f"{name}\n".encode())
        one, size = hashlib.sha256(), 0
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                one.update(chunk)
                size += len(chunk)
                if counts:
                    whole.update(chunk)
        files[name.as_posix()] = {"bytes": size, "sha256": one.hexdigest()}
    return whole.hexdigest()[:16], files


def revisions(params: Params) -> dict[str, dict[str, str]]:
    """Protocol -> benchmark -> the edition of its data.

    Raises `BenchmarkDataError` where given data is no longer what `prepare` found.
    """
    names = {params.data_name(p, b) for p in params.protocols for b in params.benchmarks}
    found = {name: edition(params, name) for name in sorted(names)}
    return {
        protocol: {
            benchmark: found[params.data_name(protocol, benchmark)]
            for benchmark in params.benchmarks
        }
        for protocol in params.protocols
    }


def edition(params: Params, name: str) -> str:
    """The edition of one data set: `revision_of` its folder, if it is what `prepare` found.

    Raises `BenchmarkDataError` where given data is no longer that.
    """
    folder = folder_of(params, name)
    if params.source.kind == "toy":
        return revision_of(folder)
    recorded = _recorded(name, params.source.benchmarks[name])
    try:
        found, files = inspect(folder)
    except FileNotFoundError as error:
        raise BenchmarkDataError(
            f"the data set {name} has moved: {error}, where `prepare` found "
            f"{len(recorded['files'])} files; put them back, or {AGAIN}"
        ) from error
    for file in sorted({*files, *recorded["files"]}):
        then, now = recorded["files"].get(file), files.get(file)
        if then != now:
            raise BenchmarkDataError(
                f"the data set {name} has moved: {folder / file} is {_shown(now)}, `prepare` found "
                f"{_shown(then)}; put that file back, or {AGAIN} to use the new one"
            )
    return found


def _shown(file: dict[str, Any] | None) -> str:
    return f"{file['bytes']} bytes with SHA-256 {file['sha256']}" if file else "not there"


def _recorded(name: str, source: DatasetSource) -> dict[str, Any]:
    """What `prepare` wrote about a data set, if it did so for this source."""
    file = FOLDER / SOURCE
    if not file.is_file():
        raise BenchmarkDataError(f"{file} is missing, which says what was found: {AGAIN}")
    recorded = read_json(file).get(name)
    wanted = source.model_dump(exclude_none=True)
    if recorded is None or any(recorded.get(key) != value for key, value in wanted.items()):
        kept = {key: recorded.get(key) for key in wanted} if recorded else "nothing"
        raise BenchmarkDataError(
            f"params source.benchmarks.{name} is {wanted}, `prepare` found {kept}: {AGAIN}"
        )
    return recorded
