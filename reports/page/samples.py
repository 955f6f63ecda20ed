"""Samples for the page: questions with every variant's answer, turns rebuilt from states.

Which ones is decided by their places alone, evenly over a benchmark or over the held-out turns:
nobody picks them. Texts of the first training seed are shown, scores of all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.benchmark_data import folder_of
from eval.units import image_label
from eval.vlmevalkit import cases
from heima.config import Params
from heima.config.benchmarks import BENCHMARKS
from heima.data import places
from heima.data.images import ImageFault, ImageZip
from heima.results.files import read_jsonl
from reports.page.errors import PageError
from reports.page.images import Images
from reports.tables.samples import evenly


@dataclass
class Samples:
    """What the browsers hold.

    `texts` has each text once; questions and turns name it by its place. `left_out` says what could
    not be shown, and why; `of` how many there are in all.
    """

    questions: list[dict[str, Any]] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    images: Images = field(default_factory=Images)
    left_out: list[str] = field(default_factory=list)
    of: dict[str, int] = field(default_factory=dict)
    _places: dict[str, int] = field(default_factory=dict)

    def text(self, text: str) -> int:
        """Where a text stands."""
        if text not in self._places:
            self._places[text] = len(self.texts)
            self.texts.append(text)
        return self._places[text]


def read(root: Path, params: Params) -> Samples:
    """The samples that `params.page.samples` allows of each benchmark, and as many turns.

    Raises `PageError` where files are missing or belong to other data.
    """
    found = Samples()
    answers = {variant: _Answers(root, params, variant) for variant in params.variants}
    for benchmark in params.benchmarks:
        data: dict[str, list[str]] = {}
        for protocol in params.protocols:
            data.setdefault(params.data_name(protocol, benchmark), []).append(protocol)
        for name, protocols in data.items():
            _add_questions(found, root, params, benchmark, name, protocols, answers)
    _add_turns(found, root, params)
    found.left_out += found.images.unreadable
    return found


class _Answers:
    """A variant's predictions and scores."""

    def __init__(self, root: Path, params: Params, variant: str) -> None:
        self.seeds = params.training_seeds(params.variants[variant].model)
        self._folder = root / "predictions" / variant
        self._decoding: dict[str, int] = {
            name: rules.seeds[0] for name, rules in params.protocols.items()
        }
        path = root / "scores" / f"{variant}.jsonl"
        if not path.is_file():
            raise PageError(f"scores/{path.name} is missing: run `dvc repro score@{variant}`")
        self._scores: dict[tuple[str, str, int], dict[int, dict[str, Any]]] = {}
        for row in read_jsonl(path):
            if row["seed"] == self._decoding.get(row["protocol"]):
                key = row["protocol"], row["benchmark"], row["doc_id"]
                self._scores.setdefault(key, {})[row["training_seed"]] = row

    def texts(self, protocol: str, benchmark: str) -> list[dict[str, Any]]:
        """The answers of the first training seed and decoding seed, in the order of the rows."""
        seed = str(self._decoding[protocol])
        path = self._folder / str(self.seeds[0]) / protocol / seed / f"{benchmark}.jsonl"
        if not path.is_file():
            shown = path.relative_to(self._folder.parent.parent)
            raise PageError(f"{shown} is missing: run `dvc repro predict@{self._folder.name}`")
        return read_jsonl(path)

    def scored(self, protocol: str, benchmark: str, doc: int) -> dict[int, dict[str, Any]]:
        """Training seed -> the scored row of a question."""
        key = protocol, benchmark, doc
        if key not in self._scores:
            raise PageError(
                f"scores/{self._folder.name}.jsonl has no {benchmark} ({protocol}) number {doc}: "
                f"run `dvc repro score@{self._folder.name}`"
            )
        return self._scores[key]


