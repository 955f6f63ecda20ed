"""Thinking tokens that a vocabulary does not reserve: same rows in every process, nothing on disk.

The models are untrained toys of the real classes, saved as published: without thinking tokens.
"""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from heima.cot.sections import THINKING_TOKENS
from heima.families.registry import FAMILIES
from heima.toy import llava_next as toy
from heima.toy.models import build_llm
from heima.vlm import models
from heima.vlm.added_tokens import equip, fit, untie

FAMILY = FAMILIES["toy-llava-next"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """models/ with an untrained `text-cot` and `interpreter`."""
    root = tmp_path_factory.mktemp("models")
    processor, tokenizer = toy.build_processor(), toy.build_tokenizer()
    toy.build_vlm(processor, hidden_size=32, layers=2, seed=1).save_pretrained(root / "text-cot")
    processor.save_pretrained(root / "text-cot")
    build_llm(tokenizer, hidden_size=32, layers=2, seed=1).save_pretrained(root / "interpreter")
    tokenizer.save_pretrained(root / "interpreter")
    return root


def thinking_ids(tokenizer):
    return list(models.Vocabulary(tokenizer, FAMILY.thinking_tokens).thinking_ids.values())


def test_rows_are_taken_from_the_spare_ones_first_and_then_added(root, llava_params):
    processor = toy.build_processor()
    published = toy.build_vlm(processor, hidden_size=32, layers=2, seed=1)
    spare = published.lm_head.weight.shape[0] - len(processor.tokenizer)
    assert 0 < spare < len(THINKING_TOKENS)
    model, equipped = models.load_vlm(root, "text-cot", llava_params)
    ids = thinking_ids(equipped.tokenizer)
    assert ids == list(range(len(processor.tokenizer), len(processor.tokenizer) + len(ids)))
    rows = ids[-1] + 1
    assert len(model.get_input_embeddings().weight) == len(model.lm_head.weight) == rows
    assert model.config.text_config.vocab_size == rows
    for table, before in (
        (model.lm_head.weight, published.lm_head.weight),
        (model.get_input_embeddings().weight, published.get_input_embeddings().weight),
    ):
        known = len(processor.tokenizer)
        assert torch.equal(table[:known], before[:known])
        new = table[known:]
        assert len(new.unique(dim=0)) == len(new)
        # Near the mean: nearer than any pretrained row.
        mean = before[:known].mean(0)
        assert (new - mean).norm(dim=1).mean() < (before[:known] - mean).norm(dim=1).mean()


def test_the_interpreter_has_the_same_tokens_on_ids_of_its_own(root, llava_params):
    tokenizer = models.load_tokenizer(root, llava_params)
    llm = models.load_llm(root, llava_params)
    ids = thinking_ids(tokenizer)
    assert ids[0] == len(toy.build_tokenizer()) and len(llm.lm_head.weight) == ids[-1] + 1
    seen = models.vocabulary(models.load_processor(root, llava_params).tokenizer, llava_params)
    read = models.vocabulary(tokenizer, llava_params)
    assert list(seen.thinking_ids) == list(read.thinking_ids)
    assert not set(seen.thinking_ids.values()) & {ids[0], ids[1]}
    assert llm(input_ids=torch.tensor([ids])).logits.isfinite().all()


def test_rows_do_not_depend_on_the_number_of_threads(root, llava_params):
    before = torch.get_num_threads()
    heads = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            heads.append(models.load_vlm(root, "text-cot", llava_params)[0].lm_head.weight)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*heads)


def test_equipping_twice_is_equipping_once():
    tokenizer = toy.build_tokenizer()
    equip(tokenizer, FAMILY)
    length = len(tokenizer)
    equip(tokenizer, FAMILY)
    assert len(tokenizer) == length


def test_a_family_with_reserved_tokens_keeps_its_model(toy_llm, toy_processor):
    model = copy.deepcopy(toy_llm)
    fit(model, toy_processor.tokenizer, FAMILIES["toy-mllama"])
    for before, after in zip(toy_llm.parameters(), model.parameters(), strict=True):
        assert torch.equal(before, after)


