"""What the stages of an audit share: a model's passes over its questions, in kept batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from eval.audit import items, planted
from eval.audit.passes import Passes
from heima import config
from heima.config import chains
from heima.data import places
from heima.data.images import ImageZip
from heima.data.turns import Turn
from heima.families.batches import Collator, Images
from heima.families.registry import FAMILIES
from heima.training import snapshots
from heima.vlm import kept_batches, models, processes

T = TypeVar("T")

USED = ("seed", "family", "precision", "image_decoding", "source", "audit", "training")
"""The parameters that all of them read."""


@dataclass(frozen=True)
class Loaded:
    """A model in memory, by its name."""

    name: str
    model: PreTrainedModel
    processor: ProcessorMixin


def loaded(name: str, seed: int, params: config.Params) -> Loaded:
    """A model of that training seed."""
    return Loaded(name, *models.load_vlm(models.ROOT, params.trained(name, seed), params))


def passes(read: Loaded, params: config.Params, images: Images, asking: chains.Asking) -> Passes:
    """Passes of a model that is asked so, within the ways of attention that it closes."""
    processor = read.processor
    checkpoint = params.checkpoints.get(read.name)
    return Passes(
        read.model,
        processor,
        models.vocabulary(processor.tokenizer, params),
        Collator(FAMILIES[params.family], processor, images, once=params.training.images_once),
        asking.prefix,
        tags=params.rendering(read.name).tags,
        feed=models.feed(processor.tokenizer, params, read.name),
        world=planted.world(read.model, checkpoint.attention if checkpoint else "open"),
        word=asking.word,
    )


def source(params: config.Params) -> ImageZip:
    """The images that training turns are about."""
    return ImageZip(places.locate("data/source") / "images.zip", params.image_decoding)


def lent(turns: Sequence[Turn], params: config.Params) -> tuple[list[Turn], np.ndarray]:
    """For each turn its donor of another conclusion, and whether it has one; else it is its own."""
    found = items.partners(turns, same_gold=False, seed=params.seed)
    there = found != items.NOBODY
    donors = np.where(there, found, np.arange(len(turns)))
    return [turns[donor] for donor in donors], there


def rows(turns: Sequence[Turn], params: config.Params) -> list[Sequence[int]]:
    """The places of the turns that are read together."""
    return processes.batches(range(len(turns)), params.audit.batch_size)


def batches(
    stage: str,
    name: str,
    read: Sequence[str],
    pieces: Sequence[T],
    work: Callable[[Sequence[T]], Iterator[bytes]],
    params: config.Params,
) -> tuple[kept_batches.KeptBatches, list[bytes]] | None:
    """The outcome of `work` for each piece of a stage's work, shared with other processes.

    `read` are the folders of the models that are read. None in all processes but the first; there
    the outcomes stay on the disk until they are discarded.
    """
    inputs = [
        *(Path(f"data/rewritten/{split}.parquet") for split in ("train", "heldout")),
        *(models.ROOT / one for one in sorted({"text-cot", *read})),
    ]
    used = [f"checkpoints.{one}" for one in sorted({one.partition("/")[0] for one in read})]
    used = [one for one in used if one.partition(".")[2] in params.checkpoints]
    # A profile whose questions never end with a word has no such key.
    used += ["control_words"] if params.control_words else []
    key = snapshots.key(f"{stage}@{name}", params, *USED, *used, inputs=inputs)
    folder = f"{key}-{source(params).fingerprint()}-{models.fingerprint()}"
    kept = kept_batches.KeptBatches(kept_batches.ROOT / folder)
    with processes.joined() as shared:
        complete = kept_batches.compute(
            len(pieces),
            kept,
            shared,
            lambda numbers: work([pieces[number] for number in numbers]),
            title=f"{stage}@{name}",
        )
    return (kept, [kept.get(number) for number in range(len(pieces))]) if complete else None
