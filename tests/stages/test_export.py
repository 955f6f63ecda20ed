"""`stages.export --push`: what arrives on a hub is the folder; what is refused says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants, snapshot_download
from torch import nn

from heima import config
from heima.toy.twins import TWINS
from heima.vlm import models
from stages import export, resolve
from tests.conftest import ROOT
from tests.eval.hub_server import TOKEN, Repository

NAME = "somebody/heima-toy"


@pytest.fixture
def trained(tmp_path, hub, monkeypatch):
    """A working folder with text-CoT and a drawn adapter `p3`, and an account on a hub."""
    monkeypatch.chdir(tmp_path)
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    Path("params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    params = config.load()
    resolve.write(params)
    twin = TWINS[params.family]
    processor = twin.build_processor()
    twin.build_vlm(processor, hidden_size=64, seed=1).save_pretrained("models/text-cot")
    processor.save_pretrained("models/text-cot")
    adapted = models.trainable_vlm(models.ROOT, "text-cot", params, seed=1)
    for key, weight in adapted.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(weight, std=0.05)
    models.save_adapter(adapted, models.ROOT / "p3" / "42")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # The older of the hub's two protocols for large files; the other one's client is compiled.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return hub


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("public", [False, True])
def test_what_arrives_is_the_folder(trained, capsys, merged, public):
    export.main("p3", Path("out"), 42, merged=merged, repository=NAME, public=public)
    assert f"{trained.url}/{NAME}/commit/" in capsys.readouterr().out
    assert trained.repositories[NAME].state == ("open" if public else "private")
    sent = list(trained.repositories[NAME].commits.values())[-1]
    here = {
        path.relative_to("out").as_posix(): path.read_bytes()
        for path in Path("out").rglob("*")
        if path.is_file()
    }
    assert sent == here and "README.md" in sent
    found = Path(snapshot_download(NAME))
    weights = "model.safetensors" if merged else "adapter_model.safetensors"
    assert (found / weights).read_bytes() == here[weights]


def failure(**named) -> str:
    with pytest.raises(SystemExit) as stop:
        export.main("p3", Path("out"), 42, merged=False, **{"repository": NAME, **named})
    message = str(stop.value.code)
    assert message.startswith("error: ") and TOKEN not in message and "\n" not in message
    # It is exported all the same.
    assert (Path("out") / "adapter_config.json").exists()
    return message


def test_a_hub_that_refuses_is_told_with_what_to_do(trained, monkeypatch):
    trained.may_write = False
    said = failure()
    assert "was refused (HTTP 403): check that HF_TOKEN is a token of an account that may" in said
    assert f"`hf upload {NAME} out` sends it" in said


def test_without_a_token_nothing_is_sent(trained, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "needs a token that may write: set HF_TOKEN" in failure()
    assert not trained.log


@pytest.mark.parametrize("name", ["heima", "a/b/c", "a b/c", ""])
def test_a_name_that_is_none_is_told(trained, name):
    assert "is no repository's name: give it as OWNER/NAME" in failure(repository=name)
    assert not trained.log


def test_a_repository_that_everybody_sees_is_not_written_by_mistake(trained):
    trained.repositories[NAME] = Repository({"a" * 40: {}})
    assert "is there and everybody sees it: say --public if that is meant" in failure()
    assert list(trained.repositories[NAME].commits) == ["a" * 40]


def test_a_hub_out_of_reach_is_told(trained, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "is out of reach (ConnectError): check the network" in failure()
