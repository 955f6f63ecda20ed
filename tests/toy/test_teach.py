"""What the toy's models are taught."""

from collections import Counter

import numpy as np
import pytest
import torch

from heima.cot.sections import COMPRESSIBLE
from heima.data.encoding import encode_turns
from heima.data.images import ImageZip
from heima.families.registry import FAMILIES
from heima.interpreting.wordings import PLAIN_WORDING, asking
from heima.toy import teach
from heima.toy.twins import TWINS
from heima.training.backbone import body
from heima.training.loop import AnswerLoss
from heima.vlm import models
from heima.vlm.added_tokens import equip, fit


@pytest.fixture(params=TWINS)
def vlm(request, params):
    """An untrained toy VLM of a family, its processor, and parameters of that family."""
    twin = TWINS[request.param]
    processor = twin.build_processor()
    model = twin.build_vlm(twin.build_processor(), hidden_size=64, seed=1)
    equip(processor.tokenizer, FAMILIES[request.param])
    fit(model, processor.tokenizer, FAMILIES[request.param])
    return model.eval(), processor, params.model_copy(update={"family": request.param})


def test_a_sections_state_is_the_mean_over_its_tokens(vlm, toy_source, toy_turns):
    """Against one plain forward pass of transformers a turn; batches and padding change nothing."""
    model, processor, params = vlm
    images = ImageZip(toy_source / "images.zip")
    turns = toy_turns[:9]
    found = teach.section_states(model, processor, turns, images, params)
    vocabulary = models.vocabulary(processor.tokenizer, params)
    samples = encode_turns(turns, "text-cot", vocabulary, max_length=2048)
    collate = models.collator(processor, images, params)
    for index, (turn, sample) in enumerate(zip(turns, samples, strict=True)):
        batch = collate([sample])
        tokens = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
        inputs = {key: value for key, value in batch.items() if key not in ("labels", "image_rows")}
        with torch.no_grad():
            hidden = model.model(**inputs, use_cache=False).last_hidden_state[0]
        for section in COMPRESSIBLE:
            first, end = (tokens.index(f"<{slash}{section.upper()}>") for slash in ("", "/"))
            words = turn.sections[section].split()
            assert tokens[first + 1 : end] == words
            expected = torch.stack([hidden[place] for place in range(first, end)]).mean(dim=0)
            torch.testing.assert_close(found[section][index], expected, rtol=1e-4, atol=1e-5)


def test_a_schedule_of_equal_flops_spends_what_the_other_does(vlm, toy_source, toy_turns):
    """To half an update; the same samples get the same schedule."""
    model, processor, params = vlm
    collate = models.collator(processor, ImageZip(toy_source / "images.zip"), params)
    vocabulary = models.vocabulary(processor.tokenizer, params)
    samples = {
        rendering: encode_turns(toy_turns, rendering, vocabulary, max_length=2048)
        for rendering in ("answer-only", "text-cot")
    }
    answering = AnswerLoss(model, params.hardware, body=body(model))
    given = params.teach.vlm.model_copy(update={"steps": 100, "batch_size": 8})
    for name, some in samples.items():
        schedule, facts = teach.equal_flops(given, answering, some, samples["text-cot"], collate)
        own, other = facts["flops_per_sample"], facts["flops_per_sample_text_cot"]
        assert abs(schedule.steps * own - 100 * other) <= own / 2, name
        assert schedule.model_copy(update={"steps": 100}) == given
        assert (schedule.steps > 100) == (name == "answer-only")


def test_what_the_llm_is_told(toy_turns, toy_vocabulary):
    """Each prompt is an interpreter's: with the state, with the question, or with both."""
    states = {
        section: torch.arange(len(toy_turns)).float().unsqueeze(1) + 1000 * number
        for number, section in enumerate(COMPRESSIBLE)
    }
    readings = iter(teach._told(toy_turns, states, toy_vocabulary, np.random.default_rng(3)))
    seen = Counter()
    for index, turn in enumerate(toy_turns):
        for number, section in enumerate(COMPRESSIBLE):
            reading = next(readings)
            assert reading.states.item() == index + 1000 * number
            allowed = {
                name: toy_vocabulary.encode(
                    asking(PLAIN_WORDING, question, section, states),
                    "none",
                    turn.sections[section],
                )
                for name, question, states in (
                    ("question", turn.question, 0),
                    ("state", "", 1),
                    ("both", turn.question, 1),
                )
            }
            (form,) = (name for name, one in allowed.items() if one == reading.encoded)
            seen[form] += 1
    assert next(readings, None) is None
    told = seen["state"] + seen["both"]
    assert abs(told / seen.total() - teach.TOLD) < 0.12
    assert abs(seen["state"] / told - teach.ALONE) < 0.15
