"""The claim sheet as a Trackio logbook: plain files, which `trackio logbook` opens and publishes.

A logbook is a folder `.trackio/logbook/pages`: `index.md` with a table of its pages, and one
`page.md` in a folder each, whose cells begin with a comment in JSON. Trackio adds its viewer and
manifest when it opens one. Nothing of Trackio is needed to write it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from heima.config import Params
from reports.claims.model import Judged
from reports.claims.writing import as_json, markdown, summary

FOLDER = ".trackio/logbook/pages"


def pages(sheet: Sequence[Judged], params: Params, reported: Mapping[str, int]) -> dict[str, str]:
    """Path below the logbook's own folder -> text: the index, the sheet, and a page a claim."""
    title = f"Heima reproduced: {params.profile} profile"
    names = {"claims": "All claims"}
    written = {
        f"{FOLDER}/claims/page.md": _page("All claims", markdown(sheet, params, reported)),
    }
    for place, (one, plain) in enumerate(
        zip(sheet, as_json(sheet, params, reported)["claims"], strict=True), 1
    ):
        slug = re.sub(r"[^a-z0-9]+", "-", one.claim.name)
        names[slug] = f"Claim {place}: {one.claim.text}"
        body = (
            f"**{one.finding.verdict.upper()}** at the size {one.scale}: {one.finding.why}.\n\n"
            f"> {one.claim.text}\n\nRule: {one.claim.rule}.\n\n"
            f"```json\n{json.dumps(plain, indent=1, ensure_ascii=False)}\n```\n"
        )
        written[f"{FOLDER}/{slug}/page.md"] = _page(names[slug], body)
    listed = "\n".join(f"| [{name}](#/{slug}) |" for slug, name in names.items())
    text = summary(as_json(sheet, params, reported)).replace("\n", "; ")
    written[f"{FOLDER}/index.md"] = (
        f"# {title}\n\n{text}.\n\n## Pages\n\n| Page |\n| --- |\n{listed}\n"
    )
    return written


def _page(title: str, body: str) -> str:
    """A page with one cell; its name follows from the title, so that a rerun writes the same."""
    cell = json.dumps({"type": "markdown", "id": f"cell_{_slug(title)}", "title": title})
    return f"# {title}\n\n\n---\n<!-- trackio-cell\n{cell}\n-->\n{body}"


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")[:40]
