"""Extract the thinking states of every turn, once, for all interpreters of a training seed.

    python -m stages.states 42

Reads the checkpoint and position of `params.states`; writes
`states/<seed>/{train,heldout}.safetensors` (see `heima.interpreting.states.save`).

On several GPUs it starts itself once on each, as `hardware` says, and the processes share the
batches.
"""

from __future__ import annotations

from pathlib import Path

from heima import config
from heima.data import places
from heima.data.encoding import encode_turns
from heima.data.images import ImageZip
from heima.data.turns import load_turns
from heima.interpreting import states
from heima.results.files import atomic
from heima.vlm import models, processes
from stages import arguments, launch


def main(seed: int) -> None:
    params = config.load_resolved()
    launch.on_all_devices(params, "stages.states", str(seed))
    checkpoint = params.states.checkpoint
    thinking = params.thinking(checkpoint)
    model, processor = models.load_vlm(models.ROOT, params.trained(checkpoint, seed), params)
    vocabulary = models.vocabulary(processor.tokenizer, params)
    images = ImageZip(places.locate("data/source") / "images.zip", params.image_decoding)
    collate = models.collator(processor, images, params)
    size = params.states.batch_size
    found = {}
    with processes.joined() as shared:
        for split in ("train", "heldout"):
            turns = load_turns(f"data/rewritten/{split}.parquet")
            # Neighbouring turns share their image, and a batch encodes it once.
            share = shared.share(processes.batches(turns, size))
            # Every turn has states, however long it is: nothing is trained on it here.
            samples = encode_turns(
                [turn for batch in share for turn in batch],
                "p3",
                vocabulary,
                thinking=thinking,
            )
            extracted = states.extract(
                model,
                samples,
                collate,
                vocabulary,
                thinking,
                position=params.states.position,
                batch_size=size,
            )
            if (parts := shared.gathered(extracted)) is not None:
                found[split] = turns, parts
    if not shared.first:
        return
    with atomic(Path("states") / str(seed)) as folder:
        folder.mkdir()
        for split, (turns, batches) in found.items():
            states.save(folder / f"{split}.safetensors", states.join(batches), turns)


if __name__ == "__main__":
    (seed,) = arguments.read(__doc__, seed=lambda params: params.seeds)
    main(int(seed))
