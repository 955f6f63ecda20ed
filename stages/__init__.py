"""One thin script per DVC stage: read params, call `heima` or `eval`, write outputs."""

import sys
from types import TracebackType


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C is no fault: a sentence in place of a traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("\nstopped; `make repro` goes on where it ended", file=sys.stderr, flush=True)
    else:
        sys.__excepthook__(kind, error, trace)


# Before anything that takes time.
sys.excepthook = _tell

import atexit  # noqa: E402
import gc  # noqa: E402
import os  # noqa: E402

from stages import handover  # noqa: E402

# Under `stages.repro` this process only waits for one that has imported everything.
handover.hand_over()

from heima.results import machine  # noqa: E402
from stages import parent_death  # noqa: E402

# One thread a process, as torchrun does: tiny models are 3-5 times slower with two under load.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before anything that computes is imported. Python reads its hash seed, and some libraries their
# variables, only when a process starts, so a stage's process starts once more (15 ms); `-m` is what
# Python holds in argv while it looks for the module to run.
if machine.wants_pins() and machine.pin() and sys.argv[0] == "-m":
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

# Importing torch and lmms-eval makes millions of objects that live until the process ends. Looking
# through them again and again, and once more at exit, takes 2-3 s of each stage.
gc.set_threshold(200_000, 100, 100)
atexit.register(gc.freeze)

parent_death.watch()
