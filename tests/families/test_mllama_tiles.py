"""Answers about images of several tiles: a batch that encodes each image once answers as one that
has a row for each."""

from __future__ import annotations

import contextlib

import pytest
import torch

from heima.families.batches import model_inputs
from heima.families.mllama import Mllama
from heima.toy.mllama import build_processor, build_vlm
from timings.random_models import tiled
from timings.rehearsal.records import picture

SIZES = [("RGB", (200, 40)), ("RGBA", (30, 90)), ("L", (10, 10))]


@pytest.mark.parametrize("rows", [[0, 1, 2], [0, 0, 1, 2, 2, 2], [2, 0]])
def test_rows_answer_about_their_own_image(rows):
    family = Mllama()
    processor = tiled(build_processor(), tiles=4, side=32)
    model = build_vlm(processor, hidden_size=32, max_tiles=4, seed=3).eval()
    images = [
        family.process(picture(mode, size, seed).convert("RGB"), processor)
        for seed, (mode, size) in enumerate(SIZES)
    ]
    assert len({one["num_tiles"][0][0] for one in images}) > 1
    used = sorted(set(rows))
    ids = [[processor.tokenizer.bos_token_id, processor.image_token_id, 9 + n] for n in range(3)]
    ids = [ids[row] for row in rows]

    def answers(images, rows, spread):
        inputs = model_inputs(family, ids, images, processor, rows)
        options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
        with spread:
            found = model.generate(**inputs, **options, return_dict_in_generate=True)
        return torch.stack(found.logits)

    places = [used.index(row) for row in rows]
    once = answers([images[row] for row in used], places, family.spread(model, places))
    each = answers([images[row] for row in rows], range(len(rows)), contextlib.nullcontext())
    torch.testing.assert_close(once, each, atol=1e-5, rtol=1e-5)
