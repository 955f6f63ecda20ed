"""The demo's interpreters: of an exported folder they read as those of the pipeline do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from heima import chat, config
from heima.cot.rendering import render
from heima.data.images import ImageZip
from heima.families import registry
from heima.families.registry import FAMILIES
from heima.interpreting import readers, states
from heima.results.files import read_json, write_json
from heima.toy.models import build_llm
from heima.toy.twins import TWINS
from heima.vlm import models
from heima.vlm.added_tokens import fit
from heima.vlm.pointer import POINTER, ModelError
from stages import export, resolve
from tests.conftest import ROOT


def drawn(adapted):
    for key, weight in adapted.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(weight, std=0.1)
    return adapted


@pytest.fixture(params=["toy-mllama", "toy-llava-next"])
def made(request, tmp_path, monkeypatch, toy_turns):
    """A working folder with the models, interpreters and states of a family, drawn."""
    monkeypatch.chdir(tmp_path)
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["family"] = request.param
    raw["reconstruct"]["max_new_tokens"] = 8
    # One of the sections is read by an interpreter of several.
    raw["reconstructions"]["summary"]["interpreter"] = "shared"
    params = config.parse(yaml.safe_dump(raw))
    resolve.write(params)
    twin, family = TWINS[params.family], FAMILIES[params.family]
    processor = twin.build_processor()
    twin.build_vlm(processor, hidden_size=64, seed=1).save_pretrained("models/text-cot")
    processor.save_pretrained("models/text-cot")
    tokenizer = twin.build_tokenizer()
    llm = build_llm(tokenizer, hidden_size=64, seed=2)
    llm.save_pretrained("models/interpreter")
    tokenizer.save_pretrained("models/interpreter")
    fit(llm, models.load_tokenizer(models.ROOT, params), family)
    adapted = drawn(models.trainable_vlm(models.ROOT, "text-cot", params, seed=1))
    models.save_adapter(adapted, models.ROOT / "recover" / "42")
    for number, name in enumerate(("shared", "caption", "reasoning")):
        one = models.load_llm(models.ROOT, params)
        one = drawn(models.add_lora(one, family.llm_lora, params.interpret.lora, seed=number))
        models.save_adapter(one, Path("interpreters") / name / "own" / "42")
    torch.manual_seed(0)
    count = len(toy_turns)
    found = {
        section: states.SectionStates(torch.randn(count, 64), torch.ones(count, dtype=torch.int32))
        for section in params.sections
    }
    Path("states/42").mkdir(parents=True)
    states.save(Path("states/42/heldout.safetensors"), found, toy_turns)
    return params


def read(loaded, reading, toy_source, toy_turns):
    turn = toy_turns[0]
    image = ImageZip(toy_source / "images.zip").read(turn.image)
    text = render(turn.sections, "p3")
    return list(chat.readings(*loaded, image, turn.question, text, reading, 42))


def test_an_exported_folder_is_read_as_the_pipelines_checkpoint(made, toy_source, toy_turns):
    merged = FAMILIES[made.family].added
    model, processor = models.load_vlm(models.ROOT, made.trained("recover", 42), made)
    ours = (model, processor, models.vocabulary(processor.tokenizer, made))
    expected = read(ours, readers.of_pipeline(made, 42), toy_source, toy_turns)
    assert [one.section for one in expected] == list(made.sections)
    assert all(one.own and one.shuffled for one in expected)
    assert any(one.own != one.shuffled for one in expected)
    export.main("recover", Path("out"), 42, merged=merged, interpreters=True)
    # Nothing of the pipeline is asked.
    for name in ("models", "interpreters", "states", "resolved.yaml"):
        Path(name).rename(f"away-{name}")
    theirs = chat.load_exported(Path("out"))
    reading = readers.load(Path("out"), registry.of(theirs[0]), theirs[0].dtype)
    assert read(theirs, reading, toy_source, toy_turns) == expected


def test_without_interpreters_it_answers_alone(made):
    export.main("recover", Path("out"), 42, merged=True)
    assert readers.load(Path("out"), FAMILIES[made.family], torch.float32) is None


def test_what_cannot_be_taken_along_is_told(made):
    with pytest.raises(SystemExit, match=r"error: the interpreters read recover, not p3"):
        export.main("p3", Path("out"), 42, merged=True, interpreters=True)
    export.main("recover", Path("out"), 42, merged=True, interpreters=True)
    facts = read_json("out/interpreters/reading.json")
    write_json(
        "out/interpreters/reading.json", facts | {"llm": {"id": "a/b", "revision": "c" * 40}}
    )
    with pytest.raises(ModelError, match=r"a/b at c+ is not in the hub's cache: download it first"):
        readers.load(Path("out"), FAMILIES[made.family], torch.float32)
    shutil.rmtree("interpreters")
    with pytest.raises(SystemExit, match="no interpreter is trained: `dvc repro interpret`"):
        export.main("recover", Path("other"), 42, merged=True, interpreters=True)
    assert not Path("other").exists()


def test_an_llm_of_the_hub_is_named_and_not_copied(made):
    write_json("models/interpreter/" + POINTER, {"id": "a/b", "revision": "c" * 40, "files": {}})
    reading = readers.Readers(
        load=lambda: pytest.fail("the LLM is not needed"),
        words=models.vocabulary(TWINS["toy-mllama"].build_tokenizer(),
                                made.model_copy(update={"family": "toy-mllama"})),
        adapters={"caption": (Path("interpreters/caption/own/42"), "")},
        others={},
        thinking=made.thinking("recover"),
        position="at",
        wordings="plain",
        decoding=made.reconstruct,
    )  # fmt: skip
    Path("out").mkdir()
    readers.save(reading, Path("out"))
    assert read_json("out/interpreters/reading.json")["llm"] == {"id": "a/b", "revision": "c" * 40}
    assert not list(Path("out/interpreters/llm").glob("*.safetensors"))
