"""Say whether the results here are those of a record: another machine, seed or version.

    python -m stages.check [--against REVISION]

The record is what git holds at REVISION (HEAD) of the profile that was run here: `dvc.lock` and
`metrics/`, or `reports/<profile>/record.json` (`heima.results.recorded`). Outputs are compared by
the hashes in `dvc.lock`; each number of `metrics/` must be the recorded one, or lie in the
prediction interval of the recorded training seeds; strings and lists must be equal
(`heima.results.agreement`). Times, and what latency measures, are not compared. Lists what is
outside, and then exits 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from heima.results import agreement, recorded
from reports.finished import pipeline_stages

_COUNTED: dict[str, tuple[agreement.Kind, ...]] = {
    "numbers": ("number of seeds", "single number"),
    "of them with several recorded seeds": ("number of seeds",),
    "strings, lists, counts": ("text",),
}


def main(revision: str) -> None:
    try:
        stages = pipeline_stages(Path("."))
    except FileNotFoundError as error:
        sys.exit(
            f"error: there is no {error.filename} here: run this in the root of the repository"
        )
    try:
        rerun = recorded.in_folder(Path("."), stages)
        record = recorded.at_revision(Path("."), revision, rerun.profile)
    except recorded.RecordError as error:
        sys.exit(f"error: {error}")
    report = agreement.compare(record, rerun)
    apart = agreement.differences(record, rerun)
    print(f"what differs from {record.where}: {'; '.join(apart) or 'nothing: a rerun of the same'}")
    for path, reason in recorded.NOT_COMPARED.items():
        print(f"not compared: {path} ({reason})")
    if rerun.left_over:
        print(f"not compared: {rerun.told_left_over} (left over: no stage here makes it)")
    for one in report.outside:
        print(f"outside: {one.file}: {one.key} = {one.value}; allowed: {one.allowed}")
    shares = ", ".join(f"{count} {how}" for how, count in report.stages.items())
    print(f"stages by bytes: {shares or 'none'}")
    for what, kinds in _COUNTED.items():
        counts = report.counts(*kinds)
        agree, total = counts["equal"] + counts["inside"], sum(counts.values())
        shown = ", ".join(f"{count} {how}" for how, count in counts.items())
        share = f" ({100 * agree / total:.1f} % agree)" if total else ""
        print(f"{what}: {shown}{share}")
    if report.outside:
        sys.exit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", default="HEAD", metavar="REVISION", help="default: HEAD")
    main(parser.parse_args().against)
