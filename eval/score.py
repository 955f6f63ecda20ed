"""Score anybody's predictions of one benchmark, without the pipeline.

    python -m eval.score predictions.jsonl --benchmark mmstar --protocol vlmevalkit
    python -m eval.score LLaVA-CoT_MMStar.xlsx --benchmark mmstar --protocol vlmevalkit

FILE is either of

- a .jsonl of rows {doc_id or index, text or prediction}, such as our own predictions. `doc_id`
  counts the benchmark's rows from 0, `index` is the row's own name. The questions come from the
  data of params, or from `--data FOLDER`;
- an .xlsx or .tsv as VLMEvalKit writes it (or a .jsonl with its columns), with the questions.
  Protocol `vlmevalkit` needs no data then; protocol `lmms` always does.

An answer with `<CONCLUSION> … </CONCLUSION>` is scored by the first of these. The judge is that of
params. Printed are the accuracy with its 95 % interval (questions about one image are resampled
together where the images are known), the same for each category, who read how many answers, and as
last line all of it as JSON. The exit code is 1 where predictions are missing (they count as wrong)
unless --allow-missing is given, and where the input or the judge is at fault: then nothing is
scored.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from eval import lmms_start
from eval.judge import JudgeError
from eval.prediction_files import InputError, is_spreadsheet, read
from eval.units import Units, image_label
from eval.vlmevalkit import cases
from eval.vlmevalkit.cases import Row, shortened
from heima import config
from heima.config import DatasetSource, FolderSource, Params, ProtocolName
from heima.config.benchmarks import BENCHMARKS
from heima.cot import parsing
from heima.results.cells import Cell
from heima.results.files import write_jsonl
from heima.results.scores import COUNTS
from heima.results.statistics import cell

if TYPE_CHECKING:
    from eval.gateway import Gateway

_API_FAILED = "Failed to obtain answer via API"
"""What VLMEvalKit writes in place of a prediction that it did not get."""


@dataclass(frozen=True)
class Answer:
    """A question with its prediction, "" for a missing one.

    `image` labels what is resampled together; `concluded` is False where the file says that the
    answer has no conclusion.
    """

    row: Row
    text: str
    image: str
    concluded: bool

    @property
    def scored(self) -> str:
        return parsing.scored(self.text)

    @property
    def failed(self) -> bool:
        """Whether there is nothing to score, or no conclusion where there should be one."""
        return not (self.scored.strip() and self.concluded)


@dataclass
class Scores:
    """A benchmark's scores: `by` counts the answers by who read them, `more` are other metrics.

    The rows of `units` also have `categories`, the groups that they are counted in.
    """

    units: Units
    by: dict[str, int] = field(default_factory=dict)
    more: dict[str, float] = field(default_factory=dict)


def whole(benchmark: str, rows: Sequence[Row]) -> list[Answer]:
    """Rows that hold their question; raises `InputError` for unusable ones."""
    try:
        cases.check(benchmark, rows)
    except ValueError as error:
        raise InputError(str(error)) from error
    read_cases = [cases.read(benchmark, row) for row in rows]
    if rotation := BENCHMARKS[benchmark].dataset.rotation:
        turns = Counter(case.unit for case in read_cases)
        cut = sorted(
            {one.unit for one in read_cases if turns[one.unit] != len(one.options)}, key=int
        )
        if cut:
            raise InputError(
                f"{len(cut)} questions do not stand there once for each of their options (index "
                f"i, i + {rotation}, …): {_shown(cut)}"
            )
    return [
        Answer(row, _text(row), case.figure or case.unit, _concluded(row))
        for row, case in zip(rows, read_cases, strict=True)
    ]


def required(benchmark: str) -> tuple[str, ...]:
    """The columns that VLMEvalKit's result files of a benchmark must have besides `prediction`."""
    scoring = BENCHMARKS[benchmark].scoring
    more = {
        # Options may stand in the question, as in the submissions to MMStar's authors.
        "choice": ("A", "B") if scoring.option_count is None else (),
        "extracted": ("question_type", "answer_type", "choices", "answer_option"),
    }
    return ("index", "question", "answer", *more.get(scoring.kind, ()))


