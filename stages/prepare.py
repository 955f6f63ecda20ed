"""Provide the source data and, for the toy profile, the toy editions of the benchmarks.

    python -m stages.prepare

Writes `data/source/` (`train.jsonl` and `images.zip`, or `source.json` that names the folder which
holds them) and `data/benchmarks/` (one folder a benchmark; for given data `source.json`, which
lists what was found where, and a folder for what had to be converted). With `source.kind: hub` the
source is downloaded into the folder `source.path`, which DVC does not know; a download that was
stopped goes on where it was. The benchmarks' data sets go into the hub's cache. Given benchmarks
are checked row by row: what cannot be scored is listed, and the stage fails. DVC does not watch
given folders: after changing one, `dvc repro -f prepare`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from heima import config
from heima.results.files import atomic, write_json
from stages import arguments


def main() -> None:
    params = config.load_resolved()
    with (
        atomic("data/source") as source,
        atomic("data/benchmarks") as benchmarks,
    ):
        source.mkdir()
        benchmarks.mkdir()
        if params.source.kind == "toy":
            from heima.toy.benchmarks import write_benchmarks
            from heima.toy.source import source_scenes, write_source

            drawing: dict[str, Any] = {
                "records": params.source.records,
                "turns": params.source.turns,
                "mix": params.source.mix,
                "seed": params.seed,
            }
            write_source(source, **drawing, english=params.source.english)
            write_benchmarks(
                benchmarks,
                sizes=params.source.benchmark_sizes,
                seed=params.seed,
                exclude={scene.key for scene in source_scenes(**drawing)},
            )
        else:
            # Imported here, so that the toy needs no more than it did.
            from eval.benchmark_data import BenchmarkDataError
            from eval.benchmark_sources import provide
            from heima.data.hub import HubError
            from heima.data.llava_cot import SourceError

            try:
                # Seconds before hours: a row that cannot be scored is told before the source and,
                # in the stages after this one, the models are downloaded.
                provide(params, benchmarks)
                write_json(source / "source.json", given_source(params))
            except (SourceError, HubError, BenchmarkDataError) as error:
                sys.exit(f"error: {error}")


def given_source(params: config.Params) -> dict[str, Any]:
    """What `data/source/source.json` says of data that lies elsewhere (see `places.locate`)."""
    from heima.data import llava_cot
    from heima.data.licences import terms

    source = params.source
    if source.kind == "toy":
        raise ValueError("source.kind = 'toy' has no folder: `prepare` draws its data")
    where: dict[str, Any] = {"folder": source.path}
    if source.kind == "hub":
        if licence := terms(source.id):
            print(f"{source.id}: {licence}")
        state = llava_cot.download(source)
        where |= {
            "id": state["id"],
            "revision": state["revision"],
            "parts": {
                part["name"]: part["checksum"]
                for name in (llava_cot.RECORDS, llava_cot.IMAGES)
                for part in state[name]["parts"]
            },
        }
    return where | llava_cot.inspect(Path(source.path))


if __name__ == "__main__":
    arguments.read(__doc__)
    main()
