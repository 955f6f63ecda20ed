"""Images read ahead by other processes: the same answers, and none is read here."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heima.config import Decoding
from heima.families.registry import FAMILIES
from heima.toy.twins import TWINS
from heima.vlm import models
from heima.vlm.added_tokens import equip, fit
from heima.vlm.generation import Decoder, Prompt, Transformers, plan

SIZES = [(64, 64), (40, 90), (90, 40), (16, 200), (64, 64)]


def prompts(journal: Path) -> list[Prompt]:
    """Questions about images of several shapes; who reads which stands in `journal`."""

    def reading(number, size):
        def load():
            with journal.open("a") as file:
                file.write(f"{os.getpid()} {number}\n")
            pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3))
            return Image.fromarray(pixels.astype(np.uint8))

        return load

    return [
        Prompt(f"How many {number} {again}?", f"image-{number}", reading(number, size))
        for number, size in enumerate(SIZES)
        for again in range(2)
    ]


@pytest.mark.parametrize("family", TWINS)
def test_answers_are_those_of_one_process(tmp_path, params, family):
    twin = TWINS[family]
    processor = twin.build_processor()
    model = twin.build_vlm(processor, hidden_size=64, seed=1).eval()
    equip(processor.tokenizer, FAMILIES[family])
    fit(model, processor.tokenizer, FAMILIES[family])
    given = params.model_copy(update={"family": family})
    vocabulary = models.vocabulary(processor.tokenizer, given)
    decoding = Decoding(temperature=0.8, top_k=20, max_new_tokens=5, batch_size=3)
    found = {}
    for workers in (0, 2):
        journal = tmp_path / str(workers)
        planned = plan(vocabulary, prompts(journal), decoding=decoding, seed=3)
        engine = Transformers(model, processor, workers=workers)
        decoder = Decoder(engine, vocabulary)
        some = list(range(len(planned.batches)))[1:]
        answers = list(decoder.each(planned, some))
        readers = {int(line.split()[0]) for line in journal.read_text().splitlines()}
        assert (os.getpid() in readers) == (workers == 0)
        # Alone: what was announced before is forgotten.
        answers.append(decoder(planned, 0))
        found[workers] = [[(one.text, one.counts) for one in batch] for batch in answers]
    assert found[0] == found[2]


def test_an_image_that_cannot_be_read_is_told(tmp_path, toy_vlm, toy_processor, toy_vocabulary):
    def fail():
        raise ValueError("image 7 is gone")

    decoding = Decoding(temperature=0.0, top_k=20, max_new_tokens=2, batch_size=3)
    broken = [*prompts(tmp_path / "journal"), Prompt("?", "gone", fail)]
    planned = plan(toy_vocabulary, broken, decoding=decoding, seed=3)
    decoder = Decoder(Transformers(toy_vlm, toy_processor, workers=1), toy_vocabulary)
    with pytest.raises(ValueError, match="image 7 is gone"):
        list(decoder.each(planned, range(len(planned.batches))))
