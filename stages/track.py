"""Mirror the results into MLflow: `python -m stages.track`

Reads  dvc.lock, dvc.yaml, params.yaml, metrics/**, loss curves, and of reports/<profile>/: tables,
       figures, claims.md, index.html, times.json
Writes reports/<profile>/tracking.json (what is mirrored), and mlflow.db and mlruns/, or what
       MLFLOW_TRACKING_URI names

Running it again adds nothing; after `rm -r mlflow.db mlruns` it builds the mirror anew. A fault of
MLflow ends it with a message and leaves every result as it was. `make ui` shows the runs
(docs/mlflow.md).
"""

from __future__ import annotations

from pathlib import Path

import reports
from heima.results.files import write_json
from reports.finished import TrackingError
from reports.tracking import mirror
from stages import arguments


def main() -> None:
    try:
        summary = mirror.mirror(Path("."))
    except TrackingError as error:
        raise SystemExit(f"track: {error}") from error
    # Ids are MLflow's own, and others in every database.
    del summary["where"]
    write_json(reports.folder(summary["profile"]) / "tracking.json", summary)
    print(f"{summary['runs']} runs of {summary['profile']} {summary['key']} are in MLflow")
    if summary["unfinished"]:
        print(f"not finished: {', '.join(summary['unfinished'])}")


if __name__ == "__main__":
    arguments.read(__doc__)
    main()
