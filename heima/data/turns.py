"""Turns: one question about an image with the sections of its answer, a row of a parquet file."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from heima.cot.rendering import Rendering, render, rendering_of, replaced
from heima.cot.sections import SECTIONS, Marked, ThinkingTokens, numbered

COLUMNS = ["id", "image", "question", *SECTIONS, "image_first", "answer"]
SCHEMA = pa.schema(
    [(name, pa.bool_() if name == "image_first" else pa.string()) for name in COLUMNS]
)

_ONE_TOKEN = numbered(1)

_ROWS = 8192
"""Turns of a row group: some 20 MB of text."""


@dataclass(frozen=True)
class Turn:
    """One question about one image with its staged answer.

    `image` is the path inside the source's zip; `image_first` says on which side of the question
    the image stands. `answer` is the record's own where phases keep it word for word, and replace
    texts in it; None: they are rendered from the sections.
    """

    id: str
    image: str
    question: str
    summary: str
    caption: str
    reasoning: str
    conclusion: str
    image_first: bool
    answer: str | None = None

    def written(
        self,
        rendering: str | Rendering,
        thinking: ThinkingTokens = _ONE_TOKEN,
        *,
        short: Mapping[str, str] | None = None,
    ) -> Marked:
        """The assistant's text in a rendering, as `rendering.render` takes it."""
        if self.answer is None or not rendering_of(rendering).replaces:
            return render(self.sections, rendering, thinking, short=short)
        return replaced(self.answer, self.sections, rendering, thinking)

    @property
    def kind(self) -> str:
        """The kind of question: the image's folder, in LLaVA-CoT the data set it came from."""
        return posixpath.dirname(self.image)

    @property
    def sections(self) -> dict[str, str]:
        return {section: getattr(self, section) for section in SECTIONS}


class TurnFile:
    """A parquet file of turns, written table by table in row groups of one size.

    The file depends on the rows alone, not on the tables that they come in.
    """

    def __init__(self, path: str | Path) -> None:
        # Few texts occur twice, so that a dictionary of them is not worth its time.
        self._writer = pq.ParquetWriter(path, SCHEMA, use_dictionary=["image", "image_first"])
        self._rest = SCHEMA.empty_table()

    def __enter__(self) -> TurnFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and len(self._rest):
            self._writer.write_table(self._rest.combine_chunks())
        self._writer.close()

    def write(self, table: pa.Table) -> None:
        self._rest = pa.concat_tables([self._rest, table])
        while len(self._rest) >= _ROWS:
            self._writer.write_table(self._rest.slice(0, _ROWS).combine_chunks())
            self._rest = self._rest.slice(_ROWS)


def load_turns(path: str | Path) -> list[Turn]:
    """The turns of a parquet file that a `TurnFile` wrote."""
    columns = (column.to_pylist() for column in pq.read_table(path, columns=COLUMNS).columns)
    return [Turn(*row) for row in zip(*columns, strict=True)]


def first_turn(path: str | Path) -> Turn:
    """The first of the turns that `load_turns` returns, without reading the others."""
    with pq.ParquetFile(path) as file:
        batch = next(file.iter_batches(batch_size=1, columns=COLUMNS))
    return Turn(**batch.to_pylist()[0])
