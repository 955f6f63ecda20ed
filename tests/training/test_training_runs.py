"""Training as processes: killed and resumed, and shared by two that shard the model."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file

from heima.training import loop
from tests.conftest import ROOT
from tests.fabricated import write_turns
from tests.training import training_run

STEPS, SNAPSHOT = 10, 3
"""The curve has a row for two updates, so a snapshot falls within one."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toy_vlm, toy_processor, toy_turns, toy_source):
    """What `tests.training.training_run` reads; dropout, so that random numbers count, too."""
    folder = tmp_path_factory.mktemp("runs")
    toy_vlm.save_pretrained(folder / "models" / "text-cot")
    toy_processor.save_pretrained(folder / "models" / "text-cot")
    write_turns(folder / "turns.parquet", toy_turns)
    shutil.copy(toy_source / "images.zip", folder)
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["checkpoints"]["p3"].update(steps=STEPS, batch_size=10, warmup_steps=2)
    raw["checkpoints"]["one-shot"]["matched"] = raw["checkpoints"]["answer-only"]["matched"] = []
    raw["distill"]["lora"]["dropout"] = 0.1
    raw["hardware"].update(snapshot_steps=SNAPSHOT, micro_batch_size=4)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    raw["distill"]["lora"]["dropout"] = 0.0
    (folder / "sharded").mkdir()
    for name in ("models", "turns.parquet", "images.zip"):
        (folder / "sharded" / name).symlink_to(folder / name)
    (folder / "sharded" / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def llava_folder(folder):
    """The same for LLaVA-NeXT, whose models get rows for thinking tokens as they are loaded."""
    from heima.toy.llava_next import build_processor, build_vlm

    made = folder / "llava"
    processor = build_processor()
    build_vlm(processor, seed=1).save_pretrained(made / "models" / "text-cot")
    processor.save_pretrained(made / "models" / "text-cot")
    for name in ("turns.parquet", "images.zip"):
        (made / name).symlink_to(folder / name)
    raw = yaml.safe_load((folder / "sharded" / "params.yaml").read_text(encoding="utf-8"))
    raw["family"] = "toy-llava-next"
    raw["hardware"]["gradient_checkpointing"] = True
    (made / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def bf16_folder(folder):
    """The same as on GPUs: frozen weights in bf16, adapters in fp32, layers computed twice."""
    made = folder / "bf16"
    made.mkdir()
    for name in ("models", "turns.parquet", "images.zip"):
        (made / name).symlink_to(folder / name)
    raw = yaml.safe_load((folder / "sharded" / "params.yaml").read_text(encoding="utf-8"))
    raw["precision"] = "bf16"
    raw["hardware"]["gradient_checkpointing"] = True
    (made / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return made


def run(folder, out, *arguments, launcher=()):
    """As a process: by a launcher, or as a child of this one, which has imported everything.

    Where CUDA may have started, nothing can be forked.
    """
    if not launcher and not torch.cuda.is_available():
        return child(folder, out, *map(int, arguments))
    return subprocess.run(
        [
            sys.executable,
            *launcher,
            "-m",
            "tests.training.training_run",
            str(folder),
            out,
            *arguments,
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def child(folder, out, kill=0):
    files = [folder / f"{out}-{name}" for name in ("stdout", "stderr")]
    process = multiprocessing.get_context("fork").Process(
        target=as_child, args=(files, folder, out, kill)
    )
    process.start()
    process.join(300)
    assert process.exitcode is not None, "it did not end"
    return subprocess.CompletedProcess(out, process.exitcode, *(one.read_text() for one in files))


def as_child(files, *arguments):
    for number, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    # pytest's are its own files.
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    training_run.main(*arguments)
    sys.stdout.flush()


def finished(folder, out, **options):
    ended = run(folder, out, **options)
    assert ended.returncode == 0, ended.stderr[-4000:]
    weights = load_file(folder / out / "adapter_model.safetensors")
    return weights, json.loads((folder / out / "result.json").read_text()), ended.stdout


@pytest.fixture(scope="module")
def undisturbed(folder):
    return finished(folder, "undisturbed")


@pytest.mark.parametrize(
    "forward", [11, *(pytest.param(late, marks=pytest.mark.slow) for late in (2, 29))]
)
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(folder, undisturbed, forward):
    """Three micro-batches an update: killed before any snapshot, within an update, near the end."""
    out = f"killed-{forward}"
    assert run(folder, out, str(forward)).returncode == -signal.SIGKILL
    weights, result, printed = finished(folder, out)
    expected, reference, _ = undisturbed
    snapshot = (forward - 1) // 3 // SNAPSHOT * SNAPSHOT
    assert (f"goes on after step {snapshot}/{STEPS}" in printed) == (snapshot > 0)
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, expected[name]), name
    assert result == reference


def sharded(processes: int) -> list[str]:
    """The launcher of so many processes that shard the model; one process needs none."""
    if processes == 1:
        return []
    config = ROOT / "profiles" / "accelerate" / "fsdp2-cpu.yaml"
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
    return [*launcher, "--num_processes", str(processes)]


REPLICATED = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
"""The launcher of two processes that hold the whole model each (DDP)."""


@pytest.fixture(scope="module")
def alone(folder):
    return finished(folder / "sharded", "alone")


@pytest.mark.slow
def test_two_processes_shard_llava_next_too(llava_folder):
    one = finished(llava_folder, "alone")
    assert_as_one(finished(llava_folder, "shared", launcher=sharded(2)), one, processes=2)


@pytest.mark.parametrize("processes", [1, 2], ids=["replicated", "sharded"])
@pytest.mark.slow
def test_two_processes_that_feed_states_back_train_as_one(folder, processes):
    """In segments, of which all processes have as many, whole models and sharded ones; with every
    term of the loss, too."""
    made = folder / "fed"
    if not made.exists():
        made.mkdir()
        for name in ("models", "turns.parquet", "images.zip"):
            (made / name).symlink_to(folder / name)
        raw = yaml.safe_load((folder / "sharded" / "params.yaml").read_text(encoding="utf-8"))
        for name in ("p1", "p2", "p3", "recover"):
            raw["checkpoints"][name].update(feed="state", feed_scale="match")
        raw["checkpoints"]["p3"]["losses"] = {"align": 0.5, "explain": 0.3}
        (made / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    one = finished(made, "alone")
    launcher = sharded(2) if processes == 2 else REPLICATED
    shared = finished(made, "shared", launcher=launcher)
    assert_as_one(shared, one, processes=2, sharded=processes == 2)


def test_two_processes_that_shard_the_model_train_as_one(folder, alone):
    shared = finished(folder / "sharded", "shared", launcher=sharded(2))
    assert_as_one(shared, alone, processes=2)


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_that_hold_the_whole_model_train_as_one(folder, alone, killed):
    out = f"ddp-{killed}"
    if killed:
        assert run(folder / "sharded", out, "8", launcher=REPLICATED).returncode != 0
    shared = finished(folder / "sharded", out, launcher=REPLICATED)
    assert (f"goes on after step {SNAPSHOT}/{STEPS}" in shared[2]) == killed
    assert_as_one(shared, alone, processes=2, sharded=False)


@pytest.mark.slow
def test_two_processes_shard_in_bf16(bf16_folder):
    """Losses and sums of gradients are fp32: bf16 would round a loss of 3 by up to .008.

    On a GPU accelerate has a policy of its own for that; here it is the one of all devices.
    """
    weights, one, _ = finished(bf16_folder, "alone")
    shared, two, _ = finished(bf16_folder, "shared", launcher=sharded(2))
    assert two["sharded"] and {weight.dtype for weight in shared.values()} == {torch.float32}
    assert two["policies"] == [str([None, torch.float32, None])]
    values = torch.tensor([row["loss"] for row in two["curve"]] + two["losses"])
    assert not torch.equal(values, values.bfloat16().float())
    # Only the order of sums is another.
    first = [run["curve"][0]["loss"] for run in (one, two)]
    assert first[1] == pytest.approx(first[0], rel=5e-4)
    for ours, theirs in zip(one["curve"], two["curve"], strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=5e-3)
    assert two["losses"] == pytest.approx(one["losses"], rel=5e-3)
    assert {name: weight.shape for name, weight in shared.items()} == {
        name: weight.shape for name, weight in weights.items()
    }


def test_accelerates_policy_is_replaced_on_every_device(monkeypatch):
    """Where it makes the plugin itself, as on GPUs, its policy would be bf16 throughout."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    assert plugin.mixed_precision_policy.reduce_dtype == torch.bfloat16
    state = SimpleNamespace(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
    monkeypatch.setattr(loop, "Accelerator", lambda **_: SimpleNamespace(state=state))
    loop._accelerator("bf16")
    assert plugin.mixed_precision_policy == loop.SHARDED_PRECISION
    assert loop.SHARDED_PRECISION.reduce_dtype == torch.float32


@pytest.mark.parametrize(
    ("before", "after"),
    [pytest.param(*pair, marks=pytest.mark.slow) for pair in ((2, 1), (1, 2), (2, 2))],
)
def test_a_killed_run_goes_on_with_any_number_of_processes(folder, alone, before, after):
    out = f"from-{before}-to-{after}"
    # A process has two micro-batches an update, or three if it is alone.
    forward = SNAPSHOT * (2 if before == 2 else 3) + 2
    assert run(folder / "sharded", out, str(forward), launcher=sharded(before)).returncode != 0
    continued = finished(folder / "sharded", out, launcher=sharded(after))
    assert f"goes on after step {SNAPSHOT}/{STEPS}" in continued[2]
    assert_as_one(continued, alone, processes=after)


def assert_as_one(found, expected, *, processes, sharded=True):
    """A run by some processes ended as one by a single process did."""
    (weights, result, _), (wanted, single, _) = found, expected
    assert (single["processes"], result["processes"]) == (1, processes)
    assert result["sharded"] == (sharded and processes > 1)
    for ours, theirs in zip(single["curve"], result["curve"], strict=True):
        assert theirs["step"] == ours["step"]
        assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-4)
        assert theirs["learning_rate"] == ours["learning_rate"]
    assert result["surprisals"] == pytest.approx(single["surprisals"], abs=1e-4)
    assert result["losses"] == pytest.approx(single["losses"], abs=1e-4)
    for name, weight in wanted.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4)
