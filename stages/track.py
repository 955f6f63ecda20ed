"""Mirror every finished stage into MLflow (sqlite:///mlflow.db): `python -m stages.track`

Reads  dvc.lock, dvc.yaml, params.yaml, metrics/**, loss curves, reports/<profile>/tables/
Writes reports/<profile>/tracking.json (what is mirrored), mlflow.db and mlruns/

Running it again adds nothing; after `rm -r mlflow.db mlruns` it builds the mirror anew. A fault of
MLflow ends it with a message and leaves every result as it was. `make ui` shows the runs.
"""

from __future__ import annotations

from pathlib import Path

import reports
from heima.results.files import write_json
from reports import mlflow_mirror
from reports.finished import TrackingError
from stages import arguments


def main() -> None:
    try:
        summary = mlflow_mirror.mirror(Path("."))
    except TrackingError as error:
        raise SystemExit(f"track: {error}") from error
    write_json(reports.folder(summary["profile"]) / "tracking.json", summary)
    print(f"{summary['runs']} runs of {summary['profile']} {summary['key']} are in MLflow")
    if summary["unfinished"]:
        print(f"not finished: {', '.join(summary['unfinished'])}")


if __name__ == "__main__":
    arguments.read(__doc__)
    main()
