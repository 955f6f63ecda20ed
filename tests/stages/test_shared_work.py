"""Stages that share batches over processes: one, two, a slow one and a killed one give the same."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from eval.audit import items, measures
from heima import config
from heima.config import chains
from heima.families.registry import FAMILIES
from heima.interpreting.states import SectionStates
from heima.interpreting.states import save as save_states
from heima.vlm import kept_batches, models
from heima.vlm.kept_batches import KeptBatches
from heima.vlm.processes import Processes
from stages import audit, examine, reconstruct, resolve, states, theorem, truncate
from tests.conftest import ROOT
from tests.fabricated import write_turns

RUNS = {
    "states": (states, (42,)),
    "reconstruct": (reconstruct, ("caption", 42)),
    "audit": (audit, ("recover", 42)),
    "examine": (examine, ("recover", 42)),
    "theorem": (theorem, ()),
    "truncate": (truncate, ()),
}
RESULTS = {
    "states": "states/42",
    "reconstruct": "reconstructions/caption",
    "audit": "audits/recover",
    "examine": "metrics/examine/recover",
    "theorem": "theorem",
    "truncate": "truncated",
}


@pytest.fixture(scope="module")
def ready(tmp_path_factory, toy_vlm, toy_llm, toy_processor, toy_turns, toy_source):
    """What both stages read, untrained; answers are drawn, and adapters change what is computed."""
    folder = tmp_path_factory.mktemp("ready")
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["seeds"] = [42]
    raw["states"]["batch_size"] = 4
    raw["reconstruct"].update(
        batch_size=4, max_new_tokens=6, temperature=0.7, controls=["own", "question-only"]
    )
    raw["similarity"]["judged"] = ["own"]
    # One of a single rendering, and one of a mixture that is asked for two.
    formats = {"tokens": "p3", "text": "text-cot"}
    raw["control_words"] = {"p3": "thinking", "text-cot": "explain"}
    raw["checkpoints"]["predictor"] = {
        **raw["checkpoints"]["one-shot"],
        "data": dict.fromkeys(formats.values(), 0.5),
    }
    predictors = {
        "nothing": "answer-only",
        **{part: {"model": "predictor", "asks": name} for part, name in formats.items()},
    }
    raw["audit"] = {"items": 22, "fitted": 6, "batch_size": 4, "predictors": predictors}
    (folder / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    params = config.load(folder / "params.yaml")
    (folder / "data" / "rewritten").mkdir(parents=True)
    shutil.copytree(toy_source, folder / "data" / "source")
    splits = {"train": toy_turns[:26], "heldout": toy_turns[26:]}
    for split, turns in splits.items():
        write_turns(folder / "data" / "rewritten" / f"{split}.parquet", turns)
    family = FAMILIES[params.family]
    for name, model, targets, adapters in (
        (
            "text-cot",
            toy_vlm,
            family.vlm_lora,
            [f"models/{one}/42" for one in ("recover", "predictor", "answer-only", "p1")],
        ),
        (
            "interpreter",
            toy_llm,
            family.llm_lora,
            [f"interpreters/caption/{one}/42" for one in ("own", "question-only")],
        ),
    ):
        model.save_pretrained(folder / "models" / name)
        toy_processor.save_pretrained(folder / "models" / name)
        for seed, adapter in enumerate(adapters):
            lora = models.add_lora(copy.deepcopy(model), targets, params.distill.lora, seed=seed)
            models.save_adapter(lora, folder / adapter)
    (folder / "given" / "42").mkdir(parents=True)
    for split, turns in splits.items():
        ones = torch.ones(len(turns), dtype=torch.int32)
        values = torch.randn(len(turns), 64, generator=torch.Generator().manual_seed(1))
        file = folder / "given" / "42" / f"{split}.safetensors"
        save_states(file, {"caption": SectionStates(values, ones)}, turns)
    return folder


@pytest.fixture
def workspace(ready, tmp_path, monkeypatch):
    """The current folder: what is read is shared, what is written is its own."""
    for name in ("data", "models", "interpreters"):
        (tmp_path / name).symlink_to(ready / name)
    shutil.copy(ready / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    resolve.write(config.load())
    return tmp_path


def written(stage: str) -> dict[str, bytes]:
    folder = Path(RESULTS[stage])
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*")) if file.is_file()}


def by_two(fault: str, rank: int, stage: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = ["--module", "tests.stages.shared_run", fault, str(rank), stage]
    return subprocess.run(
        [sys.executable, *launcher, *run, *map(str, RUNS[stage][1])],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def kept() -> list[Path]:
    return sorted(kept_batches.ROOT.rglob("*.batch"))


@pytest.fixture
def counted(monkeypatch):
    """The batches that this process has computed."""
    numbers = []
    put = KeptBatches.put

    def counting(self, batch, content):
        numbers.append(batch)
        put(self, batch, content)

    monkeypatch.setattr(KeptBatches, "put", counting)
    return numbers


@pytest.mark.parametrize(
    ("stage", "slow"),
    [
        ("reconstruct", ()),
        # The first waits for the others otherwise than they for it.
        pytest.param("states", (0,), marks=pytest.mark.slow),
        pytest.param("audit", (0,), marks=pytest.mark.slow),
        pytest.param("examine", (0,), marks=pytest.mark.slow),
        pytest.param("theorem", (0,), marks=pytest.mark.slow),
        pytest.param("truncate", (0,), marks=pytest.mark.slow),
        pytest.param("states", (1,), marks=pytest.mark.slow),
        pytest.param("reconstruct", (0, 1), marks=pytest.mark.slow),
    ],
)
def test_slow_and_killed_processes_change_nothing(workspace, ready, counted, stage, slow):
    main, arguments = RUNS[stage][0].main, RUNS[stage][1]
    if stage == "reconstruct":
        (workspace / "states").symlink_to(ready / "given")
    main(*arguments)
    alone = written(stage)
    total = len(counted)
    assert alone and total >= 6 and not kept(), "what was kept is gone with the result"

    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["hardware"]["workers"] = 2
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    resolve.write(config.load())
    shutil.rmtree(RESULTS[stage])
    for rank in slow:
        ended = by_two("slow", rank, stage)
        assert ended.returncode == 0, ended.stderr[-4000:]
        assert written(stage) == alone and not kept()
        shutil.rmtree(RESULTS[stage])

    ended = by_two("kill", 1, stage)
    assert ended.returncode != 0 and not Path(RESULTS[stage]).exists()
    finished = {int(file.name[:8]) for file in kept()}
    assert len(finished) >= 2
    damaged = kept()[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    counted.clear()
    main(*arguments)
    assert written(stage) == alone and not kept()
    again = {int(damaged.name[:8])}
    assert sorted(counted) == sorted(set(range(total)) - finished | again)


def test_other_inputs_have_other_batches(workspace, monkeypatch):
    """A changed model, turn, image, parameter or library is never mixed with what was kept."""
    monkeypatch.setattr(kept_batches.KeptBatches, "discard", lambda self: None)
    states.main(42)
    (first,) = kept_batches.ROOT.iterdir()
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["states"]["position"] = "predicting"
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    resolve.write(config.load())
    states.main(42)
    raw["hardware"]["logits_chunk"] = 7
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    resolve.write(config.load())
    states.main(42)
    assert len(list(kept_batches.ROOT.iterdir())) == 2
    monkeypatch.setattr(models, "version", lambda name: "another")
    states.main(42)
    assert len(list(kept_batches.ROOT.iterdir())) == 3 and first.exists()


def test_a_mixture_is_audited_behind_the_word_that_asks(workspace, monkeypatch):
    """As if the word stood in every question, of training turns and of the audit's own."""
    monkeypatch.setattr(kept_batches.KeptBatches, "discard", lambda self: None)
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["audit"] |= {"checkpoints": ["predictor"], "asks": {"predictor": "p3"}}

    def audited():
        Path("params.yaml").write_text(yaml.safe_dump(raw))
        resolve.write(config.load())
        audit.main("predictor", 42)
        return pd.read_parquet("audits/predictor/42.parquet")

    by_word = audited()
    raw["control_words"]["p3"] = "ponder"
    by_another = audited()
    assert len(list(kept_batches.ROOT.iterdir())) == 2, "batches of the two are not mixed"
    assert not np.allclose(by_word["own/nll"], by_another["own/nll"])

    def with_word(turns):
        return [dataclasses.replace(turn, question=f"{turn.question}\nthinking") for turn in turns]

    asked, load, audited_so = items.asked, measures.load_turns, chains.audited
    monkeypatch.setattr(
        items, "asked", lambda params: (with_word(asked(params)[0]), asked(params)[1])
    )
    monkeypatch.setattr(measures, "load_turns", lambda path: with_word(load(path)))
    monkeypatch.setattr(chains, "audited", lambda *named: audited_so(*named)._replace(word=None))
    shutil.rmtree(kept_batches.ROOT)
    pd.testing.assert_frame_equal(audited(), by_word, check_exact=True)


def test_an_answer_with_words_is_audited_as_long_as_a_benchmarks(workspace):
    """Its words may be as long as in prediction, and no part of it is left out."""
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["audit"] = {"checkpoints": ["p1"], "items": 6, "fitted": 4, "batch_size": 4}
    written = {}
    for limit in (3, 60):
        raw["predict"]["max_new_tokens"] = limit
        Path("params.yaml").write_text(yaml.safe_dump(raw))
        resolve.write(config.load())
        audit.main("p1", 42)
        table = pd.read_parquet("audits/p1/42.parquet")
        written[limit] = table["own/written"].sum()
        assert len(table) == 6 and not [
            one for one in table if one.startswith(("without", "first"))
        ]
        assert {"other/followed", "mediation/nie", "closed/image/all/nll"} <= set(table)
    assert written[3] == 0, "words and a conclusion are more"


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("missing", [0, 1, 2, 20, 21])
def test_what_is_missing_is_dealt_out_evenly(world, missing):
    shares = [Processes(rank, world).share(range(missing)) for rank in range(world)]
    assert sorted(one for share in shares for one in share) == list(range(missing))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
