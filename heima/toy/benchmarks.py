"""Toy editions of the six benchmarks: the columns and splits of the real ones, our scenes.

Each benchmark becomes a local data set folder that `datasets.load_dataset` reads: a README with
the `configs:` header and one parquet file with the images inside. lmms-eval's own task functions
run on them unchanged.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Sequence, Value

from heima.config import Benchmark
from heima.toy.source import png_bytes
from heima.toy.world import (
    IMAGE_SIDE,
    KINDS,
    LETTERS,
    STYLES,
    Question,
    Scene,
    ask,
    claims,
    compose,
    draw_distinct_scene,
    draw_scene,
    mmstar_question,
    orders,
    places,
    prompt_text,
    render,
    subject,
)

# The six categories of MMStar, each with one of its own sub-categories.
MMSTAR_CATEGORIES = {
    "coarse perception": "image scene and topic",
    "fine-grained perception": "localization",
    "instance reasoning": "cross-instance attribute reasoning",
    "logical reasoning": "diagram reasoning",
    "science & technology": "electronics & energy & mechanical eng.",
    "math": "numeric commonsense and calculation",
}
MMBENCH_CATEGORIES = {
    "look-option": ("object_localization", "finegrained_perception (instance-level)"),
    "sum-option": ("structuralized_imagetext_understanding", "logic_reasoning"),
}
OPTION_KINDS = tuple(kind for kind in KINDS if kind.endswith("option"))
YES_NO_KINDS = tuple(kind for kind in KINDS if kind.endswith("yes-no"))
ROTATION = 1_000_000
"""MMBench numbers the rotations of question i as i, i + 1e6, i + 2e6, i + 3e6."""
HALLUSION_SET = 4
"""Rows of a HallusionBench set: two questions about each of two figures."""

_STRING, _INTEGER = Value("string"), Value("int64")


def write_benchmarks(
    folder: Path, *, sizes: Mapping[Benchmark, int], seed: int, exclude: Iterable[str] = ()
) -> None:
    """Write a data set folder for each benchmark named in `sizes`.

    Args:
        folder: parent of the data set folders; created if missing.
        sizes: questions of each benchmark in `BENCHMARKS`. MMBench has four rows a question,
            its rotations; HallusionBench comes in sets of four questions.
        seed: a benchmark's rows depend on the seed, on the order of `sizes` and on `exclude`.
        exclude: keys of scenes that must not appear (those of the training source). No scene
            serves two questions, but for the sets of HallusionBench.

    Raises:
        ValueError: if a benchmark is unknown, a size is below 1, or HallusionBench's size is not
            a multiple of four.
    """
    for name, size in sizes.items():
        if name not in BENCHMARKS:
            raise ValueError(f"sizes has the unknown {name!r}; allowed: {', '.join(BENCHMARKS)}")
        if size < 1:
            raise ValueError(f"sizes[{name!r}]={size} must be at least 1")
        if name == "hallusionbench" and size % HALLUSION_SET:
            raise ValueError(f"sizes[{name!r}]={size} must be a multiple of {HALLUSION_SET}")
    seen = set(exclude)
    for offset, (name, size) in enumerate(sizes.items()):
        benchmark = BENCHMARKS[name]
        rows = benchmark.rows(size, np.random.default_rng([seed, offset]), seen)
        _write(folder / name, benchmark, rows)


def _write(folder: Path, benchmark: _Benchmark, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.parquet"):
        stale.unlink()
    # The schema carries the features, so images load as PIL images.
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=benchmark.features.arrow_schema), buffer)
    # `datasets` caches by file name, not by content: an equal name would return old rows.
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:12]
    file = f"{benchmark.split}-{digest}.parquet"
    (folder / file).write_bytes(buffer.getvalue())
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {benchmark.config}\n  data_files:\n"
        f"  - split: {benchmark.split}\n    path: {file}\n---\n"
        f"Toy edition of {benchmark.title}, drawn by heima.toy.benchmarks.\n",
        encoding="utf-8",
    )


def _picture(scene: Scene) -> dict:
    return {"bytes": png_bytes(render(scene)), "path": None}


def _draw(
    kind: str, style: str, rng: np.random.Generator, seen: set[str]
) -> tuple[Scene, Question]:
    scene = draw_distinct_scene(rng, seen)
    return scene, ask(scene, kind, rng, style=style)


def _mmstar_rows(size: int, rng: np.random.Generator, seen: set[str]) -> list[dict]:
    rows = []
    for index in range(size):
        category = list(MMSTAR_CATEGORIES)[index % len(MMSTAR_CATEGORIES)]
        # Kinds change with each round of categories, so every category holds both.
        kind = OPTION_KINDS[(index // len(MMSTAR_CATEGORIES) + index) % len(OPTION_KINDS)]
        scene, asked = _draw(kind, "mmstar", rng, seen)
        rows.append(
            {
                "index": index,
                "question": mmstar_question(asked.text, asked.options),
                "image": _picture(scene),
                "answer": asked.conclusion,
                "category": category,
                "l2_category": MMSTAR_CATEGORIES[category],
            }
        )
    return rows


def _mmbench_rows(size: int, rng: np.random.Generator, seen: set[str]) -> list[dict]:
    rows = []
    for index in range(size):
        kind = OPTION_KINDS[index % len(OPTION_KINDS)]
        scene, asked = _draw(kind, "mmbench", rng, seen)
        category, broad = MMBENCH_CATEGORIES[kind]
        right = asked.options[LETTERS.index(asked.conclusion)]
        for turn, options in enumerate(orders(kind)):
            rows.append(
                {
                    "index": index + turn * ROTATION,
                    "question": asked.text,
                    "hint": "nan",
                    "answer": LETTERS[options.index(right)],
                    **dict(zip(LETTERS, options, strict=True)),
                    "E": "nan",
                    "category": category,
                    "image": _picture(scene),
                    "source": "toy",
                    "L2-category": broad,
                    "comment": "nan",
                    "split": "dev",
                }
            )
    return rows


def _mmvet_rows(size: int, rng: np.random.Generator, seen: set[str]) -> list[dict]:
    rows = []
    for index in range(size):
        scene, asked = _draw("look-free", "mmvet", rng, seen)
        rows.append(
            {
                "question_id": f"v1_{index}",
                "question": asked.text,
                "answer": asked.conclusion,
                "image_source": "toy",
                "capability": "rec,spat",
                "image": _picture(scene),
            }
        )
    return rows


def _mathvista_rows(size: int, rng: np.random.Generator, seen: set[str]) -> list[dict]:
    rows = []
    for index in range(size):
        scene, asked = _draw("sum-number", "mathvista", rng, seen)
        rows.append(
            {
                "pid": str(index + 1),
                "question": asked.text,
                "image": f"images/{index + 1}.png",
                "decoded_image": _picture(scene),
                "choices": [],
                "unit": "",
                "precision": 0.0,
                "answer": asked.conclusion,
                "question_type": "free_form",
                "answer_type": "integer",
                "metadata": {
                    "category": "math-targeted-vqa",
                    "context": "synthetic scene",
                    "grade": "elementary school",
                    "img_height": IMAGE_SIDE,
                    "img_width": IMAGE_SIDE,
                    "language": "english",
                    "skills": ["arithmetic reasoning"],
                    "source": "toy",
                    "split": "testmini",
                    "task": "visual question answering",
                },
                "query": prompt_text("mathvista", asked.text, ()),
            }
        )
    return rows


def _ai2d_rows(size: int, rng: np.random.Generator, seen: set[str]) -> list[dict]:
    rows = []
    for index in range(size):
        kind = OPTION_KINDS[index % len(OPTION_KINDS)]
        scene, asked = _draw(kind, "ai2d", rng, seen)
        rows.append(
            {
                "question": asked.text,
                "options": list(asked.options),
                "answer": str(LETTERS.index(asked.conclusion)),
                "image": _picture(scene),
            }
        )
    return rows


def _hallusionbench_rows(size: int, rng: np.random.Generator, seen: set[str]) -> list[dict]:
    """Sets of two figures and two questions: each question is true of one figure only."""
    rows = []
    for set_id in range(size // HALLUSION_SET):
        category, subcategory = (("VD", "figure"), ("VS", "table"))[set_id % 2]
        kinds = [YES_NO_KINDS[(set_id // 2 + number) % len(YES_NO_KINDS)] for number in range(2)]
        scenes, pairs = _contrasting(kinds, rng, seen)
        for question_id, pair in enumerate(pairs):
            for figure, asked in enumerate(pair):
                # Figure 0 of a VS set means "no image" to the scorer, so those count from 1.
                figure_id = figure if category == "VD" else figure + 1
                rows.append(
                    {
                        "category": category,
                        "subcategory": subcategory,
                        "visual_input": str(figure + 1),
                        "set_id": str(set_id),
                        "figure_id": str(figure_id),
                        "sample_note": "toy",
                        "question_id": str(question_id),
                        "question": asked.text,
                        "gt_answer_details": _details(asked),
                        "gt_answer": "1" if asked.conclusion == "yes" else "0",
                        "filename": f"./{category}/{subcategory}/{set_id}_{figure_id}.png",
                        "image": _picture(scenes[figure]),
                    }
                )
    return rows


def _contrasting(
    kinds: list[str], rng: np.random.Generator, seen: set[str]
) -> tuple[list[Scene], list[list[Question]]]:
    """Two scenes, and a question of each kind about both: the first one is true of the first scene
    alone, the second one of the second scene.
    """
    while True:
        scenes = [draw_scene(rng) for _ in range(2)]
        found = [_contrasts(kind, scenes, true_of) for true_of, kind in enumerate(kinds)]
        keys = {scene.key for scene in scenes}
        # Where a scene's totals are all larger, no bound is exceeded by the other's alone.
        if all(found) and len(keys) == 2 and not keys & seen:
            seen |= keys
            return scenes, [pairs[int(rng.integers(len(pairs)))] for pairs in found]


def _contrasts(kind: str, scenes: list[Scene], true_of: int) -> list[list[Question]]:
    """All questions of a kind about two scenes that are true of `scenes[true_of]` alone."""
    [style] = STYLES[kind]
    pairs = [
        [compose(scene, kind, cells, style=style, claim=claim) for scene in scenes]
        for cells in places(kind)
        for claim in claims(kind)
    ]
    expected = ["yes" if figure == true_of else "no" for figure in range(2)]
    return [pair for pair in pairs if [asked.conclusion for asked in pair] == expected]


def _details(asked: Question) -> str:
    return f"{asked.conclusion.capitalize()}, {asked.value} is {subject(asked.cells)}."


@dataclass(frozen=True)
class _Benchmark:
    """Where a benchmark's rows stand and how they are typed."""

    title: str
    split: str
    rows: Callable[[int, np.random.Generator, set[str]], list[dict]]
    features: Features
    config: str = "default"


