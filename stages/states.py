"""Extract the thinking states of every turn, once, for all interpreters.

    python -m stages.states

Reads the checkpoint and position of `params.states`; writes `states/{train,heldout}.safetensors`
(see `heima.states.save`).
"""

from __future__ import annotations

from heima import config, corpus, models, states
from heima.batching import encode_turns
from heima.results import atomic


def main() -> None:
    params = config.load()
    thinking = params.thinking(params.states.checkpoint)
    model, processor = models.load_vlm(models.ROOT, params.states.checkpoint, params)
    vocabulary = models.vocabulary(processor.tokenizer, params)
    images = corpus.ImageZip(corpus.locate("data/source") / "images.zip")
    collate = models.collator(processor, images, params)
    with atomic("states") as folder:
        folder.mkdir()
        for split in ("train", "heldout"):
            turns = corpus.load_turns(f"data/rewritten/{split}.parquet")
            samples = encode_turns(
                turns,
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
            states.save(folder / f"{split}.safetensors", extracted, turns)


if __name__ == "__main__":
    main()
