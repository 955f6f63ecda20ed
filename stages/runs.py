"""List the runs that dvc.yaml repeats a stage over: `python -m stages.runs`

DVC's matrix cannot look up what a name stands for (which checkpoint another one continues), so that
`runs.yaml` holds every checkpoint and every reconstruction once for each training seed, with what
its stage depends on. It follows from params.yaml alone, and lies in git because DVC reads it before
any stage runs. `python -m stages.repro`, `stages.profile` and the stage `resolve` keep it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from heima import config
from heima.results.files import atomic
from stages import arguments

FILE = Path("runs.yaml")
_HEADER = "# Follows from params.yaml: `python -m stages.runs` writes it (see there).\n"


def runs(params: config.Params) -> dict[str, dict[str, dict[str, Any]]]:
    """Stage -> run -> the values of its item.

    `init` and `interpreter` name folders below `models/` and `interpreters/`.
    """
    return {
        "distill": {
            f"{name}-{seed}": {
                "checkpoint": name,
                "seed": seed,
                "data": one.data,
                "init": params.trained(one.init, seed),
            }
            for name, one in params.checkpoints.items()
            for seed in params.seeds
        },
        "reconstruct": {
            f"{name}-{seed}": {
                "name": name,
                "seed": seed,
                "section": one.section,
                "interpreter": one.interpreter,
            }
            for name, one in params.reconstructions.items()
            for seed in params.seeds
        },
    }


def write(params: config.Params) -> bool:
    """Bring `runs.yaml` up to date; whether it had to be changed."""
    text = _HEADER + yaml.safe_dump({"runs": runs(params)}, sort_keys=False)
    if FILE.exists() and FILE.read_text(encoding="utf-8") == text:
        return False
    with atomic(FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return True


def main() -> None:
    print(f"{FILE} {'is written anew' if write(config.load()) else 'fits params.yaml'}")


if __name__ == "__main__":
    arguments.parser_of(__doc__).parse_args()
    main()
