"""Train one checkpoint of the curriculum: a LoRA adapter on the text-CoT model.

    python -m stages.distill p2

Reads the checkpoint's entry in `params.yaml`: the rendering it trains on, the checkpoint whose
adapter it continues, its schedule. Writes `models/<checkpoint>/` (the adapter, `loss.jsonl`) and
`metrics/distill/<checkpoint>.json` (held-out loss per labelled token, in nats).
"""

from __future__ import annotations

import sys
import time

from heima import config, corpus, models
from heima.batching import encode_turns
from heima.results import atomic, provenance, write_metrics
from heima.statistics import DRAWS, cell
from heima.training import heldout_losses, train, write_curve


def main(name: str) -> None:
    # Model
    params = config.load()
    checkpoint = params.checkpoints[name]
    root = models.ROOT
    model = models.trainable_vlm(root, checkpoint.init, params)
    processor = models.load_processor(root)
    vocabulary = models.vocabulary(processor.tokenizer, params)

    # Data
    images = corpus.ImageZip(corpus.locate("data/source") / "images.zip")
    collate = models.collator(processor, images, params)
    samples, heldout = (
        encode_turns(
            corpus.load_turns(f"data/rewritten/{split}.parquet"),
            checkpoint.data,
            vocabulary,
            max_length=params.distill.max_length,
            thinking=checkpoint.thinking,
        )
        for split in ("train", "heldout")
    )

    # Training
    started = time.monotonic()
    curve = train(
        model,
        samples,
        collate,
        checkpoint,
        seed=params.seed,
        precision=params.precision,
    )
    seconds = time.monotonic() - started
    losses = heldout_losses(model, heldout, collate, batch_size=checkpoint.batch_size)
    with atomic(root / name) as folder:
        models.save_adapter(model, folder)
        write_curve(folder / "loss.jsonl", curve)
    write_metrics(
        f"metrics/distill/{name}.json",
        {"heldout": {"loss": cell(losses, draws=DRAWS, seed=params.seed)}},
        provenance(
            f"distill@{name}",
            params,
            data=checkpoint.data,
            init=checkpoint.init,
            thinking=checkpoint.thinking.model_dump(exclude_none=True),
            updates=curve[-1]["step"],
            trainable_parameters=models.trainable_parameters(model),
            seconds=round(seconds, 1),
        ),
    )


if __name__ == "__main__":
    main(sys.argv[1])
