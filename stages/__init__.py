"""One thin script per DVC stage: read params, call `heima` or `eval`, write outputs."""

import os

# One thread a process, as torchrun does: tiny models are 3-5 times slower with two under load.
os.environ.setdefault("OMP_NUM_THREADS", "1")