def _add_questions(
    found: Samples,
    root: Path,
    params: Params,
    benchmark: str,
    name: str,
    protocols: Sequence[str],
    answers: dict[str, _Answers],
) -> None:
    texts = {
        (protocol, variant): own.texts(protocol, benchmark)
        for protocol in protocols
        for variant, own in answers.items()
    }
    total = len(next(iter(texts.values())))
    found.of[name] = total
    for doc, row in _rows(root, params, benchmark, name, evenly(total, params.page.samples)):
        content = row.pop(BENCHMARKS[benchmark].dataset.image)["bytes"]
        label = image_label(content)
        shown: dict[str, dict[str, Any]] = {}
        for protocol in protocols:
            shown[protocol] = {}
            for variant, own in answers.items():
                scored = own.scored(protocol, benchmark, doc)
                first = scored[own.seeds[0]]
                if first["image"] != label:
                    raise PageError(
                        f"scores/{variant}.jsonl: {benchmark} ({protocol}) number {doc} was asked "
                        "about another image than the data has: run `dvc repro`"
                    )
                said = texts[protocol, variant][doc]
                shown[protocol][variant] = [
                    found.text(said["text"]),
                    first["decoded"],
                    first["thinking"],
                    [scored[seed]["score"] for seed in own.seeds],
                    int(first["failed"]),
                ]
        try:
            case = cases.read(benchmark, row)
        except cases.RowError as error:
            found.left_out.append(f"{benchmark} number {doc}: {error}")
            continue
        found.questions.append(
            {
                "benchmark": benchmark,
                "data": name,
                "doc": doc,
                "question": case.question,
                "options": dict(case.options),
                "answer": case.answer,
                "image": found.images.place(content, f"{benchmark} number {doc}"),
                "answers": shown,
            }
        )


def _rows(
    root: Path, params: Params, benchmark: str, name: str, chosen: Sequence[int]
) -> list[tuple[int, dict[str, Any]]]:
    """Rows of a data set by their place, with the image's file in the image's column."""
    import datasets

    datasets.disable_progress_bars()
    facts, folder = BENCHMARKS[benchmark].dataset, root / folder_of(params, name)
    with tempfile.TemporaryDirectory() as cache:
        data = datasets.load_dataset(
            str(folder.resolve()), facts.configuration, split=facts.split, cache_dir=cache
        )
        data = data.cast_column(facts.image, datasets.Image(decode=False)).select(chosen)
        rows = [dict(row) for row in data]
    if not facts.identity:
        rows = [{"index": doc, **row} for doc, row in zip(chosen, rows, strict=True)]
    return list(zip(chosen, rows, strict=True))


def _add_turns(found: Samples, root: Path, params: Params) -> None:
    images = ImageZip(places.locate(root / "data" / "source") / "images.zip")
    seed = params.seeds[0]
    turns: dict[str, dict[str, Any]] = {}
    for name, one in params.reconstructions.items():
        rows = _read(root, f"reconstructions/{name}/{seed}.jsonl", f"reconstruct@{name}-{seed}")
        grades = {
            (row["id"], row["control"]): row
            for row in _read(root, f"judgements/{name}/{seed}.jsonl", "judge")
        }
        ids = list(dict.fromkeys(row["id"] for row in rows))
        found.of["turns"] = len(ids)
        chosen = {ids[place] for place in evenly(len(ids), params.page.samples)}
        for row in rows:
            if row["id"] not in chosen:
                continue
            if row["id"] not in turns:
                turns[row["id"]] = {
                    "id": row["id"],
                    "question": row["question"],
                    "image": _turn_image(found, images, row["image"]),
                    "sections": {},
                    "rebuilt": {},
                }
            turn = turns[row["id"]]
            turn["sections"][one.section] = found.text(row["reference"])
            grade = grades.get((row["id"], row["control"]), {}).get("grade")
            said = [found.text(row["text"]), float(f"{row['nll']:.4g}"), grade]
            turn["rebuilt"].setdefault(name, {})[row["control"]] = said
    found.turns = list(turns.values())


def _turn_image(found: Samples, images: ImageZip, name: str) -> int | None:
    try:
        return found.images.place(images.read_file(name), name)
    except ImageFault as error:
        found.left_out.append(str(error))
        return None


def _read(root: Path, name: str, stage: str) -> list[dict[str, Any]]:
    if not (root / name).is_file():
        raise PageError(f"{name} is missing: run `dvc repro {stage}`")
    return read_jsonl(root / name)
