"""The benchmarks' tasks under both protocols, on a local copy of their data.

`lmms` is lmms-eval's own six tasks: prompts, scoring and aggregation stay lmms-eval's. Four things
change: where the data lies, how many tokens an answer may have (ai2d's own 16 and hallusion_bench's
128 would cut a staged answer before its conclusion), no stop strings, and that the conclusion is
what is scored. `paper` is our own six (`eval/tasks/paper/`), for which only the data's place, the
limit and the conclusion are set here.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset
from lmms_eval.api.filter import Filter
from lmms_eval.api.task import ConfigurableMessagesTask
from lmms_eval.utils import load_yaml_config

from eval.benchmark_data import folder_of
from eval.paper import cases
from heima import cot
from heima.config import Params

TASKS: dict[str, dict[str, str]] = {
    "lmms": {
        "mmstar": "mmstar",
        "mmbench": "mmbench_en_dev",
        "mmvet": "mmvet",
        "mathvista": "mathvista_testmini_format",
        "ai2d": "ai2d",
        "hallusionbench": "hallusion_bench_image",
    },
    "paper": {
        "mmstar": "heima_paper_mmstar",
        "mmbench": "heima_paper_mmbench",
        "mmvet": "heima_paper_mmvet",
        "mathvista": "heima_paper_mathvista",
        "ai2d": "heima_paper_ai2d",
        "hallusionbench": "heima_paper_hallusionbench",
    },
}
"""Protocol -> benchmark -> the name of its lmms-eval task."""


def lmms_eval_version() -> str:
    """The installed version; `eval` was written against the prompts and fields of 0.7.3."""
    return importlib.metadata.version("lmms-eval")


def load(params: Params, protocol: str, benchmark: str, cache: Path) -> ConfigurableMessagesTask:
    """The lmms-eval task of a benchmark under a protocol, on its local data.

    `cache` is a folder for the arrow files that `datasets` makes. One task's configuration is
    read directly: lmms-eval's index of its 1,500 tasks takes 5 s.

    Raises `ValueError` naming each row that the protocol `paper` cannot ask or score.
    """
    config = load_yaml_config(_configuration(protocol, TASKS[protocol][benchmark]), mode="full")
    generation = {
        **config.get("generation_kwargs", {}),
        "max_new_tokens": params.predict.max_new_tokens,
        "until": [],
    }
    pipelines = config.get("filter_list") or [
        {"name": "conclusion", "filter": [{"function": "take_first"}]}
    ]
    task = ConfigurableMessagesTask(
        config={
            **config,
            "dataset_path": str(folder_of(params, params.data_name(protocol, benchmark)).resolve()),
            "dataset_kwargs": {"cache_dir": str(cache)},
            "generation_kwargs": generation,
            "filter_list": [
                {**pipeline, "filter": [{"function": ConclusionFilter}, *pipeline["filter"]]}
                for pipeline in pipelines
            ],
        }
    )
    if protocol == "paper":
        # Within the task lmms-eval would retry a bad row five times, and hide what is wrong.
        cases.check(benchmark, task.eval_docs_no_media)
    return task


def _configuration(protocol: str, task: str) -> Path:
    """The yaml file of a task. Raises `ValueError` for a name without exactly one."""
    root = (
        Path(__file__).parent / "paper"
        if protocol == "paper"
        else Path(importlib.util.find_spec("lmms_eval.tasks").submodule_search_locations[0])
    )
    found = sorted(root.rglob(f"{task}.yaml"))
    if len(found) != 1:
        raise ValueError(
            f"the protocol {protocol} (lmms-eval {lmms_eval_version()}) has {len(found)} tasks "
            f"named {task!r}"
        )
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
