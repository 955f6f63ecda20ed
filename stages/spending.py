"""What a run took in time, energy and dollars, beside what the plan said of the same stages."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from heima.config import OpenAIJudge, Params
from stages.energy import Meter
from stages.progress import Ended, Result, clock

_WORTH_A_PLAN = 60.0
"""Seconds of a run from which on the plan, some seconds of work itself, is asked."""


class Account:
    """Opened before a run; `report` says what it took since."""

    def __init__(self, params: Params | None, gpus: Sequence[str], price: float | None) -> None:
        self.meter = Meter(gpus)
        self._judge = params.judge if params is not None else None
        self._gpus = gpus
        self._price = price
        self._paid = self._spent()

    def _spent(self) -> float:
        """All dollars that the judge's cache has noted so far."""
        if not isinstance(self._judge, OpenAIJudge) or not Path(self._judge.cache).is_file():
            return 0.0
        with closing(sqlite3.connect(f"file:{self._judge.cache}?mode=ro", uri=True)) as known:
            [total] = known.execute("SELECT COALESCE(SUM(usd), 0) FROM charges").fetchone()
        return float(total)

    def report(
        self, ended: Sequence[Ended], elapsed: float, joules: Mapping[str, float]
    ) -> list[str]:
        """Lines for the end of a run; the plan is asked where the run was worth it."""
        plan = planned(self._gpus, self._price) if elapsed > _WORTH_A_PLAN else None
        paid = self._spent() - self._paid if isinstance(self._judge, OpenAIJudge) else None
        lines = [took(ended, elapsed), drawn(joules, self.meter.reasons)]
        return [*lines, *against_the_plan(ended, plan), dollars(ended, plan, paid, self._price)]


def took(ended: Sequence[Ended], elapsed: float) -> str:
    cpu = sum(one.cpu or 0.0 for one in ended)
    gpu = sum(one.wall * one.gpus for one in ended)
    more = f", {gpu / 3600:.2f} GPU-hours" if gpu else ""
    return f"time: {clock(elapsed)} by the clock, {clock(cpu)} of CPU time{more}"


def drawn(joules: Mapping[str, float], reasons: Sequence[str]) -> str:
    """
    >>> drawn({"CPU packages (RAPL)": 7.2e5}, ["no GPU that says its power"])
    "energy: 0.200 kWh of CPU packages (RAPL), the whole machine's (no GPU that says its power)"
    >>> drawn({}, ["no counter of CPUs"])
    'energy: not to be read here (no counter of CPUs)'
    """
    why = f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""
    if not joules:
        return f"energy: not to be read here{why}"
    parts = ", ".join(f"{value / 3.6e6:.3f} kWh of {source}" for source, value in joules.items())
    return f"energy: {parts}, the whole machine's{why}"


def against_the_plan(ended: Sequence[Ended], plan: Mapping[str, Any] | None) -> list[str]:
    """One line, of the stages that were run and that the plan has a time for; or none."""
    if plan is None:
        return []
    hours = {stage["name"]: stage["gpu_hours"] for stage in plan["stages"]}
    both = [one for one in ended if one.result is Result.RAN and hours.get(one.name)]
    if not both:
        return []
    wanted = 3600 * sum(hours[one.name] for one in both)
    taken = sum(one.wall * max(1, one.gpus) for one in both)
    machine = plan["machine"]["name"]
    return [
        f"plan: {clock(wanted)} of one {machine} for {len(both)} of these stages, which took "
        f"{clock(taken)} ({taken / wanted:.1f} times); `python -m stages.plan` says what it assumes"
    ]


def dollars(
    ended: Sequence[Ended],
    plan: Mapping[str, Any] | None,
    paid: float | None,
    price: float | None,
) -> str:
    """To the judge, and for GPUs where their price is given, each beside the plan's."""
    names = {one.name for one in ended if one.result is Result.RAN}
    stages = [] if plan is None else [one for one in plan["stages"] if one["name"] in names]
    parts = []
    if paid is not None:
        asked = f" (plan ${sum(one['usd'] for one in stages):,.2f})" if plan is not None else ""
        parts.append(f"${paid:,.2f} to the judge{asked}")
    if price is not None:
        hours = sum(one.wall * one.gpus for one in ended) / 3600
        wanted = price * sum(one["gpu_hours"] for one in stages)
        beside = f" (plan ${wanted:,.2f})" if plan is not None else ""
        parts.append(f"${price * hours:,.2f} for {hours:.2f} GPU-hours at ${price:g}{beside}")
    if not parts:
        parts = ["none: the judge costs nothing, and no --gpu-hour-price is given"]
    elif price is None:
        parts.append("GPUs not counted without --gpu-hour-price")
    return f"dollars: {', '.join(parts)}"


def planned(gpus: Sequence[str], price: float | None) -> dict[str, Any] | None:
    """What `stages.plan` says for so many GPUs; None, with a word, where it fails.

    A process of its own: what planning imports is nearly everything.
    """
    words = ["--json"]
    if gpus:
        words.append(f"--gpus={len(gpus)}")
    if price is not None:
        words.append(f"--gpu-hour-price={price}")
    done = subprocess.run(
        [sys.executable, "-m", "stages.plan", *words], capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no word"])[-1]
        print(f"the plan cannot be told: {said}", file=sys.stderr)
        return None
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan
