"""Given adapters: torchtune's layout and peft folders give the logits of the same LoRA by hand."""

from __future__ import annotations

import copy
import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from heima import config
from heima.data.encoding import encode_turns
from heima.data.images import ImageZip
from heima.families.registry import FAMILIES
from heima.results.files import read_json, write_json
from heima.toy import llava_next, mllama
from heima.toy.models import build_llm
from heima.vlm import export, given_adapter, models, torchtune
from heima.vlm.pointer import POINTER
from stages import adopt, resolve, runs
from tests.conftest import ROOT
from tests.eval.hub_server import Repository

RANK, ALPHA = 16, 32
CROSS = (1, 4)
OFFICIAL = "shawnricecake/Heima"
TEXT = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "output_proj",
        "gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}  # fmt: skip
VISION = {**TEXT, "fc1": "w1", "fc2": "w2"}


@pytest.fixture(scope="module")
def vlm(toy_processor):
    """A Mllama with two cross-attention layers and fewer heads of keys than of queries."""
    model = mllama.build_vlm(
        toy_processor, layers=7, cross_attention_layers=CROSS, max_tiles=1, seed=1
    )
    options = copy.deepcopy(model.config)
    options.text_config.num_key_value_heads = 2
    torch.manual_seed(3)
    model = type(model)(options).eval()
    with torch.no_grad():
        for layer in CROSS:
            model.model.language_model.layers[layer].cross_attn_attn_gate.fill_(0.7)
            model.model.language_model.layers[layer].cross_attn_mlp_gate.fill_(0.7)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory, vlm, toy_processor):
    """A `models` folder with text-cot and the interpreters' LLM."""
    root = tmp_path_factory.mktemp("saved") / "models"
    vlm.save_pretrained(root / "text-cot")
    toy_processor.save_pretrained(root / "text-cot")
    build_llm(toy_processor.tokenizer, hidden_size=64, seed=2).save_pretrained(root / "interpreter")
    toy_processor.tokenizer.save_pretrained(root / "interpreter")
    return root


@pytest.fixture
def work(tmp_path, saved, monkeypatch):
    """An empty working folder with those models, as the stage `adopt` finds it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, "models")
    return tmp_path


def named(name: str, cross) -> str:
    """torchtune's name of a module of a Mllama."""
    if name == "lm_head":
        return "decoder.output"
    if name.endswith("multi_modal_projector"):
        return "encoder.projection.output"
    number, part, linear = re.search(r"layers\.(\d+)\.(\w+)\.(\w+)$", name).groups()
    kind = "mlp" if part == "mlp" else "attn"
    if "vision_model" in name:
        return f"encoder.projection.layers.{number}.{kind}.{VISION[linear]}"
    layer = int(number)
    before = sum(one < layer for one in cross)
    fusion = "fusion_layer." if layer in cross else ""
    return f"decoder.layers.{layer - before}.{fusion}{kind}.{TEXT[linear]}"


