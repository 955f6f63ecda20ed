"""A stage that imports little: tests.stages.slurm_stage SECONDS OPTIONS [OUT]

On a cluster, by OPTIONS of srun as JSON. There it writes a line to `journal`, its node and its
process number, starts a process that lasts as long, waits SECONDS (a run after the first: none),
and writes OUT (default: out).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from heima.config import Slurm
from stages import slurm


def main(seconds: str, options: str, out: str = "out") -> None:
    if not slurm.on_node():
        slurm.run(Slurm(**json.loads(options)), "tests.stages.slurm_stage", seconds, options, out)
    lines = Path("journal" if out == "out" else f"{out}.journal")
    known = lines.exists()
    with lines.open("a") as journal:
        journal.write(f"{os.environ['SLURMD_NODENAME']} {os.getpid()}\n")
    if not known:
        subprocess.Popen(["sleep", seconds])
        time.sleep(float(seconds))
    if os.environ[slurm.NODE] == "0":
        Path(out).write_text("done")
    print("done", slurm.place(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
