"""Pretrained models from a hub on loopback or a folder: what is refused, what is loaded later."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from heima import config
from heima.families.registry import FAMILIES
from heima.results.files import read_json
from heima.toy import idefics3 as toy_idefics3
from heima.toy import llava_next as toy_llava_next
from heima.vlm import models, pretrained, weights
from heima.vlm.kept_answers import weights_digest
from heima.vlm.pointer import ModelError, locate
from stages import resolve, teach
from tests.conftest import ROOT
from tests.eval.hub_server import TOKEN, Repository

OLD, NEW = "a" * 40, "b" * 40
LLM, VLM = "meta-llama/Llama-3.1-8B-Instruct", "Xkev/Llama-3.2V-11B-cot"


@pytest.fixture(scope="module")
def saved(tmp_path_factory, toy_llm, toy_vlm, toy_processor):
    """Folders with the toy's models: `llm` in two parts, `vlm` in one file."""
    folder = tmp_path_factory.mktemp("saved")
    toy_llm.save_pretrained(folder / "llm", max_shard_size="300KB")
    toy_processor.tokenizer.save_pretrained(folder / "llm")
    toy_vlm.save_pretrained(folder / "vlm")
    toy_processor.save_pretrained(folder / "vlm")
    assert len(list((folder / "llm").glob("model-*.safetensors"))) > 1
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def served(tmp_path, hub, saved, monkeypatch):
    """A hub with both models; the current folder has the paper's profile as params.yaml."""
    monkeypatch.chdir(tmp_path)
    raw = yaml.safe_load((ROOT / "profiles" / "paper.yaml").read_text(encoding="utf-8"))
    raw["teach"]["vlm"]["text-cot"] = {"id": VLM}
    raw["teach"]["llm"] = {"kind": "pretrained", "id": LLM}
    raw["precision"] = "fp32"
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    resolve.write(config.load())
    # As on the hub: Meta's own files beside transformers', and pages that nobody needs here.
    more = {"original/consolidated.00.pth": b"pickle", "original/tokenizer.model": b"t",
            "README.md": b"read me", "LICENSE": b"terms", "model.bin": b"pickle"}  # fmt: skip
    llm = files_of(saved / "llm")
    hub.repositories[LLM] = Repository(
        {OLD: {**llm, "chat_template.jinja": b"old"}, NEW: llm | more}
    )
    hub.repositories[VLM] = Repository({NEW: files_of(saved / "vlm")})
    return hub


def edit(part: str, name: str | None = None, **entry) -> None:
    """Change teach.<part> (and .<name>) of params.yaml."""
    raw = yaml.safe_load(Path("params.yaml").read_text())
    if name is None:
        raw["teach"][part] = {"kind": "pretrained", **entry}
    else:
        raw["teach"][part][name] = entry
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    resolve.write(config.load())


def failure_of_teach(name: str) -> str:
    with pytest.raises(SystemExit) as stop:
        teach.main(name)
    assert not Path("models", name).exists()
    message = str(stop.value.code)
    assert message.startswith("error: ") and TOKEN not in message
    return message


def fetched(hub) -> set[str]:
    return {path.partition(f"resolve/{NEW}/")[2] for path, _ in hub.downloads()}


def test_the_commit_that_was_fetched_is_the_one_that_is_loaded(
    served, saved, toy_llm, toy_processor, capsys
):
    teach.main("interpreter")
    assert "Llama 3.1 Community License" in capsys.readouterr().out
    pointer = read_json("models/interpreter/pretrained.json")
    assert (pointer["id"], pointer["revision"]) == (LLM, NEW)
    assert {file.name for file in Path("models/interpreter").iterdir()} == {"pretrained.json"}
    assert fetched(served) == set(files_of(saved / "llm")) == set(pointer["files"])
    assert read_json("metrics/teach/interpreter.json")["provenance"]["model"] == pointer
    # The hub moves on and goes away: nothing of it is seen.
    served.repositories[LLM].commits["c" * 40] = {}
    served.log.clear()
    served.down = True
    params = config.load("params.yaml")
    loaded = models.load_llm(models.ROOT, params)
    tokenizer = models.load_tokenizer(models.ROOT, params)
    assert served.log == []
    mine, theirs = loaded.state_dict(), toy_llm.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert tokenizer.get_vocab() == toy_processor.tokenizer.get_vocab()


def test_a_vlm_is_loaded_with_its_processor(served, toy_vlm):
    teach.main("text-cot")
    served.down = True
    loaded, processor = models.load_vlm(models.ROOT, "text-cot", config.load("params.yaml"))
    mine, theirs = loaded.state_dict(), toy_vlm.state_dict()
    assert all(torch.equal(mine[name].cpu(), theirs[name]) for name in theirs)
    assert processor.image_processor is not None
    assert weights_digest(models.ROOT, "text-cot")