def joined(benchmark: str, rows: Sequence[Row], docs: Sequence[Row]) -> list[Answer]:
    """One answer for each of the benchmark's `docs` (their `image` a label), in their order.

    Raises `InputError` for a row without, or with an unknown key, and for two rows of one key.
    """
    key = "doc_id" if all("doc_id" in row for row in rows) else "index"
    without = [str(place) for place, row in enumerate(rows, start=1) if key not in row]
    if without:
        raise InputError(f"rows without doc_id or index: {_shown(without)}")
    places: dict[str, int] = {}
    for place, doc in enumerate(docs):
        places[str(place) if key == "doc_id" else _named(benchmark, place, doc)] = place
    names = [str(row[key]) for row in rows]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{key} stands there more than once: {_shown(twice)}")
    unknown = [name for name in names if name not in places]
    if unknown:
        raise InputError(
            f"{key} that {benchmark} with its {len(docs)} rows does not have: {_shown(unknown)}"
        )
    found = {places[name]: row for name, row in zip(names, rows, strict=True)}
    return [
        Answer(doc, _text(found.get(place, {})), doc["image"], _concluded(found.get(place, {})))
        for place, doc in enumerate(docs)
    ]


def _named(benchmark: str, place: int, row: Row) -> str:
    return cases.name(benchmark, row) if BENCHMARKS[benchmark].dataset.identity else str(place)


def _text(row: Row) -> str:
    value = row.get("text", row.get("prediction"))
    if value is None or value != value or _API_FAILED in str(value):
        return ""
    return str(value)


def _concluded(row: Row) -> bool:
    """Our own rows say `conclusion: null` where an answer has none."""
    return "conclusion" not in row or bool(row["conclusion"])


def load(benchmark: str, folder: Path) -> list[dict[str, Any]]:
    """The benchmark's rows; in place of the image stands a hash of it.

    Raises `InputError` where the folder does not hold them.
    """
    import datasets

    dataset = BENCHMARKS[benchmark].dataset
    with tempfile.TemporaryDirectory() as cache:
        try:
            data = datasets.load_dataset(
                str(folder.resolve()), dataset.configuration, split=dataset.split, cache_dir=cache
            )
        except (FileNotFoundError, ValueError) as error:
            raise InputError(f"{folder} does not hold {benchmark}: {error}") from error
        pictures = [k for k, one in data.features.items() if isinstance(one, datasets.Image)]
        if not pictures:
            raise InputError(f"{folder} has no column of images")
        for column in pictures:
            data = data.cast_column(column, datasets.Image(decode=False))
        docs = []
        for place, row in enumerate(data):
            content = row.pop(pictures[0])["bytes"]
            if not dataset.identity:
                row.setdefault("index", place)
            docs.append({**row, "image": image_label(content)})
    return docs


def score_vlmevalkit(benchmark: str, answers: Sequence[Answer], max_missing: float) -> Scores:
    """Scores by VLMEvalKit's rules.

    Raises `JudgeError` as `eval.vlmevalkit.scoring.settle` does, and where the judge leaves more
    than `max_missing` of the answers without a usable reply.
    """
    from eval.vlmevalkit import scoring

    samples = [scoring.sample(cases.read(benchmark, one.row), one.scored) for one in answers]
    scoring.settle(benchmark, samples)
    left = [
        f"  {benchmark} sample {one['index']}: {one['unanswered']}"
        for one in samples
        if "unanswered" in one
    ]
    if len(left) > max_missing * len(samples):
        raise JudgeError(
            f"the judge left {len(left)} answers without a usable reply, more than "
            f"judge.max_missing = {max_missing:g}, so nothing was scored:\n{shortened(left)}"
        )
    by = Counter(one["by"] for one in samples)
    more = {
        metric: 100 * getattr(scoring, metric)(samples)
        for metric in BENCHMARKS[benchmark].scoring.group_metrics
    }
    rows = [
        {
            **{key: sample[key] for key in ("unit", "score", "categories")},
            **{key: sample[key] for key in ("unanswered", "best") if key in sample},
            "name": sample["index"],
            "image": answer.image,
            "failed": answer.failed,
        }
        for sample, answer in zip(samples, answers, strict=True)
    ]
    return Scores(Units.of(rows), dict(by), more)