def _strings(*names: str) -> dict[str, Value]:
    return dict.fromkeys(names, _STRING)


BENCHMARKS: dict[str, _Benchmark] = {
    "mmstar": _Benchmark(
        "MMStar",
        "val",
        _mmstar_rows,
        Features(
            {
                "index": _INTEGER,
                **_strings("question"),
                "image": Image(),
                **_strings("answer", "category", "l2_category"),
            }
        ),
    ),
    "mmbench": _Benchmark(
        "MMBench (dev, English, circular)",
        "dev",
        _mmbench_rows,
        Features(
            {
                "index": _INTEGER,
                **_strings("question", "hint", "answer", *LETTERS, "E", "category"),
                "image": Image(),
                **_strings("source", "L2-category", "comment", "split"),
            }
        ),
        config="en",
    ),
    "mmvet": _Benchmark(
        "MM-Vet",
        "test",
        _mmvet_rows,
        Features(
            {
                **_strings("question_id", "question", "answer", "image_source", "capability"),
                "image": Image(),
            }
        ),
    ),
    "mathvista": _Benchmark(
        "MathVista (testmini)",
        "testmini",
        _mathvista_rows,
        Features(
            {
                **_strings("pid", "question", "image"),
                "decoded_image": Image(),
                "choices": Sequence(_STRING),
                "unit": _STRING,
                "precision": Value("float64"),
                **_strings("answer", "question_type", "answer_type"),
                "metadata": {
                    **_strings("category", "context", "grade"),
                    "img_height": _INTEGER,
                    "img_width": _INTEGER,
                    "language": _STRING,
                    "skills": Sequence(_STRING),
                    **_strings("source", "split", "task"),
                },
                "query": _STRING,
            }
        ),
    ),
    "ai2d": _Benchmark(
        "AI2D (test)",
        "test",
        _ai2d_rows,
        Features(
            {
                "question": _STRING,
                "options": Sequence(_STRING),
                "answer": _STRING,
                "image": Image(),
            }
        ),
    ),
    "hallusionbench": _Benchmark(
        "HallusionBench (image)",
        "image",
        _hallusionbench_rows,
        Features(
            {
                **_strings("category", "subcategory", "visual_input", "set_id", "figure_id"),
                **_strings("sample_note", "question_id", "question", "gt_answer_details"),
                **_strings("gt_answer", "filename"),
                "image": Image(),
            }
        ),
    ),
}
"""Toy edition of each benchmark, by the name of its folder."""
