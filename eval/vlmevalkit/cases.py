"""Rows of the benchmarks as cases: what the rules need, whatever file a row comes from.

Two layouts are read: that of the data sets on the hub (columns of lmms-eval's tasks), and that of
VLMEvalKit's tables (a column for each option, and what its result files repeat).
"""

from __future__ import annotations

import ast
import math
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heima.config.benchmarks import BENCHMARKS

Row = Mapping[str, Any]


class RowError(ValueError):
    """A row that is no question of its benchmark; the message says what is wrong."""


@dataclass(frozen=True)
class Case:
    """One question.

    Attributes:
        index: its name in the benchmark.
        unit: what its score belongs to; MMBench's rotations share one.
        prompt: the user's text.
        question: what the judge is told of it.
        options: letter -> text; empty for free answers.
        answer: the right letter, `Yes` or `No`, or text; of a number its decimal form.
        answer_type: MathVista's `integer`, `float`, `list` or `text`, else "".
        categories: the groups that it is counted in.
        figure, pair: HallusionBench's questions about one figure, and those that ask the same.
    """

    index: str
    unit: str
    prompt: str
    question: str
    options: Mapping[str, str]
    answer: str
    answer_type: str = ""
    categories: tuple[str, ...] = ()
    figure: str = ""
    pair: str = ""


def read(benchmark: str, row: Row) -> Case:
    """The case of a row; raises `RowError`, which does not name the row."""
    return _READERS[benchmark](row)


def check(benchmark: str, rows: Iterable[Row]) -> None:
    """Raise `ValueError` with each row that `read` refuses, or whose index another one has."""
    faults, seen = [], set()
    for position, row in enumerate(rows):
        try:
            index = read(benchmark, row).index
        except RowError as error:
            faults.append(f"  sample {position}: {error}")
            continue
        if index in seen:
            faults.append(f"  sample {position}: the index {index} stands there twice")
        seen.add(index)
    if faults:
        raise ValueError(f"{benchmark} has {len(faults)} unusable rows:\n{shortened(faults)}")


def shortened(lines: Sequence[str], shown: int = 20) -> str:
    """The first lines, and how many more there are."""
    more = [f"  … and {len(lines) - shown} more"] if len(lines) > shown else []
    return "\n".join([*lines[:shown], *more])


def name(benchmark: str, row: Row) -> str:
    """What a row is called, for messages and for joining predictions: its index, or its identity.

    Raises `RowError` for a row that has neither.
    """
    if not _absent(row.get("index")):
        return _text(row["index"])
    columns = BENCHMARKS[benchmark].dataset.identity
    if not columns or any(_absent(row.get(column)) for column in columns):
        raise RowError("it has no index")
    return "_".join(_text(row[column]) for column in columns)


def question_number(benchmark: str, index: int) -> int:
    """The number that the rotations of a question share.

    >>> question_number("mmbench", 2_000_007), question_number("mmstar", 2_000_007)
    (7, 2000007)
    """
    rotation = BENCHMARKS[benchmark].dataset.rotation
    return index % rotation if rotation else index


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """MMStar's question column without its options, and the options.

    >>> split_options("What is it?\\nOptions: A: a cat, B: a dog")
    ('What is it?', {'A': 'a cat', 'B': 'a dog'})

    Raises `RowError` where no options from A on, at least two, can be told apart.
    """
    headings = list(re.finditer(r"\b(?:options|choices)\s*:", text, flags=re.IGNORECASE))
    for heading in reversed(headings):
        options = _listed(text[heading.end() :])
        if options:
            return text[: heading.start()].strip(), options
    # Some list them without a heading; the last A that others follow begins them.
    for first in reversed(list(re.finditer(r"(?:^|(?<=\s))\(?A(?:\)|[:.])", text))):
        options = _listed(text[first.start() :])
        if options:
            return text[: first.start()].strip(), options
    raise RowError(f"its options cannot be told apart: {text!r:.200}")


