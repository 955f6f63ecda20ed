"""What a run lacks on this machine, each with what to do about it. Nothing is fetched or spent."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from huggingface_hub import constants, get_token, try_to_load_from_cache

from heima.config import (
    GgufLlm,
    GivenAdapter,
    GivenCheckpoint,
    OpenAIJudge,
    Params,
    PretrainedModel,
    given,
)
from heima.data.licences import terms
from heima.planning import sharding
from heima.planning.estimate import SOURCE_BYTES, Estimate
from heima.planning.sharding import SPARE
from heima.results.files import read_json
from heima.toy import smol
from heima.vlm.pointer import ADAPTER

GATED = ("meta-llama/",)
"""Owners on the hub whose models are given to those who accepted their licence."""
PREFETCH = 2
"""Batches that each loader process holds ready (torch's DataLoader)."""
SHARED_MEMORY = Path("/dev/shm")
"""Where loader processes put batches."""

_LESS_TRAINING = (
    "lower hardware.micro_batch_size, set hardware.gradient_checkpointing, or shard the model: "
    f"hardware.accelerate: {sharding.FILES['fsdp2']}"
)
_INDEX = "model.safetensors.index.json"


def missing(params: Params, estimate: Estimate) -> Iterator[str]:
    """One line for each thing: what is missing, and what to do."""
    fetched = set()
    for name, (key, model) in _models(params).items():
        if not is_here(model):
            fetched.add(f"teach@{name}")
            yield from _lacking_model(key, model)
    if isinstance(params.teach.llm, GgufLlm):
        try:
            smol.gguf(params.teach.llm)
        except smol.SmolError as error:
            yield f"teach.llm: {error}"
    for key, adapter in _adapters(params):
        yield from _lacking_adapter(key, adapter)
    yield from _source(params)
    yield from _disk(estimate, fetched)
    yield from _judge(params, estimate)
    yield from _devices(params, estimate)
    if params.hardware.slurm:
        # This machine only submits: nothing of its own decides.
        if shutil.which("srun") is None:
            yield (
                "hardware.slurm: this machine has no srun; run the pipeline on a login node of the "
                "cluster, or take hardware.slurm away"
            )
        return
    yield from _driver()
    yield from _free_memory(estimate)
    yield from _shared_memory(params, estimate)


def _models(params: Params) -> dict[str, tuple[str, PretrainedModel]]:
    """What `teach` fetches rather than trains: name -> (key of params, model)."""
    found = {}
    if params.teach.vlm.kind == "pretrained":
        found["text-cot"] = "teach.vlm.text-cot", params.teach.vlm.text_cot
        found["base"] = "teach.vlm.base", params.teach.vlm.base
    if params.teach.llm.kind == "pretrained":
        found["interpreter"] = "teach.llm", params.teach.llm
    return found


def is_here(model: PretrainedModel) -> bool:
    """Whether a model's weights lie in its folder, or all of them in the hub's cache."""
    if model.path is not None:
        return any(Path(model.path).glob("*.safetensors"))
    identity, revision = given(model.id, "id"), model.revision or "main"

    def cached(name: str) -> str | None:
        found = try_to_load_from_cache(identity, name, revision=revision)
        return found if isinstance(found, str) else None

    if index := cached(_INDEX):
        return all(cached(name) for name in set(read_json(index)["weight_map"].values()))
    return cached("model.safetensors") is not None


def _lacking_model(key: str, model: PretrainedModel) -> Iterator[str]:
    if model.id is None:
        yield f"{key}: no weights (*.safetensors) in {model.path}; correct the path, or give an id"
        return
    licence = f"; {text}" if (text := terms(model.id)) else ""
    yield (
        f"{key}: the weights of {model.id} are not in the hub's cache; the stage teach downloads "
        f"them{licence}"
    )
    if model.id.startswith(GATED) and get_token() is None:
        yield (
            f"{key}: {model.id} is gated; accept its licence at {constants.ENDPOINT}/{model.id} "
            "and set HF_TOKEN to a token of that account"
        )


def _adapters(params: Params) -> Iterator[tuple[str, GivenAdapter]]:
    """What `adopt` takes: (key of params, adapter)."""
    for name, checkpoint in params.checkpoints.items():
        if isinstance(checkpoint, GivenCheckpoint):
            yield f"checkpoints.{name}.adapter", checkpoint.adapter
    for name, one in params.interpreters.items():
        if one.adapter is not None:
            yield f"interpreters.{name}.adapter", one.adapter


def _lacking_adapter(key: str, adapter: GivenAdapter) -> Iterator[str]:
    if adapter.path is not None:
        if not Path(adapter.path).exists():
            yield f"{key}: there is no {adapter.path}; correct the path, or give an id"
        return
    identity = given(adapter.id, "id")
    root = Path(constants.HF_HUB_CACHE) / f"models--{identity.replace('/', '--')}" / "snapshots"
    where = f"{adapter.revision or '*'}/{adapter.within or ADAPTER}"
    if not any(root.glob(where)):
        licence = f"; {text}" if (text := terms(identity)) else ""
        yield (
            f"{key}: {adapter.within or 'the adapter'} of {identity} is not in the hub's cache; "
            f"the stage adopt downloads it{licence}"
        )


def _source(params: Params) -> Iterator[str]:
    source = params.source
    if source.kind == "toy":
        return
    folder = Path(source.path)
    lacking = [name for name in ("train.jsonl", "images.zip") if not (folder / name).exists()]
    if lacking:
        yield f"source: {folder} lacks {' and '.join(lacking)}; " + (
            f"the stage prepare downloads {source.id}, {SOURCE_BYTES / 1e9:.0f} GB"
            if source.kind == "hub"
            else "put LLaVA-CoT-100k there, or correct source.path"
        )
    for name, data in source.benchmarks.items():
        if data.path is not None and not Path(data.path).exists():
            yield f"source.benchmarks.{name}: there is no {data.path}; put it there"
        if data.id is None:
            continue
        root = Path(constants.HF_HUB_CACHE) / f"datasets--{data.id.replace('/', '--')}"
        if not any(root.glob(f"snapshots/{data.revision or '*'}")):
            yield (
                f"source.benchmarks.{name}: {data.id} is not in the hub's cache; the stage prepare "
                "downloads it"
            )


def _disk(estimate: Estimate, fetched: set[str]) -> Iterator[str]:
    """Room for what the stages write, twice what DVC's cache copies, and for weights."""
    elsewhere = {f"teach@{name}" for name in _models(estimate.params)}
    pipeline = sum(
        stage.disk if stage.name == "prepare" else 2 * stage.disk
        for stage in estimate.stages
        if stage.name not in elsewhere
    )
    weights = sum(stage.disk for stage in estimate.stages if stage.name in fetched)
    needed: dict[int, tuple[Path, float]] = {}
    for place, size in ((Path.cwd(), pipeline), (Path(constants.HF_HUB_CACHE), weights)):
        disk = next(one for one in (place, *place.absolute().parents) if one.exists())
        first, before = needed.get(disk.stat().st_dev, (disk, 0.0))
        needed[disk.stat().st_dev] = first, before + size
    for disk, size in needed.values():
        free = shutil.disk_usage(disk).free
        if size > free:
            yield (
                f"disk: {size / 1e9:,.0f} GB will be written below {disk}, {free / 1e9:,.0f} GB "
                "are free; make room, or set HF_HOME (weights) and source.path (data) to another "
                "disk"
            )


def _judge(params: Params, estimate: Estimate) -> Iterator[str]:
    judge = params.judge
    if not isinstance(judge, OpenAIJudge):
        return
    if not os.environ.get(judge.api_key_env):
        yield f"judge: {judge.api_key_env} is not set; export the key of {judge.base_url}"
    usd = sum(stage.usd for stage in estimate.stages)
    if judge.budget_usd is not None and usd > judge.budget_usd:
        yield (
            f"judge: the calls will cost about ${usd:,.0f}, judge.budget_usd is "
            f"{judge.budget_usd:g}; raise it, or shorten similarity.judged and protocols.*.seeds"
        )


def _devices(params: Params, estimate: Estimate) -> Iterator[str]:
    machine = estimate.machine
    if machine.name == "cpu":
        if params.source.kind != "toy":
            yield "GPUs: the plan is for a CPU; models of billions of parameters need GPUs (--gpu)"
    elif not params.hardware.slurm and (here := torch.cuda.device_count()) < machine.gpus:
        yield f"GPUs: the plan is for {machine.gpus} of them, this machine has {here}"
    processes, nodes = params.hardware.processes or 1, params.hardware.nodes
    if processes * nodes > machine.gpus and machine.name != "cpu":
        where = f" on each of {nodes} nodes" if nodes > 1 else ""
        yield (
            f"hardware.processes = {processes}{where} is more than the {machine.gpus} GPUs of the "
            "plan; each process has one for itself"
        )
    best = sharding.choice(estimate)
    if best and machine.gpus > 1 and estimate.levers.sharded != (best.way == "fsdp2"):
        yield (
            f"hardware.accelerate = {params.hardware.accelerate!r} is not what suits these GPUs; "
            f"set it to {sharding.FILES[best.way]}"
        )
    room = machine.gpu.memory_gb * 1e9
    for stage in estimate.stages:
        if (held := SPARE * sum(stage.memory.values())) > room:
            yield (
                f"memory: {stage.name} needs about {held / 1e9:,.0f} GB of a device that has "
                f"{machine.gpu.memory_gb:,.0f}; {_smaller(stage.name)}"
            )


def _driver() -> Iterator[str]:
    """GPUs that the driver has and torch does not."""
    if torch.cuda.is_available() or shutil.which("nvidia-smi") is None:
        return
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    asked = subprocess.run(query, capture_output=True, text=True)
    said = (asked.stdout.strip() or asked.stderr.strip() or "nothing").splitlines()[0]
    built = torch.version.cuda
    yield f"driver: nvidia-smi says {said!r}, and torch {torch.__version__} sees no GPU; " + (
        f"it wants a driver for CUDA {built}: update the driver, or take a torch for this one"
        if built
        else "it is built for CPUs: install a torch for CUDA"
    )


def _free_memory(estimate: Estimate) -> Iterator[str]:
    """Memory that others hold, of GPUs and of the machine that reads the weights."""
    if torch.cuda.is_available():
        most = SPARE * max(sum(stage.memory.values()) for stage in estimate.stages)
        for number in range(torch.cuda.device_count()):
            free, size = torch.cuda.mem_get_info(number)
            if free < min(most, 0.95 * size):
                yield (
                    f"free memory: of GPU {number} {free / 1e9:,.0f} of {size / 1e9:,.0f} GB are "
                    "free; end what runs there, or leave it out by CUDA_VISIBLE_DEVICES"
                )
    if estimate.machine.name == "cpu":
        return
    held = estimate.processes * max(map(estimate.frozen_bytes, ("distill", "interpret")))
    if held > (free := psutil.virtual_memory().available):
        yield (
            f"free memory: {estimate.processes} processes read weights into {held / 1e9:,.0f} GB "
            f"of the machine's memory at once, {free / 1e9:,.0f} GB are free; lower "
            "hardware.processes"
        )


def _shared_memory(params: Params, estimate: Estimate) -> Iterator[str]:
    """Room for the batches that loader processes hold ready."""
    if not params.hardware.workers or not SHARED_MEMORY.is_dir():
        return
    rows = max(
        params.states.batch_size,
        params.predict.batch_size,
        params.hardware.micro_batch_size or 1,
    )
    ready = estimate.processes * params.hardware.workers * PREFETCH
    needed = ready * rows * estimate.pixel_bytes
    if needed > (free := shutil.disk_usage(SHARED_MEMORY).free):
        yield (
            f"{SHARED_MEMORY}: loader processes put up to {needed / 1e9:,.1f} GB of images there, "
            f"{free / 1e9:,.1f} GB are free; enlarge it (docker run --shm-size), or lower "
            "hardware.workers"
        )


def _smaller(stage: str) -> str:
    kind = stage.partition("@")[0]
    return {
        "distill": _LESS_TRAINING,
        "interpret": _LESS_TRAINING,
        "latency": "shorten latency.batch_sizes; sizes that do not fit are left out",
    }.get(kind, f"lower {kind}.batch_size")
