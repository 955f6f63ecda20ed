"""The benchmarks' tasks under both protocols, on a local copy of their data.

`lmms` is lmms-eval's own tasks: prompts, scoring and aggregation stay lmms-eval's. Four things
change: where the data lies, how many tokens an answer may have (ai2d's own 16 and hallusion_bench's
128 would cut a staged answer before its conclusion), no stop strings, and that the conclusion is
what is scored. `vlmevalkit` is our own (`eval/vlmevalkit/`; a page about each in
`eval/tasks/vlmevalkit/`), for which only the data's place, the limit and the conclusion are set
here.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import requests
from datasets import Dataset
from lmms_eval.api.filter import Filter
from lmms_eval.api.task import ConfigurableMessagesTask
from lmms_eval.utils import load_yaml_config

from eval.benchmark_data import folder_of
from eval.vlmevalkit import cases
from heima.config import Params
from heima.config.benchmarks import BENCHMARKS
from heima.cot import parsing


def lmms_eval_version() -> str:
    """The installed version; `eval` was written against the prompts and fields of 0.7.3."""
    return importlib.metadata.version("lmms-eval")


def names(params: Params) -> dict[str, dict[str, str]]:
    """Protocol -> benchmark -> the name of its lmms-eval task."""
    return {
        protocol: {
            benchmark: BENCHMARKS[benchmark].tasks[protocol] for benchmark in params.benchmarks
        }
        for protocol in params.protocols
    }


def load(params: Params, protocol: str, benchmark: str, cache: Path) -> ConfigurableMessagesTask:
    """The lmms-eval task of a benchmark under a protocol, on its local data.

    `cache` is a folder for the arrow files that `datasets` makes. One task's configuration is
    read directly: lmms-eval's index of its 1,500 tasks takes 5 s. Its rows without their images
    are held in memory. It can be evaluated several times.

    Raises `ValueError` naming each row that the protocol `vlmevalkit` cannot ask or score.
    """
    if (protocol, benchmark) == ("lmms", "hallusionbench"):
        _judge_hallusionbench_sparingly()
    config = _configuration(protocol, benchmark)
    generation = {
        **config.get("generation_kwargs", {}),
        "max_new_tokens": params.predict.max_new_tokens,
        "until": [],
    }
    if optional := BENCHMARKS[benchmark].dataset.optional:
        # lmms-eval's task reads columns that not even its own edition of MMBench always has.
        config["process_docs"] = functools.partial(_with_columns, optional)
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
    # lmms-eval reads each row several times, and arrow would decode it every time.
    split = task.config.test_split or task.config.validation_split
    task.dataset_no_image[split] = list(task.eval_docs_no_media)
    if protocol == "vlmevalkit":
        # Within the task lmms-eval would retry a bad row five times, and hide what is wrong.
        cases.check(benchmark, task.eval_docs_no_media)
    return task


def _with_columns(columns: Iterable[str], dataset: Dataset) -> Dataset:
    """The rows with these columns, where they lack one as MMBench's files write an empty cell."""
    for column in columns:
        if column not in dataset.column_names:
            dataset = dataset.add_column(column, ["nan"] * len(dataset))
    return dataset


def _judge_hallusionbench_sparingly() -> None:
    """Let lmms-eval keep one connection for HallusionBench, and write each judged answer once.

    It connects anew for each question, and then writes all answers so far into the file from which
    the next metric takes them: together half of the time of scoring. Its modules import these
    functions when a task is loaded.
    """
    from lmms_eval.tasks.hallusion_bench import utils

    if utils.requests is requests:
        utils.requests = requests.Session()
        utils.evaluate_by_chatgpt = functools.partial(_one_by_one, utils.evaluate_by_chatgpt)


def _one_by_one(
    judge: Callable[..., Any],
    samples: list[dict[str, Any]],
    *,
    output_entry: str,
    correctness_entry: str,
    load_json: bool,
    save_json_path: str,
) -> list[dict[str, Any]]:
    """lmms-eval's `judge` about each sample that has no verdict yet; it writes that into it."""
    for sample in samples:
        if correctness_entry not in sample:
            judge(
                [sample],
                output_entry=output_entry,
                correctness_entry=correctness_entry,
                save_json_path=os.devnull,
            )
    return samples


def _configuration(protocol: str, benchmark: str) -> dict[str, Any]:
    """A task as lmms-eval configures it. Raises `ValueError` where lmms-eval has no such task."""
    if protocol == "vlmevalkit":
        shared = load_yaml_config(Path(__file__).parent / "vlmevalkit.yaml", mode="full")
        return {**shared.pop("functions")(benchmark).configuration(), **shared}
    task = BENCHMARKS[benchmark].tasks[protocol]
    spec = importlib.util.find_spec("lmms_eval.tasks")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("lmms-eval has no package lmms_eval.tasks")
    root = Path(spec.origin).parent
    found = sorted(root.rglob(f"{task}.yaml"))
    if len(found) != 1:
        raise ValueError(f"lmms-eval {lmms_eval_version()} has {len(found)} tasks named {task!r}")
    return load_yaml_config(found[0], mode="full")


class ConclusionFilter(Filter):
    """Scores an answer's conclusion, and an answer without one as it stands.

    lmms-eval's `regex` filter cannot do it: it raises IndexError on an empty answer.
    """

    def apply(self, resps: Iterable[list[str]], docs: Dataset) -> list[list[str]]:
        return [[scored_text(text) for text in answers] for answers in resps]


def scored_text(text: str) -> str:
    """What a task's own rule gets to see of an answer."""
    return parsing.scored(text)
