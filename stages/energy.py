"""What a run draws from the plug, as far as the machine says so.

CPUs count in RAPL (`/sys/class/powercap`, joules of each package since the machine started; where
only root may read it, it is not read), GPUs say their power to nvidia-smi, which is summed over
time. Both are the whole machine's while the run lasts, whatever else runs on it.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_PACKAGE = "package"
"""What RAPL's zones of whole processors are called; others are parts of them, or hold them."""
_EVERY = 30.0
"""Seconds between two readings: RAPL's counters begin anew after some minutes."""
_PATIENCE = 10.0
"""Seconds in which nvidia-smi answers, or is asked no more."""

CPUS, GPUS = "CPU packages (RAPL)", "GPUs (nvidia-smi)"


@dataclass
class _Zone:
    """A counter of a processor package, in microjoules; it wraps beyond `most`."""

    folder: Path
    most: int
    last: int
    total: int = 0

    def read(self) -> None:
        now = int((self.folder / "energy_uj").read_text())
        self.total += (now - self.last) % (self.most + 1)
        self.last = now


@dataclass
class Meter:
    """Counts from its making on; `tick` it now and then, and `close` it.

    `gpus` are the GPUs' names for nvidia-smi.
    """

    gpus: Sequence[str] = ()
    powercap: Path = POWERCAP
    now: Callable[[], float] = time.monotonic
    reasons: list[str] = field(default_factory=list)
    """Why something is not counted."""

    def __post_init__(self) -> None:
        self._zones: list[_Zone] = []
        for folder in sorted(self.powercap.glob("*:*")):
            try:
                if not (folder / "name").read_text().startswith(_PACKAGE):
                    continue
                most = int((folder / "max_energy_range_uj").read_text())
                self._zones.append(_Zone(folder, most, int((folder / "energy_uj").read_text())))
            except PermissionError:
                self.reasons.append(f"{folder} is for root alone")
            except FileNotFoundError:
                self.reasons.append(f"{folder} is no counter")
        if not self._zones and not self.reasons:
            self.reasons.append(f"no counter of CPUs in {self.powercap}")
        self._smi = shutil.which("nvidia-smi") if self.gpus else None
        if self._smi is None:
            self.reasons.append("no GPU that says its power")
        self._joules = 0.0
        self._read = self.now()
        self._watts = self._power()

    def tick(self) -> None:
        """Read the counters, if it is time."""
        if self.now() - self._read > _EVERY:
            self._count()

    def close(self) -> dict[str, float]:
        """Source -> joules; what cannot be read is not there."""
        self._count()
        found = {CPUS: sum(zone.total for zone in self._zones) / 1e6} if self._zones else {}
        return found | ({GPUS: self._joules} if self._joules else {})

    def _count(self) -> None:
        for zone in self._zones:
            zone.read()
        now, watts = self.now(), self._power()
        self._joules += (now - self._read) * (self._watts + watts) / 2
        self._read, self._watts = now, watts

    def _power(self) -> float:
        """What all GPUs draw at the moment, in watts."""
        if self._smi is None:
            return 0.0
        query = ["--query-gpu=power.draw", "--format=csv,noheader,nounits"]
        command = [self._smi, *query, f"--id={','.join(self.gpus)}"]
        try:
            said = subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=_PATIENCE
            ).stdout
            return sum(map(float, said.split()))
        except (subprocess.SubprocessError, ValueError):
            # It does not answer, or says `[N/A]`.
            self.reasons.append("nvidia-smi tells no power")
            self._smi = None
            return 0.0
