"""Prompt lookup writes what greedy decoding writes, in fewer passes; in families of both kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from heima.families import batches
from heima.families.registry import FAMILIES
from heima.toy.twins import TWINS
from heima.vlm.added_tokens import equip, fit
from heima.vlm.lookup import _Writable, looking_up
from heima.vlm.models import vocabulary

QUESTIONS = [
    "What is at b2?",
    "What is the total of a1 and b1? What is the total of a1 and b1?",
    "What is b1? What is b1? What is",
]


@pytest.fixture(scope="module", params=["toy-mllama", "toy-llava-next"])
def twin(request, params):
    name = request.param
    family, processor = FAMILIES[name], TWINS[name].build_processor()
    model = TWINS[name].build_vlm(TWINS[name].build_processor(), hidden_size=32, seed=3)
    equip(processor.tokenizer, family)
    fit(model, processor.tokenizer, family)
    words = vocabulary(processor.tokenizer, params.model_copy(update={"family": name}))
    model = model.double().eval()
    for key, weight in model.named_parameters():
        if key.endswith("_gate"):
            torch.nn.init.constant_(weight, 0.9)
    with torch.no_grad():
        # An untrained model repeats itself, which is what is looked up.
        model.lm_head.weight.normal_(0, 1, generator=torch.Generator().manual_seed(5))
        model.lm_head.weight[processor.tokenizer.eos_token_id] = 0
    return family, processor, words, model


@torch.inference_mode()
def decode(twin, question, seed, tokens, *, limit=24):
    family, processor, words, model = twin
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = family.process(Image.fromarray(pixels), processor)
    ids = [words.prompt_ids(question, "first")]
    inputs = batches.model_inputs(family, ids, [image], processor)
    passes: list[int] = []
    language = family.language_model(model)
    hook = language.register_forward_pre_hook(lambda *_: passes.append(1))
    with looking_up(model, tokens) as looked:
        output = model.generate(
            **{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()},
            do_sample=False,
            max_new_tokens=limit,
            pad_token_id=processor.tokenizer.pad_token_id,
            **looked,
        )
    hook.remove()
    return output[0, len(inputs["input_ids"][0]) :].tolist(), len(passes)


@pytest.mark.parametrize("tokens", [1, 4, 10])
def test_the_answers_are_greedy_ones_in_fewer_passes(twin, tokens):
    fewer = 0
    for seed, question in enumerate(QUESTIONS):
        expected, each = decode(twin, question, seed, None)
        found, passes = decode(twin, question, seed, tokens)
        assert found == expected and len(found) == each == 24
        assert passes <= each
        fewer += each - passes
    assert fewer > 0


def test_another_image_gives_another_answer_after_rejections(twin):
    """The image's keys are still there when candidates have been taken back."""
    answers = [decode(twin, QUESTIONS[1], seed, 10)[0] for seed in range(6)]
    assert answers == [decode(twin, QUESTIONS[1], seed, None)[0] for seed in range(6)]
    assert len({tuple(answer) for answer in answers}) > 1


def test_candidates_that_cannot_be_written_end_them(twin):
    """Those beyond the lm_head, and images; nothing of it is left in the model."""
    family, processor, words, model = twin
    image, row = processor.image_token_id, words.prompt_ids(QUESTIONS[0], "first")
    rows = model.get_output_embeddings().out_features
    ids = torch.tensor([row])

    class Given:
        def get_candidates(self, ids, **_):
            return torch.cat([ids, torch.tensor([self.more])], dim=1), None

    inner = Given()
    writable = _Writable(inner, rows, image)
    for more, kept in (([1, 2, 3], 3), ([1, image, 3], 1), ([rows, 2], 0), ([1, 2, rows + 4], 2)):
        inner.more = more
        assert writable.get_candidates(ids)[0].tolist() == [row + more[:kept]]
    with looking_up(model, None) as looked:
        assert looked == {}
    with looking_up(model, 5) as looked:
        crossing = family.cross_attention_layers(model.config)
        kinds = [type(layer).__name__ for layer in looked["past_key_values"].layers]
        assert [i for i, kind in enumerate(kinds) if kind == "_Constant"] == list(crossing)
    assert "_get_candidate_generator" not in vars(model)
