"""Write the page of results, or say where it is: `python -m stages.page [--show]`

Reads  metrics/, scores/, predictions/, reconstructions/, judgements/, data/benchmarks, data/source,
       reports/<profile>/figures, reports/published and dvc.yaml: what params.yaml names; the plan
       of `stages.plan`, which decides no number of the results; the commit that git has checked out
Writes reports/<profile>/index.html, which needs nothing beside it and opens from disk

`--show` prints the path of the written page and changes nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import reports
from heima import config
from heima.results.files import atomic
from stages import arguments
from stages.revision import commit


def planned() -> dict[str, Any]:
    """What `stages.plan` says of params.yaml.

    A process of its own: what planning imports (nearly everything) is not what the page is made of.
    """
    done = subprocess.run(
        [sys.executable, "-m", "stages.plan", "--json"], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"no page was written: stages.plan failed:\n{done.stderr.strip()}")
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


def main() -> None:
    parser = arguments.parser_of(__doc__)
    parser.add_argument("--show", action="store_true", help="print the page's path, write nothing")
    shown: argparse.Namespace = parser.parse_args()
    params = config.load_resolved()
    path = reports.folder(params.profile) / "index.html"
    if shown.show:
        if not path.is_file():
            raise SystemExit(f"{path} does not exist yet: run `make repro`")
        print(f"What came out, to open in a browser: {path}")
        return

    from reports import page
    from reports.tables import TableError

    try:
        text = page.render(Path("."), params, plan=planned(), commit=commit(params.profile))
    except (TableError, page.PageError) as error:
        raise SystemExit(f"no page was written:\n{error}") from error
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