def test_a_pinned_commit_that_is_cached_needs_no_network(served):
    edit("llm", id=LLM, revision=OLD)
    teach.main("interpreter")
    assert (locate(models.ROOT / "interpreter") / "chat_template.jinja").read_bytes() == b"old"
    served.log.clear()
    shutil.rmtree("models")
    teach.main("interpreter")
    assert served.log == []


def test_a_revision_that_moved_is_named_beside_the_hubs(served):
    edit("llm", id=LLM, revision="d" * 40)
    message = failure_of_teach("interpreter")
    assert f"teach.llm: the model {LLM} has moved: params pin {'d' * 40}" in message
    assert f"newest commit is {NEW}; set teach.llm.revision" in message


def test_room_on_the_disk_is_checked_before_the_first_byte(served, monkeypatch):
    size = sum(map(len, served.repositories[VLM].commits[NEW].values()))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size - 1))
    message = failure_of_teach("text-cot")
    assert "GB free: make room, or set HF_HOME" in message
    assert served.downloads() == []


@pytest.mark.parametrize("state, token", [("gated", None), ("not granted", TOKEN)])
def test_a_gated_model_says_licence_page_and_token(served, monkeypatch, state, token):
    base = "meta-llama/Llama-3.2-11B-Vision-Instruct"
    served.repositories[base] = Repository(served.repositories[VLM].commits, state)
    edit("vlm", "base", id=base)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    message = failure_of_teach("base")
    for part in (
        f"teach.vlm.base: the model {base} is gated",
        f"{served.url}/{base}",
        "European Union",
        "HF_TOKEN",
        "dvc repro -f teach@base",
        "teach.vlm.base.path",
    ):
        assert part in message


