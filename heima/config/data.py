"""Parameters of the data: where records and benchmarks come from, and how records become turns."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from heima.config.base import (
    COMMIT,
    REPOSITORY,
    BenchmarkName,
    Model,
    Name,
    QuestionKind,
)
from heima.config.benchmarks import BENCHMARKS


class ToySource(Model):
    """A procedurally drawn world in LLaVA-CoT's format (see `heima.toy`).

    `english`: sections in plain English, for a language model that knows it; else in the few words
    of the toy's own tokenizer.
    """

    kind: Literal["toy"]
    records: PositiveInt
    turns: PositiveInt
    mix: dict[QuestionKind, PositiveFloat] = Field(min_length=1)
    benchmark_sizes: dict[BenchmarkName, PositiveInt]
    # Of a world without it, no stage depends on what it has not.
    english: bool = Field(default=False, exclude_if=lambda value: not value)

    @model_validator(mode="after")
    def _whole_sets(self) -> ToySource:
        for name, size in self.benchmark_sizes.items():
            whole = BENCHMARKS[name].dataset.set_size
            if size % whole:
                raise ValueError(
                    f"benchmark_sizes.{name} = {size} must be a multiple of {whole}: its "
                    "questions come in sets of so many"
                )
        return self


class Place(Model):
    """A repository of the hub (`id`, and `revision`, one of its commits), or a `path` instead."""

    path: str | None = Field(default=None, min_length=1)
    id: str | None = Field(default=None, pattern=REPOSITORY)
    revision: str | None = Field(default=None, pattern=COMMIT)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.id is None):
            raise ValueError("give exactly one of path and id")
        if self.path is not None and self.revision is not None:
            raise ValueError("revision belongs to id: a path has none")
        return self


class DatasetSource(Place):
    """Where a benchmark's data comes from: `path`, or `id` on the hub.

    `path` is a folder as `datasets.load_dataset` reads it, or a .tsv file of VLMEvalKit. `revision`
    is a commit of the hub's repository; without one, `prepare` takes the newest and writes down
    which it was.
    """


class GivenSource(Model):
    """A folder with LLaVA-CoT's `train.jsonl` and `images.zip`, and the benchmarks' data by name.

    A protocol reads the data named like the benchmark, or what its `data` names.
    """

    path: str = Field(min_length=1)
    benchmarks: dict[Name, DatasetSource] = Field(min_length=1)

    @model_validator(mode="after")
    def _outlives_a_stage(self) -> Self:
        for out in ("data/source", "data/benchmarks", "data/rewritten"):
            if Path(os.path.normpath(self.path)).is_relative_to(out):
                raise ValueError(
                    f"path = {self.path!r} must not lie in {out}: DVC deletes that folder before "
                    "the stage that writes it"
                )
        return self


class FolderSource(GivenSource):
    """The data that lies in the folder `path`; nothing is written there."""

    kind: Literal["folder"]


class HubSource(GivenSource):
    """A data set in LLaVA-CoT's form on the hub, which `prepare` downloads into the folder `path`.

    Without a `revision` it takes the newest commit and writes down which it was.
    """

    kind: Literal["hub"]
    id: str = Field(pattern=REPOSITORY)
    revision: str | None = Field(default=None, pattern=COMMIT)


class Rewrite(Model):
    """How records become turns (paper, section 4; docs/recipe.md, section 1).

    `compat: official` keeps the turns that the official arrangement keeps, `corrected` those whose
    sections can be told apart by position (see `heima.data.arrangements`). `verify_images` says how
    far an image is looked at: decoded as a whole, its header, or only whether the zip has it.
    `llama_tokenizer`: Llama 3's `tokenizer.json`, or its folder, by which the official filter B
    judges tags that touch a letter or a sign; none: by a rule (see `heima.data.official`).
    """

    compat: Literal["corrected", "official"]
    heldout: Annotated[float, Field(gt=0, lt=1)]
    split: Literal["image", "turn"]
    image_place: Literal["alternate", "first"]
    spacing: Literal["canonical", "any"]
    verify_images: Literal["decode", "header", "exists"]
    llama_tokenizer: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _official_choices(self) -> Rewrite:
        choices = {"split": "turn", "image_place": "alternate", "spacing": "canonical"}
        wrong = {key: getattr(self, key) for key in choices if getattr(self, key) != choices[key]}
        if self.compat == "official" and wrong:
            raise ValueError(
                "compat = official needs "
                + ", ".join(f"{key} = {choices[key]}, not {value}" for key, value in wrong.items())
            )
        return self
