"""Files that lmms-eval and VLMEvalKit have written, as scored rows.

- lmms-eval's `*_samples_<task>.jsonl` (`--log_samples`): the score is that of the task's own metric
  in each sample, read by the rules of the tables (`eval.breakdown`). MMBench's samples hold no
  score: its evaluator is asked once more, with the judge of params.
- VLMEvalKit's `MODEL_<dataset>….xlsx` or `.tsv`: a column `hit` or `score` of a file that it has
  scored; else the predictions are scored as `python -m eval.score` does, with the judge of params.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from eval import score
from eval.prediction_files import is_spreadsheet, read
from eval.vlmevalkit import cases
from heima.config import Params
from heima.config.benchmarks import BENCHMARKS
from reports.comparing.sides import CompareError, Row, Side

if TYPE_CHECKING:
    from eval.breakdown import Rules

Made = TypeVar("Made")

_TASK = re.compile(r"(?:^|_)samples_(.+)\.jsonl$")
_SCORES = ("hit", "score")
"""The columns in which VLMEvalKit's evaluations write a score (0 to 1, or a truth value)."""


def side(path: Path, params: Params, benchmark: str | None) -> Side:
    """A file, or each of a folder's; raises `CompareError`, `InputError` and `JudgeError`."""
    files = [path]
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if _TASK.search(one.name))
        files += sorted(one for one in path.iterdir() if is_spreadsheet(one))
        if not files:
            raise CompareError(
                f"{path} is no reproduction (no params.yaml), and holds no *_samples_<task>.jsonl, "
                ".xlsx or .tsv"
            )
    found = Side(str(path))
    seen: dict[tuple[str, str], Path] = {}
    for file in files:
        name = _benchmark(file, benchmark)
        protocol = "vlmevalkit" if is_spreadsheet(file) else "lmms"
        if other := seen.get((protocol, name)):
            raise CompareError(f"{other} and {file} are both of {name}: name one of them")
        seen[protocol, name] = file
        own = _vlmevalkit if is_spreadsheet(file) else _lmms
        found.rows += own(file, name, params, found.notes)
    return found


def _benchmark(file: Path, given: str | None) -> str:
    """Whose results a file has: as was given, else by its name."""
    if given is not None:
        return given
    known = ", ".join(BENCHMARKS)
    if task := _TASK.search(file.name):
        named = [b.name for b in BENCHMARKS.values() if task[1] in (*b.tasks.values(), b.name)]
        if named:
            return named[0]
        raise CompareError(
            f"{file}: the task {task[1]!r} is that of no benchmark here; say --benchmark {known}"
        )
    plain = re.sub(r"[^a-z0-9]", "", file.name.lower())
    named = [b.name for b in BENCHMARKS.values() if b.name in plain]
    if len(named) != 1:
        raise CompareError(f"{file} names {named or 'no benchmark'}; say --benchmark {known}")
    return named[0]


def _lmms(file: Path, benchmark: str, params: Params, notes: list[str]) -> list[Row]:
    samples = read(file)
    rules = _rules("lmms", benchmark)
    metric = BENCHMARKS[benchmark].scoring.metric
    for number, sample in enumerate(samples, 1):
        if "doc_id" not in sample or metric not in sample:
            raise CompareError(
                f"{file}, line {number} lacks doc_id or {metric}: it is no sample of "
                f"{BENCHMARKS[benchmark].task} that lmms-eval has scored"
            )
    docs = [sample["doc_id"] for sample in samples]
    if len({*docs}) < len(docs):
        raise CompareError(f"{file} has more than one sample of a doc_id")
    try:
        if BENCHMARKS[benchmark].dataset.rotation:
            scores = _asked(params, lambda: rules.scores(samples))
        else:
            scores = rules.scores(samples)
    except (KeyError, TypeError, ValueError) as error:
        raise CompareError(
            f"{file} holds no score of {benchmark} in its samples' {metric} ({error!r})"
        ) from error
    return [
        {
            **_row("lmms", benchmark, float(value), file, number),
            "doc_id": sample["doc_id"],
            "unit": rules.unit(sample[metric]) if rules.unit else sample["doc_id"],
            "failed": not _said(sample),
        }
        for number, (sample, value) in enumerate(zip(samples, scores, strict=True), 1)
    ]


def _said(sample: Mapping[str, Any]) -> str:
    answers = sample.get("resps", sample.get("filtered_resps", ""))
    while isinstance(answers, list) and answers:
        answers = answers[0]
    return str(answers).strip() if answers else ""


def _asked(params: Params, make: Callable[[], Made]) -> Made:
    """What needs a judge, with that of the parameters behind the gateway."""
    from eval.gateway import Gateway

    with Gateway(params.judge) as gateway, contextlib.redirect_stdout(None):
        gateway.probe()
        gateway.route_lmms_eval()
        made = make()
        if gateway.failures:
            reasons = [f"  {one.reason}: …{one.prompt[-80:]!r}" for one in gateway.failures]
            raise CompareError(
                f"the judge left {len(reasons)} requests without a usable reply:\n"
                f"{cases.shortened(reasons)}"
            )
        return made


