"""Rehearse the paper profile, both families, to the tables: `python -m tests.rehearsal`

    python -m tests.rehearsal                                # under 15 minutes on two idle cores
    python -m tests.rehearsal --profile rehearsal --folder F # one, in a folder that stays
    python -m tests.rehearsal --profile rehearsal --folder F distill@p1-42   # up to a stage

Everything is made in a scratch folder, the repository's own results stay as they are. With a folder
that stays, the same command goes on where it was stopped. The exit code is 1 where a stage failed;
its log is in `<folder>/<profile>/.cache/logs/`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval import rules
from tests.eval.judge_server import JudgeServer, completion
from tests.rehearsal import run
from timings.rehearsal import make

PROFILES = ("rehearsal", "rehearsal-llava-next")


class Judge(JudgeServer):
    """The toy's rules; where a real reference says neither yes nor no, a judge's word for that."""

    def grade(self, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return super().grade(body)
        except rules.Ungradable:
            return {**completion("unclear"), "model": self.model}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--profile", choices=PROFILES, action="append", help="default: both")
    parser.add_argument("--folder", type=Path, help="where to rehearse; default: a temporary one")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("targets", nargs="*", metavar="STAGE", help="default: all stages")
    given = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as scratch, Judge() as judge:
        folder = given.folder or Path(scratch)
        make.write(folder / "made")
        for profile in given.profile or PROFILES:
            place = folder / profile
            run.set_up(place, profile, folder / "made", judge.url)
            code, seconds = run.repro(place, given.targets, given.jobs)
            print(f"{profile}: exit code {code} after {seconds / 60:.1f} minutes", flush=True)
            table = place / "reports" / profile / "tables" / "benchmarks.md"
            if code == 0 and table.exists():
                print(table.read_text(encoding="utf-8"))
            if code:
                failed.append(profile)
                logs = place / ".cache" / "logs"
                for log in sorted(logs.glob("*.log"), key=lambda one: one.stat().st_mtime)[-2:]:
                    print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}")
    if failed:
        sys.exit(f"the rehearsal of {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
