"""Train one checkpoint of the curriculum with one seed: a LoRA adapter on the text-CoT model.

    python -m stages.distill p2 42

Reads the checkpoint's entry in `params.yaml`: the rendering it trains on, the checkpoint whose
adapter (of the same training seed) it continues, its schedule. Writes `models/<checkpoint>/<seed>/`
(the adapter, `loss.jsonl`) and `metrics/distill/<checkpoint>/<seed>.json` (held-out loss per
labelled token, in nats). On several GPUs it starts itself once on each, as `hardware` says. Killed
at any moment and started again, it goes on from its last snapshot (`.cache/training`) and ends with
the same adapter.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from heima import config
from heima.config.mixtures import mixture, renderings
from heima.data import places
from heima.data.encoding import fit_turns
from heima.data.images import ImageZip
from heima.data.mixing import as_trained
from heima.data.turns import load_turns
from heima.results.provenance import provenance
from heima.training import outcome, snapshots
from heima.training.backbone import body, tile_shift
from heima.training.loop import AnswerLoss
from heima.training.surprisal import short_texts
from heima.training.terms import Align, Explain
from heima.vlm import closed_ways, models
from stages import arguments, launch

_TILE_SAMPLES = 64
"""Held-out samples over which the effect of `tiles: real` is measured."""


def main(name: str, seed: int) -> None:
    params = config.load_resolved()
    launch.on_all_devices(params, "stages.distill", name, str(seed), shard=True)
    checkpoint = config.expected(config.Checkpoint, params.checkpoints[name], f"checkpoints.{name}")
    root = models.ROOT

    # Data, before the weights: turns that are too long are known in seconds, in every process alike
    processor = models.load_processor(root, params)
    images = ImageZip(places.locate("data/source") / "images.zip", params.image_decoding)
    feed = models.feed(processor.tokenizer, params, name)
    collate = models.collator(processor, images, params, feed)
    limit = min(params.distill.max_length, models.positions(root, params))
    vocabulary = models.vocabulary(processor.tokenizer, params)
    turns = {split: load_turns(f"data/rewritten/{split}.parquet") for split in ("train", "heldout")}
    short: dict[str, list[dict[str, str]]] = {}
    if any("short" in one.forms.values() for one in renderings(params, name)):
        teacher, _ = models.load_vlm(root, "text-cot", params)
        reading = AnswerLoss(teacher, params.hardware, body=body(teacher))
        for split, those in turns.items():
            short[split] = short_texts(
                reading,
                those,
                vocabulary,
                models.collator(processor, images, params),
                checkpoint.thinking,
                batch_size=checkpoint.batch_size,
            )
        del teacher, reading
    fitted = {}
    try:
        for split, those in turns.items():
            as_asked, rendered = as_trained(those, params, name, vocabulary, seed=seed)
            fitted[split] = fit_turns(
                as_asked,
                rendered,
                vocabulary,
                max_length=limit,
                too_long=params.distill.too_long,
                thinking=checkpoint.thinking,
                image_tokens=models.image_tokens(processor, images, params),
                short=short.get(split),
                thought_loss=checkpoint.thought_loss,
                supervised=checkpoint.losses.any,
            )
            if not fitted[split].samples:
                raise ValueError(
                    f"no turn of {split}.parquet has up to {limit} tokens as "
                    f"{checkpoint.trained_on}"
                )
    except ValueError as error:
        sys.exit(f"error: {error}")
    samples, heldout = fitted["train"].samples, fitted["heldout"].samples

    # Model
    model = models.trainable_vlm(root, params.trained(checkpoint.init, seed), params, seed=seed)
    tiles, weights = params.training.tiles, checkpoint.losses
    answering = AnswerLoss(
        model,
        params.hardware,
        body=closed_ways.body(
            body(model, tiles=tiles, feed=feed),
            model,
            checkpoint.attention,
            thinking_ids=vocabulary.thinking_ids.values(),
            image_id=processor.image_token_id,
        ),
        align=(weights.align, Align(model, body(model, tiles=tiles))) if weights.align else None,
        explain=(weights.explain, Explain(model, seed=seed, fed=bool(feed)))
        if weights.explain
        else None,
    )

    # Training
    run = _snapshots(name, seed, params)
    found = outcome.train_adapter(
        answering,
        samples,
        heldout,
        collate,
        checkpoint,
        params,
        seed=seed,
        groups=[sample.image for sample in samples] if params.training.images_once else None,
        resume=run,
    )
    too_long = {split: said for split, one in fitted.items() if (said := one.facts())}
    facts: dict[str, Any] = {"too_long": {"limit": limit, **too_long}} if too_long else {}
    if params.training.tiles == "real":
        some = heldout[:_TILE_SAMPLES]
        facts["tiles"] = tile_shift(answering, some, collate, batch_size=found.rows)
    outcome.write_adapter(
        model,
        found,
        root / params.trained(name, seed),
        f"metrics/distill/{name}/{seed}.json",
        params,
        seed=seed,
        origin=provenance(
            f"distill@{name}-{seed}",
            params,
            training_seed=seed,
            data=checkpoint.data,
            init=checkpoint.init,
            thinking=checkpoint.thinking.model_dump(exclude_none=True),
            **({"attention": checkpoint.attention} if checkpoint.attention != "open" else {}),
            **({"losses": weights.model_dump(exclude_none=True)} if weights.any else {}),
            **({"feed": checkpoint.feed, "feed_scale": checkpoint.feed_scale} if feed else {}),
            **found.facts(model),
            **facts,
        ),
        resume=run,
    )


def _snapshots(name: str, seed: int, params: config.Params) -> snapshots.Resume:
    """The run's snapshots, in a folder named by all that it depends on."""
    checkpoint = f"checkpoints.{name}"
    inputs = [
        Path("data/rewritten/train.parquet"),
        models.ROOT / "text-cot",
        models.ROOT / params.trained(params.checkpoints[name].init, seed),
    ]
    used = ["family", "precision", "image_decoding", "training", "distill", checkpoint]
    # What the checkpoint's rendering is of its name is a rule: of the built-in ones it is code.
    mixed = mixture(params, name)
    names = [params.checkpoints[name].data] if mixed is None else [*mixed]
    used += [f"renderings.{one}" for one in names if one in params.renderings]
    used += [] if mixed is None else ["control_words"]
    return snapshots.of(f"distill@{name}-{seed}", params, *used, inputs=inputs)


if __name__ == "__main__":
    name, seed = arguments.read(
        __doc__,
        # A given one is not trained: its stage is `adopt`.
        checkpoint=lambda params: [
            name for name, one in params.checkpoints.items() if isinstance(one, config.Checkpoint)
        ],
        seed=lambda params: params.seeds,
    )
    main(name, int(seed))
