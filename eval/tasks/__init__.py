"""lmms-eval's own tasks on a local copy of their data.

Prompts, scoring and aggregation stay lmms-eval's. Four things change: where the data lies, how
many tokens an answer may have (ai2d's own 16 and hallusion_bench's 128 would cut a staged answer
before its conclusion), no stop strings, and that the conclusion is what is scored.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset
from lmms_eval.api.filter import Filter
from lmms_eval.api.task import ConfigurableMessagesTask
from lmms_eval.utils import load_yaml_config

from heima import cot
from heima.config import Params


def lmms_eval_version() -> str:
    """The installed version; `eval` was written against the prompts and fields of 0.7.3."""
    return importlib.metadata.version("lmms-eval")


def data_folder(params: Params, benchmark: str) -> Path:
    """Where a benchmark's parquet files lie: a toy edition, or the folder of params.source."""
    if params.source.kind == "folder":
        return Path(params.source.benchmarks) / benchmark
    return Path("data/benchmarks") / benchmark


def data_revision(folder: Path) -> str:
    """A short SHA-256 over the names and bytes of a benchmark's parquet files.

    Raises `FileNotFoundError` where there are none.
    """
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no parquet file of this benchmark")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder)}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def load(params: Params, benchmark: str, cache: Path) -> ConfigurableMessagesTask:
    """The lmms-eval task of a benchmark on its local data.

    `cache` is a folder for the arrow files that `datasets` makes. One task's configuration is
    read directly: lmms-eval's index of its 1,500 tasks takes 5 s.
    """
    config = load_yaml_config(_configuration(params.benchmarks[benchmark].task), mode="full")
    generation = {
        **config.get("generation_kwargs", {}),
        "max_new_tokens": params.predict.max_new_tokens,
        "until": [],
    }
    pipelines = config.get("filter_list") or [
        {"name": "conclusion", "filter": [{"function": "take_first"}]}
    ]
    return ConfigurableMessagesTask(
        config={
            **config,
            "dataset_path": str(data_folder(params, benchmark).resolve()),
            "dataset_kwargs": {"cache_dir": str(cache)},
            "generation_kwargs": generation,
            "filter_list": [
                {**pipeline, "filter": [{"function": ConclusionFilter}, *pipeline["filter"]]}
                for pipeline in pipelines
            ],
        }
    )


def _configuration(task: str) -> Path:
    """The yaml file of an lmms-eval task. Raises `ValueError` for a name without exactly one."""
    package = importlib.util.find_spec("lmms_eval.tasks").submodule_search_locations[0]
    found = sorted(Path(package).rglob(f"{task}.yaml"))
    if len(found) != 1:
        raise ValueError(f"lmms-eval {lmms_eval_version()} has {len(found)} tasks named {task!r}")
    return found[0]


class ConclusionFilter(Filter):
    """Scores an answer's conclusion, and an answer without one as it stands.

    lmms-eval's `regex` filter cannot do it: it raises IndexError on an empty answer.
    """

    def apply(self, resps: Iterable[list[str]], docs: Dataset) -> list[list[str]]:
        return [[scored_text(text) for text in answers] for answers in resps]


def scored_text(text: str) -> str:
    """What a task's own rule gets to see of an answer."""
    found = cot.conclusion(text)
    return text if found is None else found
