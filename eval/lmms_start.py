"""How a process starts that runs lmms-eval: offline, without its log of every step."""

from __future__ import annotations

import os
import sys


def quiet() -> None:
    """Call before the first import of lmms-eval, transformers or datasets.

    Warnings still show; what the caller has set in the environment stays.
    """
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING")