def _rules(protocol: str, benchmark: str) -> Rules:
    from eval.breakdown import RULES

    return RULES[protocol][benchmark]


def _row(protocol: str, benchmark: str, value: float, file: Path, number: int) -> dict[str, Any]:
    return {
        "protocol": protocol,
        "benchmark": benchmark,
        "training_seed": None,
        "seed": None,
        "image": None,
        "score": value,
        "where": f"{file}:{number}",
    }


def _vlmevalkit(file: Path, benchmark: str, params: Params, notes: list[str]) -> list[Row]:
    rows = read(file)
    columns = {column for row in rows for column in row}
    scored = next((column for column in _SCORES if column in columns), None)
    if not rows or "index" not in columns:
        raise CompareError(f"{file} has no rows with an index")
    if scored is None:
        lacking = [one for one in score.required(benchmark) if one not in columns]
        if lacking or "prediction" not in columns:
            raise CompareError(
                f"{file} has neither a column {' nor '.join(_SCORES)} nor all of those that its "
                f"predictions are scored by; it lacks {', '.join(lacking or ['prediction'])}"
            )
        answers = score.whole(benchmark, rows)
        made = _asked(params, lambda: score.score_vlmevalkit(benchmark, answers, 0.0))
        notes.append(f"{file} holds no scores: its predictions were scored here")
        found = [row for unit in made.units.rows for row in unit]
        values = {row["name"]: float(row["score"]) for row in found}
    else:
        values = _values(file, benchmark, rows, scored)
    # A line of names comes first.
    return [
        {
            **_row("vlmevalkit", benchmark, values[name], file, number),
            "name": name,
            "unit": cases.question_number(benchmark, _integer(file, name))
            if BENCHMARKS[benchmark].dataset.rotation
            else name,
            "failed": not str(row.get("prediction", "")).strip(),
        }
        for number, row in enumerate(rows, 2)
        for name in [cases.name(benchmark, row)]
    ]


def _integer(file: Path, name: str) -> int:
    try:
        return int(name)
    except ValueError as error:
        raise CompareError(f"{file}: the index {name!r} is no number") from error


def _values(file: Path, benchmark: str, rows: Sequence[Row], column: str) -> dict[str, float]:
    """Index -> score. Raises `CompareError` naming each row without one."""
    words = {"true": 1.0, "false": 0.0}
    values: dict[str, float] = {}
    faults = []
    for number, row in enumerate(rows, 2):
        name, said = str(row.get("index", "")).strip(), str(row[column]).strip()
        try:
            value = words[said.lower()] if said.lower() in words else float(said)
        except ValueError:
            value = -1.0
        if not name or name in values or not 0 <= value <= 1:
            faults.append(f"  row {number}: index {name!r}, {column} {said!r}")
        values[name] = value
    if faults:
        raise CompareError(
            f"{file} has {len(faults)} rows without an index of their own or a {column} from 0 to "
            f"1:\n{cases.shortened(faults)}"
        )
    return values


def name_rows(side_: Side, params: Params, root: Path) -> None:
    """Give rows that count their place in a benchmark its name, by the benchmark's data here.

    VLMEvalKit names its rows; lmms-eval's samples and ours count them. Rows of MMBench share a
    number already. Raises `CompareError` where the data is not here.
    """
    from eval.benchmark_data import folder_of

    names: dict[tuple[str, str], list[str]] = {}
    rows: list[Row] = []
    for row in side_.rows:
        benchmark, protocol = row["benchmark"], row["protocol"]
        if BENCHMARKS[benchmark].dataset.rotation:
            rows.append(row)
            continue
        if (protocol, benchmark) not in names:
            data = protocol if protocol in params.protocols else next(iter(params.protocols))
            try:
                folder = root / folder_of(params, params.data_name(data, benchmark))
                docs = score.load(benchmark, folder)
            except (KeyError, ValueError) as error:
                raise CompareError(
                    f"rows of {benchmark} have no names without its data ({error}): run `dvc repro "
                    "prepare`"
                ) from error
            names[protocol, benchmark] = [
                cases.name(benchmark, doc) if BENCHMARKS[benchmark].dataset.identity else str(place)
                for place, doc in enumerate(docs)
            ]
        own = names[protocol, benchmark]
        if row["doc_id"] >= len(own):
            raise CompareError(
                f"{side_.label} has number {row['doc_id']} of {benchmark}, whose data here has "
                f"{len(own)} rows"
            )
        rows.append({**row, "unit": own[row["doc_id"]]})
    side_.rows = rows
