"""The scores in the shape of lm-evaluation-harness's `results.json`, for tools that read that.

A file a variant. `results` has a task for each benchmark and protocol (their lmms-eval names), with
`acc,none` from 0 to 1 and `acc_stderr,none`, and a group for each protocol with the mean of its
benchmarks. A standard error is half of the 95 % bootstrap interval over questions and training
seeds divided by 1.96; the interval itself and each training seed's value stand beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heima.config.benchmarks import BENCHMARKS
from heima.results.cells import Cell
from heima.results.scores import ACCURACY, MEAN, score_group
from reports.tables.reading import Scores

_NORMAL = 1.959963984540054
"""Half of a 95 % interval in standard errors."""


def files(
    scores: Scores, provenances: Mapping[str, Mapping[str, Any]], models: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Variant -> what its file holds.

    `provenances` are those of the metrics files, `models` the checkpoint of each variant.
    """
    return {
        variant: _file(variant, cells, provenances[variant], models[variant])
        for variant, (cells, _) in scores.items()
    }


def _file(
    variant: str,
    cells: Mapping[str, Mapping[str, Cell]],
    provenance: Mapping[str, Any],
    model: str,
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    subtasks: dict[str, list[str]] = {}
    configs, versions, counts = {}, {}, {}
    data = provenance.get("data", {})
    for group, found in cells.items():
        protocol, _, benchmark = group.partition("/")
        entry = _entry(found[ACCURACY])
        if benchmark == MEAN:
            groups[f"heima_{protocol}"] = {"alias": f"heima_{protocol}", **entry}
            continue
        task = BENCHMARKS[benchmark].tasks[protocol]
        subtasks.setdefault(f"heima_{protocol}", []).append(task)
        tokens = cells[score_group(protocol, benchmark)].get("decoded_tokens")
        results[task] = {"alias": task, **entry}
        if tokens is not None:
            results[task]["decoded_tokens,none"] = tokens.value
        configs[task] = {
            "task": task,
            "dataset_name": BENCHMARKS[benchmark].spelling,
            "num_fewshot": 0,
            "metadata": {"protocol": protocol, "benchmark": benchmark},
        }
        versions[task] = data.get(protocol, {}).get(benchmark)
        counts[task] = {"original": found[ACCURACY].n, "effective": found[ACCURACY].n}
    return {
        "results": results,
        "groups": groups,
        "group_subtasks": subtasks,
        "configs": configs,
        "versions": versions,
        "n-shot": dict.fromkeys(results, 0),
        "higher_is_better": {task: {"acc": True} for task in (*results, *groups)},
        "n-samples": counts,
        "config": {
            "model": "heima",
            "model_args": f"name={model}",
            "limit": None,
            "bootstrap_iters": None,
            "random_seed": provenance.get("seed"),
        },
        "model_name": variant,
        "model_source": "heima",
        "heima": {
            "profile": provenance.get("profile"),
            "code": provenance.get("code"),
            "judge": provenance.get("judge", {}).get("model"),
            "training_seeds": provenance.get("training_seeds"),
            "decoding_seeds": provenance.get("seeds"),
        },
    }


def _entry(cell: Cell) -> dict[str, Any]:
    return {
        "acc,none": cell.value / 100,
        "acc_stderr,none": (cell.high - cell.low) / 100 / (2 * _NORMAL),
        "acc_low,none": cell.low / 100,
        "acc_high,none": cell.high / 100,
        "acc_by_seed,none": {str(seed): value / 100 for seed, value in cell.seeds.items()},
        "failed,none": cell.n_failed,
    }
