"""Measure the reconstructions of one section: `python -m stages.similarity reasoning`

Reads  reconstructions/{section}.jsonl: one row for each held-out turn and control
Writes scores/similarity/{section}.parquet: every metric of every reconstruction
       metrics/similarity/{section}.json: means, and own minus control, with 95 % intervals
       reports/summary/{section}.json: what `dvc metrics show` lists
"""

from __future__ import annotations

import argparse
from pathlib import Path

from heima import config, cot, results
from heima.summary import summarise_similarity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=cot.COMPRESSIBLE)
    section = parser.parse_args().section
    params = config.load()

    import pandas as pd
    import torch
    from transformers.utils import logging

    from eval import similarity

    logging.disable_progress_bar()
    if params.similarity.bertscore == "minilm-l6":
        # So small a model is faster alone: 20 s against 55 s with two threads under load.
        torch.set_num_threads(1)
    rows = results.read_jsonl(f"reconstructions/{section}.jsonl")
    try:
        columns, cells, computed_with = similarity.evaluate(rows, params)
    except (similarity.MissingResource, similarity.InconsistentRows) as error:
        raise SystemExit(f"similarity of {section}: {error}") from error
    with results.atomic(f"scores/similarity/{section}.parquet") as temporary:
        pd.DataFrame(columns).to_parquet(temporary, index=False)
    metrics_file = Path(f"metrics/similarity/{section}.json")
    results.write_metrics(
        metrics_file,
        cells,
        results.provenance(f"similarity@{section}", params, **computed_with),
    )
    summarise_similarity(metrics_file, Path(f"reports/summary/{section}.json"), params)
    for control in params.reconstruct.controls:
        shown = "  ".join(f"{name} {cell.value:.2f}" for name, cell in cells[control].items())
        print(f"{section} {control}: {shown}")


if __name__ == "__main__":
    main()
