"""All that a rehearsal runs on, below one folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from heima.results.files import atomic
from timings.rehearsal import records as source
from timings.rehearsal import tokenizers

FAMILIES = ("llava-cot-11b", "llava-next-vicuna-7b")
RECORDS = 12
"""Every kind of image of `timings.rehearsal.records` once, and some twice."""


def write(
    folder: Path,
    families: Iterable[str] = FAMILIES,
    *,
    records: int = RECORDS,
    benchmarks: bool = True,
) -> list[str]:
    """Make what is not there yet; the names of the folders that were made.

    Says whose tokenizer Llama has. `records` must be at least 4; the benchmarks need the library
    `datasets`.
    """
    if records < 4:
        raise ValueError(f"records = {records} must be at least 4")
    found: dict[str, Callable[[Path], None]] = {
        "source": lambda place: source.write_source(place, records=records),
        **({"benchmarks": _benchmarks} if benchmarks else {}),
        **{family: _MODELS[family] for family in families},
    }
    made = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in found.items():
        if (folder / name).exists():
            continue
        with atomic(folder / name) as temporary:
            make(temporary)
        made.append(name)
    return made


def _benchmarks(folder: Path) -> None:
    from timings.rehearsal import benchmarks

    folder.mkdir()
    benchmarks.write(folder)


def _llama(folder: Path) -> None:
    from timings.rehearsal import models

    file = tokenizers.metas()
    whose = "Meta's" if file else f"built here (for Meta's: {tokenizers.INSTALL})"
    print(f"Llama's tokenizer is {whose}", flush=True)
    models.write_llama(folder, file=file)


def _llava_next(folder: Path) -> None:
    from timings.rehearsal import models

    models.write_llava_next(folder)


_MODELS: dict[str, Callable[[Path], None]] = {
    "llava-cot-11b": _llama,
    "llava-next-vicuna-7b": _llava_next,
}
