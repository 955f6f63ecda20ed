"""Look for images and questions that training, held-out turns and benchmarks have in common.

    python -m stages.leaks

Writes `leaks/matches.jsonl` (each question with its image in another set, and where),
`leaks/items.jsonl` (each question of a benchmark, with what training turns have of it),
`leaks/unreadable.jsonl` (images that could not be read, with the reason) and `metrics/leaks.json`
(counts for each two sets).
"""

from __future__ import annotations

from pathlib import Path

from eval import leaks
from heima import config
from heima.results.cells import write_metrics
from heima.results.files import atomic, write_jsonl
from heima.results.provenance import provenance
from stages import arguments


def main() -> None:
    params = config.load_resolved()
    near = params.leaks
    found = leaks.compare(leaks.sets(params), hamming=near.hamming, difference=near.difference)
    with atomic(Path("leaks")) as folder:
        folder.mkdir()
        write_jsonl(folder / "matches.jsonl", found.rows)
        write_jsonl(folder / "items.jsonl", found.items)
        write_jsonl(folder / "unreadable.jsonl", found.unreadable)
    write_metrics(
        "metrics/leaks.json",
        found.cells,
        provenance("leaks", params, images=dict(found.images), unreadable=len(found.unreadable)),
    )
    for group, counts in found.cells.items():
        shown = ", ".join(f"{name} {cell.value:.0f}" for name, cell in counts.items())
        print(f"{group} ({next(iter(counts.values())).n} questions): {shown}")
    for one in found.unreadable:
        print(f"unreadable: {one['set']} {one['item']}: {one['reason']}")


if __name__ == "__main__":
    arguments.read(__doc__)
    main()
