"""How a process starts that runs lmms-eval: offline, without its log of every step."""

from __future__ import annotations

import os
import sys

PROXIES = tuple(
    name for kind in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY") for name in (kind, kind.lower())
)
"""What clients read a proxy from."""


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


def without_proxies() -> None:
    """Take the proxies out of the environment.

    lmms-eval's tasks make a client of their judge as they are imported, and one that reads a SOCKS
    proxy there breaks off, though all that they ask lies on loopback.
    """
    for name in PROXIES:
        os.environ.pop(name, None)


def ask_no_judge() -> None:
    """Let judged tasks be imported where no judge is asked: they want a key, and no odd proxy."""
    os.environ.setdefault("OPENAI_API_KEY", "none")
    without_proxies()
