"""Exported checkpoints: what transformers and peft alone load gives this package's logits."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from heima import chat
from heima.data.encoding import encode_turns
from heima.data.images import ImageZip
from heima.families.registry import FAMILIES
from heima.results.files import read_json, write_json
from heima.toy.twins import TWINS
from heima.vlm import export, models
from heima.vlm.pointer import POINTER, ModelError

LOAD = """
import sys, torch
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, kind, batch, out = sys.argv[1:]
load = AutoModelForImageTextToText.from_pretrained
if kind == "merged":
    model = load(folder)
else:
    from peft import PeftModel
    model = PeftModel.from_pretrained(load(f"{folder}/base"), folder)
processor = AutoProcessor.from_pretrained(folder, backend="pil")
inputs = torch.load(batch)
with torch.no_grad():
    logits = model.eval()(**inputs["tensors"]).logits
torch.save({"logits": logits, "ids": processor.tokenizer(inputs["text"])["input_ids"]}, out)
assert not any(name.split(".")[0] in ("heima", "eval", "stages") for name in sys.modules)
"""


@pytest.fixture(params=["toy-mllama", "toy-llava-next"])
def trained(request, params, tmp_path):
    """A models folder with text-CoT and an adapter whose weights are drawn, and parameters."""
    name = request.param
    params = params.model_copy(update={"family": name})
    twin = TWINS[name]
    processor = twin.build_processor()
    model = twin.build_vlm(processor, hidden_size=params.teach.vlm.hidden_size, seed=1)
    root = tmp_path / "models"
    model.save_pretrained(root / "text-cot")
    processor.save_pretrained(root / "text-cot")
    adapted = models.trainable_vlm(root, "text-cot", params, seed=1)
    for key, weight in adapted.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(weight, std=0.05)
    models.save_adapter(adapted, root / params.trained("p3", 42))
    return root, params


def exported_logits(folder, kind, batch, out):
    command = [sys.executable, "-I", "-c", LOAD, str(folder), kind, str(batch), str(out)]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return torch.load(out)


@pytest.mark.parametrize(
    ("trained", "merged", "precision", "near"),
    [
        ("toy-mllama", False, "fp32", 1e-5),
        ("toy-llava-next", False, "fp32", 1e-5),
        ("toy-llava-next", True, "bf16", 1e-3),
        *(
            pytest.param(*merged, marks=pytest.mark.slow)
            for merged in (
                ("toy-mllama", True, "fp32", 1e-5),
                ("toy-llava-next", True, "fp32", 1e-5),
                ("toy-mllama", True, "bf16", 1e-3),
            )
        ),
    ],
    indirect=["trained"],
)
def test_from_pretrained_gives_the_same_logits(
    trained, merged, precision, near, toy_turns, toy_source, tmp_path
):
    root, params = trained
    params = params.model_copy(update={"precision": precision})
    folder = tmp_path / "out"
    if FAMILIES[params.family].added and not merged:
        with pytest.raises(export.ExportError, match=r"adds its thinking tokens .* --merged"):
            export.export(root, "p3", 42, params, folder, "card", merged=False)
        assert not folder.exists()
        return
    export.export(root, "p3", 42, params, folder, "card", merged=merged)
    model, processor = models.load_vlm(root, params.trained("p3", 42), params)
    vocabulary = models.vocabulary(processor.tokenizer, params)
    images = ImageZip(toy_source / "images.zip")
    batch = models.collator(processor, images, params)(
        encode_turns(toy_turns[:1], "p3", vocabulary, max_length=2048)
    )
    del batch["labels"], batch["image_rows"]
    token = next(iter(vocabulary.reserved.values()))
    text = f"what is at a1 {token}"
    torch.save({"tensors": batch, "text": text}, tmp_path / "batch.pt")
    kind = "merged" if merged else "adapter"
    found = exported_logits(folder, kind, tmp_path / "batch.pt", tmp_path / "logits.pt")
    with torch.no_grad():
        expected = model(**batch).logits
    assert found["logits"].dtype == expected.dtype == models.dtype(params)
    torch.testing.assert_close(found["logits"], expected, rtol=near, atol=near)
    assert found["ids"] == processor.tokenizer(text)["input_ids"]
    assert (folder / "README.md").read_text() == "card"
    for name, one in read_json(folder / "thinking_tokens.json").items():
        assert one == {"token": vocabulary.reserved[name], "id": vocabulary.thinking_ids[name]}


def test_what_cannot_be_exported_is_told_and_leaves_nothing(trained, tmp_path):
    root, params = trained
    (tmp_path / "there").mkdir()
    with pytest.raises(export.ExportError, match="there exists; name a new folder"):
        export.export(root, "p3", 42, params, tmp_path / "there", "", merged=True)
    with pytest.raises(FileNotFoundError, match="recover/42 holds no adapter"):
        export.export(root, "recover", 42, params, tmp_path / "new", "", merged=True)
    assert not (tmp_path / "new").exists()


def test_an_adapter_names_the_commit_of_its_base(params, tmp_path):
    write_json(tmp_path / "text-cot" / POINTER, {"id": "a/b", "revision": "c" * 40, "files": {}})
    assert export.base_of(tmp_path) == ("a/b", "c" * 40)
    write_json(tmp_path / "text-cot" / POINTER, {"path": "somewhere", "files": {}})
    assert export.base_of(tmp_path) is None


def without_a_weight(file):
    """Take the last weight out of a file; which it was."""
    weights = load_file(file)
    name = sorted(weights)[-1]
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("merged", [False, True])
def test_the_demo_refuses_an_exported_folder_that_is_not_whole(trained, merged, tmp_path):
    """transformers and peft would draw what is missing, and say so in a log."""
    root, params = trained
    if FAMILIES[params.family].added:
        merged = True
    folder = tmp_path / "out"
    export.export(root, "p3", 42, params, folder, "card", merged=merged)
    model, _, vocabulary = chat.load_exported(folder)
    expected, _ = models.load_vlm(root, params.trained("p3", 42), params)
    for (name, one), (_, other) in zip(
        model.named_parameters(), expected.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    assert vocabulary.thinking_ids == {
        name: one["id"] for name, one in read_json(folder / "thinking_tokens.json").items()
    }
    if merged:
        name = without_a_weight(folder / "model.safetensors")
        with pytest.raises(ModelError, match=rf"lacks (model\.)?{re.escape(name)}: "):
            chat.load_exported(folder)
    else:
        without_a_weight(folder / "adapter_model.safetensors")
        with pytest.raises(chat.ChatError, match="lacks 1 of the adapter's"):
            chat.load_exported(folder)


def test_a_checkpoint_that_states_are_fed_back_to_is_not_exported(params, tmp_path):
    """transformers alone would feed it tokens."""
    fed = params.checkpoints["one-shot"].model_copy(update={"feed": "state"})
    changed = params.model_copy(update={"checkpoints": {**params.checkpoints, "one-shot": fed}})
    with pytest.raises(
        export.ExportError, match=r"one-shot\.feed = 'state' cannot be exported, only"
    ):
        export.export(tmp_path, "one-shot", 42, changed, tmp_path / "new", "", merged=True)
    assert not (tmp_path / "new").exists()