def _listed(listing: str) -> dict[str, str]:
    """`A: x, B: y`, `(A) x (B) y`, `A. x` and the like; {} for anything else."""
    first = re.match(r"\s*(\(?)A(\)|[:.])", listing)
    if not first:
        return {}
    left, right = (re.escape(mark) for mark in first.groups())
    rest = listing[first.end() :]
    options = {}
    for letter, following in zip(string.ascii_uppercase, string.ascii_uppercase[1:], strict=False):
        # An option may hold "B: …" itself, so a separator before it is the better sign.
        marker = f"{left}{following}{right}"
        found = re.search(rf"[,;\n]\s*{marker}", rest) or re.search(rf"\s{marker}", rest)
        options[letter] = (rest[: found.start()] if found else rest).strip().rstrip(",;").rstrip()
        if not found:
            break
        rest = rest[found.end() :]
    return options if len(options) > 1 and all(options.values()) else {}


def _absent(value: Any) -> bool:
    """Whether a cell is empty; MMBench's parquet files write `nan` into empty ones."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str) and value.strip() in ("", "nan")


def _text(value: Any) -> str:
    return str(value).strip()


def _present(row: Row, column: str) -> str:
    if _absent(row.get(column)):
        raise RowError(f"its {column} is empty")
    return _text(row[column])


def _columns(row: Row) -> dict[str, str]:
    """The options that stand in columns of their own."""
    options = {
        letter: _text(row[letter])
        for letter in string.ascii_uppercase
        if letter in row and not _absent(row[letter])
    }
    return _checked(options)


def _checked(options: dict[str, str]) -> dict[str, str]:
    expected = string.ascii_uppercase[: len(options)]
    if len(options) < 2 or "".join(options) != expected:
        raise RowError(f"it has the options {', '.join(options) or 'none'}: one is empty")
    return options


def _single_choice(
    benchmark: str, row: Row, question: str, options: dict[str, str], answer: str, unit: str = ""
) -> Case:
    if answer not in options:
        raise RowError(f"its answer {answer!r} is none of its options {', '.join(options)}")
    hint = "" if _absent(row.get("hint")) else f"Hint: {_text(row['hint'])}\n"
    listed = "".join(f"{letter}. {text}\n" for letter, text in options.items())
    prompt = (
        f"{hint}Question: {question}\nOptions:\n{listed}"
        "Please select the correct answer from the options above. \n"
    )
    index = name(benchmark, row)
    return Case(
        index, unit or index, prompt, question, options, answer, categories=_categories(row)
    )


def _categories(row: Row) -> tuple[str, ...]:
    """The broad category of VLMEvalKit's tables or MMBench, else the only one."""
    for column in ("L2-category", "l2-category", "category"):
        if not _absent(row.get(column)):
            return (_text(row[column]),)
    return ()


def _mmstar(row: Row) -> Case:
    if "A" in row:
        question, options = _present(row, "question"), _columns(row)
    else:
        question, options = split_options(_present(row, "question"))
    # MMStar's `category` is the broad one.
    row = {key: value for key, value in row.items() if key.lower() != "l2-category"}
    return _single_choice("mmstar", row, question, options, _present(row, "answer"))


def _mmbench(row: Row) -> Case:
    answer = _present(row, "answer")
    try:
        unit = str(question_number("mmbench", int(float(name("mmbench", row)))))
    except (ValueError, OverflowError) as error:
        raise RowError(f"its index {name('mmbench', row)!r:.80} is no number") from error
    return _single_choice("mmbench", row, _present(row, "question"), _columns(row), answer, unit)