def test_tied_weights_are_parted_before_an_adapter_can_move_both(params):
    tokenizer = toy.build_tokenizer()
    model = build_llm(tokenizer, hidden_size=32, layers=1, seed=2)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    known = len(tokenizer)
    before = model.lm_head.weight.detach().clone()
    untie(model)
    equip(tokenizer, FAMILY)
    fit(model, tokenizer, FAMILY)
    embeddings = model.get_input_embeddings().weight
    assert torch.equal(embeddings[:known], before[:known])
    assert torch.equal(model.lm_head.weight, embeddings)
    adapted = trained(models.add_lora(model, FAMILY.llm_lora, params.distill.lora, seed=1))
    held = embeddings.detach().clone()
    ids = torch.tensor([[3, 4, known, known + 1]])
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=ids).logits, expected)
    assert torch.equal(merged.get_input_embeddings().weight, held)
    assert not torch.equal(merged.lm_head.weight, held)


def trained(adapted):
    """Three steps of AdamW on ids that include thinking tokens."""
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    rows = adapted.get_input_embeddings().weight.shape[0]
    ids = torch.arange(rows - 12, rows).view(2, 6)
    for _ in range(3):
        optimizer.zero_grad()
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return adapted


LOGITS = """
import sys, torch
from pathlib import Path
from heima import config
from heima.vlm import models
params = config.load(sys.argv[2]).model_copy(update={"family": "toy-llava-next"})
torch.set_num_threads(1)
root = Path(sys.argv[1])
model, processor = models.load_vlm(root, "p1", params)
ids = list(models.vocabulary(processor.tokenizer, params).thinking_ids.values())
with torch.no_grad():
    torch.save(model(input_ids=torch.tensor([[3, 4, *ids[:5]]])).logits, root / "logits.pt")
"""


def test_base_and_adapter_alone_make_the_same_model_in_a_new_process(
    root, llava_params, pytestconfig
):
    adapted = trained(models.trainable_vlm(root, "text-cot", llava_params, seed=llava_params.seed))
    models.save_adapter(adapted, root / "p1")
    kept = {file.name for file in (root / "p1").iterdir()}
    assert kept == {"adapter_config.json", "adapter_model.safetensors"}
    # The adapter holds low-rank parts only, those of the lm_head for every row.
    assert (root / "p1" / "adapter_model.safetensors").stat().st_size < 400_000
    model, processor = models.load_vlm(root, "p1", llava_params)
    ids = list(models.vocabulary(processor.tokenizer, llava_params).thinking_ids.values())
    batch = torch.tensor([[3, 4, *ids[:5]]])
    plain, _ = models.load_vlm(root, "text-cot", llava_params)
    with torch.no_grad():
        expected = model(input_ids=batch).logits
        assert not torch.allclose(plain(input_ids=batch).logits, expected)
        torch.testing.assert_close(adapted.eval()(input_ids=batch).logits, expected)
    subprocess.run(
        [sys.executable, "-c", LOGITS, str(root), str(pytestconfig.rootpath / "params.yaml")],
        check=True,
        cwd=pytestconfig.rootpath,
    )
    assert torch.equal(torch.load(root / "logits.pt"), expected)


def test_a_phase_continues_the_adapter(root, llava_params):
    """What p1 ended with is what p2 starts from, thinking tokens included."""
    adapted = trained(
        models.trainable_vlm(root, "text-cot", llava_params, seed=llava_params.seed)
    ).eval()
    models.save_adapter(adapted, root / "p1")
    again = models.trainable_vlm(root, "p1", llava_params, seed=llava_params.seed).eval()
    ids = torch.arange(200, 212).view(2, 6)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, adapted(input_ids=ids).logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tokenizer_that_names_no_padding_gets_one_that_ends_no_turn(name):
    """Llama-3.1-8B-Instruct's names none, and has no unknown token either."""
    family = FAMILIES[name]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "<end>": 1, family.pad_token: 2}, "a")),
        eos_token="<end>",
    )
    equip(tokenizer, family)
    assert tokenizer.pad_token_id == 2 != tokenizer.eos_token_id
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, "a")))
    with pytest.raises(ValueError, match=r"has no '<.*>'; set `pad_token`"):
        equip(other, family)
