"""What the description of a run says, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import reports
from heima.results.scores import ACCURACY
from reports.tracking.entries import METHOD, Entry


def of_seed(seed: int) -> str:
    return (
        f"What was trained with the seed {seed}: its training runs are in this run. Its accuracies "
        f"are those of {METHOD} with this seed alone, `{ACCURACY}/…/mean/…` each variant's mean."
    )


def of_reproduction(
    summary: Mapping[str, Any],
    differing: Sequence[str],
    before: str | None,
    variants: Sequence[Entry],
) -> str:
    """What it is, what is other than in the one before, and the accuracies of all variants."""
    lines = [
        f"A reproduction of the profile **{summary['profile']}** (`make repro`; entries of "
        f"`dvc.lock`: {summary['key']}). Its accuracies are those of {METHOD}, "
        f"`{ACCURACY}/…/mean/…` each variant's mean; each variant is a run in it. Tables, figures, "
        "claims and the page are artifacts; their home is "
        f"`{reports.folder(summary['profile']).as_posix()}/`."
    ]
    if before is None:
        lines.append("It is the first one mirrored here.")
    else:
        lines += [f"Other than in “{before}”:", "\n".join(f"- {one}" for one in differing)]
    if summary["unfinished"]:
        lines.append(f"Not finished: {', '.join(summary['unfinished'])}.")
    return "\n\n".join([*lines, *_tables(variants)])


def _tables(variants: Sequence[Entry]) -> list[str]:
    """A table a protocol: accuracy in percent, a row a variant."""
    names = [key for one in variants for key in one.values if key.startswith(f"{ACCURACY}/")]
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        _, protocol, benchmark = name.split("/")
        groups.setdefault(protocol, []).append(benchmark)
    found = []
    for protocol, benchmarks in groups.items():
        rows = [
            [
                one.name,
                *(
                    f"{value:.1f}"
                    if (value := one.values.get(f"{ACCURACY}/{protocol}/{name}")) is not None
                    else ""
                    for name in benchmarks
                ),
            ]
            for one in variants
        ]
        header = [f"{protocol} (%)", *benchmarks]
        table = [header, ["---"] * len(header), *rows]
        found.append("\n".join(f"| {' | '.join(row)} |" for row in table))
    return found
