"""Tokenizer, processor and models: nothing lost in words, nothing lost on disk."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    LlamaForCausalLM,
    MllamaForConditionalGeneration,
    MllamaProcessor,
)

from heima.toy import mllama
from heima.toy.mllama import RESERVED, build_processor, build_vlm
from heima.toy.models import build_llm, warm_up_vision
from heima.toy.source import answer_text
from heima.toy.words import EXTRA_WORDS, SECTION_TAGS
from heima.toy.world import KINDS, STYLES, ask, draw_scene, render

TINY = {"hidden_size": 32, "layers": 3, "heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture(scope="module")
def vlm(processor):
    return build_vlm(processor, **TINY, cross_attention_layers=[1], vision_size=32, seed=0).eval()


def chat(image_first: bool, asked, answer=None):
    items = [{"type": "image"}, {"type": "text", "text": asked.prompt}]
    messages = [{"role": "user", "content": items if image_first else items[::-1]}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


@pytest.mark.parametrize("kind", KINDS)
def test_words_survive_the_tokenizer(processor, kind):
    tokenizer, rng = processor.tokenizer, np.random.default_rng(0)
    for index in range(150):
        style = STYLES[kind][index % len(STYLES[kind])]
        asked = ask(draw_scene(rng), kind, rng, style=style)
        for text in (asked.summary, asked.caption, asked.reasoning, asked.conclusion):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids) == text
            assert tokenizer.unk_token_id not in ids
        assert tokenizer.unk_token_id not in tokenizer(asked.prompt)["input_ids"]
        answer = answer_text(asked)
        assert tokenizer.decode(tokenizer(answer)["input_ids"]) == answer.replace("\n\n", " ")


def test_tags_and_reserved_slots_are_single_tokens(processor):
    tokenizer = processor.tokenizer
    for text in (*SECTION_TAGS, *RESERVED, *EXTRA_WORDS):
        (token,) = tokenizer(text)["input_ids"]
        assert token not in (tokenizer.unk_token_id, processor.image_token_id)
    assert tokenizer("words which nobody taught")["input_ids"].count(tokenizer.unk_token_id) == 3


def test_option_marks_share_the_letters_token(processor):
    tokenizer = processor.tokenizer
    forms = {tuple(tokenizer(f"\n{text} 8\n")["input_ids"]) for text in ("A", "A.", "A:")}
    assert len(forms) == 1


def test_white_space_around_a_prompt_changes_no_token(processor):
    """Turns hold stripped questions, and the protocol `vlmevalkit` ends with a line break."""
    tokenizer, rng = processor.tokenizer, np.random.default_rng(0)
    ends = set()
    for kind in KINDS:
        for style in STYLES[kind]:
            asked = ask(draw_scene(rng), kind, rng, style=style)
            whole, stripped = (
                tokenizer(one)["input_ids"] for one in (asked.prompt, asked.prompt.strip())
            )
            assert whole == stripped, style
            ends.add(asked.prompt[-1])
    assert "\n" in ends


def test_image_stands_where_the_content_puts_it(processor):
    rng = np.random.default_rng(1)
    asked = ask(draw_scene(rng), "sum-number", rng)
    for image_first in (True, False):
        text = processor.apply_chat_template(chat(image_first, asked), add_generation_prompt=True)
        start = text.index("<|end_header_id|>") + len("<|end_header_id|>\n\n")
        assert text[start:].startswith("<|image|>") is image_first
        assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
        ids = processor(text=text, images=[[render(draw_scene(rng))]])["input_ids"][0]
        assert ids.count(processor.tokenizer.bos_token_id) == 1


def test_prompt_is_a_prefix_of_the_whole_conversation(processor):
    rng = np.random.default_rng(2)
    asked = ask(draw_scene(rng), "look-option", rng)
    prompt = processor.apply_chat_template(chat(True, asked), add_generation_prompt=True)
    whole = processor.apply_chat_template(chat(True, asked, answer_text(asked)))
    ids, longer = (processor.tokenizer(text)["input_ids"] for text in (prompt, whole))
    assert longer[: len(ids)] == ids
    assert longer[-1] == processor.tokenizer.eos_token_id


def test_image_token_lies_beyond_the_lm_head(processor, vlm):
    vocabulary = vlm.config.text_config.vocab_size
    assert processor.image_token_id == vocabulary == len(processor.tokenizer) - 1
    assert vlm.lm_head.out_features == vocabulary
    assert vlm.get_input_embeddings().num_embeddings == vocabulary + 8


def inputs(processor):
    rng = np.random.default_rng(3)
    scenes = [draw_scene(rng) for _ in range(2)]
    texts = [
        processor.apply_chat_template(chat(True, ask(scene, "sum-option", rng))) for scene in scenes
    ]
    images = [[render(scene)] for scene in scenes]
    return processor(text=texts, images=images, padding=True, return_tensors="pt")


def test_vlm_and_processor_round_trip(processor, vlm, tmp_path):
    vlm.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path, backend="pil")
    assert isinstance(again, MllamaProcessor)
    first, second = inputs(processor), inputs(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    loaded = MllamaForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(vlm(**first).logits, loaded(**second).logits)


def test_the_picture_reaches_the_text(processor, vlm):
    batch = inputs(processor)
    with torch.no_grad():
        logits = vlm(**batch).logits
        batch["pixel_values"] = batch["pixel_values"].flip(0)
        assert (logits - vlm(**batch).logits).abs().max() > 1e-3


def test_llm_round_trip_and_width(processor, vlm, tmp_path):
    llm = build_llm(processor.tokenizer, **TINY, seed=1).eval()
    assert llm.config.hidden_size == vlm.config.text_config.hidden_size
    assert llm.config.vocab_size == vlm.config.text_config.vocab_size
    llm.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, LlamaForCausalLM)
    ids = processor.tokenizer(["red square at b2", "i add"], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(llm(**ids).logits, loaded(**ids).logits)


def test_seeds_decide_the_weights(processor):
    first, same, other = (build_llm(processor.tokenizer, **TINY, seed=seed) for seed in (0, 0, 1))
    weights = [model.lm_head.weight for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_vision_warm_up_learns_and_repeats(processor):
    rng = np.random.default_rng(4)
    scenes = [draw_scene(rng) for _ in range(200)]

    def warmed():
        model = build_vlm(processor, **TINY, cross_attention_layers=[1], vision_size=32, seed=0)
        return warm_up_vision(mllama, model, processor, scenes, steps=50, seed=0), model

    right, model = warmed()
    assert right > 0.2  # chance: .01
    again, twin = warmed()
    assert again == right
    weight = "model.multi_modal_projector.weight"
    assert torch.equal(model.state_dict()[weight], twin.state_dict()[weight])
    with pytest.raises(ValueError, match="scenes is empty"):
        warm_up_vision(mllama, model, processor, [], steps=1, seed=0)


def test_bad_cross_attention_layer(processor):
    with pytest.raises(ValueError, match=r"cross_attention_layers=\[3\] must lie in 0..2"):
        build_vlm(processor, **TINY, cross_attention_layers=[3], vision_size=32, seed=0)
