"""Extract the thinking states of every turn, once, for all interpreters of a training seed.

    python -m stages.states 42

Reads the checkpoint and position of `params.states`; writes
`states/<seed>/{train,heldout}.safetensors` (see `heima.interpreting.states.save`).

On several GPUs it starts itself once on each, as `hardware` says, and the processes share the
batches; `hardware.workers` processes of each read images ahead. Finished batches stay in
`.cache/batches/` until the result is written: a killed run goes on from them, on any number of
processes, and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from heima import config
from heima.data import places
from heima.data.encoding import encode_turns
from heima.data.images import ImageZip
from heima.data.turns import Turn, load_turns
from heima.interpreting import states
from heima.results.files import atomic
from heima.training import snapshots
from heima.vlm import kept_batches, models, processes
from stages import arguments, launch

SPLITS = ("train", "heldout")


def main(seed: int) -> None:
    params = config.load_resolved()
    launch.on_all_devices(params, "stages.states", str(seed))
    images = ImageZip(places.locate("data/source") / "images.zip", params.image_decoding)
    turns = {split: load_turns(f"data/rewritten/{split}.parquet") for split in SPLITS}
    # Neighbouring turns share their image, and a batch encodes it once.
    batches = {
        split: processes.batches(those, params.states.batch_size) for split, those in turns.items()
    }
    everything = [batch for split in SPLITS for batch in batches[split]]
    kept = kept_batches.KeptBatches(_kept(seed, params, images))
    with processes.joined() as shared:
        complete = kept_batches.compute(
            len(everything),
            kept,
            shared,
            lambda numbers: _extract([everything[one] for one in numbers], params, seed, images),
            title=f"states@{seed}",
        )
    if not complete:
        return
    numbers = iter(range(len(everything)))
    with atomic(Path("states") / str(seed)) as folder:
        folder.mkdir()
        for split in SPLITS:
            found = [states.unpacked(kept.get(next(numbers))) for _ in batches[split]]
            states.save(folder / f"{split}.safetensors", states.join(found), turns[split])
    kept.discard()


def _extract(
    batches: Sequence[Sequence[Turn]], params: config.Params, seed: int, images: ImageZip
) -> Iterator[bytes]:
    """The states of each batch of turns."""
    checkpoint = params.states.checkpoint
    thinking = params.thinking(checkpoint)
    model, processor = models.load_vlm(models.ROOT, params.trained(checkpoint, seed), params)
    vocabulary = models.vocabulary(processor.tokenizer, params)
    feed = models.feed(processor.tokenizer, params, checkpoint)
    # Every turn has states, however long it is: nothing is trained on it here.
    samples = encode_turns(
        [turn for batch in batches for turn in batch],
        params.rendering(checkpoint),
        vocabulary,
        thinking=thinking,
    )
    places_ = iter(range(len(samples)))
    loader: DataLoader[Any] = DataLoader(
        samples,  # type: ignore[arg-type]  # a sequence is a map-style data set
        batch_sampler=[[next(places_) for _ in batch] for batch in batches],
        collate_fn=models.collator(processor, images, params, feed),
        num_workers=params.hardware.workers,
    )
    for turns, batch in zip(batches, loader, strict=True):
        try:
            found = states.extract(
                model,
                batch,
                vocabulary,
                thinking,
                position=params.states.position,
                feed=feed,
            )
        except ValueError as error:
            raise ValueError(f"turns {turns[0].id} to {turns[-1].id}: {error}") from error
        yield states.packed(found)


def _kept(seed: int, params: config.Params, images: ImageZip) -> Path:
    """Where finished batches are: a folder named by all that they depend on."""
    name = params.states.checkpoint
    inputs = [
        *(Path(f"data/rewritten/{split}.parquet") for split in SPLITS),
        models.ROOT / "text-cot",
        models.ROOT / params.trained(name, seed),
    ]
    used = (
        "family",
        "precision",
        "image_decoding",
        "states",
        "distill",
        f"checkpoints.{name}",
        "training",
    )
    key = snapshots.key(f"states@{seed}", params, *used, inputs=inputs)
    return kept_batches.ROOT / f"{key}-{images.fingerprint()}-{models.fingerprint()}"


if __name__ == "__main__":
    (seed,) = arguments.read(__doc__, seed=lambda params: params.seeds)
    main(int(seed))
