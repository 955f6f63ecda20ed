"""A stage as one of several processes: tests.stages.shared_run FAULT RANK STAGE [ARGUMENT]

In the current folder, started by torchrun. `FAULT` befalls the process RANK as it keeps its second
batch: `slow` lets it work longer than the group's timeout, which is 3 s here, `kill` ends it
(SIGKILL).
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from datetime import timedelta

import torch.distributed

from heima.vlm.kept_batches import KeptBatches

TIMEOUT = 3


def main(fault: str, rank: str, stage: str, *arguments: str) -> None:
    _shorten_timeout()
    if os.environ["RANK"] == rank:
        _befall(fault)
    module = importlib.import_module(f"stages.{stage}")
    module.main(*(int(one) if one.isdigit() else one for one in arguments))


def _shorten_timeout() -> None:
    """After all have met: how long they take to start is not what is tested."""
    start = torch.distributed.init_process_group

    def shortened(*arguments: object, **options: object) -> None:
        start(*arguments, **options)
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=TIMEOUT))

    torch.distributed.init_process_group = shortened


def _befall(fault: str) -> None:
    put = KeptBatches.put
    kept = []

    def disturbed(self: KeptBatches, batch: int, content: bytes) -> None:
        put(self, batch, content)
        kept.append(batch)
        if len(kept) == 2:
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(2 * TIMEOUT)

    KeptBatches.put = disturbed


if __name__ == "__main__":
    main(*sys.argv[1:])
