"""Write the tables of the reproduction, or print one: `python -m stages.tables [--show benchmarks]`

Reads  metrics/score/{variant}.json, metrics/similarity/{section}.json, metrics/latency.json,
       scores/{variant}.jsonl and reports/published/*.csv: what params.yaml names, no other file
Writes reports/<profile>/tables/{benchmarks,ablation,interpreters,latency}.{tex,md,csv}

`--show NAME` prints the written Markdown of a table and changes nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import reports
from heima import config
from heima.results.files import atomic

NAMES = ("benchmarks", "ablation", "interpreters", "latency")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--show", choices=NAMES, help="print this table, write nothing")
    shown = parser.parse_args().show
    params = config.load_resolved()
    folder = reports.folder(params.profile) / "tables"
    if shown:
        path = folder / f"{shown}.md"
        if not path.is_file():
            raise SystemExit(f"{path} does not exist yet: run `make repro`")
        print(path.read_text(encoding="utf-8"), end="")
        return

    from reports import tables

    try:
        built = tables.build(Path("."), params)
    except tables.TableError as error:
        raise SystemExit(f"no table was written:\n{error}") from error
    with atomic(folder) as temporary:
        temporary.mkdir()
        for name in NAMES:
            for suffix, render in (
                ("tex", tables.latex),
                ("md", tables.markdown),
                ("csv", tables.comma_separated),
            ):
                (temporary / f"{name}.{suffix}").write_text(render(built[name]), encoding="utf-8")


if __name__ == "__main__":
    main()