def score_lmms(
    params: Params,
    params_file: str,
    benchmark: str,
    folder: Path,
    answers: Sequence[Answer],
    gateway: Gateway,
) -> Scores:
    """Scores by lmms-eval's own task, as `eval.scoring` takes them from it.

    `answers` are all rows of the benchmark in `folder`, in their order. Raises `JudgeError` and
    `ValueError` as `eval.scoring.score` does.
    """
    from eval.breakdown import RULES
    from eval.scoring import LoadedBenchmark, ScoredRun

    # Of a source, only the benchmark's data plays a part here.
    here = FolderSource(
        kind="folder",
        path=".",
        benchmarks={params.data_name("lmms", benchmark): DatasetSource(path=str(folder.resolve()))},
    )
    counts = dict.fromkeys(("prompt", *COUNTS), 0)
    predicted = [
        {
            "doc_id": place,
            "text": one.text,
            "conclusion": None if one.failed else one.scored,
            "counts": counts,
            "finish": "stop",
        }
        for place, one in enumerate(answers)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        # The replay reads a file of every benchmark.
        for other in params.benchmarks:
            write_jsonl(
                Path(scratch) / f"lmms/{params.seed}/{other}.jsonl",
                predicted if other == benchmark else (),
            )
        loaded = LoadedBenchmark(
            params.model_copy(update={"source": here}), "lmms", benchmark, Path(scratch)
        )
        run = ScoredRun(
            {benchmark: loaded},
            "lmms",
            params.seed,
            Path(scratch),
            gateway,
            params_file=params_file,
        )
    rows = [
        {
            **row,
            "categories": cases.read(benchmark, doc).categories,
            "name": _named(benchmark, place, doc),
        }
        for place, (row, doc) in enumerate(zip(run.rows[benchmark], loaded.docs, strict=True))
    ]
    stratum = RULES["lmms"][benchmark].stratum
    strata = [stratum(doc) for doc in loaded.docs] if stratum else None
    return Scores(Units.of(rows, strata), {"lmms-eval": len(answers)})


def cells(params: Params, units: Units) -> dict[str, Cell]:
    """`all` and each category, in percent with 95 % intervals."""

    def of(part: Units) -> Cell:
        def having(scores: Sequence[float]) -> Cell:
            return cell(
                scores,
                draws=params.similarity.draws,
                seed=params.seed,
                clusters=part.images,
                weights=part.weights,
                n_failed=part.failed,
                scale=100,
            )

        left = [
            f"{row['name']}: {row['unanswered']}"
            for unit in part.rows
            for row in unit
            if "unanswered" in row
        ]
        found = having(part.scores)
        return found.with_unanswered(left, having(part.best)) if left else found

    names = sorted({name for unit in units.rows for name in unit[0]["categories"]})

    def within(name: str) -> Units:
        return units.where(lambda row: name in row["categories"])

    return {"all": of(units), **{name: of(within(name)) for name in names}}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--benchmark", required=True, choices=tuple(BENCHMARKS))
    parser.add_argument("--protocol", required=True, choices=get_args(ProtocolName))
    parser.add_argument("--params", default="params.yaml", help="the judge, seed and data")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the benchmark's data set")
    parser.add_argument(
        "--allow-missing", action="store_true", help="exit with 0 though predictions are missing"
    )
    given = parser.parse_args(arguments)
    lmms_start.quiet()
    try:
        return _run(given)
    except (InputError, JudgeError, config.ConfigError) as error:
        print(f"eval.score: {error}", file=sys.stderr)
        return 1


def _run(given: argparse.Namespace) -> int:
    from eval.gateway import Gateway

    benchmark, protocol = given.benchmark, given.protocol
    if not Path(given.params).is_file():
        raise InputError(f"{given.params} does not exist, which names the judge; give --params")
    params = config.load(given.params)
    rows = read(given.file)
    if not rows:
        raise InputError(f"{given.file} has no rows")
    columns = {column for row in rows for column in row}
    if not columns & {"text", "prediction"}:
        raise InputError(f"{given.file} has no column text or prediction, only {sorted(columns)}")
    lacking = [column for column in required(benchmark) if column not in columns]
    complete = not lacking and protocol == "vlmevalkit"
    if is_spreadsheet(given.file) and lacking and protocol == "vlmevalkit":
        raise InputError(
            f"{given.file} lacks the columns {', '.join(lacking)} of VLMEvalKit's files of "
            f"{benchmark}; it has {', '.join(map(str, sorted(columns, key=str)))}"
        )
    if complete:
        if given.data is not None:
            raise InputError(f"--data is not read: {given.file} holds its questions")
        answers = whole(benchmark, rows)
    else:
        folder = given.data or _folder(params, protocol, benchmark)
        docs = load(benchmark, folder)
        if protocol == "vlmevalkit":
            try:
                cases.check(benchmark, docs)
            except ValueError as error:
                raise InputError(f"{folder}: {error}") from error
        answers = joined(benchmark, rows, docs)
    with Gateway(params.judge) as gateway:
        gateway.probe()
        gateway.route_lmms_eval()
        if protocol == "vlmevalkit":
            scores = score_vlmevalkit(benchmark, answers, gateway.max_missing)
        else:
            scores = score_lmms(params, given.params, benchmark, folder, answers, gateway)
        again = [one for one in gateway.failures if not (one.final and gateway.max_missing)]
        if again:
            reasons = [f"  {one.reason}: …{one.prompt[-80:]!r}" for one in again]
            raise JudgeError(
                f"the judge left {len(reasons)} requests without a usable reply, so nothing was "
                f"scored:\n{shortened(reasons)}"
            )
        identity = gateway.identity
    missing = [
        _named(benchmark, place, one.row)
        for place, one in enumerate(answers)
        if not one.text.strip()
    ]
    found = cells(params, scores.units)
    _show(given, found, scores, missing, _never_right(benchmark, protocol, answers), identity)
    return 1 if missing and not given.allow_missing else 0


def _never_right(benchmark: str, protocol: str, answers: Sequence[Answer]) -> list[str]:
    """The rows to which no answer is right by VLMEvalKit's rules: their right option is empty."""
    if protocol != "vlmevalkit":
        return []
    read = [cases.read(benchmark, one.row) for one in answers]
    return [case.index for case in read if case.options and case.answer not in case.options]


def _folder(params: Params, protocol: str, benchmark: str) -> Path:
    from eval.benchmark_data import BenchmarkDataError, folder_of

    if protocol not in params.protocols:
        raise InputError(f"params has no protocol {protocol}, so no data; give --data")
    try:
        return folder_of(params, params.data_name(protocol, benchmark))
    except (BenchmarkDataError, KeyError) as error:
        raise InputError(f"{error}; or give --data") from error


def _show(
    given: argparse.Namespace,
    found: Mapping[str, Cell],
    scores: Scores,
    missing: Sequence[str],
    never_right: Sequence[str],
    identity: Mapping[str, str],
) -> None:
    print(f"{given.file}: {given.benchmark}, protocol {given.protocol}, judge {identity['model']}")
    width = max(map(len, (*found, *scores.more, "accuracy, %")))
    print(f"{'accuracy, %':<{width}}  {'value':>6}  {'95 % interval':>15}  {'n':>6}  failed")
    for name, one in found.items():
        interval = f"{one.low:.2f} to {one.high:.2f}"
        print(f"{name:<{width}}  {one.value:6.2f}  {interval:>15}  {one.n:6d}  {one.n_failed:6d}")
    for name, value in scores.more.items():
        print(f"{name:<{width}}  {value:6.2f}")
    print("answers read by " + ", ".join(f"{who}: {n}" for who, n in sorted(scores.by.items())))
    if missing:
        print(f"missing predictions, counted as wrong: {len(missing)}: {_shown(missing)}")
    if left := found["all"].unanswered:
        print(
            f"answers that the judge did not grade, counted as wrong ({found['all'].if_right:.2f} "
            f"if all are right): {len(left)}:\n{shortened([f'  {one}' for one in left])}"
        )
    if never_right:
        print(
            "rows whose right option is empty, so that no answer is right: "
            f"{len(never_right)}: {_shown(never_right)}"
        )
    print(
        json.dumps(
            {
                "file": str(given.file),
                "benchmark": given.benchmark,
                "protocol": given.protocol,
                "judge": dict(identity),
                "accuracy": asdict(found["all"]),
                "categories": {name: asdict(one) for name, one in found.items() if name != "all"},
                **scores.more,
                "by": scores.by,
                "missing": list(missing),
                "never_right": list(never_right),
            },
            ensure_ascii=False,
        )
    )


def _shown(names: Sequence[str], shown: int = 20) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


if __name__ == "__main__":
    sys.exit(main())
