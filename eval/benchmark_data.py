"""Where a benchmark's data lies, and which edition of it that is."""

from __future__ import annotations

import hashlib
from pathlib import Path

from heima.config import Params

FOLDER = Path("data/benchmarks")
"""What `prepare` writes: toy editions, converted files, or where a given folder lies."""


def folder_of(params: Params, name: str) -> Path:
    """The data set folder of that name, as `datasets.load_dataset` reads it."""
    if params.source.kind == "folder" and params.source.benchmarks[name].path is not None:
        return Path(params.source.benchmarks[name].path)
    return FOLDER / name


def revision_of(folder: Path) -> str:
    """A short SHA-256 over the names and bytes of a benchmark's parquet files.

    Raises `FileNotFoundError` where there are none.
    """
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no parquet file of this benchmark")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder)}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def revisions(params: Params) -> dict[str, dict[str, str]]:
    """Protocol -> benchmark -> the edition of its data."""
    names = {params.data_name(p, b) for p in params.protocols for b in params.benchmarks}
    found = {name: revision_of(folder_of(params, name)) for name in sorted(names)}
    return {
        protocol: {
            benchmark: found[params.data_name(protocol, benchmark)]
            for benchmark in params.benchmarks
        }
        for protocol in params.protocols
    }
