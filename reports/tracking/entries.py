"""The runs of a reproduction in MLflow, from the finished stages and their files alone.

A run is what someone compares: a variant on the benchmarks, an interpreter's row, a training run, a
case of latency. Names of metrics begin with the metric (`accuracy/lmms/ai2d`), never with what was
measured, so that one chart has the bars of all variants, and two reproductions the same names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from heima.results.files import read_json
from heima.results.measures import CORPUS_BLEU, NLL, NLL_GAIN, difference, further_metrics
from heima.results.scores import ACCURACY, MEAN
from reports.finished import FinishedStage, TrackingError, md5

METHOD = "heima"
"""The variant whose numbers the reproduction's own run has."""

DECODED = "decoded_tokens"
LATENCIES = ("ttft_ms", "tpot_ms", "e2e_ms", "samples_per_s")

_LEFT_OUT = (*further_metrics(), CORPUS_BLEU, NLL[0])
"""Measures of reconstructions that only the metrics file has, which is an artifact of the run."""
_TRAINS = {"teach": "model", "distill": "adapter", "interpret": "interpreter"}
"""Stages that train, and what."""


@dataclass(frozen=True)
class DataSet:
    """Data that a run has read: where it lies, its digest, how many rows, and what for."""

    name: str
    digest: str
    path: str
    rows: int | None
    context: str


@dataclass(frozen=True)
class Model:
    """A model that a run has made, or measures; the weights stay with DVC.

    `weights` is path -> MD5 in `dvc.lock`.
    """

    name: str
    kind: str
    weights: Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """One run. `digest` is that of all stages that it is made from, so that it names its content.

    `values` is metric -> value. `data_of` is metric -> the data set that it was measured on;
    `reads` names the training runs whose models are measured. `samples` says which of the page's
    samples belong to it: a variant or a reconstruction.
    """

    name: str
    kind: str
    stages: tuple[str, ...]
    digest: str
    note: str
    params: Mapping[str, str]
    values: Mapping[str, float]
    files: tuple[Path, ...]
    command: str
    code: str
    seed: int | None = None
    curves: tuple[Path, ...] = ()
    data: tuple[DataSet, ...] = ()
    data_of: Mapping[str, DataSet] = field(default_factory=dict)
    model: Model | None = None
    reads: tuple[str, ...] = ()
    samples: str | None = None


def entries(stages: Sequence[FinishedStage]) -> list[Entry]:
    """The runs of these stages, in the order of the pipeline; a run without a number is none.

    Raises `TrackingError` for a metrics file that is not what its stage writes.
    """
    known = {stage.name: stage for stage in stages}
    found: list[Entry] = []
    for stage in stages:
        try:
            if stage.stage == "score":
                found.append(_variant(stage, known))
            elif stage.stage == "similarity":
                found.append(_reconstruction(stage, known))
            elif stage.stage in _TRAINS:
                found.append(_training(stage, known))
            elif stage.stage == "effects":
                found.append(_audit(stage, known))
            elif stage.stage == "latency":
                found += _latency(stage, known)
            elif stage.stage == "rewrite":
                found.append(_turns(stage, known))
        except (KeyError, TypeError, AttributeError) as error:
            files = ", ".join(path.as_posix() for path in stage.metrics_files)
            raise TrackingError(
                f"{files} is not what {stage.name} writes ({type(error).__name__}: {error}); run "
                f"`dvc repro {stage.name}`"
            ) from error
    shown = [one for one in found if one.values or one.curves]
    # Weights that were given, not trained, may have no number, thus no run to lead to.
    names = {one.name for one in shown}
    return [replace(one, reads=tuple(filter(names.__contains__, one.reads))) for one in shown]


def of_seed(variants: Sequence[Entry], seed: int | None) -> dict[str, float]:
    """What sums up a reproduction: the method's values, and the mean of each variant.

    Of one training seed, or with None over all.
    """
    found: dict[str, float] = {}
    for one in variants:
        for path in one.files:
            cells = read_json(path)["cells"]
            values = dict(_scores(cells, seed))
            if one.name == METHOD:
                found |= values
            found |= {
                f"{name}/{one.name}": value
                for name, value in values.items()
                if name.startswith(f"{ACCURACY}/") and name.endswith(f"/{MEAN}")
            }
    return found


