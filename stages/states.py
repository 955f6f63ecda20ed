"""Extract the thinking states of every turn, once, for all interpreters of a training seed.

    python -m stages.states 42

Reads the checkpoint and position of `params.states`; writes
`states/<seed>/{train,heldout}.safetensors` (see `heima.interpreting.states.save`).

On several GPUs it starts itself once on each, and each takes a part of the turns.
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
from heima.vlm import models
from stages import arguments, launch


def main(seed: int) -> None:
    params = config.load_resolved()
    launch.on_all_devices(params, "stages.states", str(seed))
    checkpoint = params.states.checkpoint
    thinking = params.thinking(checkpoint)
    model, processor = models.load_vlm(models.ROOT, params.trained(checkpoint, seed), params)
    vocabulary = models.vocabulary(processor.tokenizer, params)
    images = ImageZip(places.locate("data/source") / "images.zip")
    collate = models.collator(processor, images, params)
    found = {}
    for split in ("train", "heldout"):
        turns = load_turns(f"data/rewritten/{split}.parquet")
        samples = encode_turns(
            # Neighbouring turns share their image, so each process takes a run of them.
            launch.part(turns),
            "p3",
            vocabulary,
            max_length=params.distill.max_length,
            thinking=thinking,
        )
        extracted = states.extract(
            model,
            samples,
            collate,
            vocabulary,
            thinking,
            position=params.states.position,
            batch_size=params.states.batch_size,
        )
        if (parts := launch.gathered(extracted)) is not None:
            found[split] = turns, parts
    if not launch.writes():
        return
    with atomic(Path("states") / str(seed)) as folder:
        folder.mkdir()
        for split, (turns, parts) in found.items():
            whole = {
                section: states.join([part[section] for part in parts]) for section in parts[0]
            }
            states.save(folder / f"{split}.safetensors", whole, turns)


if __name__ == "__main__":
    (seed,) = arguments.read(__doc__, seed=lambda params: params.seeds)
    main(int(seed))
