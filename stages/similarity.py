"""Measure one reconstruction of a section: `python -m stages.similarity reasoning`

Reads  reconstructions/{name}/{training seed}.jsonl: one row for each held-out turn and control
       judgements/{name}/{training seed}.jsonl: the judge's grades of them
Writes scores/similarity/{name}.parquet: every metric of every reconstruction
       metrics/similarity/{name}.json: means, and own minus control, with 95 % intervals
       reports/<profile>/summary/{name}.json: what `dvc metrics show` lists

The name is an entry of `reconstructions` in params.yaml.
"""

from __future__ import annotations

from pathlib import Path

import reports
from heima import config
from heima.results.cells import write_metrics
from heima.results.files import atomic, read_jsonl
from heima.results.provenance import provenance
from reports.summaries import summarise_similarity
from stages import arguments


def main(name: str) -> None:
    params = config.load_resolved()

    import pandas as pd
    import torch
    from transformers.utils import logging

    from eval import similarity
    from eval.resources import MissingResource

    logging.disable_progress_bar()
    if params.similarity.bertscore == "minilm-l6":
        # So small a model is faster alone (20 s against 55 s with two threads under load), and the
        # number of threads changes a sum's last bits.
        torch.set_num_threads(1)
    try:
        columns, cells, computed_with = similarity.evaluate(
            {seed: read_jsonl(f"reconstructions/{name}/{seed}.jsonl") for seed in params.seeds},
            params,
            section=params.reconstructions[name].section,
            judgements={
                seed: read_jsonl(f"judgements/{name}/{seed}.jsonl") for seed in params.seeds
            },
        )
    except (MissingResource, similarity.InconsistentRows) as error:
        raise SystemExit(f"similarity of {name}: {error}") from error
    with atomic(f"scores/similarity/{name}.parquet") as temporary:
        pd.DataFrame(columns).to_parquet(temporary, index=False)
    metrics_file = Path(f"metrics/similarity/{name}.json")
    write_metrics(
        metrics_file,
        cells,
        provenance(
            f"similarity@{name}", params, training_seeds=list(params.seeds), **computed_with
        ),
    )
    summarise_similarity(
        metrics_file, reports.folder(params.profile) / "summary" / f"{name}.json", params
    )
    for control in params.reconstruct.controls:
        shown = "  ".join(f"{name} {cell.value:.2f}" for name, cell in cells[control].items())
        print(f"{name} {control}: {shown}")


if __name__ == "__main__":
    (chosen,) = arguments.read(__doc__, reconstruction=lambda params: params.reconstructions)
    main(chosen)
