"""Turn records into turns with parsed sections, split by image, and audit what was dropped.

    python -m stages.rewrite

Writes `data/rewritten/{train,heldout}.parquet`, `data/rewritten/dropped.jsonl` (every dropped line,
record or turn with its reason), and `metrics/rewrite.json` with the counts and one example of each
rendering's text.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict

from heima import config, corpus
from heima.cot import RENDERINGS, render
from heima.results import atomic, provenance, write_json, write_jsonl


def main() -> None:
    params = config.load()
    source = corpus.locate("data/source")
    turns, drops = [], []
    images = corpus.ImageZip(source / "images.zip")
    for item in corpus.read_turns(
        source / "train.jsonl",
        images,
        spacing=params.rewrite.spacing,
        image_place=params.rewrite.image_place,
    ):
        (drops if isinstance(item, corpus.Drop) else turns).append(item)
    dropped = dict(sorted(Counter(drop.reason for drop in drops).items()))
    print(f"{len(turns)} turns, {len(drops)} drops {dropped or ''}")
    try:
        train, heldout = corpus.split(
            turns, heldout=params.rewrite.heldout, by=params.rewrite.split, seed=params.seed
        )
    except ValueError as error:
        shown = "".join(f"\n  {drop.where}: {drop.reason}: {drop.detail}" for drop in drops[:20])
        sys.exit(f"error: {error}{shown}")
    with atomic("data/rewritten") as folder:
        folder.mkdir()
        corpus.write_turns(folder / "train.parquet", train)
        corpus.write_turns(folder / "heldout.parquet", heldout)
        write_jsonl(folder / "dropped.jsonl", (asdict(drop) for drop in drops))
    write_json(
        "metrics/rewrite.json",
        {
            "turns": {"train": len(train), "heldout": len(heldout), "dropped": len(drops)},
            "images": {
                "train": len({turn.image for turn in train}),
                "heldout": len({turn.image for turn in heldout}),
            },
            "dropped": dropped,
            "provenance": provenance("rewrite", params, source=corpus.revision(source)),
            "examples": {name: render(train[0].sections, name) for name in RENDERINGS},
        },
    )


if __name__ == "__main__":
    main()
