"""Batches of a VLM, in training and in generation, with each image processed and encoded once.

A turn or prompt has one image token, as `heima.data.tokens` writes it; here it becomes the tokens
that the model wants there. A batch holds its distinct images, and `image_rows` says which of them
a row is about; `Family.spread` gives each row its own inside the model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from transformers import ProcessorMixin

from heima.config import given
from heima.data.encoding import Sample, pad, pad_aligned, pad_text
from heima.data.tokens import IGNORED, Encoded
from heima.families.family import Family
from heima.families.images import ImageCache, distinct

ALIGN, EXPLAIN = "align_", "explain_"
"""What the names of a batch begin with that terms of the loss take (`heima.training.terms`)."""


class Images(Protocol):
    """Images by name, such as an `ImageZip`."""

    def read(self, name: str) -> Image.Image: ...


class Collator:
    """Batches of `Sample`s for `Family.body`; images come from one place.

    `image_rows`, (rows,), says which of the batch's images a row is about: with `once`, its
    distinct images are there once each, otherwise one a row, as transformers has it. `thoughts`
    are the token ids that states are fed in place of (`feeding`), each in a column of its own; None
    where none are.

    Calling it raises `ValueError` for rows with different numbers of those.
    """

    def __init__(
        self,
        family: Family,
        processor: ProcessorMixin,
        images: Images,
        *,
        once: bool = True,
        thoughts: Collection[int] | None = None,
    ) -> None:
        self._thoughts = thoughts
        self._family = family
        self._processor = processor
        self._images = images
        self._once = once
        self._cache = ImageCache()

    def _image(self, name: str) -> Mapping[str, Any]:
        return self._cache.get(
            name, lambda: self._family.process(self._images.read(name), self._processor)
        )

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        names, rows = distinct([sample.image for sample in samples], once=self._once)
        images = [self._image(name) for name in names]
        expanded = [
            self._expanded(sample.encoded, images[row]["placeholders"])
            for sample, row in zip(samples, rows, strict=True)
        ]
        padding = self._processor.tokenizer.pad_token_id
        if self._thoughts is None:
            text = pad_text(expanded, padding)
        else:
            text = pad_aligned(expanded, padding, self._thoughts)
        tensors = self._family.image_tensors(images, rows, text["input_ids"], self._processor)
        batch = {**text, **tensors, "image_rows": torch.tensor(rows)}
        if any(sample.supervision is not None for sample in samples):
            batch |= self._supervision(samples, images, rows, text["attention_mask"], tensors)
        return batch

    def _supervision(
        self,
        samples: Sequence[Sample],
        images: Sequence[Mapping[str, Any]],
        rows: Sequence[int],
        mask: torch.Tensor,
        tensors: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """What terms of the loss take, by the names that they know it by.

        Of `ALIGN`: the columns `at` which a state is compared, (rows,), the teacher's text as
        `pad_text` gives it, what else its pass takes that is not the student's, and its columns
        `teacher_at`. Of `EXPLAIN`: the columns `at` of thinking tokens, (rows, sections, tokens of
        a section), and the texts' `ids`, (rows, sections, longest), filled up with `IGNORED`.
        """
        all_of = [given(sample.supervision, "supervision") for sample in samples]
        token = self._processor.image_token_id
        holders = [images[row]["placeholders"] for row in rows]
        teacher = [
            _put(one.teacher, image_place(one.teacher, token), more)
            for one, more in zip(all_of, holders, strict=True)
        ]
        ids = pad(teacher, self._processor.tokenizer.pad_token_id)
        seen = self._family.image_tensors(images, rows, ids, self._processor)
        other = {
            key: value
            for key, value in seen.items()
            if value.shape != tensors[key].shape or not torch.equal(value, tensors[key])
        }
        moved = torch.tensor([len(more) - 1 for more in holders])
        before = torch.tensor([one.before for one in all_of]) + moved
        found = {
            f"{ALIGN}at": _columns(mask, before[:, None])[:, 0],
            f"{ALIGN}teacher_at": torch.tensor([len(row) - 1 for row in teacher]),
            f"{ALIGN}input_ids": ids,
            f"{ALIGN}attention_mask": pad([[1] * len(row) for row in teacher], 0),
            **{f"{ALIGN}{key}": value for key, value in other.items()},
        }
        if all_of[0].sections:
            places = torch.tensor([[own for own, _ in one.sections] for one in all_of])
            texts = [text for one in all_of for _, text in one.sections]
            flat = places.flatten(1) + moved[:, None]
            found[f"{EXPLAIN}at"] = _columns(mask, flat).view(places.shape)
            found[f"{EXPLAIN}ids"] = pad(texts, IGNORED).unflatten(0, places.shape[:2])
        return found

    def _expanded(self, encoded: Encoded, placeholders: Sequence[int]) -> Encoded:
        """A turn with an image's tokens in their place; all are the user's, and have no label."""
        place = image_place(encoded.input_ids, self._processor.image_token_id)
        return Encoded(
            input_ids=_put(encoded.input_ids, place, placeholders),
            labels=_put(encoded.labels, place, [encoded.labels[place]] * len(placeholders)),
            body=encoded.body + len(placeholders) - 1,
        )


def model_inputs(
    family: Family,
    ids: Sequence[Sequence[int]],
    images: Sequence[Mapping[str, Any]],
    processor: ProcessorMixin,
    rows: Sequence[int] | None = None,
) -> dict[str, torch.Tensor]:
    """Prompts for `generate`: text (batch, longest) padded on the left, and the images as given.

    Row i of the text is about the image `rows[i]`, by default the i-th.
    """
    rows = range(len(ids)) if rows is None else rows
    token = processor.image_token_id
    expanded = [
        _put(row, image_place(row, token), images[image]["placeholders"])
        for row, image in zip(ids, rows, strict=True)
    ]
    input_ids = pad(expanded, processor.tokenizer.pad_token_id, side="left")
    return {
        "input_ids": input_ids,
        "attention_mask": pad([[1] * len(row) for row in expanded], 0, side="left"),
        **family.image_tensors(images, rows, input_ids, processor),
    }


def image_place(ids: Sequence[int], image_token_id: int) -> int:
    """Where the image token stands. Raises `ValueError` where there is not exactly one."""
    found = ids.count(image_token_id)
    if found != 1:
        raise ValueError(f"a turn must have exactly one image token, not {found}")
    return ids.index(image_token_id)


def _columns(mask: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """In which column a row's tokens stand, by their places among its own, (rows, n)."""
    count = mask.cumsum(dim=1)
    return (count[:, None, :] == places[..., None] + 1).int().argmax(dim=-1)


def _put(values: Sequence[int], place: int, instead: Sequence[int]) -> list[int]:
    return [*values[:place], *instead, *values[place + 1 :]]
