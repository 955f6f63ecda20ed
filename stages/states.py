"""Extract the thinking states of every turn, once, for all interpreters.

    python -m stages.states

Reads the checkpoint and position of `params.states`; writes `states/{train,heldout}.safetensors`,
one (turns, hidden_size) tensor a section.
"""

from __future__ import annotations

from heima import config, corpus, models, states
from heima.batching import encode_turns
from heima.cot import thinking_token
from heima.results import atomic


def main() -> None:
    params = config.load()
    model, processor = models.load_vlm(models.ROOT, params.states.checkpoint, params)
    vocabulary = models.vocabulary(processor.tokenizer, params)
    images = corpus.ImageZip(corpus.locate("data/source") / "images.zip")
    collate = models.collator(processor, images, params)
    with atomic("states") as folder:
        folder.mkdir()
        for split in ("train", "heldout"):
            turns = corpus.load_turns(f"data/rewritten/{split}.parquet")
            samples = encode_turns(turns, "p3", vocabulary, max_length=params.distill.max_length)
            extracted = states.extract(
                model,
                samples,
                collate,
                {
                    section: vocabulary.thinking_ids[thinking_token(section)]
                    for section in params.sections
                },
                position=params.states.position,
                batch_size=params.states.batch_size,
            )
            states.save(folder / f"{split}.safetensors", extracted, turns)


if __name__ == "__main__":
    main()
