"""Rows of a benchmark whose images are decoded as those of training are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets import Image as ImageFeature

from heima.config import ImageDecoding
from heima.data.pictures import decode


class Rows:
    """Rows of a data set, whose images are decoded here and not by `datasets`."""

    def __init__(self, rows: Dataset, decoding: ImageDecoding) -> None:
        # Once: a data set copies its features for everybody who asks.
        self.pictures = [
            column for column, kind in rows.features.items() if isinstance(kind, ImageFeature)
        ]
        for column in self.pictures:
            rows = rows.cast_column(column, ImageFeature(decode=False))
        self._rows = rows
        self._decoding: ImageDecoding = decoding

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = self._rows[place]
        for column in self.pictures:
            if row[column] is not None:
                content = row[column]["bytes"]
                content = Path(row[column]["path"]).read_bytes() if content is None else content
                row[column] = decode(content, self._decoding).image
        return row
