"""Rows of the benchmarks as cases: what the rules need, whatever file a row comes from.

Two layouts are read: that of the data sets on the hub (columns of lmms-eval's tasks), and that of
VLMEvalKit's tables (a column for each option, and what its result files repeat).
"""

from __future__ import annotations

import ast
import math
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
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
        answer: the right letter (in MMStar perhaps none of `options`), `Yes` or `No`, or text; of a
            number its decimal form.
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


def is_empty(value: Any) -> bool:
    """Whether a cell is empty; MMBench's parquet files write `nan` into empty ones."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str) and value.strip() in ("", "nan")


def name(benchmark: str, row: Row) -> str:
    """What a row is called, for messages and for joining predictions: its index, or its identity.

    Raises `RowError` for a row that has neither.
    """
    if not is_empty(row.get("index")):
        return _text(row["index"])
    columns = BENCHMARKS[benchmark].dataset.identity
    if not columns or any(is_empty(row.get(column)) for column in columns):
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
    """MMStar's question column without its options, and the options; "" is an empty one.

    >>> split_options("What is it?\\nOptions: A: a cat, B: a dog")
    ('What is it?', {'A': 'a cat', 'B': 'a dog'})
    >>> split_options("How many?\\nOptions: A: , B: Two, C: One")
    ('How many?', {'A': '', 'B': 'Two', 'C': 'One'})

    Raises `RowError` where no options from A on, at least two of them not empty, can be told apart.
    """
    headings = list(re.finditer(r"\b(?:options|choices)\s*:", text, flags=re.IGNORECASE))
    for heading in reversed(headings):
        options = _listed(text[heading.end() :])
        if options and all(options.values()):
            return text[: heading.start()].strip(), options
    # Some list them without a heading; the last A that others follow begins them.
    for first in reversed(list(re.finditer(r"(?:^|(?<=\s))\(?A(?:\)|[:.])", text))):
        options = _listed(text[first.start() :])
        if options and all(options.values()):
            return text[: first.start()].strip(), options
    for heading in reversed(headings):
        options = _gapped(text[heading.end() :])
        if sum(map(bool, options.values())) > 1:
            return text[: heading.start()].strip(), options
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
        text = (rest[: found.start()] if found else rest).strip().rstrip(",;").rstrip()
        options[letter] = "" if is_empty(text) else text
        if not found:
            break
        rest = rest[found.end() :]
    return options if len(options) > 1 else {}


def _gapped(listing: str) -> dict[str, str]:
    """As `_listed`, but options may be empty, or be left out with their letters."""
    if not (first := re.match(r"\s*(\(?)([A-Z])(\)|[:.])", listing)):
        return {}
    left, _, right = map(re.escape, first.groups())
    texts: dict[str, list[str]] = {}
    end = 0
    for marker in re.finditer(rf"(?:^|[,;\n])\s*{left}([A-Z]){right}", listing):
        # Options are lettered upwards: "B:" within a later one is part of its text.
        if texts and marker[1] <= max(texts):
            continue
        if texts:
            texts[max(texts)].append(listing[end : marker.start()])
        texts[marker[1]], end = [], marker.end()
    texts[max(texts)].append(listing[end:])
    found = {letter: text[0].strip().rstrip(",;").rstrip() for letter, text in texts.items()}
    letters = string.ascii_uppercase[: string.ascii_uppercase.index(max(found)) + 1]
    return {letter: "" if is_empty(found.get(letter)) else found[letter] for letter in letters}


def _text(value: Any) -> str:
    return str(value).strip()


def _present(row: Row, column: str) -> str:
    if is_empty(row.get(column)):
        raise RowError(f"its {column} is empty")
    return _text(row[column])


def _columns(row: Row) -> dict[str, str]:
    """The options that stand in columns of their own; "" is an empty one."""
    return {
        letter: "" if is_empty(row[letter]) else _text(row[letter])
        for letter in string.ascii_uppercase
        if letter in row
    }


def _offered(options: Mapping[str, str]) -> dict[str, str]:
    """The options that are there, as VLMEvalKit offers them: under their letters, without gaps."""
    offered = {letter: text for letter, text in options.items() if text}
    if len(offered) < 2:
        raise RowError(f"it has fewer than two options that are not empty: {dict(options)}")
    return offered


def _single_choice(
    benchmark: str,
    row: Row,
    question: str,
    options: dict[str, str],
    answer: str,
    *,
    unit: str = "",
    empty: Set[str] = frozenset(),
) -> Case:
    """`empty` are the letters of options without a text, one of which may be the right one."""
    if answer not in options and answer not in empty:
        raise RowError(f"its answer {answer!r} is none of its options {', '.join(options)}")
    hint = "" if is_empty(row.get("hint")) else f"Hint: {_text(row['hint'])}\n"
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
        if not is_empty(row.get(column)):
            return (_text(row[column]),)
    return ()


def _mmstar(row: Row) -> Case:
    question = _present(row, "question")
    listed = _columns(row)
    if not listed:
        question, listed = split_options(question)
    # MMStar's `category` is the broad one.
    row = {key: value for key, value in row.items() if key.lower() != "l2-category"}
    options, answer = _offered(listed), _present(row, "answer")
    # The right option of one row is empty: that row stays, and no answer to it is right.
    return _single_choice("mmstar", row, question, options, answer, empty=listed.keys() - options)


def _mmbench(row: Row) -> Case:
    answer = _present(row, "answer")
    try:
        unit = str(question_number("mmbench", int(float(name("mmbench", row)))))
    except (ValueError, OverflowError) as error:
        raise RowError(f"its index {name('mmbench', row)!r:.80} is no number") from error
    question, options = _present(row, "question"), _offered(_columns(row))
    return _single_choice("mmbench", row, question, options, answer, unit=unit)


def _ai2d(row: Row) -> Case:
    answer = _present(row, "answer")
    if "options" not in row:
        options = _offered(_columns(row))
        return _single_choice("ai2d", row, _present(row, "question"), options, answer)
    texts = row["options"]
    if any(is_empty(text) for text in texts):
        raise RowError(f"one of its options {list(texts)} is empty")
    options = _offered(dict(zip(string.ascii_uppercase, map(_text, texts), strict=False)))
    places = [str(place) for place in range(len(options))]
    if answer not in places:
        raise RowError(f"its answer {answer!r:.80} is none of its {len(options)} options")
    letter = string.ascii_uppercase[int(answer)]
    return _single_choice("ai2d", row, _present(row, "question"), options, letter)


def _mmvet(row: Row) -> Case:
    question = _present(row, "question")
    capabilities = row.get("capability", row.get("category"))
    categories = () if is_empty(capabilities) else tuple(_text(capabilities).split(","))
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
        if any(is_empty(choice) for choice in choices):
            raise RowError(f"one of its choices {choices} is empty")
        options = _offered(dict(zip(string.ascii_uppercase, map(_text, choices), strict=False)))
        right = [letter for letter, text in options.items() if text == answer]
        if not is_empty(row.get("answer_option")):
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
    categories = () if is_empty(task) else (_text(task),)
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
        categories=() if is_empty(row.get("category")) else (_text(row["category"]),),
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
