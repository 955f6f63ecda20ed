"""The toy world as a LLaVA-CoT source: `train.jsonl` and an image zip, repeatable to the byte."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from heima.config import QuestionKind
from heima.toy.english import in_english
from heima.toy.world import KINDS, Question, Scene, ask, draw_distinct_scene, render

ANNOTATIONS = "train.jsonl"
IMAGES = "images.zip"
_TIMESTAMP = (2025, 1, 1, 0, 0, 0)


def write_source(
    folder: Path,
    *,
    records: int,
    turns: int,
    mix: Mapping[QuestionKind, float],
    seed: int,
    english: bool = False,
) -> None:
    """Write `train.jsonl` and `images.zip` in LLaVA-CoT's format.

    Every record has a scene of its own, so a split by image is a split by scene. All turns of a
    record share its kind, and the kind is the image's folder, as LLaVA-CoT's folders are its
    source data sets.

    Args:
        folder: created if missing; both files are overwritten.
        records: number of records, at least 1.
        turns: question-answer pairs of each record, at least 1.
        mix: weight of each kind of `KINDS`; weights need not add up to 1.
        seed: equal arguments give equal bytes.
        english: sections in plain English (`heima.toy.english`).

    Raises:
        ValueError: if a count is below 1, or the mix has an unknown kind, a negative weight or no
            positive one.
    """
    for name, count in (("records", records), ("turns", turns)):
        if count < 1:
            raise ValueError(f"{name}={count} must be at least 1")
    weights = _weights(mix)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        open(folder / ANNOTATIONS, "w", encoding="utf-8", newline="\n") as annotations,
        zipfile.ZipFile(folder / IMAGES, "w", zipfile.ZIP_STORED) as images,
    ):
        for index, (scene, questions) in enumerate(_draw(records, turns, weights, seed)):
            name = f"{questions[0].kind}/{index:06d}.png"
            images.writestr(zipfile.ZipInfo(name, _TIMESTAMP), png_bytes(render(scene)))
            conversations = []
            for asked in questions:
                conversations.append({"from": "human", "value": asked.prompt})
                said = in_english(asked, scene) if english else asked
                conversations.append({"from": "gpt", "value": answer_text(said)})
            record = {"id": f"toy-{index:06d}", "image": name, "conversations": conversations}
            annotations.write(json.dumps(record, ensure_ascii=False) + "\n")


def source_scenes(
    *, records: int, turns: int, mix: Mapping[QuestionKind, float], seed: int
) -> list[Scene]:
    """The scenes that `write_source` draws for the same arguments, in order of the records."""
    return [scene for scene, _ in _draw(records, turns, _weights(mix), seed)]


def answer_text(asked: Question) -> str:
    """The four tagged sections of an answer in LLaVA-CoT's canonical spacing."""
    sections = {
        "SUMMARY": asked.summary,
        "CAPTION": asked.caption,
        "REASONING": asked.reasoning,
        "CONCLUSION": asked.conclusion,
    }
    return "\n\n".join(f"<{tag}> {text} </{tag}>" for tag, text in sections.items())


def png_bytes(image: Image.Image) -> bytes:
    """Encode an image as PNG; equal pixels give equal bytes with one version of Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _weights(mix: Mapping[Any, float]) -> np.ndarray:
    for kind, weight in mix.items():
        if kind not in KINDS:
            raise ValueError(f"mix has the unknown kind {kind!r}; allowed: {', '.join(KINDS)}")
        if weight < 0:
            raise ValueError(f"mix[{kind!r}]={weight} must not be negative")
    weights = np.array([mix.get(kind, 0.0) for kind in KINDS], dtype=float)
    if weights.sum() <= 0:
        raise ValueError(f"mix={dict(mix)} gives no kind a positive weight")
    return weights / weights.sum()


def _draw(
    records: int, turns: int, weights: np.ndarray, seed: int
) -> Iterator[tuple[Scene, list[Question]]]:
    rng = np.random.default_rng(seed)
    seen: set[str] = set()
    for _ in range(records):
        scene = draw_distinct_scene(rng, seen)
        kind = KINDS[int(rng.choice(len(KINDS), p=weights))]
        yield scene, [ask(scene, kind, rng) for _ in range(turns)]
