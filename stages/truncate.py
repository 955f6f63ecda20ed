"""Cut text-CoT's chains, and see whether its answers stay: `python -m stages.truncate`

Writes `truncated/text-cot.parquet`, a row for each question of an audit, a column for each changed
chain (`eval.audit.truncation.of_batch`), and `metrics/truncate/text-cot.json`, what they come to
with intervals, and the area over the curve.

On several GPUs it starts itself once on each, and the processes share the batches; a killed run
goes on from those that are finished, and ends with the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from eval.audit import items, truncation
from heima import config
from heima.config import chains
from heima.results.cells import write_metrics
from heima.results.files import atomic
from heima.results.provenance import provenance
from heima.vlm import models
from stages import arguments, launch, reading

MODEL = "text-cot"


def main() -> None:
    import pandas as pd

    params = config.load_resolved()
    launch.on_all_devices(params, "stages.truncate")
    turns, images = items.asked(params)
    donors, lent = reading.lent(turns, params)
    decoding = params.audit.decoding.model_copy(
        update={"max_new_tokens": params.predict.max_new_tokens}
    )

    def work(batches: Sequence[Sequence[int]]) -> Iterator[bytes]:
        asking = chains.Asking(MODEL, prefix="", word=None)
        passes = reading.passes(reading.loaded(MODEL, params.seed, params), params, images, asking)
        processor = models.load_processor(models.ROOT, params)
        vocabulary = models.vocabulary(processor.tokenizer, params)
        for rows in batches:
            found = truncation.of_batch(
                passes,
                vocabulary,
                [turns[row] for row in rows],
                [donors[row] for row in rows],
                lent[np.asarray(rows)],
                decoding=decoding,
            )
            buffer = io.BytesIO()
            pd.DataFrame(found).to_parquet(buffer, index=False)
            yield buffer.getvalue()

    found = reading.batches("truncate", MODEL, [MODEL], reading.rows(turns, params), work, params)
    if found is None:
        return
    kept, contents = found
    table = pd.DataFrame(
        {
            "turn": [turn.id for turn in turns],
            "image": [turn.image for turn in turns],
            **pd.concat([pd.read_parquet(io.BytesIO(one)) for one in contents], ignore_index=True),
        }
    )
    with atomic(Path("truncated") / f"{MODEL}.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    cells = truncation.effects(table, draws=params.similarity.draws, seed=params.seed)
    write_metrics(
        f"metrics/truncate/{MODEL}.json",
        cells,
        provenance(f"truncate@{MODEL}", params, questions=len(table)),
    )
    kept.discard()
    for change, row in cells.items():
        for what, cell in row.items():
            print(f"{change}, {what}: {cell.value:.3g} [{cell.low:.3g}, {cell.high:.3g}]")


if __name__ == "__main__":
    arguments.parser_of(__doc__).parse_args()
    main()