def _scores(cells: Mapping[str, Any], seed: int | None = None) -> Iterator[tuple[str, float]]:
    for group, row in cells.items():
        for metric in (ACCURACY, DECODED):
            if metric not in row:
                continue
            if seed is None:
                yield f"{metric}/{group}", row[metric]["value"]
            elif str(seed) in row[metric].get("seeds", {}):
                yield f"{metric}/{group}", row[metric]["seeds"][str(seed)]


def _entry(
    stage: FinishedStage, known: Mapping[str, FinishedStage], kind: str, **details: Any
) -> Entry:
    """An entry of a stage, and of what it is made from."""
    made_from = {name: known[name].dvc_hash for name in (*stage.upstream, stage.name)}
    given = {
        "name": stage.name,
        "stages": (stage.name,),
        "files": stage.metrics_files,
        "command": stage.command,
        "code": stage.code,
        **details,
    }
    # Parameters of the item itself are in every run, under names that its sisters share.
    own = {
        ".".join(part for part in key.split(".") if part != stage.item): value
        for key, value in stage.recorded.items()
        if stage.item in key.split(".")
    }
    params = {**stage.reached, **own, **given.pop("params", {})}
    return Entry(kind=kind, digest=md5(made_from | {"": given["name"]}), params=params, **given)


def _origin(stage: FinishedStage) -> dict[str, Any]:
    """What the metrics file of a stage says of itself."""
    return read_json(stage.metrics_files[0])["provenance"]


def _chain(model: str, reached: Mapping[str, str]) -> list[str]:
    """The checkpoints that a model was trained through, the first one first."""
    chain = [model]
    while (init := reached.get(f"checkpoints.{chain[0]}.init")) is not None:
        chain.insert(0, init)
    return chain


def _variant(stage: FinishedStage, known: Mapping[str, FinishedStage]) -> Entry:
    name = stage.item
    predict = known[f"predict@{name}"]
    model = predict.recorded[f"variants.{name}.model"]
    prefix = predict.recorded[f"variants.{name}.forced_prefix"]
    (file,) = stage.metrics_files
    content = read_json(file)
    values = dict(_scores(content["cells"]))
    chain = _chain(model, stage.reached)
    trained = [one for one in stage.upstream if known[one].stage in _TRAINS]
    own = [
        one
        for one in trained
        if (known[one].item, known[one].stage) in ((model, "distill"), (model, "teach"))
    ]
    params = {
        "variant": name,
        "model": model,
        "forced_prefix": prefix,
        "chain": " > ".join(chain),
        "training_seeds": ", ".join(str(known[one].seed) for one in own if known[one].seed),
    }
    updates: list[int | None] = [
        _origin(known[one]).get("updates")
        for one in trained
        if known[one].item in chain[1:] and known[one].seed == known[own[0]].seed
    ]
    if updates and None not in updates:
        params["updates"] = str(sum(one or 0 for one in updates))
    data = _benchmarks(content, stage)
    shown = f"`{' → '.join(chain)}`"
    if "updates" in params:
        shown += f", {params['updates']} updates"
    return _entry(
        stage,
        known,
        "variant",
        name=name,
        stages=(predict.name, stage.name),
        note=(
            f"The variant **{name}** on the benchmarks: {shown}. Values are means over the "
            f"training seeds ({params['training_seeds'] or 'it has none'}); intervals, n and "
            f"failures are in `metrics/score/{name}.json` among the artifacts, answers in "
            f"`samples.json`.\n\nMade by `{predict.command}` and `{stage.command}`."
        ),
        params=params,
        values=values,
        files=(*stage.metrics_files, *predict.metrics_files),
        data=tuple(dict.fromkeys(data.values())),
        data_of={key: data[group] for key in values if (group := key.partition("/")[2]) in data},
        model=Model(
            name,
            "variant",
            {path: digest for one in own for path, digest in _weights(known[one]).items()},
        ),
        reads=tuple(own),
        samples=name,
    )


