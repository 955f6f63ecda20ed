"""Have every reconstruction graded: all in one run, so that the estimate is of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from eval.judge import JudgeError, similarity
from eval.judge.cache import Body
from eval.judge.client import Judge
from eval.judge.server import open_judge
from heima.config import Params

_NAMED = 20

Judgements = dict[str, list[dict[str, Any]]]
"""Name of a reconstruction -> its judgements, a row each."""


def judge(
    reconstructions: Mapping[str, Sequence[Mapping[str, Any]]],
    params: Params,
    *,
    read_image: Callable[[str], bytes] | None = None,
) -> Judgements:
    """Grade the reconstructions of the judged controls.

    `reconstructions` maps a name to its rows {id, image, control, question, reference, text}.
    `read_image` gives an image's file by its name; without it the judge sees no image.

    A judgement is {id, control, grade, failure, prompt, model, system_fingerprint}, in the order
    of the rows. An empty reconstruction has the lowest grade without being judged. Without a usable
    reply the grade is None and `failure` says why.

    Raises `JudgeError` where the judge cannot be used, where the budget ends, or where more than
    `judge.max_missing` of the grades are missing; what was answered is kept for the next run.
    """
    if not params.similarity.judged:
        return {name: [] for name in reconstructions}
    with open_judge(params.judge) as (judging, options):
        requests = _Requests(options.model, read_image)
        keys: dict[tuple[str, int], str] = {}
        for name, rows in reconstructions.items():
            for position, row in enumerate(rows):
                if row["control"] in params.similarity.judged and row["text"].strip():
                    keys[name, position] = requests.add(row, judging)
        failures = judging.ask(
            requests,
            check=similarity.parse,
            canary=similarity.canary(options.model),
            check_canary=similarity.check_canary,
        )
        found: Judgements = {name: [] for name in reconstructions}
        missing: list[str] = []
        for name, rows in reconstructions.items():
            for position, row in enumerate(rows):
                if row["control"] not in params.similarity.judged:
                    continue
                judged = _judgement(row)
                if (one := keys.get((name, position))) is not None:
                    reply = judging.cache.get(one)
                    if reply is None:
                        judged |= {"grade": None, "failure": failures[one]}
                        missing.append(f"  {name}, {row['control']}, {row['id']}: {failures[one]}")
                    else:
                        judged |= {
                            "grade": similarity.parse(reply.content),
                            "failure": None,
                            "model": reply.model,
                            "system_fingerprint": reply.system_fingerprint,
                        }
                found[name].append(judged)
    total = sum(map(len, found.values()))
    if missing:
        shown = missing[:_NAMED]
        if len(missing) > _NAMED:
            shown.append(f"  … and {len(missing) - _NAMED} more")
        text = f"{len(missing)} of {total} reconstructions have no grade:\n" + "\n".join(shown)
        if len(missing) > options.max_missing * total:
            raise JudgeError(
                f"{text}\nThat is more than judge.max_missing = {options.max_missing:g}, so no "
                "judgement was written. The others are kept: run the stage again for the rest"
            )
        print(text)
    return found


class _Requests(Mapping[str, Body]):
    """Requests by their keys, made when they are read: thousands of images do not fit in memory."""

    def __init__(self, model: str, read_image: Callable[[str], bytes] | None) -> None:
        self._model = model
        self._read_image = read_image
        self._rows: dict[str, Mapping[str, Any]] = {}

    def add(self, row: Mapping[str, Any], judging: Judge) -> str:
        """The key of a row's request; equal texts have equal keys and are asked once."""
        one = judging.key(similarity.VERSION, self._body(row))
        self._rows[one] = row
        return one

    def _body(self, row: Mapping[str, Any]) -> Body:
        image = None
        if self._read_image is not None:
            image = row["image"], self._read_image(row["image"])
        return similarity.body(self._model, row["question"], row["reference"], row["text"], image)

    def __getitem__(self, one: str) -> Body:
        return self._body(self._rows[one])

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _judgement(row: Mapping[str, Any]) -> dict[str, Any]:
    """The judgement of an empty reconstruction, and the frame of every other."""
    return {
        "id": row["id"],
        "control": row["control"],
        "grade": similarity.EMPTY_GRADE,
        "failure": "empty reconstruction",
        "prompt": similarity.VERSION,
        "model": None,
        "system_fingerprint": None,
    }
