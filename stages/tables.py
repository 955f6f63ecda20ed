"""Write the tables and the claim sheet, or print one: `python -m stages.tables [--show benchmarks]`

Reads  metrics/score/{variant}.json, metrics/similarity/{section}.json, metrics/latency.json,
       metrics/flops.json, metrics/leaks.json and leaks/, metrics/effects/{checkpoint}.json,
       metrics/theorem.json, metrics/examine/, metrics/truncate/,
       scores/{variant}.jsonl, reconstructions/{section}/{seed}.jsonl, reports/published/*.csv, and
       what other profiles have kept in reports/kept: what params.yaml names, no other file
Writes reports/<profile>/tables/{name}.{tex,md,csv} for each name of `reports.tables.NAMES`,
       reports/<profile>/tables/compact/*.tex (for papers: `table*`, and `-column` for one column),
       reports/<profile>/claims.{md,json}, reports/<profile>/logbook (the same for Trackio), and
       reports/<profile>/lm_eval/<variant>.json (the scores as lm-evaluation-harness writes them)

`--show NAME` prints the written Markdown of a table or of the claims and changes nothing, and
`--verdicts` prints what the verdicts come to.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import reports
from heima import config
from heima.results.files import atomic, read_json, write_json

CLAIMS = "claims"
NAMES = (
    "benchmarks",
    "ablation",
    "methods",
    "interpreters",
    "latency",
    "tokens_per_stage",
    "retention_ratio",
    "families",
    "leaks",
    "audit",
    "theorem",
    "states",
    "samples",
    "reported",
    CLAIMS,
)
"""What `--show` prints: the tables, and the claim sheet."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--show", choices=NAMES, help="print this table, write nothing")
    what.add_argument("--verdicts", action="store_true", help="print how many verdicts there are")
    chosen = parser.parse_args()
    params = config.load_resolved()
    folder = reports.folder(params.profile)
    if chosen.verdicts:
        from reports import claims

        print(claims.summary(read_json(_written(folder / f"{CLAIMS}.json"))))
        print(f"{folder / CLAIMS}.md has each with its rule")
    elif chosen.show:
        place = folder if chosen.show == CLAIMS else folder / "tables"
        path = _written(place / f"{chosen.show}.md")
        print(path.read_text(encoding="utf-8"), end="")
    else:
        write(folder, params)


def _written(path: Path) -> Path:
    if not path.is_file():
        raise SystemExit(f"{path} does not exist yet: run `make repro`")
    return path


def write(folder: Path, params: config.Params) -> None:
    """Write the tables and the claims of the results in the working directory."""
    from reports import claims, tables
    from reports.tables import harness

    try:
        results = tables.read(Path("."), params)
        built = tables.of_results(results)
    except tables.TableError as error:
        raise SystemExit(f"no table was written:\n{error}") from error
    files = {
        f"{name}.{suffix}": render(table)
        for name, table in built.items()
        for suffix, render in (
            ("tex", tables.latex),
            ("md", tables.markdown),
            ("csv", tables.comma_separated),
        )
    }
    compact = tables.compact_files(built, params, results.kept)
    found = claims.sheet(results, built)
    counts = tables.counts(tables.comparisons(results))
    _write_all(
        folder / "tables", files | {f"compact/{name}": text for name, text in compact.items()}
    )
    _write_all(folder / "logbook", claims.pages(found, params, counts))
    made = harness.files(
        results.scores,
        {
            variant: read_json(results.root / source)["provenance"]
            for variant, (_, source) in results.scores.items()
        },
        {name: variant.model for name, variant in params.variants.items()},
    )
    _write_all(
        folder / "lm_eval",
        {f"{name}.json": json.dumps(one, indent=1) + "\n" for name, one in made.items()},
    )
    write_json(folder / f"{CLAIMS}.json", claims.as_json(found, params, counts))
    with atomic(folder / f"{CLAIMS}.md") as temporary:
        temporary.write_text(claims.markdown(found, params, counts), encoding="utf-8")


def _write_all(folder: Path, files: Mapping[str, str]) -> None:
    """A folder with these files and no other."""
    with atomic(folder) as temporary:
        for name, text in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