def _benchmarks(content: Mapping[str, Any], stage: FinishedStage) -> dict[str, DataSet]:
    """`protocol/benchmark` -> the data that it was asked on."""
    found = {}
    for protocol, digests in content["provenance"].get("data", {}).items():
        for benchmark, digest in digests.items():
            cell = content["cells"][f"{protocol}/{benchmark}"][ACCURACY]
            # Asked once with each training seed and each decoding seed.
            asked = max(1, len(cell.get("seeds", {})))
            asked *= len(content["provenance"].get("seeds", {}).get(protocol, [""]))
            rows = cell["n"] // asked
            found[f"{protocol}/{benchmark}"] = DataSet(
                benchmark, digest, "data/benchmarks", rows, "eval"
            )
    return found


def _weights(stage: FinishedStage) -> dict[str, str]:
    return {path: digest for path, digest in stage.made.items() if not path.startswith("metrics/")}


def _turn_set(
    stage: FinishedStage, known: Mapping[str, FinishedStage], split: str, context: str
) -> tuple[DataSet, ...]:
    """The turns that a stage has read, or the data that they lie in."""
    digest = known["rewrite"].made.get("data/rewritten") if "rewrite" in known else None
    if digest is None:
        return ()
    (file,) = known["rewrite"].metrics_files
    rows = read_json(file)["turns"][split]
    name = f"turns-{split}"
    return (DataSet(name, digest.removesuffix(".dir"), "data/rewritten", rows, context),)


def _training(stage: FinishedStage, known: Mapping[str, FinishedStage]) -> Entry:
    (file,) = stage.metrics_files
    content = read_json(file)
    origin = content["provenance"]
    values = {
        f"{metric}/{group}": cell["value"]
        for group, row in content["cells"].items()
        for metric, cell in row.items()
    }
    heldout = _turn_set(stage, known, "heldout", "eval")
    data_of = {key: heldout[0] for key in values} if heldout else {}
    params = {"item": stage.item}
    if "seconds" in origin:
        values["seconds"] = float(origin["seconds"])
    if "updates" in origin:
        params["updates"] = str(origin["updates"])
    if stage.seed is not None:
        params["training_seed"] = str(stage.seed)
    kind = _TRAINS[stage.stage]
    weights = _weights(stage)
    name = "-".join(part for part in (stage.item, str(stage.seed or "")) if part)
    curve = "`loss` is the curve, " if stage.curve_files else "The curve is where it was trained; "
    return _entry(
        stage,
        known,
        "training",
        note=(
            f"Training of the {kind} **{stage.item}**"
            + (f" with the seed {stage.seed}" if stage.seed is not None else "")
            + f". {curve}`loss/heldout` the loss on held-out turns (nats a token). The weights are "
            f"{' and '.join(f'`{path}`' for path in weights)}, kept by DVC.\n\n"
            f"Made by `{stage.command}`."
        ),
        seed=stage.seed,
        params=params,
        values=values,
        curves=stage.curve_files,
        data=(*_turn_set(stage, known, "train", "training"), *heldout),
        data_of=data_of,
        model=Model(name, kind, weights),
    )


def _reconstruction(stage: FinishedStage, known: Mapping[str, FinishedStage]) -> Entry:
    (file,) = stage.metrics_files
    values = {}
    cells = read_json(file)["cells"]
    controls = [group for group in cells if difference(group) in cells or group == "own"]
    for control in controls:
        for metric, cell in cells[control].items():
            if metric not in _LEFT_OUT:
                values[f"{metric}/{control}"] = cell["value"]
        if control != "own":
            values[f"{NLL_GAIN}/{control}"] = cells[difference(control)][NLL_GAIN]["value"]
    heldout = _turn_set(stage, known, "heldout", "eval")
    return _entry(
        stage,
        known,
        "reconstruction",
        note=(
            f"The interpreter's row **{stage.item}**: what is rebuilt from a thinking state "
            "(`…/own`) against each control (`…/shuffled`: another turn's state). "
            f"`{NLL_GAIN}/…` is what the own state tells beyond the control, in nats a text. "
            "Intervals and the measures left out here are in the metrics file among the artifacts, "
            f"texts in `samples.json`.\n\nMade by `{stage.command}`."
        ),
        params={"item": stage.item},
        values=values,
        data=heldout,
        data_of=dict.fromkeys(values, heldout[0]) if heldout else {},
        samples=stage.item,
    )


