"""Provide the source data and, for the toy profile, the toy editions of the benchmarks.

    python -m stages.prepare

Writes `data/source/` (`train.jsonl` and `images.zip`, or `source.json` that names the folder which
holds them) and `data/benchmarks/` (one folder a benchmark; for given data `source.json`, which
lists what was found where, and a folder for what had to be converted). Data sets of the hub go into
the hub's cache. Given benchmarks are checked row by row: what cannot be scored is listed, and the
stage fails. DVC does not watch given folders: after changing one, `dvc repro -f prepare`.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from heima import config
from heima.results import atomic, write_json


def main() -> None:
    params = config.load()
    with (
        atomic("data/source") as source,
        atomic("data/benchmarks") as benchmarks,
    ):
        source.mkdir()
        benchmarks.mkdir()
        if params.source.kind == "toy":
            from heima.toy.benchmarks import write_benchmarks
            from heima.toy.source import source_scenes, write_source

            drawing = {
                "records": params.source.records,
                "turns": params.source.turns,
                "mix": params.source.mix,
                "seed": params.seed,
            }
            write_source(source, **drawing)
            write_benchmarks(
                benchmarks,
                sizes=params.source.benchmark_sizes,
                seed=params.seed,
                exclude={scene.key for scene in source_scenes(**drawing)},
            )
        else:
            folder = Path(params.source.path)
            lacking = [n for n in ("train.jsonl", "images.zip") if not (folder / n).is_file()]
            if lacking:
                sys.exit(
                    f"error: source.path = {folder} lacks {' and '.join(lacking)}: put "
                    "LLaVA-CoT-100k's train.jsonl and its images, as images.zip, there"
                )
            with (folder / "train.jsonl").open("rb") as records:
                checksum = hashlib.file_digest(records, "sha256").hexdigest()
            write_json(
                source / "source.json",
                {
                    "folder": str(folder),
                    "train.jsonl": {"sha256": checksum},
                    "images.zip": {"bytes": (folder / "images.zip").stat().st_size},
                },
            )
            # Imported here, so that the toy needs no more than it did.
            from eval.benchmark_data import BenchmarkDataError
            from eval.benchmark_sources import provide

            try:
                provide(params, benchmarks)
            except BenchmarkDataError as error:
                sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
