"""The plug-in: found through the entry point, and one decoding of all benchmarks."""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from heima import config
from heima.results.cells import read_metrics
from heima.results.files import read_json, read_jsonl, write_jsonl
from stages import resolve
from tests.conftest import ROOT
from tests.eval.conftest import SIZES

SAMPLES = sum(SIZES.values()) + 3 * SIZES["mmbench"]
"""MMBench asks each question in four rotations."""


def change_params(change):
    raw = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    change(raw)
    Path("params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    resolve.write(config.load())


def small_batches(size):
    change_params(lambda raw: raw["predict"].update(batch_size=size))


def sizes_of(size):
    """How many samples stand in each batch of a run."""
    return [min(size, SAMPLES - first) for first in range(0, SAMPLES, size)]


def stop_after(monkeypatch, batches):
    """Stop before batch `batches` is kept."""
    from heima.vlm.kept_answers import Journal

    append = Journal.append
    kept = []

    def stopping(self, batch, answers):
        if len(kept) == batches:
            raise InterruptedError
        kept.append(batch)
        append(self, batch, answers)

    monkeypatch.setattr(Journal, "append", stopping)


def spoil(benchmark, changes):
    """Change the image bytes of some rows of a benchmark."""
    (file,) = (Path("data/benchmarks") / benchmark).rglob("*.parquet")
    table = pq.read_table(file)
    images = table["image"].to_pylist()
    for row, change in changes.items():
        content = change(images[row]["bytes"])
        images[row] = None if content is None else {**images[row], "bytes": content}
    column = table.schema.get_field_index("image")
    images = pa.array(images, type=table.schema.field("image").type)
    pq.write_table(table.set_column(column, table.schema.field("image"), images), file)


@pytest.fixture
def models(workspace, params, toy_vlm, toy_processor):
    """models/: untrained toy models, `text-cot` and an adapter `recover` that changes nothing.

    Answers are cut after 8 tokens.
    """
    from heima.families.registry import FAMILIES
    from heima.vlm.models import add_lora, save_adapter

    folder = workspace / "models"
    toy_vlm.save_pretrained(folder / "text-cot")
    toy_processor.save_pretrained(folder / "text-cot")
    lora = params.distill.lora
    adapted = add_lora(copy.deepcopy(toy_vlm), FAMILIES[params.family].vlm_lora, lora, seed=1)
    save_adapter(adapted, folder / "recover" / "42")
    change_params(lambda raw: raw["predict"].update(max_new_tokens=8))
    return folder


def test_registered_through_the_entry_point():
    from lmms_eval.models import get_model, get_model_manifest

    assert get_model_manifest("heima").chat_class_path == "eval.decoding.Heima"
    for name in ("heima", "heima-replay"):
        assert get_model(name).is_simple is False


@pytest.mark.parametrize("name", ["Heima", "HeimaReplay"])
def test_outside_of_a_repository_it_says_what_to_give(tmp_path, monkeypatch, name):
    from eval import chat_models, decoding

    monkeypatch.chdir(tmp_path)
    model = getattr(decoding if name == "Heima" else chat_models, name)
    with pytest.raises(FileNotFoundError, match=r"give the folder of the repository as --model_ar"):
        model("recover/42")


@pytest.mark.slow
def test_lmms_eval_runs_it_from_another_folder(models, workspace, tmp_path_factory):
    """As docs/benchmarks.md has it: a task of lmms-eval's on local data, from anywhere."""
    import lmms_eval

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    task = Path(lmms_eval.__file__).parent / "tasks" / "mmstar" / "mmstar.yaml"
    data = (workspace / "data" / "benchmarks" / "mmstar").resolve()
    (elsewhere / "tasks").mkdir()
    (elsewhere / "tasks" / "local.yaml").write_text(
        f"include: {task}\ntask: local_mmstar\ndataset_path: {data}\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "lmms_eval", "--model", "heima", "--tasks", "local_mmstar"]
    command += ["--model_args", f"root={workspace},models={models},name=text-cot,conclusion=True"]
    command += ["--include_path", "tasks", "--batch_size", "8", "--limit", "4", "--log_samples"]
    done = subprocess.run(
        [*command, "--output_path", "out", "--verbosity", "DEBUG"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [samples] = (elsewhere / "out").rglob("*_samples_local_mmstar.jsonl")
    rows = read_jsonl(samples)
    assert [row["doc_id"] for row in rows] == [0, 1, 2, 3]
    assert all("average" in row for row in rows)


def test_the_plug_in_is_light():
    """lmms-eval imports it at every start."""
    heavy = "{'torch', 'transformers', 'heima.vlm.models'}"
    code = f"import sys, eval.plugin as p; p.manifests(); exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def answered(folder):
    """Every file of a prediction folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def decode(variant, folder, models, **options):
    """Predict, keeping journals where the test says; without, none is shared."""
    from eval.prediction import predict

    options.setdefault("journals", Path(f"{folder}-journals"))
    predict(variant, Path(folder), Path("seconds.json"), models=models, **options)
    return answered(Path(folder))


@pytest.fixture
def decoded(monkeypatch):
    """The sizes of the batches that were decoded."""
    from heima.vlm.generation import Transformers

    sizes = []
    call = Transformers.__call__

    def counting(self, prompts, ids, **options):
        sizes.append(len(prompts))
        return call(self, prompts, ids, **options)

    monkeypatch.setattr(Transformers, "__call__", counting)
    return sizes


def test_predict(models, params):
    first = decode("text-cot", "predictions/text-cot", models)
    assert first == decode("text-cot", "again", models)
    runs = [("lmms", 42), ("vlmevalkit", 42), ("vlmevalkit", 43)]
    assert set(first) == {
        "provenance.json",
        *(f"42/{protocol}/{seed}/{name}.jsonl" for protocol, seed in runs for name in SIZES),
    }
    lengths = {}
    for file in set(first) - {"provenance.json"}:
        rows = read_jsonl(Path("predictions/text-cot") / file)
        lengths[file] = len(rows)
        assert [row["doc_id"] for row in rows] == list(range(len(rows)))
        for row in rows:
            counts = row["counts"]
            assert counts["decoded"] == 8 or row["finish"] == "stop"
            assert counts["thinking"] + counts["tag"] + counts["conclusion"] <= counts["decoded"]
    for protocol, seed in runs:
        for name, size in SIZES.items():
            rotations = 4 if name == "mmbench" else 1
            assert lengths[f"42/{protocol}/{seed}/{name}.jsonl"] == rotations * size
    # Sampled answers differ from seed to seed, and from the greedy ones.
    assert first["42/vlmevalkit/42/mmstar.jsonl"] != first["42/vlmevalkit/43/mmstar.jsonl"]


def test_provenance_and_seconds(models):
    decode("heima-forced-prefix", "predictions/heima", models)
    provenance = read_json(Path("predictions/heima/provenance.json"))
    assert set(provenance) == {
        *("model", "training_seeds", "forced_prefix", "engine", "decoding", "seeds"),
        *("lmms_eval", "tasks", "data"),
    }
    assert (provenance["model"], provenance["training_seeds"]) == ("recover", [42])
    assert provenance["forced_prefix"] == "p3"
    assert provenance["seeds"] == {"lmms": [42], "vlmevalkit": [42, 43]}
    assert provenance["decoding"]["vlmevalkit"]["temperature"] == 0.6
    assert provenance["tasks"]["lmms"]["ai2d"] == "ai2d"
    assert provenance["tasks"]["vlmevalkit"]["ai2d"] == "heima_vlmevalkit_ai2d"
    for part in ("tasks", "data"):
        assert {name: set(those) for name, those in provenance[part].items()} == {
            "lmms": set(SIZES),
            "vlmevalkit": set(SIZES),
        }
    cells, origin = read_metrics(Path("seconds.json"))
    assert origin.items() >= provenance.items()
    protocols = ("lmms", "vlmevalkit")
    assert set(cells) == {f"{protocol}/{name}" for protocol in protocols for name in SIZES}
    for group, row in cells.items():
        protocol, name = group.split("/")
        seeds = provenance["seeds"][protocol]
        size = SIZES[name] * (4 if name == "mmbench" else 1) * len(seeds)
        assert row["seconds_per_sample"].n == size
        assert row["seconds_per_sample"].value > 0


def test_a_forced_prefix_is_in_the_prompt(models):
    """The variant differs from its model's free answers by the prompt, and decodes no prefix."""
    decode("heima", "free", models)
    decode("heima-forced-prefix", "forced", models)
    for name in SIZES:
        free, forced = (
            read_jsonl(Path(folder) / "42" / "lmms" / "42" / f"{name}.jsonl")
            for folder in ("free", "forced")
        )
        for one, other in zip(free, forced, strict=True):
            # Three tags, three thinking tokens, three tags.
            assert other["counts"]["prompt"] == one["counts"]["prompt"] + 9
            assert other["counts"]["decoded"] <= 8
        assert [row["text"] for row in free] != [row["text"] for row in forced]


def test_a_variant_asks_with_its_control_word(models):
    """It stands behind every question, and what is scored says which rendering was asked for."""
    shutil.copytree(models / "recover", models / "adaptive")

    def mix(raw):
        raw["control_words"] = {"p3": "thinking", "answer-only": "answer"}
        mixed = {"data": {"p3": 0.5, "answer-only": 0.5}}
        raw["checkpoints"]["adaptive"] = raw["checkpoints"]["one-shot"] | mixed
        raw["variants"]["asked"] = {"model": "adaptive", "asks": "p3"}

    change_params(mix)
    decode("heima", "free", models)
    decode("asked", "asked", models)
    more = set()
    for name in SIZES:
        free, asked = (
            read_jsonl(Path(folder) / "42" / "lmms" / "42" / f"{name}.jsonl")
            for folder in ("free", "asked")
        )
        more |= {
            b["counts"]["prompt"] - a["counts"]["prompt"] for a, b in zip(free, asked, strict=True)
        }
    # The word, and the end of the question's line, which a phrase of the toy's may hold.
    assert more <= {1, 2}
    assert json.loads(Path("asked/provenance.json").read_text())["asks"] == "p3"
    assert "asks" not in json.loads(Path("free/provenance.json").read_text())


def test_loader_processes_change_no_byte(models, decoded):
    small_batches(20)
    alone = decode("text-cot", "alone", models)
    sizes = list(decoded)
    decoded.clear()
    change_params(lambda raw: raw["hardware"].update(workers=2))
    assert decode("text-cot", "loaded", models) == alone
    assert decoded == sizes


class TestResume:
    def test_a_stopped_run_continues_at_its_batch(self, models, decoded, monkeypatch, capsys):
        small_batches(13)
        whole = decode("text-cot", "whole", models)
        batches = list(decoded)
        assert len(batches) == 3 * math.ceil(SAMPLES / 13)

        decoded.clear()
        with monkeypatch.context() as patch:
            stop_after(patch, 5)
            with pytest.raises(InterruptedError):
                decode("text-cot", "part", models)
        assert not Path("part").exists()
        assert len(decoded) == 6
        torn = max(Path("part-journals").rglob("*.jsonl"), key=lambda file: file.stat().st_size)
        torn.write_bytes(torn.read_bytes() + b'{"batch": 5, "answers": [{"te')

        decoded.clear()
        capsys.readouterr()
        assert decode("text-cot", "part", models) == whole
        assert decoded == batches[5:]
        known, total = sum(batches[:5]), sum(batches)
        assert capsys.readouterr().out == (
            f"predict@text-cot, model text-cot: {known} of {total} answers known, "
            f"{total - known} to decode\n"
        )

    def test_what_is_known_is_not_decoded_again(self, models, decoded, monkeypatch):
        whole = decode("text-cot", "first", models, journals=Path("journals"))
        runs = len(decoded) // 3
        # Not even the weights are loaded.
        with monkeypatch.context() as patch:
            patch.setattr("eval.prediction.load_vlm", None)
            assert decode("text-cot", "second", models, journals=Path("journals")) == whole
        # A third seed decodes that seed.
        decoded.clear()
        change_params(lambda raw: raw["protocols"]["vlmevalkit"].update(seeds=[42, 43, 44]))
        more = decode("text-cot", "third", models, journals=Path("journals"))
        assert len(decoded) == runs
        assert {file: more[file] for file in whole if file != "provenance.json"} == {
            file: content for file, content in whole.items() if file != "provenance.json"
        }
        decoded.clear()
        decode("text-cot", "fourth", models, journals=Path("journals"), fresh=True)
        assert len(decoded) == 4 * runs

    def test_changed_weights_are_decoded_anew(self, models, decoded, toy_vlm):
        before = decode("text-cot", "before", models, journals=Path("journals"))
        decoded.clear()
        changed = copy.deepcopy(toy_vlm)
        with torch.no_grad():
            changed.lm_head.weight.mul_(-1)
        changed.save_pretrained(models / "text-cot")
        after = decode("text-cot", "after", models, journals=Path("journals"))
        assert sum(decoded) == 3 * SAMPLES
        assert before["42/lmms/42/mmstar.jsonl"] != after["42/lmms/42/mmstar.jsonl"]


@pytest.mark.slow  # tests/rehearsal has two processes in real shapes
def test_two_processes_answer_as_one(models):
    """First one of them dies: the other stops. Then both continue, under torchrun."""
    small_batches(7)
    whole = decode("text-cot", "whole", models)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = (
        "import os, signal, sys\n"
        "from heima.vlm.kept_answers import Journal\n"
        "append = Journal.append\n"
        "def dying(self, batch, answers):\n"
        "    append(self, batch, answers)\n"
        "    if batch == 5:\n"
        "        self._open.write(b'{\"batch\": 7'); self._open.flush()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "if os.environ['RANK'] == '1':\n"
        "    Journal.append = dying\n"
        "from stages.predict import main\n"
        "main('text-cot', fresh=False)\n"
    )
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**environment, **group, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [1, -signal.SIGKILL]
    assert "another process of this run has died" in outputs[0][1]
    assert not Path("predictions").exists()

    change_params(lambda raw: raw.update(hardware={"processes": 2}))
    done = subprocess.run(
        [sys.executable, "-m", "stages.predict", "text-cot"],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=120,
    )
    # All that the first of the two had to do, and three batches (1, 3, 5) of the other.
    per_run = math.ceil(SAMPLES / 7)
    own = 3 * sum(size for batch, size in enumerate(sizes_of(7)) if batch % 2 == 0)
    assert per_run >= 6
    assert f"{own + 21} of {3 * SAMPLES} answers known" in done.stdout
    assert answered(Path("predictions/text-cot")) == whole
    files = {file.name for file in Path(".cache/predictions").rglob("*.jsonl")}
    assert files == {"0-of-2.jsonl", "1-of-2.jsonl"}


def test_every_unusable_sample_is_named_before_anything_is_decoded(models, decoded):
    """Of all benchmarks and kinds at once: no image, half an image, an empty field."""
    shutil.copytree(Path("data").resolve(), "own")
    Path("data").unlink()
    Path("own").rename("data")
    half = {5: lambda content: content[: len(content) // 2]}
    spoil("mmstar", {2: lambda content: b"no image", **half})
    spoil("ai2d", {0: lambda content: None})
    with pytest.raises(ValueError) as caught:
        decode("text-cot", "predictions/text-cot", models)
    first, *lines = str(caught.value).splitlines()
    assert first == "6 samples cannot be asked:"
    for protocol in ("lmms", "vlmevalkit"):
        found = [line.strip() for line in lines if line.strip().startswith(f"{protocol}/")]
        assert [line.split(":")[0] for line in found] == [
            f"{protocol}/mmstar, sample 2",
            f"{protocol}/mmstar, sample 5",
            f"{protocol}/ai2d, sample 0",
        ]
        assert "UnidentifiedImageError" in found[0]
        assert "0x" not in found[0]
        assert "truncated" in found[1]
        assert "its image is empty" in found[2]
    assert not decoded
    assert not Path("predictions").exists()


def test_prompts_and_limits_are_the_tasks(models, params, monkeypatch):
    """What the model is asked is the task's own text; its limit is ours."""
    from eval import prediction

    asked = {}
    prompts_of = prediction.prompts_of

    def recording(requests, datasets, **options):
        prompts = prompts_of(requests, datasets, **options)
        for (name, request), prompt in zip(requests, prompts, strict=True):
            asked.setdefault(name, (prompt.question, request.args[2]))
        return prompts

    monkeypatch.setattr(prediction, "prompts_of", recording)
    decode("text-cot", "predictions/text-cot", models)
    assert asked["lmms/ai2d"][0].endswith(
        "\nAnswer with the option's letter from the given choices directly."
    )
    assert asked["lmms/mathvista"][0].endswith("single integer number.")
    assert asked["lmms/mmvet"][0].startswith("First please perform reasoning")
    assert not asked["vlmevalkit/mmvet"][0].startswith("First please perform reasoning")
    assert len(asked) == 2 * len(params.benchmarks)
    for _, options in asked.values():
        assert (options["max_new_tokens"], options["until"]) == (8, [])


@pytest.mark.parametrize(
    ("protocol", "task", "prefix"),
    [("lmms", "ai2d", ""), ("vlmevalkit", "heima_vlmevalkit_ai2d", "p3")],
)
def test_lmms_eval_runs_the_plug_in(models, params, tmp_path, open_gateway, protocol, task, prefix):
    """As its command line does it: arguments as text, its own loop, token counts per sample."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import get_model
    from lmms_eval.tasks import TaskManager

    from eval import tasks

    change_params(lambda raw: raw["protocols"]["vlmevalkit"].update(temperature=0.0, seeds=[42]))
    open_gateway(params.judge)
    arguments = f"name=text-cot,models={models},params=params.yaml,protocol={protocol}"
    model = get_model("heima").create_from_arg_string(
        arguments + (f",forced_prefix={prefix}" if prefix else ""),
        {"batch_size": "5", "device": None},
    )
    results = simple_evaluate(
        model=model,
        tasks=[tasks.load(params, protocol, "ai2d", tmp_path / "cache")],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        cli_args=argparse.Namespace(
            output_path=str(tmp_path), process_with_media=False, reasoning_tags="none"
        ),
    )
    decode("text-cot", "predictions/text-cot", models)
    saved = read_jsonl(Path(f"predictions/text-cot/42/{protocol}/42/ai2d.jsonl"))
    samples = results["samples"][task]
    assert len(samples) == 12
    for sample, row in zip(samples, saved, strict=True):
        found = sample["token_counts"][0]
        assert found["output_tokens"] <= 8
        assert found["input_tokens"] == row["counts"]["prompt"] + (9 if prefix else 0)
        if not prefix:
            assert sample["resps"][0][0] == row["text"]


def test_unknown_protocol(models):
    from eval.decoding import Heima

    change_params(lambda raw: raw["protocols"].pop("vlmevalkit"))
    with pytest.raises(KeyError, match=r"protocol 'vlmevalkit' is not one of \['lmms'\]"):
        Heima(name="text-cot", models=str(models), protocol="vlmevalkit")


def test_a_run_is_replayed_for_every_protocols_task(models):
    from lmms_eval.api.instance import Instance

    from eval.chat_models import HeimaReplay

    decode("text-cot", "predictions/text-cot", models)
    run = Path("predictions/text-cot/42/vlmevalkit/43")
    replay = HeimaReplay(predictions=str(run))

    def ask(task, doc_id):
        request = Instance(
            request_type="generate_until",
            arguments=("", None, {}, doc_id, task, "test"),
            idx=0,
            metadata={"task": task, "doc_id": doc_id, "repeats": 1},
        )
        return replay.generate_until([request])[0]

    for row in read_jsonl(run / "mmbench.jsonl"):
        for task in ("mmbench_en_dev", "heima_vlmevalkit_mmbench"):
            found = ask(task, row["doc_id"])
            assert found.text == row["text"]
            assert found.token_counts.output_tokens == row["counts"]["decoded"]
            assert found.token_counts.reasoning_tokens == row["counts"]["thinking"]
    with pytest.raises(KeyError, match="has no prediction of ai2d, sample 99"):
        ask("ai2d", 99)


@pytest.mark.parametrize("odd", ["\0", "\x0b", "\x1f", "\x08"])
def test_a_replayed_answer_can_stand_in_a_spreadsheet(tmp_path, odd):
    """lmms-eval's MMBench writes all answers into one, and openpyxl refuses control characters."""
    from openpyxl import Workbook

    from eval.chat_models import HeimaReplay

    counts = dict.fromkeys(("prompt", "decoded", "thinking"), 1)
    for benchmark in config.load(ROOT / "params.yaml").benchmarks:
        rows = [{"doc_id": 0, "text": f"A{odd}\n\tB é", "counts": counts}]
        write_jsonl(tmp_path / f"{benchmark}.jsonl", rows if benchmark == "mmbench" else [])
    request = SimpleNamespace(args=("", None, {}, 0, "mmbench_en_dev", "test"))
    replay = HeimaReplay(predictions=str(tmp_path), params=str(ROOT / "params.yaml"))
    [found] = replay.generate_until([request])
    assert found.text == "A\N{REPLACEMENT CHARACTER}\n\tB é"
    Workbook().active.append([found.text])


def test_unknown_variant(workspace):
    from eval.prediction import predict

    with pytest.raises(KeyError, match="variant 'heimat' is not one of"):
        predict("heimat", Path("predictions/heimat"), Path("seconds.json"), models=Path("models"))


def test_a_model_that_is_not_there(models):
    with pytest.raises(FileNotFoundError, match="p3/42 holds no model"):
        decode("heima-no-recover", "predictions/p3", models)
