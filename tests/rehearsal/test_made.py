"""What a rehearsal runs on has the published models', cards' and records' shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from eval import benchmark_check
from heima import config
from heima.data.images import ImageZip
from heima.data.records import read_records
from heima.data.tokens import DATE, Vocabulary
from heima.families.registry import FAMILIES
from heima.vlm import pretrained
from tests.conftest import ROOT
from timings.rehearsal import benchmarks, make, records, tokenizers, words


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rehearsal")
    assert make.write(folder) == ["source", "benchmarks", *make.FAMILIES]
    assert make.write(folder) == []
    return folder


def shape(folder: Path, name: str) -> list[int]:
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    with safe_open(folder / index["weight_map"][name], "pt") as weights:
        assert weights.get_slice(name).get_dtype() == "BF16"
        return weights.get_slice(name).get_shape()


def test_a_vlm_has_the_real_rows_and_patches(made):
    folder = made / "llava-cot-11b" / "text-cot"
    # The hub's names of the weights, which transformers calls otherwise.
    assert shape(folder, "language_model.model.embed_tokens.weight") == [128_264, 64]
    assert shape(folder, "language_model.lm_head.weight") == [128_256, 64]
    assert shape(folder, "vision_model.gated_positional_embedding.embedding")[0] == 1601
    stated = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    assert stated["eos_token_id"] == [128_001, 128_008, 128_009] and stated["do_sample"]


@pytest.mark.parametrize("family", make.FAMILIES)
@pytest.mark.parametrize("name", ["text-cot", "interpreter"])
def test_a_folder_is_what_teach_takes(made, family, name, tmp_path):
    found = pretrained.provide(
        config.PretrainedModel(path=str(made / family / name)),
        tmp_path / "model",
        key="teach",
        again="again",
        kind="llm" if name == "interpreter" else "vlm",
        model_type=None if name == "interpreter" else FAMILIES[family].model_type,
    )
    assert sum(file.startswith("model-0000") for file in found["files"]) > 1


@pytest.fixture(
    scope="module",
    params=[
        (tokenizers.LLAMA_31, False, 128_256, None),
        (tokenizers.LLAMA_32_VISION, True, 128_257, "<|finetune_right_pad_id|>"),
    ],
    ids=["Llama 3.1", "Llama 3.2 Vision"],
)
def llama(request):
    template, image, size, pad = request.param
    tokenizer = tokenizers.llama_3(template, pad=image, image=image, file=None)
    assert (len(tokenizer), tokenizer.pad_token) == (size, pad)
    return tokenizer


def test_llamas_special_tokens_have_their_ids(llama):
    assert llama.convert_tokens_to_ids("<|eot_id|>") == llama.eos_token_id == 128_009
    assert llama.convert_tokens_to_ids("<|reserved_special_token_5|>") == 128_013


@pytest.fixture(scope="module")
def vicuna():
    return tokenizers.vicuna(image=True)


def test_built_tokenizers_give_texts_back(vicuna, llama):
    for tokenizer in (llama, vicuna):
        for text in words.corpus():
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids) == text
            assert len(ids) < len(text) / 2, "words, not letters"


def test_a_text_stands_in_its_prompt_as_it_is(llama):
    vocabulary = Vocabulary(llama, FAMILIES["llava-cot-11b"].thinking_tokens)
    place = "first" if "<|image|>" in llama.get_vocab() else "none"
    prompt = vocabulary.prompt("Is it 'so'?\n\"A\" \\ B", place)
    assert "Is it 'so'?\n\"A\" \\ B" in prompt
    assert (DATE in prompt) == (place == "none")


def test_vicuna_has_llava_nexts_ids(vicuna):
    assert (len(vicuna), len(tokenizers.vicuna(image=False))) == (32_002, 32_000)
    assert vicuna.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<image>"]) == [0, 1, 2, 32_000]


def test_records_have_images_of_every_mode_and_can_be_read(made):
    found = [record for _, record in read_records(made / "source" / "train.jsonl")]
    images = ImageZip(made / "source" / "images.zip")
    sizes = {images.read(record["image"]).size for record in found}
    assert sizes == {size for _, size, _ in records.IMAGES}
    assert len({record["id"] for record in found}) == len(found) - 1


@pytest.mark.parametrize("name", config.BENCHMARKS)
def test_the_cards_rows_pass_the_check(made, name):
    assert benchmark_check.check_folder(name, made / "benchmarks" / name) == []


def test_the_cards_oddities_are_among_the_rows():
    assert all("E" not in row for row in benchmarks.rows_of("mmbench"))
    assert any("B: ," in row["question"] for row in benchmarks.rows_of("mmstar"))


def test_both_rehearsals_differ_from_the_papers_alike():
    """But for the models, the first checkpoint, and what the second family's profile says."""
    first, second = (
        config.resolved(config.load(ROOT / "profiles" / f"{name}.yaml"))
        for name in ("rehearsal", "rehearsal-llava-next")
    )
    differing = {key for key in first if first[key] != second[key]}
    assert differing - {"distill"} == {
        "profile", "family", "teach", "checkpoints", "variants", "derived",
    }  # fmt: skip
    # LLaVA-NeXT's image tokens count to a turn's length.
    shorter = {**second["distill"], "max_length": first["distill"]["max_length"]}
    assert first["distill"] == shorter
    for name, one in first["checkpoints"].items():
        other = second["checkpoints"][name]
        assert {key for key in one if one[key] != other[key]} <= {"init"}
