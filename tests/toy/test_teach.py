"""What the toy's models are taught."""

import numpy as np
import pytest
import torch

from heima import corpus
from heima.added_tokens import fit
from heima.batching import encode_turns
from heima.cot import COMPRESSIBLE, thinking_token
from heima.families import FAMILIES
from heima.toy import teach
from heima.toy.families import TOYS


@pytest.fixture(params=["toy-mllama", "toy-llava-next"])
def vlm(request, params):
    """An untrained toy VLM of a family, its processor, and parameters of that family."""
    from heima.added_tokens import equip

    toy = TOYS[request.param]
    processor = toy.build_processor()
    model = toy.build_vlm(toy.build_processor(), hidden_size=64, seed=1)
    equip(processor.tokenizer, FAMILIES[request.param])
    fit(model, processor.tokenizer, FAMILIES[request.param])
    return model.eval(), processor, params.model_copy(update={"family": request.param})


def test_a_sections_state_is_the_mean_over_its_tokens(vlm, toy_source, toy_turns):
    """Against one plain forward pass of transformers a turn; batches and padding change nothing."""
    from heima import models

    model, processor, params = vlm
    images = corpus.ImageZip(toy_source / "images.zip")
    turns = toy_turns[:9]
    found = teach.section_states(model, processor, turns, images, params)
    vocabulary = models.vocabulary(processor.tokenizer, params)
    samples = encode_turns(turns, "text-cot", vocabulary, max_length=2048)
    collate = models.collator(processor, images, params)
    for index, (turn, sample) in enumerate(zip(turns, samples, strict=True)):
        batch = collate([sample])
        tokens = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
        inputs = {
            key: value
            for key, value in batch.items()
            if key not in ("labels", "num_tiles", "image_rows")
        }
        with torch.no_grad():
            hidden = model.model(**inputs, use_cache=False).last_hidden_state[0]
        for section in COMPRESSIBLE:
            first, end = (tokens.index(f"<{slash}{section.upper()}>") for slash in ("", "/"))
            words = turn.sections[section].split()
            assert tokens[first + 1 : end] == words
            expected = torch.stack([hidden[place] for place in range(first, end)]).mean(dim=0)
            torch.testing.assert_close(found[section][index], expected, rtol=1e-4, atol=1e-5)


def test_what_the_llm_is_told(toy_turns, toy_vocabulary):
    """A told prompt has its own section's thinking token once, and the others none."""
    states = {
        section: torch.arange(len(toy_turns)).float().unsqueeze(1) + 1000 * number
        for number, section in enumerate(COMPRESSIBLE)
    }
    readings = teach._told(toy_turns, states, toy_vocabulary, np.random.default_rng(3))
    assert len(readings) == len(toy_turns) * len(COMPRESSIBLE)
    seen = {"told": 0, "alone": 0}
    for place, reading in enumerate(readings):
        turn, section = toy_turns[place // 3], COMPRESSIBLE[place % 3]
        prompt = reading.encoded.input_ids[: reading.encoded.body]
        marks = {
            one: prompt.count(toy_vocabulary.thinking_ids[thinking_token(one)])
            for one in COMPRESSIBLE
        }
        assert marks == {one: marks[section] * (one == section) for one in COMPRESSIBLE}
        assert reading.states.item() == place // 3 + 1000 * (place % 3)
        text = toy_vocabulary.tokenizer.decode(prompt)
        asked = toy_vocabulary.tokenizer.decode(toy_vocabulary.tokenizer(turn.question).input_ids)
        words = asked.split()[:5]
        if all(word in text.split() for word in words):
            continue
        assert marks[section] == 1, "a prompt with neither a question nor a state"
        seen["alone"] += 1
    seen["told"] = sum(
        reading.encoded.input_ids.count(toy_vocabulary.thinking_ids[thinking_token(section)])
        for place, reading in enumerate(readings)
        for section in [COMPRESSIBLE[place % 3]]
    )
    assert abs(seen["told"] / len(readings) - teach.TOLD) < 0.12
    assert abs(seen["alone"] / seen["told"] - teach.ALONE) < 0.15
