"""The plug-in: found through the entry point, and one decoding of all benchmarks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from heima.results import read_json, read_jsonl, read_metrics


@pytest.fixture
def models(workspace, toy_vlm, toy_processor):
    """models/text-cot: an untrained toy model. Answers are cut after 16 tokens."""
    folder = workspace / "models"
    toy_vlm.save_pretrained(folder / "text-cot")
    toy_processor.save_pretrained(folder / "text-cot")
    changed = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    changed["predict"]["max_new_tokens"] = 16
    Path("params.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    return folder


def test_registered_through_the_entry_point():
    from lmms_eval.models import get_model, get_model_manifest

    assert get_model_manifest("heima").chat_class_path == "eval.chat_models.Heima"
    for name in ("heima", "heima-replay"):
        assert get_model(name).is_simple is False


def test_the_plug_in_is_light():
    """lmms-eval imports it at every start."""
    heavy = "{'torch', 'transformers', 'heima.models'}"
    code = f"import sys, eval.plugin as p; p.manifests(); exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_predict(models):
    from eval.prediction import predict

    first, second = Path("predictions/text-cot"), Path("again")
    predict("text-cot", first, Path("seconds.json"), models=models)
    predict("text-cot", second, Path("seconds.json"), models=models)
    assert {path.name for path in first.iterdir()} == {
        "mmstar.jsonl",
        "mmbench.jsonl",
        "mmvet.jsonl",
        "mathvista.jsonl",
        "ai2d.jsonl",
        "hallusionbench.jsonl",
        "provenance.json",
    }
    for path in first.glob("*.jsonl"):
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
        rows = read_jsonl(path)
        assert [row["doc_id"] for row in rows] == list(range(len(rows)))
        for row in rows:
            counts = row["counts"]
            assert counts["decoded"] == 16 or row["finish"] == "stop"
            assert counts["thinking"] + counts["tag"] + counts["conclusion"] <= counts["decoded"]
    assert len(read_jsonl(first / "mmbench.jsonl")) == 12
    provenance = read_json(first / "provenance.json")
    assert provenance["model"] == "text-cot"
    cells, origin = read_metrics(Path("seconds.json"))
    assert origin.items() >= provenance.items()
    for benchmark, row in cells.items():
        assert row["seconds_per_sample"].n == len(read_jsonl(first / f"{benchmark}.jsonl"))
        assert row["seconds_per_sample"].value > 0
    assert set(provenance["data"]) == set(provenance["tasks"])


def test_prompts_and_limits_are_the_tasks(models, monkeypatch):
    """What the model is asked is lmms-eval's own text; its limit is ours."""
    from eval import prediction
    from eval.chat_models import Heima
    from heima.generation import Counts, Generation

    asked = {}

    def answer(self, requests):
        for request in requests:
            asked.setdefault(request.args[4], (self._prompt(request).question, request.args[2]))
        return [Generation("", Counts(1, 1, 0, 0, 0), "stop", 0.0) for _ in requests]

    monkeypatch.setattr(Heima, "generate", answer)
    prediction.predict(
        "text-cot", Path("predictions/text-cot"), Path("seconds.json"), models=models
    )
    assert asked["ai2d"][0].endswith(
        "\nAnswer with the option's letter from the given choices directly."
    )
    assert asked["mathvista_testmini_format"][0].endswith("single integer number.")
    assert asked["mmvet"][0].startswith("First please perform reasoning")
    for _, options in asked.values():
        assert (options["max_new_tokens"], options["until"]) == (16, [])


def test_lmms_eval_runs_the_plug_in(models, params, tmp_path):
    """As its command line does it: arguments as text, its own loop, token counts per sample."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import get_model
    from lmms_eval.tasks import TaskManager

    from eval import tasks

    model = get_model("heima").create_from_arg_string(
        f"name=text-cot,models={models},params=params.yaml", {"batch_size": "5", "device": None}
    )
    results = simple_evaluate(
        model=model,
        tasks=[tasks.load(params, "ai2d", tmp_path / "cache")],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    assert results["results"]["ai2d"]["exact_match,flexible-extract"] == 0
    assert len(results["samples"]["ai2d"]) == 12
    for sample in results["samples"]["ai2d"]:
        assert sample["token_counts"][0]["output_tokens"] <= 16


def test_folder_source(params):
    """Real benchmarks lie below params source.benchmarks, a folder each."""
    from eval import tasks
    from heima.config import FolderSource

    source = FolderSource(kind="folder", path="/data", benchmarks="/data/benchmarks")
    changed = params.model_copy(update={"source": source})
    assert tasks.data_folder(changed, "ai2d") == Path("/data/benchmarks/ai2d")
    assert tasks.data_folder(params, "ai2d") == Path("data/benchmarks/ai2d")


def test_unknown_variant(workspace):
    from eval.prediction import predict

    with pytest.raises(KeyError, match="variant 'heimat' is not one of"):
        predict("heimat", Path("predictions/heimat"), Path("seconds.json"), models=Path("models"))


def test_missing_data_names_the_folder(workspace, tmp_path):
    from eval import tasks

    with pytest.raises(FileNotFoundError, match="holds no parquet file"):
        tasks.data_revision(tmp_path / "nothing")


def test_unknown_task(workspace, params, tmp_path):
    from eval import tasks

    known = params.benchmarks["ai2d"].model_copy(update={"task": "ai2e"})
    changed = params.model_copy(update={"benchmarks": {**params.benchmarks, "ai2d": known}})
    with pytest.raises(ValueError, match="has 0 tasks named 'ai2e'"):
        tasks.load(changed, "ai2d", tmp_path)
