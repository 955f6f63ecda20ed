"""Say whether the results here are those of a record: another machine, seed or version.

    python -m stages.check [--against REVISION]

The record is what git holds at REVISION (HEAD). Outputs are compared by the hashes in `dvc.lock`;
each number of `metrics/` must be the recorded one, or lie in the prediction interval of the
recorded training seeds; strings and lists must be equal (`heima.results.agreement`). Times, and
what latency measures, are not compared. Lists what is outside, and then exits 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from heima.results import agreement

_COUNTED: dict[str, tuple[agreement.Kind, ...]] = {
    "numbers": ("number of seeds", "single number"),
    "of them with several recorded seeds": ("number of seeds",),
    "strings, lists, counts": ("text",),
}


def main(revision: str) -> None:
    try:
        record = agreement.at_revision(Path("."), revision)
        rerun = agreement.in_folder(Path("."))
    except agreement.RecordError as error:
        sys.exit(f"error: {error}")
    report = agreement.compare(record, rerun)
    apart = agreement.differences(record, rerun)
    print(f"what differs from {revision}: {'; '.join(apart) or 'nothing: a rerun of the same'}")
    for path, reason in agreement.NOT_COMPARED.items():
        print(f"not compared: {path} ({reason})")
    for one in report.outside:
        print(f"outside: {one.file}: {one.key} = {one.value}; allowed: {one.allowed}")
    stages = ", ".join(f"{count} {how}" for how, count in report.stages.items())
    print(f"stages by bytes: {stages or 'none'}")
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
