"""The samples of the page of results as tables, one a variant or a reconstruction."""

from __future__ import annotations

import json
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from reports.finished import TrackingError


class Samples:
    """What the browsers of the page hold; nothing where there is no page yet.

    They are read from the page because git holds it: answers and reconstructions themselves are
    where they were made.
    """

    def __init__(self, page: Path) -> None:
        self._page = page

    def table(self, kind: str, name: str) -> dict[str, Any] | None:
        """The samples of a variant or a reconstruction as MLflow's tables are: columns and data.

        None where the page has none of it. Raises `TrackingError` for a page that cannot be read.
        """
        if self._data is None:
            return None
        try:
            rows = self._answers(name) if kind == "variant" else self._rebuilt(name)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise TrackingError(
                f"{self._page} holds samples of another shape ({type(error).__name__}: {error}); "
                "run `dvc repro page`"
            ) from error
        if not rows:
            return None
        columns = list(rows[0])
        return {"columns": columns, "data": [[row[key] for key in columns] for row in rows]}

    @cached_property
    def _data(self) -> dict[str, Any] | None:
        if not self._page.is_file():
            return None
        reader = _Data()
        reader.feed(self._page.read_text(encoding="utf-8"))
        try:
            found: dict[str, Any] = json.loads(reader.text)
        except ValueError as error:
            raise TrackingError(
                f"{self._page} holds no samples ({error}); run `dvc repro page`"
            ) from error
        return found

    def _answers(self, variant: str) -> list[dict[str, Any]]:
        assert self._data is not None
        found = []
        for question in self._data["questions"]:
            for protocol, answers in question["answers"].items():
                if variant not in answers:
                    continue
                text, decoded, thinking, scores, failed = answers[variant]
                options = "; ".join(f"{key}: {one}" for key, one in question["options"].items())
                found.append(
                    {
                        "benchmark": question["benchmark"],
                        "protocol": protocol,
                        "number": question["doc"],
                        "question": question["question"],
                        "options": options,
                        "answer": str(question["answer"]),
                        "said": self._data["texts"][text],
                        "scores of the training seeds": ", ".join(f"{one:g}" for one in scores),
                        "decoded tokens": decoded,
                        "thinking tokens": thinking,
                        "failed": bool(failed),
                    }
                )
        return found

    def _rebuilt(self, name: str) -> list[dict[str, Any]]:
        assert self._data is not None
        section = self._data["reconstructions"].get(name)
        texts = self._data["texts"]
        return [
            {
                "turn": turn["id"],
                "question": turn["question"],
                "control": control,
                "section": texts[turn["sections"][section]],
                "rebuilt": texts[text],
                "nll": nll,
                "grade": grade,
            }
            for turn in self._data["turns"]
            for control, (text, nll, grade) in turn["rebuilt"].get(name, {}).items()
        ]


class _Data(HTMLParser):
    """Takes the page's data out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script" and ("id", "data") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.text += data
