"""Compare two results question by question.

    python -m stages.compare heima one-shot               # two variants (or their checkpoints) here
    python -m stages.compare HEAD~1 HEAD                  # every variant, of two git revisions
    python -m stages.compare heima ../other:heima         # here, and in another clone
    python -m stages.compare heima samples_mmstar.jsonl   # a file that lmms-eval has written
    python -m stages.compare MODEL_MMStar.xlsx heima      # or VLMEvalKit, scored or not (.tsv too)

A or B is a variant or checkpoint of the results here, PLACE:VARIANT, or a PLACE (a git revision, an
experiment of DVC's, or a folder with another clone) for each of its variants; or a file, or folder
of files, of lmms-eval (`*_samples_<task>.jsonl`) or VLMEvalKit (`MODEL_<dataset>….xlsx` or `.tsv`).

Printed are, for each protocol and benchmark, accuracy of both sides, the paired difference with its
95 % interval (questions about one image are resampled together, and so are training seeds), whether
the training seeds agree, questions that one side alone has right and McNemar's exact p of each run;
then those questions, with links to their samples. Questions on one side alone are counted and
listed. Where a variant's samples are not here, the committed metrics and tables are compared, and a
sentence says what to run. It reads files, and writes none.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from eval import lmms_start
from heima import config
from stages import arguments

_FLIPS = 20


def _count(given: str) -> int | None:
    if given == "all":
        return None
    if not given.isdecimal():
        raise argparse.ArgumentTypeError(f"{given!r} is neither a number nor all")
    return int(given)


def main() -> None:
    parser = arguments.parser_of(__doc__)
    for name in ("a", "b"):
        parser.add_argument(name, metavar=name.upper())
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--md", action="store_const", const="md", dest="form", help="as Markdown")
    form.add_argument(
        "--json", action="store_const", const="json", dest="form", help="all of it, as JSON"
    )
    parser.add_argument(
        "--flips",
        type=_count,
        default=_FLIPS,
        metavar="N",
        help=f"questions listed a protocol, or all (default: {_FLIPS})",
    )
    parser.add_argument(
        "--benchmark",
        choices=tuple(config.BENCHMARKS),
        help="of a file whose name does not say it",
    )
    given = parser.parse_args()
    lmms_start.quiet()
    from eval.judge import JudgeError
    from eval.prediction_files import InputError
    from reports import comparing

    try:
        params = config.load_resolved()
        found = [
            comparing.compare(a, b, params)
            for a, b in comparing.pairs(given.a, given.b, params, Path("."), given.benchmark)
        ]
    except (comparing.CompareError, config.ConfigError, InputError, JudgeError) as error:
        sys.exit(f"error: {error}")
    print(comparing.write(found, given.form or "text", given.flips))


if __name__ == "__main__":
    # Whoever reads the first lines alone ends it.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()