def test_pickled_weights_are_refused_before_a_byte_of_them_comes(served):
    vicuna = "lmsys/vicuna-7b-v1.5"
    commit = {name: b"x" for name in ("pytorch_model-00001-of-00002.bin", "tokenizer.model")}
    config_json = served.repositories[LLM].commits[NEW]["config.json"]
    served.repositories[vicuna] = Repository({NEW: commit | {"config.json": config_json}})
    edit("llm", id=vicuna)
    message = failure_of_teach("interpreter")
    for part in (
        "pytorch_model-00001-of-00002.bin",
        f"AutoModelForCausalLM.from_pretrained('{vicuna}').save_pretrained('converted')",
        "give the folder as teach.llm.path",
    ):
        assert part in message
    assert served.downloads() == []


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"model_type": "own", "auto_map": {"AutoModel": "own.Own"}}, "auto_map.*never run"),
        ({"model_type": "own"}, "'own', which transformers does not have: name"),
        ({"model_type": "llava_next"}, "'llava_next', the family needs 'mllama'"),
        ([], "is no model's configuration"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused_before_its_weights_come(served, changed, message):
    commit = served.repositories[VLM].commits[NEW]
    found = json.loads(commit["config.json"]) | changed if changed else changed
    commit["config.json"] = json.dumps(found).encode()
    assert re.search(message, failure_of_teach("text-cot"))
    assert fetched(served) == {"config.json"}


@pytest.mark.parametrize(
    "name, message",
    [
        ("config.json", "has no config.json"),
        ("model.safetensors.index.json", "lacks model.safetensors.index.json"),
        ("model-00001-of-0000", r"lacks model-00001-of-0000\d\.safetensors: .*incomplete"),
    ],
)
def test_an_incomplete_repository_is_named(served, name, message):
    commit = served.repositories[LLM].commits[NEW]
    for file in [file for file in commit if file.startswith(name)]:
        del commit[file]
    assert re.search(message, failure_of_teach("interpreter"))


def test_a_file_damaged_in_the_cache_is_refused(served):
    edit("llm", id=LLM, revision=OLD)
    teach.main("interpreter")
    for name in ("chat_template.jinja", "model-00001-of"):
        (file,) = locate(models.ROOT / "interpreter").glob(f"{name}*")
        content = file.read_bytes()
        file.resolve().write_bytes(bytes([content[0] ^ 1]) + content[1:])
        with pytest.raises(SystemExit, match=f"{name}.* is damaged in the hub's cache.*delete"):
            teach.main("interpreter")
        file.resolve().write_bytes(content)


def test_a_cache_that_was_emptied_is_named(served):
    teach.main("interpreter")
    shutil.rmtree("cache")
    with pytest.raises(ModelError, match=rf"{LLM} at {NEW} is not in .*dvc repro -f teach@interp"):
        models.load_tokenizer(models.ROOT, config.load("params.yaml"))


# Given folders


def test_a_given_folder_is_loaded_where_it_lies(served, saved, toy_llm):
    shutil.copytree(saved / "llm", "given")
    edit("llm", path="given")
    teach.main("interpreter")
    assert served.log == []
    pointer = read_json("models/interpreter/pretrained.json")
    assert pointer["path"] == "given" and set(pointer["files"]) == set(files_of(saved / "llm"))
    loaded = models.load_llm(models.ROOT, config.load("params.yaml"))
    assert torch.equal(loaded.lm_head.weight, toy_llm.lm_head.weight)
    with Path("given/config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(ModelError, match=r"given/config\.json is \d+ bytes, teach found \d+"):
        models.load_llm(models.ROOT, config.load("params.yaml"))
    Path("given/config.json").unlink()
    with pytest.raises(ModelError, match=r"given/config\.json is missing"):
        models.load_tokenizer(models.ROOT, config.load("params.yaml"))


def test_a_given_folder_is_checked_as_the_hubs_are(served, saved):
    edit("llm", path="given")
    assert "teach.llm.path = given is not a folder" in failure_of_teach("interpreter")
    shutil.copytree(saved / "llm", "given")
    index = json.loads(Path("given/model.safetensors.index.json").read_text())
    index["weight_map"]["extra"] = "model-00009-of-00009.safetensors"
    Path("given/model.safetensors.index.json").write_text(json.dumps(index))
    message = failure_of_teach("interpreter")
    assert "lacks model-00009-of-00009.safetensors, which model.safetensors.index.json" in message
    Path("given/model.safetensors.index.json").write_text("[]")
    assert "is no index of weights" in failure_of_teach("interpreter")
    for file in Path("given").glob("model*"):
        file.rename(file.with_suffix(".bin"))
    message = failure_of_teach("interpreter")
    assert "from_pretrained('given')" in message


# Weights that are not whole, and files that are not the model's


@pytest.fixture(scope="module")
def folders(tmp_path_factory, saved):
    """A folder for each kind of model, in the layout that the hub has."""
    root = tmp_path_factory.mktemp("families")
    for twin in (toy_llava_next, toy_idefics3):
        processor = twin.build_processor()
        name = twin.__name__.rpartition(".")[2]
        twin.build_vlm(processor, hidden_size=64, seed=1).save_pretrained(root / name)
        processor.save_pretrained(root / name)
    for name, source in (("mllama", "vlm"), ("llm", "llm")):
        shutil.copytree(saved / source, root / name)
    return root


KINDS = ("mllama", "llava_next", "idefics3", "llm")


def provide(folder: Path) -> dict:
    kind = "llm" if folder.name == "llm" else "vlm"
    source = config.PretrainedModel(path=str(folder))
    new = folder.parent / f"{folder.name}-pointer"
    return pretrained.provide(source, new, key="teach.x", again="run it", kind=kind)


def change(folder: Path, change) -> None:
    """Change the weights of a folder's last file; the index, if any, is made anew."""
    file = sorted(folder.glob("model*.safetensors"))[-1]
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    if (index := folder / "model.safetensors.index.json").exists():
        named = {
            name: one.name
            for one in sorted(folder.glob("model-*.safetensors"))
            for name in load_file(one)
        }
        index.write_text(json.dumps({"metadata": {}, "weight_map": named}))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_not_whole_are_named(folders, tmp_path, capsys, kind):
    """First, last and any other weight: dropped, of another shape, not a number, infinite."""
    given = Path(shutil.copytree(folders / kind, tmp_path / kind))
    names = sorted(load_file(sorted(given.glob("model*.safetensors"))[-1]))
    assert "unused" not in provide(given)
    shutil.rmtree(tmp_path / f"{kind}-pointer")
    for number, name in enumerate({names[0], names[len(names) // 2], names[-1]}):
        # transformers' own name of it has other parts in front, in some families.
        last = re.escape(".".join(name.split(".")[-2:]))
        for fault, message in {
            "dropped": rf"teach\.x\.path = .*{kind} lacks .*{last}: its weights are incomplete",
            "reshaped": rf"{last} as \(2, 7\) instead of",
            "nan": rf"{re.escape(name)} hold numbers that are not finite",
            "inf": rf"{re.escape(name)} hold numbers that are not finite",
        }.items():
            bad = Path(shutil.copytree(folders / kind, tmp_path / f"{number}-{fault}" / kind))

            def spoil(weights, name=name, fault=fault):
                if fault == "dropped":
                    del weights[name]
                elif fault == "reshaped":
                    weights[name] = torch.zeros(2, 7)
                else:
                    weights[name].view(-1)[-1] = float(fault)

            change(bad, spoil)
            with pytest.raises(ModelError, match=message):
                provide(bad)
            assert not (bad.parent / f"{kind}-pointer").exists()
            if fault == "dropped":
                # Loading refuses it, too, where it was not provided so.
                with pytest.raises(ModelError, match=f"lacks .*{last}"):
                    weights.load("llm" if kind == "llm" else "vlm", bad, torch.float32)
    change(given, lambda weights: weights.update({"extra.weight": torch.zeros(2)}))
    assert provide(given)["unused"] == ["extra.weight"]
    assert "has weights that the model has no place for: extra.weight" in capsys.readouterr().out
    sorted(given.glob("model*.safetensors"))[-1].write_bytes(b"\0" * 99)
    shutil.rmtree(tmp_path / f"{kind}-pointer")
    with pytest.raises(ModelError, match="its weights cannot be read"):
        provide(given)


@pytest.mark.parametrize(
    "outside",
    [
        "../other/model-00001-of-00002.safetensors",
        "part/model-00001-of-00002.safetensors",
        "/etc/hostname",
        "weights.bin",
    ],
)
def test_an_index_names_parts_beside_it_alone(folders, tmp_path, outside):
    given = Path(shutil.copytree(folders / "llm", tmp_path / "llm"))
    for folder in ("other", "llm/part"):
        (tmp_path / folder).mkdir()
        shutil.copy(sorted(given.glob("model-*"))[0], (tmp_path / folder))
    index = read_json(given / "model.safetensors.index.json")
    index["weight_map"][next(iter(index["weight_map"]))] = outside
    (given / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=f"names '{re.escape(outside)}'; its parts must lie"):
        provide(given)


def test_an_adapter_beside_a_model_is_never_applied(served, saved, toy_llm, params):
    given = Path(shutil.copytree(saved / "llm", "given"))
    edit("llm", path="given")
    teach.main("interpreter")
    lora = models.add_lora(copy.deepcopy(toy_llm), r".*q_proj", params.distill.lora, seed=1)
    models.save_adapter(lora, given)
    for load in (models.load_llm, models.load_tokenizer):
        with pytest.raises(ModelError, match="given has an adapter beside the model"):
            load(models.ROOT, config.load("params.yaml"))
    shutil.rmtree("models")
    assert "has an adapter beside the model" in failure_of_teach("interpreter")
    for file in given.glob("adapter*"):
        shutil.copy(file, Path(shutil.copytree(saved / "llm", "toy", dirs_exist_ok=True)))
    with pytest.raises(ModelError, match="toy has an adapter beside the model"):
        locate(Path("toy"))


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model-00001-of-00004.safetensors"]
)
def test_a_later_change_of_the_same_size_is_seen(served, saved, monkeypatch, name):
    given = Path(shutil.copytree(saved / "llm", "given"))
    edit("llm", path="given")
    teach.main("interpreter")
    params = config.load("params.yaml")
    models.load_llm(models.ROOT, params)
    file = given / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelError, match=rf"given/{name} has changed since teach saw it"):
        models.load_llm(models.ROOT, params)
    if name.startswith("model"):
        # 20 GB are hashed once a machine, and not for a tokenizer.
        models.load_tokenizer(models.ROOT, params)
        monkeypatch.setenv("LOCAL_RANK", "1")
        models.load_llm(models.ROOT, params)
    else:
        with pytest.raises(ModelError, match="has changed since"):
            models.load_tokenizer(models.ROOT, params)
    file.write_bytes(content)
    (given / "added_tokens.json").write_text("{}")
    with pytest.raises(ModelError, match=r"given holds added_tokens\.json, which teach has not"):
        models.load_tokenizer(models.ROOT, params)


def test_an_adapter_that_is_not_whole_is_refused(tmp_path, toy_llm, params):
    targets = FAMILIES[params.family].llm_lora
    lora = models.add_lora(copy.deepcopy(toy_llm), targets, params.distill.lora, seed=1)
    models.save_adapter(lora, tmp_path / "a")
    models.load_adapter(copy.deepcopy(toy_llm), tmp_path / "a", again="it")
    file = tmp_path / "a" / "adapter_model.safetensors"
    whole = load_file(file)
    for name in (min(whole), max(whole)):
        save_file({key: value for key, value in whole.items() if key != name}, file)
        with pytest.raises(ValueError, match=rf"a lacks 1 of .* {re.escape(name)} .*`it` makes"):
            models.load_adapter(copy.deepcopy(toy_llm), tmp_path / "a", again="it")
        save_file({**whole, name: torch.full_like(whole[name], torch.nan)}, file)
        with pytest.raises(ValueError, match=f"is not finite in 1 of .*{re.escape(name)}"):
            models.load_adapter(copy.deepcopy(toy_llm), tmp_path / "a", again="it")
