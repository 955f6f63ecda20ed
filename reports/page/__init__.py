"""The page of a reproduction: one offline file, without a request and with hostile text as text.

Everything that is not ours (questions, answers, names) reaches the page in two ways: escaped by
Jinja2, or as JSON that a script puts there as text, never as markup. Should one of both fail, the
page's own policy runs no script but ours, whose hash it names, and loads nothing from anywhere.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

import reports
from heima.config import Params
from reports import tables
from reports.figures import FIGURES
from reports.finished import stage_names
from reports.page.cells import cells_of
from reports.page.costs import compared, shown
from reports.page.errors import PageError
from reports.page.findings import sentences
from reports.page.pipeline import HEIGHT, WIDTH, picture
from reports.page.samples import read
from reports.tables.published import PAPERS

__all__ = ["MOST_BYTES", "PageError", "render"]

TEMPLATES = Path(__file__).with_name("templates")
MOST_BYTES = 20_000_000
"""What the page may have: it is sent by mail and opened from disk."""


def render(root: Path, params: Params, *, plan: Mapping[str, Any], commit: str) -> str:
    """The page, from the result files below `root`.

    `plan` is what `stages.plan --json` says, `commit` that of the code which writes the page.
    Raises `TableError` and `PageError`, which name what is missing, and `PageError` for a page of
    more than `MOST_BYTES`.
    """
    cells = cells_of(root, params, tables.build(root, params))
    samples = read(root, params)
    pipeline = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))
    values = params.model_dump(mode="json")
    for file in pipeline.get("vars", ()):
        values |= yaml.safe_load((root / file).read_text(encoding="utf-8"))
    names = stage_names(pipeline, values)
    data = {
        "cells": cells.details,
        "sources": cells.sources,
        "commit": commit,
        "questions": samples.questions,
        "turns": samples.turns,
        "texts": samples.texts,
        "images": samples.images.addresses,
        "variants": list(params.variants),
        "benchmarks": list(params.benchmarks),
        "protocols": list(params.protocols),
        "reconstructions": {name: one.section for name, one in params.reconstructions.items()},
        "controls": list(params.reconstruct.controls),
    }
    script, look = (
        (TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.js", "page.css")
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        profile=params.profile,
        family=params.family,
        comparable=params.profile in PAPERS,
        commit=commit,
        seeds=params.seeds,
        findings=sentences(params, cells),
        tables=cells.tables,
        figures=_figures(root, params),
        samples=samples,
        most=params.page.samples,
        costs=compared(root, names, plan["stages"]),
        shown=shown,
        machine=plan["machine"],
        picture=picture(pipeline, names),
        box=(WIDTH, HEIGHT),
        data=_json(data),
        script=Markup(script),
        look=Markup(look),
        script_hash=_hash(script),
        look_hash=_hash(look),
    )
    if (size := len(page.encode())) > MOST_BYTES:
        raise PageError(
            f"the page would have {size / 1e6:.1f} MB, at most {MOST_BYTES / 1e6:.0f}: lower "
            f"page.samples = {params.page.samples}"
        )
    return page


def _figures(root: Path, params: Params) -> list[dict[str, Any]]:
    """The figures as `data:` addresses; images cannot run scripts, and share no ids."""
    folder = reports.folder(params.profile) / "figures"
    found = []
    for name, drawing in FIGURES.items():
        path = root / folder / f"{name}.svg"
        if not path.is_file():
            raise PageError(f"{folder}/{path.name} is missing: run `dvc repro figures`")
        encoded = base64.b64encode(path.read_bytes()).decode()
        found.append(
            {
                "name": name,
                "title": drawing.title,
                "caption": drawing.caption,
                "table": drawing.table,
                "address": f"data:image/svg+xml;base64,{encoded}",
            }
        )
    return found


def _json(data: Any) -> Markup:
    """JSON that ends no script, whatever is in it; not-a-number is an error."""
    dumps = functools.partial(json.dumps, separators=(",", ":"), allow_nan=False)
    return htmlsafe_json_dumps(data, dumps=dumps)


def _hash(text: str) -> str:
    """As a content security policy names a script or a style sheet."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
