"""Draw the figures of the reproduction: `python -m stages.figures`

Reads  metrics/score, metrics/similarity, metrics/latency.json, metrics/flops.json, scores/,
       models/**/loss.jsonl, interpreters/**/loss.jsonl, states/*/heldout.safetensors and
       data/rewritten: what params.yaml names, no other file
Writes reports/<profile>/figures/<name>.{svg,pdf}, for each name of reports.figures.FIGURES, and
       reports/<profile>/plots/<name>.csv, what `dvc plots show` draws
"""

from __future__ import annotations

from pathlib import Path

import reports
from heima import config
from heima.results.files import atomic
from stages import arguments


def main() -> None:
    from reports import figures
    from reports.figures import plots
    from reports.tables import TableError

    params = config.load_resolved()
    try:
        inputs = figures.Inputs(Path("."), params)
        for name, write in (("figures", figures.write), ("plots", plots.write)):
            with atomic(reports.folder(params.profile) / name) as temporary:
                temporary.mkdir()
                write(inputs, temporary)
    except (TableError, figures.FigureError) as error:
        raise SystemExit(f"no figure was written:\n{error}") from error


if __name__ == "__main__":
    arguments.read(__doc__)
    main()
