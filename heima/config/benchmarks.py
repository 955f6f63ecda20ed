"""Every benchmark, once: the facts that parameters, tasks, checks, scores, tables and plans read.

What a benchmark *does* (how its rows are read, a rule, the questions of its toy edition) is a
function elsewhere, in one table a concern. The facts are in parts, so that a stage depends on those
that it reads: `heima.config` writes the parts out below `derived.benchmarks` in resolved.yaml, and
dvc.yaml tracks them there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Dataset:
    """Where a benchmark's rows stand and what they hold, under either protocol.

    Attributes:
        title: its name and edition.
        split: what `datasets.load_dataset` calls the split.
        columns: those that the tasks of either protocol read.
        optional: those of them that an edition may lack, as if all of its cells were empty.
        configuration: what `datasets.load_dataset` calls it (`name`); None: the only one.
        image: the column of the image.
        identity: the columns that no two rows share; none: a row's place is its name.
        rotation: a question stands there once for each order of its options, numbered i,
            i + rotation, …, and counts where all are right. None: once.
        set_size: rows of the toy's edition come in sets of so many.
    """

    title: str
    split: str
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    configuration: str | None = None
    image: str = "image"
    identity: tuple[str, ...] = ()
    rotation: int | None = None
    set_size: int = 1


@dataclass(frozen=True)
class Scoring:
    """What is answered, what guessing scores, and where lmms-eval has its numbers.

    Attributes:
        kind: what is answered: a letter of its options (`choice`), `yes-no`, a text that a judge
            grades (`graded`), or one that a judge extracts from a longer text (`extracted`).
        answer: the column of the right answer.
        options: the columns of the options: one that lists them, or one each. Guessing scores one
            of the options (in every rotation), or of free answers the commonest.
        option_count: options of each question, where they stand in its text.
        metric: that of lmms-eval's own task, multiplied by `scale` to percent.
        score: the key of a sample's score (0 to 1) in the sample's `metric`; None: it is that.
        none_is_zero: its aggregation returns None for a number of 0.
        stratum: the column of the groups whose means lmms-eval averages; None: the samples are.
        group_metrics: what `vlmevalkit` counts besides the accuracy: the shares of figures, and of
            questions about several figures, with every answer right.
    """

    kind: Literal["choice", "yes-no", "graded", "extracted"]
    metric: str
    scale: float
    answer: str = "answer"
    options: tuple[str, ...] = ()
    option_count: int | None = None
    score: str | None = None
    none_is_zero: bool = False
    stratum: str | None = None
    group_metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        name: in parameters, files and the columns of tables.
        task: that of lmms-eval (0.7.3) under the protocol `lmms`.
        published: the paper's name of it in `reports/published/`; None: not in the paper.
        rows: of the official edition, with every rotation; for plans.
        judged: the protocols under which a judge sees every answer; for plans.
        judge_tokens: of a judge's prompt, texts included (the wordings of MathVista, MM-Vet and
            HallusionBench are 470, 580 and 110 by Llama 3's tokenizer); for plans.
        judge_module: the module of its task that keeps the judge's address from its import on; for
            the gateway, which refuses to come too late.
    """

    name: str
    task: str
    dataset: Dataset
    scoring: Scoring
    rows: int
    published: str | None = None
    judged: tuple[str, ...] = ()
    judge_tokens: int = 0
    judge_module: str | None = None

    @property
    def tasks(self) -> dict[str, str]:
        """Protocol -> the name of its lmms-eval task."""
        return {"lmms": self.task, "vlmevalkit": f"heima_vlmevalkit_{self.name}"}

    @property
    def spelling(self) -> str:
        """Its own spelling of its name, without the edition."""
        return self.dataset.title.partition(" (")[0]


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="mmstar",
            task="mmstar",
            dataset=Dataset(
                title="MMStar",
                split="val",
                columns=("index", "question", "image", "answer", "category", "l2_category"),
                identity=("index",),
            ),
            scoring=Scoring(
                kind="choice",
                option_count=4,
                metric="average",
                scale=100,
                score="score",
                stratum="l2_category",
            ),
            rows=1500,
            published="MMStar",
        ),
        Benchmark(
            name="mmbench",
            task="mmbench_en_dev",
            dataset=Dataset(
                title="MMBench (dev, English, circular)",
                configuration="en",
                split="dev",
                columns=(
                    *("index", "question", "hint", "answer", "A", "B", "C", "D", "E"),
                    *("category", "L2-category", "source", "split", "image"),
                ),
                # The hub's has no E, VLMEvalKit's tables neither source nor always a hint.
                optional=("hint", "C", "D", "E", "L2-category", "source", "split"),
                identity=("index",),
                rotation=1_000_000,
            ),
            scoring=Scoring(
                kind="choice",
                options=("A", "B", "C", "D", "E"),
                metric="gpt_eval_score",
                scale=1,
            ),
            judge_module="lmms_eval.tasks.mmbench.en_utils",
            rows=4329,
            published="MMBench",
        ),
        Benchmark(
            name="mmvet",
            task="mmvet",
            dataset=Dataset(
                title="MM-Vet",
                split="test",
                columns=("question_id", "question", "answer", "capability", "image"),
                identity=("question_id",),
            ),
            scoring=Scoring(kind="graded", metric="gpt_eval_score", scale=1, score="score"),
            rows=218,
            published="MMVet",
            judged=("lmms", "vlmevalkit"),
            judge_tokens=700,
        ),
        Benchmark(
            name="mathvista",
            task="mathvista_testmini_format",
            dataset=Dataset(
                title="MathVista (testmini)",
                split="testmini",
                columns=(
                    *("pid", "question", "decoded_image", "choices", "unit", "precision"),
                    *("answer", "question_type", "answer_type", "metadata", "query"),
                ),
                image="decoded_image",
                identity=("pid",),
            ),
            scoring=Scoring(
                kind="extracted",
                options=("choices",),
                metric="llm_as_judge_eval",
                scale=1,
                score="true_false",
                none_is_zero=True,
            ),
            judge_module="lmms_eval.tasks.mathvista.mathvista_evals",
            rows=1000,
            published="MathVista",
            judged=("lmms", "vlmevalkit"),
            judge_tokens=600,
        ),
        Benchmark(
            name="ai2d",
            task="ai2d",
            dataset=Dataset(
                title="AI2D (test)",
                split="test",
                columns=("question", "options", "answer", "image"),
            ),
            scoring=Scoring(kind="choice", options=("options",), metric="exact_match", scale=100),
            rows=3088,
            published="AI2D",
        ),
        Benchmark(
            name="hallusionbench",
            task="hallusion_bench_image",
            dataset=Dataset(
                title="HallusionBench (image)",
                split="image",
                columns=(
                    *("category", "subcategory", "visual_input", "set_id", "figure_id"),
                    *("question_id", "question", "gt_answer_details", "gt_answer", "filename"),
                    "image",
                ),
                identity=("category", "subcategory", "set_id", "figure_id", "question_id"),
                # Two questions about each of two figures.
                set_size=4,
            ),
            # The aggregation writes its verdict into the sample.
            scoring=Scoring(
                kind="yes-no",
                answer="gt_answer",
                metric="aAcc",
                scale=1,
                score="correct",
                group_metrics=("figure_accuracy", "question_accuracy"),
            ),
            judge_module="lmms_eval.tasks.hallusion_bench.utils",
            rows=951,
            published="HallusionBench",
            judged=("lmms",),
            judge_tokens=250,
        ),
    )
}
"""By name, in the order of the tables."""


def known(name: str) -> str:
    """A benchmark's name, as pydantic validates it. Raises `ValueError` with those that exist."""
    if name not in BENCHMARKS:
        raise ValueError(f"must be one of {', '.join(map(repr, BENCHMARKS))}")
    return name


def parts(names: Collection[str]) -> dict[str, Any]:
    """What decides of the benchmarks, as plain data: part -> benchmark -> facts.

    `published` has all benchmarks of the paper, `spelling` all there are, the others those of
    `names`.
    """
    chosen = [benchmark for name, benchmark in BENCHMARKS.items() if name in names]
    return {
        "dataset": {one.name: _plain(one.dataset) for one in chosen},
        "tasks": {one.name: one.tasks for one in chosen},
        "scoring": {one.name: _plain(one.scoring) for one in chosen},
        "published": {one.name: one.published for one in BENCHMARKS.values() if one.published},
        "spelling": {one.name: one.spelling for one in BENCHMARKS.values()},
    }


def _plain(part: Dataset | Scoring) -> dict[str, Any]:
    """The facts of a part as YAML returns them."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(part).items()
    }