def rows_of_transformers(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Row by row: a pair of torchtune's neighbours is half a head apart in transformers."""
    found = torch.empty_like(rows)
    size = len(rows) // heads
    for head in range(heads):
        for pair in range(size // 2):
            for part in range(2):
                there = head * size + part * (size // 2) + pair
                found[there] = rows[head * size + 2 * pair + part]
    return found


def drawn(model) -> tuple[dict[str, torch.Tensor], torch.nn.Module]:
    """An adapter in torchtune's layout, and a copy of the model with the same LoRA by hand."""
    scope, text = FAMILIES["toy-mllama"].vlm_lora, model.config.text_config
    heads = {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}
    by_hand = copy.deepcopy(model)
    torch.manual_seed(5)
    adapter = {}
    for name, module in by_hand.named_modules():
        if not isinstance(module, torch.nn.Linear) or not re.fullmatch(scope, name):
            continue
        outputs, inputs = module.weight.shape
        a, b = torch.randn(RANK, inputs) * 0.05, torch.randn(outputs, RANK) * 0.05
        key = named(name, text.cross_attention_layers)
        adapter[f"{key}.lora_a.weight"], adapter[f"{key}.lora_b.weight"] = a, b
        if "language_model" in name and ".self_attn." in name:
            last = name.rpartition(".")[2]
            b = rows_of_transformers(b, heads[last]) if last in heads else b
        with torch.no_grad():
            module.weight += ALPHA / RANK * b @ a
    return adapter, by_hand


def parameters(adapter=None, interpreter=None, family="toy-mllama", **changes) -> config.Params:
    """The toy profile with given adapters, resolved into the working folder."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["seeds"], raw["family"] = [42], family
    for key, value in changes.items():
        raw["distill" if key == "rank" else key]["lora"]["rank"] = value
    if adapter is not None:
        raw["checkpoints"]["released"] = {"adapter": adapter}
        raw["states"]["checkpoint"] = "released"
        raw["variants"]["heima-official"] = {"model": "released"}
    if interpreter is not None:
        raw["interpreters"]["summary"] = {"sections": ["summary"], "adapter": interpreter}
    params = config.parse(yaml.safe_dump(raw))
    resolve.write(params)
    return params


def batch(params, processor, toy_source, toy_turns):
    collate = models.collator(processor, ImageZip(toy_source / "images.zip"), params)
    words = models.vocabulary(processor.tokenizer, params)
    made = collate(encode_turns(toy_turns[:2], "p3", words, max_length=2048))
    del made["labels"], made["image_rows"]
    return made


def test_torchtunes_adapter_gives_the_logits_of_the_same_lora_by_hand(
    work, vlm, toy_source, toy_turns
):
    weights, by_hand = drawn(vlm)
    torch.save(weights, "adapter_0.pt")
    params = parameters({"path": "adapter_0.pt"})
    adopt.main("models/released/42")
    model, processor = models.load_vlm(models.ROOT, params.trained("released", 42), params)
    # The same image once a row, as transformers has it.
    alone = params.model_copy(
        update={"training": params.training.model_copy(update={"images_once": False})}
    )
    inputs = batch(alone, processor, toy_source, toy_turns)
    with torch.no_grad():
        expected, found = by_hand(**inputs).logits, model(**inputs).logits
        bare = vlm(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (bare - expected).abs().max() > 0.1
    facts = read_json("metrics/adopt/checkpoint-released-42.json")["provenance"]["adapter"]
    assert facts["weights"] == len(weights) and facts["left"] == []
    # An adapter that was altered since names the stage that makes it.
    file = Path("models/released/42/adapter_model.safetensors")
    whole = file.read_bytes()
    stored = load_file(file)
    del stored[max(stored)]
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"`dvc repro adopt@checkpoint-released-42` makes it anew"):
        models.load_vlm(models.ROOT, "released/42", params)
    file.write_bytes(whole)
    # Every key is used, each once.
    stored = load_file("models/released/42/adapter_model.safetensors")
    assert sum(one.numel() for one in stored.values()) == facts["parameters"]
    assert len(stored) == len(weights)


def test_names_with_the_text_layer_inside_a_fused_layer_are_the_same(vlm):
    weights, _ = drawn(vlm)
    inside = {
        re.sub(r"^(decoder\.layers\.\d+\.)(attn|mlp)", r"\1layer.\2", key): value
        for key, value in weights.items()
    }
    assert inside.keys() != weights.keys()
    first, second = (torchtune.to_transformers(one, vlm.config) for one in (weights, inside))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_11bs_layers_are_numbered_as_published():
    """Fusion layers 3, 7, … 31 are the layers 3, 8, … 38; text layers fill the rest, in order."""
    from heima.planning.mllama import llama_3_2_11b_vision

    options = llama_3_2_11b_vision()
    empty = torch.empty(0)

    def layers(pattern, numbers):
        keys = {pattern.format(number): empty for number in numbers}
        named = torchtune.to_transformers(keys, options)
        return [int(re.search(r"layers\.(\d+)", name)[1]) for name in named]

    fused = layers("decoder.layers.{}.fusion_layer.mlp.w1.lora_a.weight", range(3, 32, 4))
    assert fused == [3, 8, 13, 18, 23, 28, 33, 38]
    text = layers("decoder.layers.{}.mlp.w1.lora_a.weight", range(32))
    assert sorted(fused + text) == list(range(40)) and text == sorted(text)
    with pytest.raises(torchtune.UnknownKey, match="fusion layers are, as torchtune counts, 3, 7"):
        layers("decoder.layers.{}.fusion_layer.mlp.w1.lora_a.weight", [4])


def test_reordered_rows_rotate_as_torchtunes_do():
    """Queries and keys turned pairwise, as complex numbers, score as transformers' halves do."""
    heads, size, length = 4, 6, 5
    torch.manual_seed(0)
    rows = [torch.randn(heads * size, 3) for _ in range(2)]
    inputs = torch.randn(length, 3)
    angles = torch.arange(length)[:, None] * 100.0 ** (-torch.arange(size // 2) / (size // 2))

    def scores(first, second):
        return torch.einsum("qhd,khd->hqk", first, second)

    def pairwise(matrix):
        turned = (inputs @ matrix.T).view(length, heads, size // 2, 2).contiguous()
        by = torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.view_as_real(torch.view_as_complex(turned) * by).flatten(-2)

    def halved(matrix):
        named = torchtune._halves(matrix, heads)
        first, second = (inputs @ named.T).view(length, heads, 2, size // 2).unbind(2)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    torch.testing.assert_close(scores(*map(pairwise, rows)), scores(*map(halved, rows)))
    unturned = [(inputs @ matrix.T).view(length, heads, size) for matrix in rows]
    assert not torch.allclose(scores(*map(pairwise, rows)), scores(*unturned))


def decoder(folder: Path, *, pickled=True, base="meta-llama/Llama-3.1-8B-Instruct", **changes):
    """A folder as the authors' decoders are: `adapter_model.bin` and a short configuration."""
    params = config.load(ROOT / "params.yaml")
    llm = models.load_llm(models.ROOT, params)
    adapted = models.add_lora(llm, FAMILIES["toy-mllama"].llm_lora, params.interpret.lora, seed=1)
    for key, weight in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight, std=0.05)
    weights = {
        key: value.detach().clone()
        for key, value in get_peft_model_state_dict(adapted, save_embedding_layers=False).items()
    }
    folder.mkdir(parents=True)
    stated = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": [*"q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split(),
                           "lm_head"],
        "base_model_name_or_path": base,
    }  # fmt: skip
    write_json(folder / "adapter_config.json", stated | changes)
    if pickled:
        torch.save(weights, folder / "adapter_model.bin")
    else:
        save_file(weights, folder / "adapter_model.safetensors")
    return weights, adapted


@pytest.mark.parametrize("pickled", [True, False])
def test_a_decoders_folder_is_loaded_with_every_key_used(work, pickled):
    weights, adapted = decoder(work / "given", pickled=pickled)
    params = parameters(interpreter={"path": "given"})
    for source in ("own", "question-only"):
        adopt.main(f"interpreters/summary/{source}/42")
        folder = Path("interpreters/summary") / source / "42"
        stored = load_file(folder / "adapter_model.safetensors")
        assert stored.keys() == weights.keys()
        assert all(torch.equal(stored[key], weights[key]) for key in stored)
        loaded = models.load_adapter(
            models.load_llm(models.ROOT, params), folder, again="nothing"
        ).merge_and_unload()
        ids = torch.arange(5, 25)[None]
        with torch.no_grad():
            torch.testing.assert_close(
                loaded(ids).logits, adapted(ids).logits, rtol=1e-5, atol=1e-5
            )


def test_an_exported_adapter_goes_in_again(work, vlm):
    """What `stages.export` writes is a peft folder with its base beside it."""
    params = config.load(ROOT / "params.yaml")
    adapted = models.trainable_vlm(models.ROOT, "text-cot", params, seed=1)
    for key, weight in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight, std=0.05)
    models.save_adapter(adapted, models.ROOT / "p3" / "42")
    export.export(models.ROOT, "p3", 42, params, work / "out", "card", merged=False)
    parameters({"path": "out"})
    adopt.main("models/released/42")
    first, second = (
        load_file(models.ROOT / name / "42" / "adapter_model.safetensors")
        for name in ("p3", "released")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    # The same adapter beside another text-CoT.
    with torch.no_grad():
        other = copy.deepcopy(vlm)
        other.model.language_model.layers[0].mlp.up_proj.weight += 0.01
    other.save_pretrained(models.ROOT / "text-cot")
    assert "lies on another model: " in failure("models/released/42")


def failure(folder: str) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    with pytest.raises(SystemExit) as stop:
        adopt.main(folder)
    assert not Path(folder).exists()
    message = str(stop.value.code)
    assert message.startswith("error: ") and "\n" not in message, message
    return message


class _Runs:
    """Unpickled, it would run something."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def _without(weights, part):
    return {key: value for key, value in weights.items() if part not in key}


BAD_FILES = {
    "a pickle that runs code": (
        lambda w: {**w, "x": _Runs()}, r"adapter_0\.pt is a pickle of more than tensors, which may "
        r"run code.* ask its authors for safetensors"),
    "a pickled class": (
        lambda w: {**w, "x": config.ConfigError("x")}, "is a pickle of more than tensors"),
    "numbers beside tensors": (
        lambda w: {**w, "epoch": 1}, r"more than tensors \('epoch' is a int\): name the adapter's"),
    "a checkpoint around it": (
        lambda w: {"adapter": w, "seed": 1}, r"more than tensors \('adapter' is a dict\)"),
    "a tensor alone": (lambda w: torch.zeros(3), "holds a Tensor and no tensors by name"),
    "nothing": (lambda w: {}, "holds a dict and no tensors by name"),
    "a module's half": (
        lambda w: _without(w, "decoder.layers.0.attn.q_proj.lora_b"),
        r"lacks 1 of \d+ weights, .*layers\.0\.self_attn\.q_proj\.lora_B.*download it anew"),
    "a layer less": (
        lambda w: _without(w, "decoder.layers.2."), r"lacks 14 of \d+ weights"),
    "a layer more": (
        lambda w: {**w, "decoder.layers.9.mlp.w1.lora_a.weight": torch.zeros(RANK, 64)},
        r"does not belong on models/text-cot: .*text layers are, as torchtune counts, 0, 1, 2, 3, 4"
        r"; name an adapter on that model"),
    "an unknown name": (
        lambda w: {**w, "decoder.norm.scale": torch.zeros(64)},
        r"decoder\.norm\.scale is no weight of a LoRA in torchtune's names"),
    "another width": (
        lambda w: {key: torch.cat([value, value], dim=1) if "w1.lora_a" in key and "dec" in key
                   else value for key, value in w.items()},
        r"lies on another model: its \S+ is \(16, 128\), and would be \(16, 64\) on this one"),
    "another rank": (
        lambda w: {key: value[:8] if "lora_a" in key else value[:, :8].contiguous()
                   for key, value in w.items()},
        r"has rank 8, and distill\.lora\.rank is 16: set distill\.lora\.rank to it, or name"),
    "ranks that differ": (
        lambda w: {key: value[:8] if key.endswith("w3.lora_a.weight") else value
                   for key, value in w.items()}, "has rank 8 and 16"),
    "numbers that are none": (
        lambda w: {key: value * float("nan") if "output.lora_a" in key else value
                   for key, value in w.items()}, r"is not finite in .*: download it anew"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_of_torchtune_that_cannot_be_used_is_refused_with_what_to_do(
    work, vlm, change, said
):
    torch.save(change(drawn(vlm)[0]), "adapter_0.pt")
    parameters({"path": "adapter_0.pt"})
    assert re.search(said, failure("models/released/42"))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "pickled",
    [b"", b".", b"garbage", b"\x80\x02}q\x00", b"\x80\x02h\x07.", b"\x80\x02cos\nsystem\n."],
)
def test_a_zip_whose_pickle_is_broken_is_told_so(work, vlm, pickled):
    torch.save(drawn(vlm)[0], "whole.pt")
    with zipfile.ZipFile("whole.pt") as whole, zipfile.ZipFile("adapter_0.pt", "w") as broken:
        for name in whole.namelist():
            is_it = name.endswith("data.pkl")
            broken.writestr(name, pickled if is_it else whole.read(name))
    parameters({"path": "adapter_0.pt"})
    said = failure("models/released/42")
    # An instruction that no tensor needs may be anything.
    more = pickled == b"garbage" or b"system" in pickled
    assert ("is a pickle of more than tensors" if more else "or not whole") in said


@pytest.mark.parametrize("content", [b"", b"hello, world", b"\x80\x02}q\x00.", b"PK\x03\x04", None])
def test_a_file_that_is_none_or_cut_short_is_told_so(work, vlm, content):
    torch.save(drawn(vlm)[0], "adapter_0.pt")
    whole = Path("adapter_0.pt").read_bytes()
    Path("adapter_0.pt").write_bytes(whole[: len(whole) // 2] if content is None else content)
    parameters({"path": "adapter_0.pt"})
    said = failure("models/released/42")
    assert re.search(r"is no file of torch\.save, or not whole.*: download it anew", said)


BAD_FOLDERS = {
    "another base": ({}, {"base": "meta-llama/Llama-3.2-1B"},
                     r"lies on another model: adapter_config\.json names meta-llama/Llama-3\.2-1B, "
                     r".* base: meta-llama/Llama-3\.2-1B beside its path or id"),
    "another alpha": ({"lora_alpha": 8}, {}, r"has alpha 8, and interpret\.lora\.alpha is 32: set"),
    "DoRA": ({"use_dora": True}, {}, r"is no plain LoRA: .* use_dora = True"),
    "ranks by pattern": ({"rank_pattern": {"lm_head": 4}}, {}, "rank_pattern"),
    "a bias": ({"bias": "all"}, {}, "bias = 'all'"),
    "another method": ({"peft_type": "IA3"}, {}, "peft_type = 'IA3'"),
    "modules that lack weights": ({"target_modules": r".*(proj|lm_head|embed_tokens)"}, {},
                                  r"lacks \d of \d+ weights"),
    "weights beyond its modules": ({"target_modules": ["q_proj"]}, {},
                                   r"has \d+ weights for modules that its target_modules do not"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "named", "said"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_folder_of_peft_that_cannot_be_used_is_refused_with_what_to_do(
    work, changes, named, said
):
    decoder(work / "given", **changes, **named)
    from_the_hub(work / "models/interpreter", "meta-llama/Llama-3.1-8B-Instruct")
    parameters(interpreter={"path": "given"})
    assert re.search(said, failure("interpreters/summary/own/42"))


def from_the_hub(folder: Path, identity: str) -> None:
    """Let `teach` have found a model under an id: its files lie in a folder all the same."""
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    folder.mkdir()
    write_json(folder / POINTER, {"id": identity, "path": str(elsewhere), "files": {
        file.name: {"bytes": file.stat().st_size, "sha256": given_adapter.sha256(file)}
        for file in elsewhere.iterdir()
    }})  # fmt: skip


@pytest.mark.parametrize(
    ("base", "named"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", {}),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", {}),
        ("/models/llama", {}),
        (None, {}),
        ("somebody/copy-of-llama", {"base": "somebody/copy-of-llama"}),
    ],
)
def test_a_base_by_another_name_is_taken_where_that_is_known_or_said(work, base, named):
    decoder(work / "given", base=base)
    from_the_hub(work / "models/interpreter", "meta-llama/Llama-3.1-8B-Instruct")
    parameters(interpreter={"path": "given", **named})
    adopt.main("interpreters/summary/own/42")


def test_an_adapter_of_another_family_is_refused(work, vlm, saved):
    decoder(work / "given")
    parameters({"path": "given"})
    said = failure("models/released/42")
    assert re.search(r"is of another family: its .* the model has no such linear layer", said)
    torch.save(drawn(vlm)[0], "adapter_0.pt")
    parameters(interpreter={"path": "adapter_0.pt"})
    said = failure("interpreters/summary/own/42")
    assert re.search(r"a file of torchtune, .* of type 'llama': name a folder of peft", said)
    processor = llava_next.build_processor()
    shutil.rmtree("models/text-cot")
    llava_next.build_vlm(processor, hidden_size=64, seed=1).save_pretrained("models/text-cot")
    processor.save_pretrained("models/text-cot")
    parameters({"path": "adapter_0.pt"}, family="toy-llava-next")
    assert "of type 'llava_next': name a folder of peft" in failure("models/released/42")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "is neither a file nor a folder: correct it"),
        (lambda folder: folder.mkdir(), "holds no adapter, but nothing: name torchtune's"),
        (lambda folder: decoder(folder)[0] and (folder / "adapter_model.bin").unlink(),
         r"no weights beside it: it lacks adapter_model\.safetensors"),
        (lambda folder: decoder(folder)[0] and (folder / "adapter_config.json").write_text("{"),
         r"is no configuration of a LoRA .*: download it anew"),
        (lambda folder: decoder(folder)[0] and (folder / "adapter_config.json").write_text("{}"),
         "is no configuration of a LoRA"),
        (lambda folder: decoder(folder, pickled=False)[0]
         and (folder / "adapter_model.safetensors").write_bytes(b"1234567890"),
         r"adapter_model\.safetensors cannot be read .*: download it anew"),
    ],
)  # fmt: skip
def test_a_folder_without_an_adapter_is_refused(work, make, said):
    make(work / "given")
    parameters(interpreter={"path": "given"})
    assert re.search(said, failure("interpreters/summary/own/42"))


def test_adapters_are_fetched_from_the_hub_by_commit(work, hub, vlm):
    """A repository as the authors' is laid out; later runs ask the hub nothing."""
    torch.save(drawn(vlm)[0], "adapter_0.pt")
    decoder(work / "given")
    files = {
        f"decoder/summary/{file.name}": file.read_bytes() for file in (work / "given").iterdir()
    }
    files |= {"encoder/main/adapter_0.pt": Path("adapter_0.pt").read_bytes(), "README.md": b"text"}
    hub.repositories[OFFICIAL] = Repository({"a" * 40: {}, "b" * 40: files})
    vlm_ = {"id": OFFICIAL, "within": "encoder/main/adapter_0.pt"}
    llm = {"id": OFFICIAL, "within": "decoder/summary", "revision": "b" * 40}
    parameters(vlm_, llm)
    adopt.main("models/released/42")
    made = read_json("metrics/adopt/checkpoint-released-42.json")["provenance"]["adapter"]
    assert (made["id"], made["revision"], made["within"]) == (OFFICIAL, "b" * 40, vlm_["within"])
    adopt.main("interpreters/summary/own/42")
    assert not any(path.endswith("README.md") for path, _ in hub.downloads())
    hub.log.clear()
    hub.down = True
    adopt.main("interpreters/summary/question-only/42")
    assert hub.log == []
    hub.down = False
    parameters(vlm_ | {"within": "encoder/other/adapter_0.pt"})
    said = failure("models/released/42")
    assert (
        "encoder/other/adapter_0.pt is not there: the repository holds README.md, decoder" in said
    )
    assert "correct checkpoints.released.adapter.within" in said
    parameters(vlm_ | {"revision": "c" * 40})
    assert re.search(r"has moved: params pin c+, the hub's newest", failure("models/released/42"))
    hub.down = True
    parameters(vlm_ | {"revision": "a" * 40})
    said = failure("models/released/42")
    assert "give its file or folder as checkpoints.released.adapter.path" in said


def test_a_given_checkpoint_is_there_once_and_nothing_trains_it(raw_params):
    raw_params["checkpoints"]["released"] = {"adapter": {"path": "x.pt"}}
    raw_params["checkpoints"]["more"] = raw_params["checkpoints"]["p2"] | {"init": "released"}
    raw_params["variants"]["heima-official"] = {"model": "released"}
    params = config.parse(yaml.safe_dump(raw_params))
    assert params.training_seeds("released") == (42,) != params.training_seeds("more")
    listed = runs.runs(params)
    assert list(listed["adopt"]) == ["checkpoint-released-42"]
    assert not any("released" in name for name in listed["distill"])
    assert {one["init"] for name, one in listed["distill"].items() if "more" in name} == {
        "released/42"
    }


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("checkpoints.released", {"adapter": {}}, r"adapter: give exactly one of path and id"),
        ("checkpoints.released", {"adapter": {"path": "x", "within": "y"}}, "within belongs to id"),
        ("checkpoints.released", {"adapter": {"id": "a/b", "within": "../y"}},
         r"within = '\.\./y' must be the name of a file or folder in the repository"),
        ("checkpoints.released", {"adapter": {"id": "a/b", "revision": "main"}}, "revision"),
        ("checkpoints.released", {"adapter": {"path": "x"}, "steps": 3},
         r"checkpoints\.released\.steps = 3: unknown key"),
        ("checkpoints.released", {"adapter": {"path": "x"}, "data": "p9"}, "is not one of"),
        ("checkpoints.released", {"adapter": {"path": "x"}, "init": "p1"},
         r"checkpoints\.released\.init = 'p1': .*text-cot"),
        ("interpreters.summary", {"sections": ["summary"], "adapter": {"path": "x"}, "steps": 3},
         "give steps or an adapter, not both"),
        ("interpreters.summary", {"sections": ["summary"], "adapter": {"path": "x"}},
         r"seeds = \[42, 43, 44\] must name one seed: interpreters\.summary is a given adapter"),
        ("checkpoints.recover", {"adapter": {"path": "x"}}, r"\.matched: all must be given in"),
    ],
)  # fmt: skip
def test_parameters_of_given_adapters_are_checked(raw_params, where, value, said):
    part, name = where.split(".")
    raw_params[part][name] = value
    with pytest.raises(config.ConfigError, match=said):
        config.parse(yaml.safe_dump(raw_params))


def test_the_authors_profile_trains_nothing(capsys):
    params = config.load(ROOT / "profiles" / "paper-official.yaml")
    listed = runs.runs(params)
    assert listed["distill"] == {} and listed["interpret"] == {}
    assert {one["key"] for one in listed["adopt"].values()} == {
        "checkpoints.released", *(f"interpreters.{name}" for name in params.sections)
    }  # fmt: skip
    assert (
        params.reconstruct.controls
        == config.load(ROOT / "profiles/paper.yaml").reconstruct.controls
    )
    assert params.variants["heima"].model == "released" == params.states.checkpoint
    json.dumps(config.resolved(params))
