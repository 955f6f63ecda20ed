"""Which stages start next: slots of the CPU, GPUs, and stages that want the machine for themselves.

Pure functions of names and numbers: no process, no DVC, no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Needs(StrEnum):
    """What a stage runs on, as `meta: {needs: …}` says in dvc.yaml (default: cpu)."""

    CPU = "cpu"
    GPU = "gpu"
    """GPUs, where there are any: as many as it has processes."""
    MACHINE = "machine"
    """All GPUs, and nothing runs beside it: it measures times."""


@dataclass(frozen=True)
class Slots:
    """How many stages run at once, and the GPUs that they share, by their names for CUDA."""

    jobs: int
    gpus: tuple[str, ...] = ()


def admitted(
    ready: Sequence[str],
    running: Mapping[str, tuple[str, ...]],
    needs: Mapping[str, Needs],
    slots: Slots,
    wanted: Callable[[str], int],
) -> dict[str, tuple[str, ...]]:
    """The stages of `ready` that start now, each with its GPUs.

    `ready` comes by priority. `running` has the GPUs of each running stage, `wanted` how many each
    uses: it gets all where it wants more than there are. A stage that wants GPUs waits
    for them before a later one may have them. One that wants the machine starts when nothing runs
    and nothing else could: until then it holds up nobody.
    """
    free = [gpu for gpu in slots.gpus if all(gpu not in taken for taken in running.values())]
    started: dict[str, tuple[str, ...]] = {}
    alone = any(needs[name] is Needs.MACHINE for name in running)
    waiting = False
    for name in ready:
        if alone or len(running) + len(started) >= slots.jobs:
            break
        if needs[name] is Needs.MACHINE:
            continue
        if needs[name] is Needs.CPU or not slots.gpus:
            started[name] = ()
            continue
        count = min(wanted(name), len(slots.gpus))
        waiting = waiting or len(free) < count
        if not waiting:
            started[name], free = tuple(free[:count]), free[count:]
    if not running and not started and ready:
        started[ready[0]] = slots.gpus
    return started


def priorities(
    dependents: Mapping[str, Iterable[str]], order: Sequence[str], seconds: Mapping[str, float]
) -> dict[str, float]:
    """For each stage the seconds of the longest chain that begins with it.

    `order` has every stage after those that it depends on, `dependents` those that follow it. What
    has never been timed counts a second.
    """
    longest: dict[str, float] = {}
    for name in reversed(order):
        after = max((longest[next_] for next_ in dependents[name] if next_ in longest), default=0.0)
        longest[name] = seconds.get(name, 1.0) + after
    return longest


def remaining(
    left: Mapping[str, float | None], chains: Mapping[str, float], jobs: int
) -> tuple[float, int]:
    """Seconds until all stages of `left` have run, at least, and how many were never timed.

    `left` has what each still takes, `chains` the longest chain that begins with it.
    """
    known = [value for value in left.values() if value is not None]
    longest = max((chains[name] for name in left), default=0.0)
    return max(sum(known) / jobs, longest), len(left) - len(known)


def estimated(name: str, seconds: Mapping[str, float]) -> float | None:
    """How long a stage takes: as in the last run, else as others of its kind on average.

    >>> estimated("distill@p9", {"distill@p1": 2.0, "distill@p2": 4.0, "tables": 1.0})
    3.0
    """
    if name in seconds:
        return seconds[name]
    kind = name.partition("@")[0]
    alike = [value for other, value in seconds.items() if other.partition("@")[0] == kind]
    return sum(alike) / len(alike) if alike else None
