"""A small rehearsal: the stages of the paper's second family that touch a model, on one process and
on two, in the real shapes. `make rehearse` runs all stages of both families."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from eval import lmms_start

lmms_start.quiet()

from heima import config  # noqa: E402
from heima.config.profiles import written_out  # noqa: E402
from heima.results.files import read_json, read_jsonl  # noqa: E402
from tests.conftest import ROOT  # noqa: E402
from tests.rehearsal import stages as rehearsed  # noqa: E402
from timings.rehearsal import make  # noqa: E402

FAMILY, PROFILE = "llava-next-vicuna-7b", "rehearsal-llava-next"


def smaller(made: Path) -> dict:
    """The profile with one checkpoint, one benchmark and one protocol, in fp32."""
    raw = yaml.safe_load(written_out(ROOT / f"profiles/{PROFILE}.yaml"))
    raw = yaml.safe_load(yaml.safe_dump(raw).replace("data/rehearsal", str(made)))
    raw["precision"] = "fp32"
    raw["hardware"].update(accelerate=None, processes=1, workers=0)
    raw["checkpoints"] = {"p3": raw["checkpoints"]["p3"] | {"init": "text-cot"}}
    raw["states"]["checkpoint"] = "p3"
    raw["variants"] = {"heima": {"model": "p3", "forced_prefix": "p3"}}
    raw["latency"].update(cases={"heima": {"variant": "heima"}}, protocol="lmms")
    raw["benchmarks"] = ["mmstar"]
    given = raw["source"]["benchmarks"]
    raw["source"]["benchmarks"] = {"mmstar": given["mmstar"]}
    raw["protocols"] = {"lmms": raw["protocols"]["lmms"]}
    raw["reconstruct"].update(controls=["own"], max_new_tokens=4)
    raw["similarity"]["judged"] = ["own"]
    raw["predict"]["max_new_tokens"] = 4
    return raw


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder in which one process has run all of it."""
    from stages import prepare, resolve, rewrite, teach

    folder = tmp_path_factory.mktemp("one")
    made = tmp_path_factory.mktemp("made")
    make.write(made, [FAMILY], records=5)
    (folder / "params.yaml").write_text(yaml.safe_dump(smaller(made)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        resolve.write(config.load())
        prepare.main()
        rewrite.main()
        for name in ("text-cot", "interpreter"):
            teach.main(name)
        rehearsed.trained()
        rehearsed.read()
        rehearsed.interpreted()
        rehearsed.rebuilt()
    return folder


def test_every_turn_passes_through_the_real_shapes(one):
    counts = read_json(one / "metrics/rewrite.json")
    assert counts["turns"]["train"] >= 4 and counts["turns"]["heldout"] > 0
    assert counts["dropped"] == {"repeated_id": 1}
    found = load_file(one / "states/42/train.safetensors")
    assert all(torch.isfinite(part).all() for part in found.values() if part.is_floating_point())
    rows = read_jsonl(one / "predictions/heima/42/lmms/42/mmstar.jsonl")
    assert [row["counts"]["decoded"] > 0 for row in rows] == [True] * len(rows)


@pytest.fixture(scope="module")
def two(one, tmp_path_factory):
    """The same by two processes, with the first one's adapters where these are read."""
    folder = tmp_path_factory.mktemp("two")
    for name in ("params.yaml", "resolved.yaml"):
        shutil.copy(one / name, folder)
    for name in ("data", "fingerprints"):
        if (one / name).exists():
            shutil.copytree(one / name, folder / name)
    for name in ("text-cot", "interpreter"):
        shutil.copytree(one / "models" / name, folder / "models" / name)
    launched = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "--module", "tests.rehearsal.stages"),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert launched.returncode == 0, launched.stderr[-4000:]
    return folder


def test_two_processes_train_what_one_trains(one, two):
    for place in ("models/p3/42", "interpreters/shared/own/42"):
        alone, shared = (
            load_file(folder / place / "adapter_model.safetensors") for folder in (one, two)
        )
        assert alone.keys() == shared.keys()
        for name, weight in alone.items():
            torch.testing.assert_close(weight, shared[name], atol=1e-4, rtol=1e-3)
        curves = [
            [row["loss"] for row in read_jsonl(folder / place / "loss.jsonl")]
            for folder in (one, two)
        ]
        assert curves[0] == pytest.approx(curves[1], abs=1e-4)


def test_two_processes_read_what_one_reads(one, two):
    """Up to what the adapters differ by: the number of turns, their order, and the states."""
    for split in ("train", "heldout"):
        alone, shared = (
            load_file(folder / f"states/42/{split}.safetensors") for folder in (one, two)
        )
        assert alone.keys() == shared.keys()
        for name, values in alone.items():
            torch.testing.assert_close(values, shared[name], atol=1e-3, rtol=1e-2)
    rows = [read_jsonl(folder / "reconstructions/reasoning/42.jsonl") for folder in (one, two)]
    asked = [[(row["id"], row["control"], row["reference"]) for row in some] for some in rows]
    assert asked[0] == asked[1]
    scores = [[row["nll"] for row in some] for some in rows]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    answers = [
        [row["doc_id"] for row in read_jsonl(folder / "predictions/heima/42/lmms/42/mmstar.jsonl")]
        for folder in (one, two)
    ]
    assert answers[0] == answers[1] != []
