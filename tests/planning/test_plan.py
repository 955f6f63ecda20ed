"""The plan of a run: complete, following its parameters; what is missing is named."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import constants

from heima import config
from heima.config import PretrainedModel, Slurm
from heima.config.benchmarks import BENCHMARKS
from heima.cot.rendering import Rendering
from heima.cot.sections import numbered, with_controls
from heima.cot.thinking import ONE_TOKEN, Thinking
from heima.data.tokens import Vocabulary
from heima.families.registry import FAMILIES
from heima.planning import architectures, preflight, sharding, workload
from heima.planning.estimate import Estimate
from heima.planning.machine import GPUS, Machine
from heima.planning.parts import total
from reports.finished import stage_names
from stages import plan, runs
from tests.conftest import ROOT

H100 = Machine("h100", GPUS["h100"], 8, mfu=0.35, mbu=0.25)


@pytest.fixture(scope="module")
def paper():
    return config.load(ROOT / "profiles/paper.yaml")


def planned(params, machine=H100, work=None) -> Estimate:
    how = plan.levers(params)
    return Estimate(params, architectures.of(params), work or assumed(params), machine, how)


def assumed(params) -> workload.Workload:
    """The workload where nothing has run yet."""
    nowhere = ROOT / "tests/nothing"
    return workload.of(params, None, data=nowhere, metrics=nowhere)


@pytest.fixture(scope="module")
def estimate(paper):
    return planned(paper)


def stage(estimate, name):
    return next(one for one in estimate.stages if one.name == name)


def names_of_dvc(params) -> list[str]:
    """The stages of dvc.yaml, those of `foreach` and `matrix` one by one, in its order."""
    values = params.model_dump(mode="json", by_alias=True) | {"runs": runs.runs(params)}
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    return stage_names(pipeline, values)


def test_every_stage_of_the_pipeline_is_planned(estimate, paper):
    assert [one.name for one in estimate.stages] == names_of_dvc(paper)


def test_given_adapters_are_planned_and_nothing_is_trained(estimate, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    params = config.load(ROOT / "profiles" / "paper-official.yaml")
    official = planned(params, work=estimate.workload)
    names = [one.name for one in official.stages]
    assert names == names_of_dvc(params)
    assert not any(name.startswith(("distill", "interpret")) for name in names)
    assert sharding.choice(official) is None
    adopted = [one for one in official.stages if one.name.startswith("adopt@")]
    assert len(adopted) == 7 and not any(one.gpu_hours for one in adopted)
    assert stage(official, "states@42") == stage(estimate, "states@42")
    lacking = [line for line in preflight.missing(params, official) if "adapter: " in line]
    assert len(lacking) == 4 and all("the stage adopt downloads it" in line for line in lacking)
    there = tmp_path / "models--shawnricecake--Heima/snapshots" / ("a" * 40) / "decoder/caption"
    there.mkdir(parents=True)
    again = [line for line in preflight.missing(params, official) if "adapter: " in line]
    assert set(lacking) - set(again) == {one for one in lacking if "interpreters.caption" in one}


def test_a_training_seed_more_costs_one_more_of_what_is_trained(paper, estimate):
    more = planned(paper.model_copy(update={"seeds": (42, 43)}), work=estimate.workload)
    assert [one.name for one in more.stages] == names_of_dvc(more.params)
    for name in ("distill@p3", "interpret@shared-own", "reconstruct@caption", "states"):
        mark = "-" if "@" in name else "@"
        first, second = (stage(more, f"{name}{mark}{seed}") for seed in (42, 43))
        assert replace(second, name=first.name) == first
    for name, times in (("predict@heima", 2), ("predict@text-cot", 1), ("score@heima", 2),
                        ("judge", 2), ("similarity@caption", 2)):  # fmt: skip
        assert stage(more, name).samples == times * stage(estimate, name).samples


@pytest.mark.parametrize(
    "profile", ["paper", "paper-llava-next", "paper-official", "paper-methods"]
)
def test_what_is_too_much_for_a_card_is_latency_alone(profile):
    """Sizes of its batches that do not fit are left out; nothing else may stop a run of days."""
    params = config.load(ROOT / "profiles" / f"{profile}.yaml")
    large = [
        one.name
        for one in planned(params).stages
        if preflight.SPARE * sum(one.memory.values()) > 80e9
    ]
    assert set(large) <= {"latency"}


def test_all_methods_are_planned_with_the_updates_of_heima(estimate):
    """Each row's chain makes as many updates as the curriculum, whatever it trains on."""
    params = config.load(ROOT / "profiles" / "paper-methods.yaml")
    methods = planned(params, work=estimate.workload)
    assert [one.name for one in methods.stages] == names_of_dvc(params)
    samples = {one.name: one.samples for one in methods.stages}

    def updates(model: str) -> float:
        total_ = 0.0
        while model != "text-cot":
            one = params.checkpoints[model]
            total_ += samples[f"distill@{model}-42"] / one.batch_size
            model = one.init
        return total_

    phases = {"base", "text-cot", "p1", "p2", "p3"}
    rows = {one.model for one in params.variants.values()} - phases
    assert len(rows) == 15
    for model in rows:
        assert updates(model) == pytest.approx(updates("recover")), model
    for name, said in (
        ("state-1", "segments"), ("align", "teacher"), ("explain", "decoder"), ("short", "shorten"),
        ("adaptive", "mixture"),
    ):  # fmt: skip
        assert said in stage(methods, f"distill@{name}-42").note
    lengths = [
        stage(methods, f"predict@heima-adaptive-{name}").tokens
        for name in ("text-3", "text-2", "text-1", "tokens-3", "tokens-2", "tokens-1", "0")
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert stage(methods, "predict@text-cot-cut").tokens < stage(methods, "predict@text-cot").tokens
    whole = total(methods.stages)
    assert "distill@coconut-42" in plan.table(methods.stages, whole)
    assert "GPU-hours" in plan.summary(methods, whole)
    assert stage(methods, "latency").samples > stage(estimate, "latency").samples
    assert whole.usd < params.judge.budget_usd


def test_the_recipes_counts(estimate, paper):
    """4,302 turns are held out, states have 24 KB a turn, every judged control is asked about."""
    held = estimate.workload.heldout
    assert held == 4302
    assert stage(estimate, "states@42").disk == 215_095 * 24 * 1024
    assert stage(estimate, "distill@p1-42").samples == 215_095 - held
    judged = len(paper.reconstructions) * len(paper.similarity.judged) * held
    assert stage(estimate, "judge").judge_calls == judged
    rows = sum(BENCHMARKS[name].rows for name in paper.benchmarks)
    assert stage(estimate, "predict@heima").samples == 4 * rows


def test_compression_shortens_what_is_computed(estimate):
    flops = [stage(estimate, f"distill@{name}-42").flops for name in ("p1", "p2", "p3")]
    assert flops == sorted(flops, reverse=True)
    hours = [
        stage(estimate, f"predict@{name}").gpu_hours
        for name in ("text-cot", "heima", "heima-forced-prefix", "answer-only")
    ]
    assert hours == sorted(hours, reverse=True)


@pytest.mark.parametrize(
    ("lever", "less"),
    [
        ({"images_once": False}, False),
        ({"labelled_only": False}, False),
        ({"gradient_checkpointing": False}, True),
        ({"tiles": "real"}, True),
    ],
)
def test_levers_change_the_flops_as_they_should(estimate, paper, lever, less):
    other = Estimate(
        paper,
        architectures.of(paper),
        estimate.workload,
        estimate.machine,
        replace(estimate.levers, **lever),
    )
    before, after = (stage(one, "distill@p3-42").flops for one in (estimate, other))
    assert (after < before) is less and after != before


def test_hours_follow_the_machine(estimate, paper):
    half = Machine("h100", GPUS["h100"], 4, mfu=0.175, mbu=0.25)
    before, after = (
        stage(one.with_levers(replace(one.levers, sharded=True)), "distill@p1-42")
        for one in (estimate, planned(paper, half, estimate.workload))
    )
    assert after.flops == before.flops
    assert after.gpu_hours == pytest.approx(2 * before.gpu_hours)
    assert after.hours == pytest.approx(4 * before.hours)
    assert after.memory["frozen weights"] == pytest.approx(2 * before.memory["frozen weights"])


def test_the_work_is_divided_as_the_stages_divide_it(estimate, paper):
    """All that computes on GPUs, but what `stages.launch` does not start on each of them."""
    of_kind = {one.name.partition("@")[0]: one for one in estimate.stages if one.gpu_hours}
    alone = {kind for kind, one in of_kind.items() if one.gpus == 1}
    beside = {"examine", "theorem", "truncate"}  # not of this profile
    assert of_kind.keys() | beside == alone | {
        path.stem
        for path in (ROOT / "stages").glob("*.py")
        if "launch.on_all_devices(" in path.read_text(encoding="utf-8")
    }
    assert alone == {"latency"}
    vllm = paper.model_copy(update={"predict": paper.predict.model_copy(update={"engine": "vllm"})})
    assert stage(planned(vllm, work=estimate.workload), "predict@heima").gpus == 1


def test_a_batch_of_judgements_costs_half(estimate, paper):
    direct = paper.model_copy(update={"judge": paper.judge.model_copy(update={"mode": "direct"})})
    other = planned(direct, work=estimate.workload)
    assert stage(other, "judge").usd == pytest.approx(2 * stage(estimate, "judge").usd)
    assert stage(other, "score@heima").usd == stage(estimate, "score@heima").usd


def test_the_toy_is_planned_by_its_own_world(params):
    """Its turns are those of params; its tokens are counted on turns that prepare would draw."""
    work = workload.of(params, workload.tokenizer(params), data=ROOT / "no", metrics=ROOT / "no")
    turns = params.source.records * params.source.turns
    assert (work.turns, work.heldout) == (turns, round(turns * params.rewrite.heldout))
    estimate = planned(params, Machine("cpu", plan.CPU, 1, 0.35, 0.25), work)
    assert [one.name for one in estimate.stages] == names_of_dvc(params)
    # The toy's answer with three thinking tokens: eight tags, an answer of a word, the end.
    assert work.lengths.answer("p3", ONE_TOKEN) == pytest.approx(13, abs=0.2)
    assert total(estimate.stages).usd == 0
    # And with all that stands beside an audit: what reads more costs more.
    examined = config.load(ROOT / "profiles" / "toy-audit.yaml")
    estimate = planned(examined, Machine("cpu", plan.CPU, 1, 0.35, 0.25), work)
    assert [one.name for one in estimate.stages] == names_of_dvc(examined)
    audit, examine, theorem, truncate = (
        stage(estimate, name).flops
        for name in ("audit@p3-42", "examine@p3-42", "theorem@predictor", "truncate@text-cot")
    )
    assert 0 < examine < min(audit, theorem, truncate)
    assert stage(estimate, "theorem@predictor").samples == 3 * params.audit.items
    # One predictor of all formats reads and answers what three of one each do.
    apart = {"nothing": "answer-only", "tokens": "one-shot", "text": "text-cot"}
    named = {"audit": examined.audit.model_copy(update={"predictors": config.Predictors(**apart)})}
    three = planned(examined.model_copy(update=named), estimate.machine, work)
    assert stage(three, "theorem@one-shot").flops == theorem


@pytest.mark.parametrize("tags", ["text", "token", "none"])
@pytest.mark.parametrize("form", ["text", "token", "omit", "filler", "short"])
def test_the_length_of_an_answer_follows_from_its_rendering(params, toy_turns, form, tags):
    """On one turn, where a mean is the turn's own: as many tokens as its answer has."""
    if tags == "none" and form in ("text", "short"):
        return
    rendering = Rendering(summary="token", caption=form, reasoning="omit", tags=tags)
    plain = workload.tokenizer(params)
    words = Vocabulary(plain, with_controls(FAMILIES[params.family].thinking_tokens))
    for turn in toy_turns[:3]:
        lengths = workload._measured([turn], plain, None)
        for count in (1, 3):
            short = {"caption": " ".join(turn.caption.split()[:count])}
            answer = turn.written(rendering, numbered(count), short=short)
            assert lengths.answer(rendering, Thinking(tokens=count)) == words.length(answer) + 1


def test_the_passes_that_shorten_texts_are_planned(params):
    work = workload.of(params, workload.tokenizer(params), data=ROOT / "no", metrics=ROOT / "no")
    forms = {"summary": "omit", "caption": "omit", "reasoning": "text"}
    flops = {}
    for form in ("text", "short"):
        own = {"x": Rendering(**{**forms, "reasoning": form})}
        checkpoints = {"p1": params.checkpoints["p1"].model_copy(update={"data": "x"})}
        other = params.model_copy(update={"renderings": own, "checkpoints": checkpoints})
        estimate = planned(other, Machine("cpu", plan.CPU, 1, 0.35, 0.25), work)
        flops[form] = estimate._distill("p1", checkpoints["p1"]).flops
        assert (estimate._surprisals(own["x"]) > 0) == (form == "short")
    assert flops["short"] != flops["text"]
    taught = checkpoints["p1"].model_copy(update={"losses": config.Losses(align=1.0)})
    assert estimate._distill("p1", taught).flops > flops["short"]


def test_counts_of_another_profile_do_not_count(params, tmp_path):
    content = {
        "turns": {"train": 90, "heldout": 10},
        "images": {"train": 40, "heldout": 10},
        "provenance": {"profile": params.profile},
    }
    metrics = tmp_path / "rewrite.json"
    metrics.write_text(json.dumps(content))
    work = workload.of(params, None, data=tmp_path, metrics=metrics)
    assert (work.train, work.heldout, work.turns_an_image) == (90, 10, 2)
    metrics.write_text(json.dumps({**content, "provenance": {"profile": "other"}}))
    assert workload.of(params, None, data=tmp_path, metrics=metrics).turns == 6000


def test_what_is_missing_is_named_with_what_to_do(estimate, paper, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(preflight, "get_token", lambda: None)
    monkeypatch.setattr(preflight.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        preflight.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1e9, 0, 1e9)
    )
    monkeypatch.delenv(paper.judge.api_key_env, raising=False)
    lines = "\n".join(preflight.missing(paper, estimate))
    for part in (
        "teach.vlm.text-cot: the weights of Xkev/Llama-3.2V-11B-cot",
        "teach.llm: meta-llama/Llama-3.1-8B-Instruct is gated",
        "lacks train.jsonl and images.zip",
        "MMBench_DEV_EN_V11.tsv",
        "source.benchmarks.mmvet",
        "disk: ",
        "judge: OPENAI_API_KEY is not set",
        "the plan is for 8 of them, this machine has 2",
        "memory: latency",
    ):
        assert part in lines

    monkeypatch.setenv(paper.judge.api_key_env, "a key")
    monkeypatch.setattr(preflight, "get_token", lambda: "a token")
    monkeypatch.setattr(preflight.torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(
        preflight.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1e13, 0, 1e13)
    )
    kinds = {line.partition(":")[0] for line in preflight.missing(paper, estimate)}
    assert not kinds & {"disk", "judge", "GPUs"}


@pytest.mark.parametrize(
    ("gpu", "way", "why"),
    [
        ("h100", "ddp", "which the 80 GB of a card hold"),
        ("rtx4090", "fsdp2", "more than the 24 GB of a card"),
    ],
)
def test_the_plan_chooses_how_training_is_divided(estimate, paper, gpu, way, why):
    """And gives both ways: the whole model on each card, or its layers spread over all."""
    other = planned(paper, replace(H100, name=gpu, gpu=GPUS[gpu]), estimate.workload)
    found = sharding.choice(other)
    assert found.way == way and why in found.why
    assert found.needed["ddp"].fits == (way == "ddp")
    assert found.needed["ddp"].memory > 2 * found.needed["fsdp2"].memory
    # 10.67 billion weights in bf16, forward and backward.
    assert found.needed["ddp"].gathered == 0
    assert found.needed["fsdp2"].gathered == pytest.approx(2 * 2 * 10.67e9, rel=0.01)
    said = plan.divided(found)
    assert all(file in said for file in sharding.FILES.values())
    told = [line for line in preflight.missing(paper, other) if "hardware.accelerate =" in line]
    assert len(told) == (way == "fsdp2") and all(sharding.FILES[way] in line for line in told)


def test_both_ways_to_divide_training_are_configurations_of_accelerate(paper):
    from accelerate.commands.config.config_args import load_config_from_file

    for way, file in sharding.FILES.items():
        found = load_config_from_file(str(ROOT / file))
        assert (found.distributed_type == "FSDP") == (way == "fsdp2")
        hardware = paper.hardware.model_copy(update={"accelerate": str(ROOT / file)})
        assert sharding.shards(paper.model_copy(update={"hardware": hardware})) == (way == "fsdp2")
    assert paper.hardware.accelerate == sharding.FILES["ddp"]


def test_on_a_cluster_the_plan_is_for_its_nodes(estimate, paper, monkeypatch):
    """And what this machine has counts for nothing, but that it can submit."""
    asking = Slurm(nodes=2, gpus_per_node=4)
    hardware = paper.hardware.model_copy(update={"slurm": asking})
    there = paper.model_copy(update={"hardware": hardware})
    arguments = SimpleNamespace(gpu=None, gpus=None, mfu=0.35, mbu=0.25, gpu_hour_price=None)
    assert plan.machine(arguments, there).gpus == 8 and plan.machine(arguments, paper).gpus == 8
    wider = hardware.model_copy(update={"slurm": asking.model_copy(update={"nodes": 3})})
    assert plan.machine(arguments, paper.model_copy(update={"hardware": wider})).gpus == 12
    each = there.model_copy(update={"hardware": hardware.model_copy(update={"processes": 2})})
    assert stage(planned(each, work=estimate.workload), "states@42").gpus == 4
    monkeypatch.setattr(preflight.shutil, "which", lambda name: None)
    lines = list(preflight.missing(there, estimate))
    assert any(line.startswith("hardware.slurm: this machine has no srun") for line in lines)
    assert not any(line.startswith(("GPUs: the plan", "driver", "free memory")) for line in lines)
    monkeypatch.setattr(preflight.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert not any("srun" in line for line in preflight.missing(there, estimate))


@pytest.mark.parametrize(("processes", "used"), [(None, 8), (1, 1), (4, 4)])
def test_hours_are_those_of_the_processes_that_stages_start(estimate, paper, processes, used):
    """`stages.launch` starts `hardware.processes`, or one a GPU."""
    hardware = paper.hardware.model_copy(update={"processes": processes})
    other = planned(paper.model_copy(update={"hardware": hardware}), work=estimate.workload)
    for name in ("distill@p1-42", "states@42", "reconstruct@caption-42", "predict@heima"):
        one = stage(other, name)
        assert one.gpus == used
        assert one.hours == pytest.approx(8 / used * stage(estimate, name).hours, rel=1e-6)
    assert stage(other, "latency") == stage(estimate, "latency")
    many = hardware.model_copy(update={"processes": 16})
    lines = preflight.missing(paper.model_copy(update={"hardware": many}), other)
    assert any(line.startswith("hardware.processes = 16 is more than the 8") for line in lines)


def test_drivers_and_memory_are_looked_at(estimate, paper, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 470.82\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(preflight, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(preflight.torch.cuda, "is_available", lambda: False)

    def lines(free):
        usage = shutil._ntuple_diskusage(1e15, 0, free)
        monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)
        memory = SimpleNamespace(available=free)
        monkeypatch.setattr(preflight.psutil, "virtual_memory", lambda: memory)
        return [*preflight._driver(), *preflight._free_memory(estimate),
                *preflight._shared_memory(paper, estimate)]  # fmt: skip

    driver, memory, shared = lines(64e6)
    assert driver.startswith("driver: nvidia-smi says '470.82', and torch")
    assert memory.startswith("free memory: 8 processes read weights into 171 GB")
    # 8 processes, 4 loaders, 2 batches of 32 images of 4 tiles of 560 pixels.
    size = 8 * 4 * 2 * 32 * 4 * 3 * 560**2 * 4
    assert shared.startswith(f"{tmp_path}: loader processes put up to {size / 1e9:,.1f} GB")
    assert lines(1e12) == [driver]
    none = paper.model_copy(update={"hardware": paper.hardware.model_copy(update={"workers": 0})})
    assert not list(preflight._shared_memory(none, estimate))

    monkeypatch.setattr(preflight.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(preflight.torch.cuda, "device_count", lambda: 2)
    taken = {0: (20e9, 80e9), 1: (79e9, 80e9)}
    monkeypatch.setattr(preflight.torch.cuda, "mem_get_info", taken.get)
    (busy,) = lines(1e12)
    assert busy.startswith("free memory: of GPU 0 20 of 80 GB are free")


def test_weights_are_here_when_all_of_their_parts_are(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model, commit = PretrainedModel(id="some/model", revision="a" * 40), "a" * 40
    folder = tmp_path / "models--some--model" / "snapshots" / commit
    folder.mkdir(parents=True)
    index = {"weight_map": {"x": "model-00001-of-00002.safetensors", "y": "second"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "second").touch()
    assert not preflight.is_here(model)
    (folder / "model-00001-of-00002.safetensors").touch()
    assert preflight.is_here(model)
    given = PretrainedModel(path=str(tmp_path))
    assert not preflight.is_here(given)
    (tmp_path / "model.safetensors").touch()
    assert preflight.is_here(given)


def test_the_command_plans_the_paper_without_data(tmp_path, monkeypatch, capsys):
    shutil.copy(ROOT / "profiles/paper.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["plan", "--gpu", "a100", "--json"])
    with pytest.raises(SystemExit, match=r"hardware\.accelerate = 'profiles/accelerate/ddp.yaml'"):
        plan.main()
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    plan.main()
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["gpu"]["tflops"] == 312
    assert found["total"]["gpu_hours"] == pytest.approx(
        sum(one["gpu_hours"] for one in found["stages"])
    )
    assert any("Xkev/LLaVA-CoT-100k" in line for line in found["missing"])
    assert found["sharding"]["way"] == "ddp" and set(found["sharding"]["needed"]) == {
        "ddp",
        "fsdp2",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"params.yaml", "profiles"}
    shutil.copy(ROOT / "profiles/toy.yaml", tmp_path / "params.yaml")
    monkeypatch.setattr(sys, "argv", ["plan", "--gpu-hour-price", "2"])
    plan.main()
    text = capsys.readouterr().out
    assert "distill@recover-43" in text and "for GPUs at $2 an hour" in text