_AUDITED = ("accuracy lost", "follows the donor", "share")
"""Effects of an audit that are logged; all are in the metrics file, an artifact of the run."""


def _audit(stage: FinishedStage, known: Mapping[str, FinishedStage]) -> Entry:
    (file,) = stage.metrics_files
    content = read_json(file)
    made = content["provenance"]
    return _entry(
        stage,
        known,
        "audit",
        note=(
            f"The audit of **{stage.item}**: the thinking states matter to the conclusion: "
            f"**{made['verdict']}**. `audit/accuracy_lost/…` is what replaced states, or parts of "
            "the prefix left out, cost in points; all effects with their intervals are in the "
            f"metrics file among the artifacts.\n\nMade by `{stage.command}`."
        ),
        params={"item": stage.item, "verdict": made["verdict"]},
        values={
            f"audit/{what.replace(' ', '_')}/{measure}": cell["value"]
            for measure, found in content["cells"].items()
            for what, cell in found.items()
            if what in _AUDITED
        },
    )


def _latency(stage: FinishedStage, known: Mapping[str, FinishedStage]) -> Iterator[Entry]:
    """A run a case: `heima/batch-8` has its times, `heima-vs-text-cot/batch-8` the speed-up."""
    (file,) = stage.metrics_files
    cells = read_json(file)["cells"]
    cases = dict.fromkeys(group.rpartition("/")[0] for group in cells if "-vs-" not in group)
    for case in cases:
        values: dict[str, float] = {}
        for group, row in cells.items():
            of, _, size = group.rpartition("/")
            if of == case:
                values |= {
                    f"{name}/{size}": row[name]["value"] for name in LATENCIES if name in row
                }
            elif of.startswith(f"{case}-vs-"):
                values |= {f"{name}/{size}": cell["value"] for name, cell in row.items()}
        yield _entry(
            stage,
            known,
            "latency",
            name=f"latency@{case}",
            note=(
                f"What an answer of the case **{case}** takes on the machine that measured it, by "
                "batch size: a measurement, other in every run. The rest is in "
                f"`metrics/latency.json` among the artifacts.\n\nMade by `{stage.command}`."
            ),
            params={"item": case},
            values=values,
        )


def _turns(stage: FinishedStage, known: Mapping[str, FinishedStage]) -> Entry:
    (file,) = stage.metrics_files
    content = read_json(file)
    return _entry(
        stage,
        known,
        "data",
        note=(
            "The turns that everything is trained on; what was dropped, and why, is in "
            f"`metrics/rewrite.json` among the artifacts.\n\nMade by `{stage.command}`."
        ),
        values={
            f"{counted}/{split}": float(number)
            for counted in ("turns", "images")
            for split, number in content.get(counted, {}).items()
            if isinstance(number, int)
        },
        data=_turn_set(stage, known, "train", "training"),
    )


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What of the parameters is another, as a name has it.

    >>> differences({"checkpoints.p2.steps": "3", "a": "1"}, {"checkpoints.p2.steps": "4"})
    ['p2.steps 3 → 4', 'without a']
    """
    found = []
    gone, new = before.keys() - after.keys(), after.keys() - before.keys()
    for key in (*sorted(before.keys() & after.keys()), *sorted(new), *sorted(gone)):
        short = key.removeprefix("checkpoints.")
        if key not in after:
            found.append(f"without {short}")
        elif key not in before:
            found.append(f"{short} = {after[key]}")
        elif before[key] != after[key]:
            found.append(f"{short} {before[key]} → {after[key]}")
    return found


def versions(stages: Sequence[FinishedStage]) -> dict[str, str]:
    """Package -> version, of what the results were made with; several are named together."""
    found: dict[str, set[str]] = {}
    for stage in stages:
        for path in stage.metrics_files:
            for name, version in read_json(path).get("provenance", {}).get("versions", {}).items():
                found.setdefault(name, set()).add(str(version))
    return {name: ", ".join(sorted(several)) for name, several in sorted(found.items())}


def code(stages: Sequence[FinishedStage]) -> dict[str, str]:
    """Stage -> its code's fingerprint."""
    return {stage.stage: stage.code for stage in stages if stage.code != "unknown"}


def as_text(value: Mapping[str, str]) -> str:
    return json.dumps(value, sort_keys=True)
