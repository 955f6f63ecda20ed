"""Keep the results of this profile beside those of others: `python -m stages.keep`

Reads  what the stage `tables` reads, reports/<profile>/claims.json, dvc.lock, metrics/, and git
Writes reports/kept/<profile>.json: what the tables of other profiles show of it, and the commit,
       and reports/<profile>/record.json, by which `stages.check` knows the results again (not of
       the profile of git's params.yaml: dvc.lock and metrics/ there are its record)

`metrics/` and `dvc.lock` are of one profile at a time, so this is done before another one is run,
or in the clone that ran it. Results that are not those of the code and the parameters here are
refused, and so is code that no commit has.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import reports
from heima import config
from heima.results import recorded
from heima.results.cells import read_metrics
from heima.results.files import read_json, write_json
from heima.results.measures import judge_name
from reports import tables
from reports.finished import pipeline_stages
from reports.tables.kept import FOLDER, Kept, KeptFinding, KeptProvenance
from reports.tables.results import scale_of
from stages import arguments, revision

NOT_RESULTS = ("track",)
"""Stages that may be outdated: nothing is read of them."""


def outdated() -> list[str]:
    """The stages whose results are not those of what is here, by `dvc status`."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"nothing was kept: dvc status failed:\n{done.stderr.strip()}")
    return [name for name in json.loads(done.stdout) if name not in NOT_RESULTS]


def keep(root: Path, params: config.Params, commit: str) -> Path:
    """Write down the results below `root`, and return where."""
    try:
        results = tables.read(root, params)
    except tables.TableError as error:
        raise SystemExit(f"nothing was kept:\n{error}") from error
    sheet = read_json(root / reports.folder(params.profile) / "claims.json")
    kept = Kept(
        profile=params.profile,
        family=params.family,
        published_family=params.published_family,
        scale=scale_of(params),
        commit=commit,
        seeds=params.seeds,
        judge=judge_name(params.judge),
        provenance=_provenance(root, params),
        tables=tables.to_keep(results),
        findings={
            one["name"]: KeptFinding(
                **{name: one[name] for name in ("verdict", "why", "ours", "source")}
            )
            for one in sheet["claims"]
            if not one["kept"]
        },
    )
    path = root / FOLDER / f"{params.profile}.json"
    write_json(path, kept.model_dump(mode="json", exclude_defaults=True))
    return path


def _provenance(root: Path, params: config.Params) -> KeptProvenance:
    """The fingerprints of the code that scored and measured, and versions and machine."""
    files = {
        "score": root / "metrics" / "score" / f"{next(iter(params.variants))}.json",
        "similarity": root / "metrics" / "similarity" / f"{params.sections[0]}.json",
    }
    made = {stage: read_metrics(path)[1] for stage, path in files.items()}
    return KeptProvenance(
        code={stage: one["code"] for stage, one in made.items()},
        **{name: made["score"][name] for name in ("params", "versions", "machine")},
    )


def main() -> None:
    params = config.load_resolved()
    try:
        commit = revision.named(params.profile)
    except revision.RevisionError as error:
        raise SystemExit(f"nothing was kept: the commit is {error}") from error
    if late := outdated():
        raise SystemExit(
            f"nothing was kept: {', '.join(late)} would run again: run `make repro` first"
        )
    root = Path(".")
    told = f"kept in {keep(root, params, commit)}"
    if recorded.in_root(root, "HEAD") == params.profile:
        print(f"{told}; commit it with dvc.lock, metrics/ and reports/{params.profile}/")
        return
    run = recorded.in_folder(root, pipeline_stages(root))
    print(f"{told} and {recorded.write(root, run)}; commit them with reports/{params.profile}/")
    if run.left_over:
        print(f"not recorded: {run.told_left_over} (left over: no stage here makes it)")


if __name__ == "__main__":
    arguments.read(__doc__)
    main()
