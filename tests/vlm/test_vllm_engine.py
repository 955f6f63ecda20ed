"""vLLM's engine, with a stand-in for the library: what that is asked, and what becomes of it.

The stand-in decodes with transformers, so both engines must give the same generations.
"""

from __future__ import annotations

import copy
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from heima.config import Decoding
from heima.families.registry import FAMILIES
from heima.vlm.generation import Decoder, Prompt, Transformers, generate, plan
from heima.vlm.models import add_lora, save_adapter

DECODING = Decoding(temperature=0, top_k=50, max_new_tokens=24, batch_size=4)


@pytest.fixture
def models(tmp_path, params, toy_vlm, toy_processor):
    """models/: `text-cot`, and the adapter `recover` that changes what it says."""
    model = copy.deepcopy(toy_vlm)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        model.lm_head.weight.normal_(0, 1, generator=generator)
        model.lm_head.weight[toy_processor.tokenizer.eos_token_id].mul_(6)
    model.save_pretrained(tmp_path / "text-cot")
    toy_processor.save_pretrained(tmp_path / "text-cot")
    lora = params.distill.lora
    adapted = add_lora(model, FAMILIES[params.family].vlm_lora, lora, seed=1)
    with torch.no_grad():
        for key, weight in adapted.named_parameters():
            if "lora_B" in key:
                weight.normal_(0, 0.1, generator=generator)
    save_adapter(adapted, tmp_path / "recover")
    return tmp_path


@pytest.fixture
def prompts():
    rng = np.random.default_rng(5)
    images = [Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for _ in range(3)]
    return [
        Prompt("what is at a1 " * (1 + i % 4), f"image {i % 3}", lambda i=i: images[i % 3])
        for i in range(10)
    ]


@pytest.fixture
def library(monkeypatch, toy_processor):
    """The stand-in: `loaded` holds its arguments, `asked` prompts, `sampling` their parameters."""
    record = SimpleNamespace(loaded=[], asked=[], sampling=[], change=lambda answer: answer)

    class LLM:
        def __init__(self, **options):
            record.loaded.append(options)
            model = AutoModelForImageTextToText.from_pretrained(
                options["model"], dtype=getattr(torch, options["dtype"])
            )
            self._engine = Transformers(model.eval(), toy_processor)

        def generate(self, prompts, sampling, *, use_tqdm):
            assert use_tqdm is False
            record.asked += prompts
            record.sampling += sampling
            rows = self._engine(
                [
                    Prompt(
                        "",
                        str(id(one["multi_modal_data"]["image"])),
                        lambda one=one: one["multi_modal_data"]["image"],
                    )
                    for one in prompts
                ],
                [one["prompt_token_ids"] for one in prompts],
                decoding=DECODING,
                seed=0,
            )
            return [SimpleNamespace(outputs=[record.change(self._answer(row))]) for row in rows]

        def _answer(self, row):
            """vLLM pads nothing, and says why it stopped."""
            end = next((at for at, one in enumerate(row) if one in self._engine.ends), None)
            cut = row if end is None else row[: end + 1]
            return SimpleNamespace(
                token_ids=tuple(cut), finish_reason="length" if end is None else "stop"
            )

    module = ModuleType("vllm")
    module.LLM = LLM
    module.SamplingParams = lambda **options: options
    monkeypatch.setitem(sys.modules, "vllm", module)
    return record


def decode(engine, vocabulary, prompts, **changes):
    planned = plan(vocabulary, prompts, decoding=DECODING.model_copy(update=changes), seed=3)
    decoder = Decoder(engine, vocabulary)
    return planned.in_order(decoder(planned, i) for i in range(len(planned.batches)))


@pytest.mark.parametrize("name", ["text-cot", "recover"])
def test_the_same_generations(models, params, library, toy_vocabulary, prompts, name):
    from heima.vlm.models import load_vlm
    from heima.vlm.vllm_engine import Vllm

    found = decode(Vllm(models, name, params), toy_vocabulary, prompts)
    expected = generate(
        *load_vlm(models, name, params), toy_vocabulary, prompts, decoding=DECODING, seed=3
    )
    assert len({one.text for one in expected}) > 3
    assert {one.finish for one in expected} == {"stop", "length"}
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.counts, one.finish) == (other.text, other.counts, other.finish)


def test_what_the_library_is_asked(models, params, library, toy_vocabulary, prompts):
    from heima.vlm.vllm_engine import Vllm

    engine = Vllm(models, "text-cot", params)
    (loaded,) = library.loaded
    assert loaded["model"] == str(models / "text-cot")
    assert (loaded["dtype"], loaded["generation_config"]) == ("float32", "vllm")
    decode(engine, toy_vocabulary, prompts)
    ids = [toy_vocabulary.prompt_ids(prompt.question, "first") for prompt in prompts]
    assert sorted(one["prompt_token_ids"] for one in library.asked) == sorted(ids)
    greedy = {
        "temperature": 0.0,
        "max_tokens": 24,
        "stop_token_ids": [toy_vocabulary.tokenizer.eos_token_id],
        "detokenize": False,
    }
    assert library.sampling == [greedy] * len(prompts)

    library.sampling.clear()
    decode(engine, toy_vocabulary, prompts, temperature=0.6)
    assert all(
        (one["temperature"], one["top_k"], one["top_p"]) == (0.6, 50, 1.0)
        for one in library.sampling
    )
    seeds = [one["seed"] for one in library.sampling]
    assert len(set(seeds)) == len(prompts)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (SimpleNamespace(token_ids=[5], finish_reason="abort"), "by 'abort' after 1 of 24"),
        (SimpleNamespace(token_ids=[5], finish_reason="length"), "by 'length' after 1 of 24"),
        (SimpleNamespace(token_ids=[], finish_reason="stop"), "without an end of turn"),
    ],
)
def test_an_answer_that_did_not_end(
    models, params, library, toy_vocabulary, prompts, answer, message
):
    from heima.vlm.vllm_engine import Vllm

    library.change = lambda _: answer
    with pytest.raises(RuntimeError, match=message):
        decode(Vllm(models, "text-cot", params), toy_vocabulary, prompts)


def test_not_installed(models, params, monkeypatch):
    from heima.vlm.vllm_engine import Vllm

    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[vllm\]'"):
        Vllm(models, "text-cot", params)


def test_not_under_torchrun(models, params, library, monkeypatch):
    from heima.vlm.vllm_engine import Vllm

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun has started 2"):
        Vllm(models, "text-cot", params)
