"""Turn records into turns with parsed sections, split them, and audit what was dropped.

    python -m stages.rewrite

Writes `data/rewritten/{train,heldout}.parquet`, `data/rewritten/dropped.jsonl` (every dropped line,
message or turn with its reason), and `metrics/rewrite.json` with the counts, what the official
arrangement would have kept and where the two differ, and one example of each rendering's text.
"""

from __future__ import annotations

import sys

from heima import config
from heima.cot.rendering import RENDERINGS
from heima.data import places
from heima.data.arrangements import OFFICIAL_TURNS
from heima.data.rewriting import rewrite
from heima.data.turns import first_turn
from heima.results.files import atomic, read_jsonl, write_json
from heima.results.provenance import provenance
from stages import arguments


def main() -> None:
    params = config.load_resolved()
    source = places.locate("data/source")
    with atomic("data/rewritten") as folder:
        folder.mkdir()
        try:
            counts = rewrite(
                source, folder, params.rewrite, seed=params.seed, decoding=params.image_decoding
            )
        except ValueError as error:
            drops: list[dict[str, str]] = []
            if (folder / "dropped.jsonl").exists():
                drops = read_jsonl(folder / "dropped.jsonl")[:20]
            shown = "".join(
                f"\n  {one['where']}: {one['reason']}: {one['detail']}" for one in drops
            )
            sys.exit(f"error: {error}{shown}")
        example = first_turn(folder / "train.parquet")
    print(f"{counts['turns']}, dropped {counts['dropped'] or 'nothing'}")
    kept = counts["arrangements"]["official"]["kept"]
    official = params.rewrite.compat == "official" and params.source.kind != "toy"
    if official and kept != OFFICIAL_TURNS:
        print(
            f"warning: rewrite.compat = official keeps {kept} turns, where the official script "
            f"keeps {OFFICIAL_TURNS} of LLaVA-CoT-100k",
            file=sys.stderr,
        )
    write_json(
        "metrics/rewrite.json",
        {
            **counts,
            "provenance": provenance("rewrite", params, source=places.revision(source)),
            "examples": {name: example.written(name) for name in RENDERINGS},
        },
    )


if __name__ == "__main__":
    arguments.read(__doc__)
    main()
