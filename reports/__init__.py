"""What is published of a run: tables, DVC's summaries, the mirror in MLflow.

The results of a profile lie below its name: `reports/toy/tables`, `reports/toy/summary`.
"""

from __future__ import annotations

from pathlib import Path


def folder(profile: str) -> Path:
    """Where the results of a profile lie, from the root of the repository."""
    return Path("reports") / profile