def _ai2d(row: Row) -> Case:
    answer = _present(row, "answer")
    if "options" not in row:
        return _single_choice("ai2d", row, _present(row, "question"), _columns(row), answer)
    texts = row["options"]
    if any(_absent(text) for text in texts):
        raise RowError(f"one of its options {list(texts)} is empty")
    options = _checked(dict(zip(string.ascii_uppercase, map(_text, texts), strict=False)))
    places = [str(place) for place in range(len(options))]
    if answer not in places:
        raise RowError(f"its answer {answer!r:.80} is none of its {len(options)} options")
    letter = string.ascii_uppercase[int(answer)]
    return _single_choice("ai2d", row, _present(row, "question"), options, letter)


def _mmvet(row: Row) -> Case:
    question = _present(row, "question")
    capabilities = row.get("capability", row.get("category"))
    categories = () if _absent(capabilities) else tuple(_text(capabilities).split(","))
    index = name("mmvet", row)
    return Case(
        index, index, question, question, {}, _present(row, "answer"), categories=categories
    )


def _mathvista(row: Row) -> Case:
    # VLMEvalKit's `question` is the benchmark's `query`: a hint on the form of the answer, and
    # the choices.
    question = _present(row, "query" if "query" in row else "question")
    answer, answer_type = _present(row, "answer"), _present(row, "answer_type")
    task = row["metadata"]["task"] if "metadata" in row else row.get("task")
    index = name("mathvista", row)
    options: dict[str, str] = {}
    if _present(row, "question_type") == "multi_choice":
        choices = _list(row.get("choices"))
        if any(_absent(choice) for choice in choices):
            raise RowError(f"one of its choices {choices} is empty")
        options = _checked(dict(zip(string.ascii_uppercase, map(_text, choices), strict=False)))
        right = [letter for letter, text in options.items() if text == answer]
        if not _absent(row.get("answer_option")):
            right = [_text(row["answer_option"])]
        if not right or right[0] not in options:
            raise RowError(f"its answer {answer!r} is none of its choices {choices}")
        answer = right[0]
    elif answer_type in ("integer", "float"):
        try:
            finite = math.isfinite(float(answer))
        except ValueError:
            finite = False
        if not finite:
            raise RowError(f"its answer {answer!r:.80} is no number")
    categories = () if _absent(task) else (_text(task),)
    return Case(index, index, question, question, options, answer, answer_type, categories)


def _list(value: Any) -> list[Any]:
    """Choices: a list, or one written out in a cell."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise RowError(f"its choices {value!r:.80} are no list") from error
    if not isinstance(value, (list, tuple)):
        raise RowError(f"its choices {value!r:.80} are no list")
    return list(value)


_YES_NO = {"1": "Yes", "0": "No", "yes": "Yes", "no": "No"}


def _hallusionbench(row: Row) -> Case:
    right = _present(row, "gt_answer" if "gt_answer" in row else "answer")
    if right.lower() not in _YES_NO:
        raise RowError(f"its answer {right!r} is neither yes (1) nor no (0)")
    question, index = _present(row, "question"), name("hallusionbench", row)
    if "set_id" in row:
        group = f"{_present(row, 'category')}_{_present(row, 'subcategory')}"
        set_id, figure, asked = (
            _present(row, part) for part in ("set_id", "figure_id", "question_id")
        )
    else:
        # VLMEvalKit's index ends with set, figure and question; its rating splits it likewise.
        parts = index.split("_")
        if len(parts) < 6:
            raise RowError(f"its index {index!r} does not name set, figure and question")
        set_id, figure, asked = parts[3:6]
        group = f"{row.get('category', '')}_{row.get('l2-category', '')}"
    return Case(
        index,
        index,
        question,
        question,
        {},
        _YES_NO[right.lower()],
        categories=() if _absent(row.get("category")) else (_text(row["category"]),),
        figure=f"{group}_{set_id}_{figure}",
        pair=f"{group}_{set_id}_{asked}",
    )


_READERS: dict[str, Callable[[Row], Case]] = {
    "mmstar": _mmstar,
    "mmbench": _mmbench,
    "mmvet": _mmvet,
    "mathvista": _mathvista,
    "ai2d": _ai2d,
    "hallusionbench": _hallusionbench,
}
