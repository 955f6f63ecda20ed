"""Fixtures that many tests share: small toy sources, models and turns, made once a session."""

from __future__ import annotations

import copy
import functools
import os
import signal

from heima.results import machine

# Behind a shell's `&` Ctrl-C is ignored, and so it would be by all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch is imported. One thread, too: tiny models are 3-5 times slower with two under load.
machine.pin()
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Of whoever runs the tests: nothing of them belongs there.
for _name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(_name, None)

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import yaml  # noqa: E402

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The small pipeline first: it takes longest, and only one process of `-n` runs its tests."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


@pytest.fixture(scope="session")
def params():
    """The committed toy profile."""
    from heima import config

    return config.load(ROOT / "params.yaml")


@functools.cache
def _committed() -> dict:
    return yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def raw_params():
    """The committed toy profile as plain data, to be changed by a test."""
    return copy.deepcopy(_committed())


@pytest.fixture(scope="session")
def toy_source(tmp_path_factory, params):
    """A folder with a small `train.jsonl` and `images.zip` of the toy world."""
    from heima.toy.source import write_source

    folder = tmp_path_factory.mktemp("source")
    write_source(folder, records=24, turns=2, mix=params.source.mix, seed=7)
    return folder


@pytest.fixture(scope="session")
def toy_turns(toy_source, tmp_path_factory, params):
    from heima.data.rewriting import rewrite
    from heima.data.turns import load_turns

    folder = tmp_path_factory.mktemp("rewritten")
    settings = params.rewrite.model_copy(update={"image_place": "alternate"})
    counts = rewrite(toy_source, folder, settings, seed=7)
    assert not counts["dropped"]
    turns = [
        turn for split in ("train", "heldout") for turn in load_turns(folder / f"{split}.parquet")
    ]
    return sorted(turns, key=lambda turn: turn.id)


@pytest.fixture(scope="session")
def toy_processor():
    from heima.toy.mllama import build_processor

    return build_processor()


@pytest.fixture(scope="session")
def toy_vocabulary(toy_processor, params):
    from heima.vlm import models

    return models.vocabulary(toy_processor.tokenizer, params)


@pytest.fixture(scope="session")
def toy_vlm(toy_processor, params):
    """An untrained toy VLM."""
    from heima.toy.mllama import build_vlm

    return build_vlm(toy_processor, hidden_size=params.teach.vlm.hidden_size, seed=1).eval()


@pytest.fixture(scope="session")
def toy_llm(toy_processor, params):
    """An untrained toy LLM."""
    from heima.toy.models import build_llm

    return build_llm(
        toy_processor.tokenizer, hidden_size=params.teach.llm.hidden_size, seed=1
    ).eval()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on loopback without repositories, and an empty cache for it."""
    import huggingface_hub.constants

    from tests.eval.hub_server import Hub

    with Hub() as server:
        addresses = "{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{server.url}/{addresses}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


@pytest.fixture(scope="session")
def llava_params(params):
    """The toy profile for the family `toy-llava-next`."""
    return params.model_copy(update={"family": "toy-llava-next"})


@pytest.fixture(scope="session")
def llava_processor(llava_params):
    """The toy LLaVA-NeXT's processor with the family's thinking tokens."""
    from heima.families.registry import FAMILIES
    from heima.toy.llava_next import build_processor
    from heima.vlm.added_tokens import equip

    processor = build_processor()
    equip(processor.tokenizer, FAMILIES[llava_params.family])
    return processor


@pytest.fixture(scope="session")
def llava_vocabulary(llava_processor, llava_params):
    from heima.vlm import models

    return models.vocabulary(llava_processor.tokenizer, llava_params)


@pytest.fixture(scope="session")
def llava_vlm(llava_processor, llava_params):
    """An untrained toy LLaVA-NeXT with rows for thinking tokens."""
    from heima.families.registry import FAMILIES
    from heima.toy.llava_next import build_processor, build_vlm
    from heima.vlm.added_tokens import fit

    model = build_vlm(build_processor(), hidden_size=64, seed=1)
    fit(model, llava_processor.tokenizer, FAMILIES[llava_params.family])
    return model.eval()
