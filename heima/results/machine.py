"""What a machine does to the bits of a result: pins against it, and facts that name it.

Rounding depends on the order of sums and on fused multiply-adds, and libraries choose both by the
CPU that they find. `pin` makes them choose alike on every x86-64-v3 CPU (AVX2 and FMA: Haswell, Zen
and later), whoever made it. docs/reproducing.md says what each pin is for and what it costs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Mapping, MutableMapping
from importlib import metadata
from pathlib import Path
from typing import Any

_INSTRUCTIONS = {
    # The only branch of MKL that is promised on CPUs which are not Intel's.
    "MKL_CBWR": "COMPATIBLE",
    # The fast products are OpenBLAS's (`heima.vlm.kernels`): one kernel for all of these CPUs.
    "OPENBLAS_CORETYPE": "Haswell",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}
PINS: Mapping[str, str] = {
    **_INSTRUCTIONS,
    # The number of threads decides how a sum is divided.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # The order of a set of strings.
    "PYTHONHASHSEED": "0",
}
"""Environment variables; libraries read them once, when they are loaded."""

CANARY = Path("reports/canary.json")
"""The bits that a toy's canary run gave where it was recorded, and on which CPU."""
VERDICT = Path(".cache/canary.json")
"""What the canary found on this machine."""

_PINNED_FAMILIES = "toy-"
_FAMILY = re.compile(r"^family:[ \t]*['\"]?([\w-]+)", re.MULTILINE)
_NEEDED = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm"})
"""What /proc/cpuinfo calls that which x86-64-v3 has over v2 (`abm` holds lzcnt)."""

_DECIDING = (
    "torch",
    "numpy",
    "scipy",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "pillow",
    "pyarrow",
    "lmms-eval",
)
"""Distributions whose versions may change a number."""


def wants_pins(params: Path = Path("params.yaml")) -> bool:
    """Whether these parameters are a toy's. On the machines of the real models, pins would cripple.

    Reads one line, as it runs before any stage is imported: `heima.config` reads the rest.
    """
    if not params.exists():
        return False
    family = _FAMILY.search(params.read_text(encoding="utf-8"))
    return family is not None and family[1].startswith(_PINNED_FAMILIES)


def cpu() -> dict[str, str]:
    """The first processor as Linux describes it: `model name`, `vendor_id`, `flags` …; else {}."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(encoding="utf-8").strip().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def can_pin() -> bool:
    """Whether the CPU has the instructions that the pins choose."""
    return set(cpu().get("flags", "").split()) >= _NEEDED


def pin(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Set the pins; whether that changed anything. To be called before numpy or torch is imported.

    Says on stderr which of the caller's own settings it overrules, or, where the CPU cannot run
    the pinned instructions, that nothing is pinned.
    """
    if not can_pin():
        if "HEIMA_UNPINNED" not in environ:
            environ["HEIMA_UNPINNED"] = "said"
            _say("this CPU has no AVX2 and FMA: the toy's results will not be the recorded bits")
        return False
    overruled = [
        f"{name}={environ[name]}"
        for name, value in PINS.items()
        if environ.get(name, value) != value
    ]
    if overruled:
        _say(
            f"overrules {', '.join(overruled)}: the toy gives the same bytes on every machine "
            "(docs/reproducing.md)"
        )
    changed = not pinned(environ)
    environ.update(PINS)
    return changed


def pinned(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether all pins are set."""
    return all(environ.get(name) == value for name, value in PINS.items())


def _say(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


@functools.cache
def versions() -> dict[str, str]:
    """The versions that may change a number: Python, the C library, and the libraries on them."""
    found = {"python": platform.python_version(), "libc": " ".join(platform.libc_ver())}
    for name in _DECIDING:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@functools.cache
def cpu_name() -> str:
    described = cpu()
    name = described.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({described['vendor_id']})" if "vendor_id" in described else name


def facts() -> dict[str, Any]:
    """The machine as a result's provenance names it, with the instruction sets in force.

    `aten` and `openblas` are what the libraries themselves report, where they are loaded; `canary`
    says whether this machine gave the recorded bits (`stages.canary`).
    """
    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "pinned": pinned(),
        "instructions": {name: os.environ.get(name, "unset") for name in _INSTRUCTIONS},
        "canary": canary(),
    }
    if "torch" in sys.modules:
        import threadpoolctl
        import torch

        found["aten"] = torch.backends.cpu.get_cpu_capability()
        found["openblas"] = sorted(
            {
                library["architecture"]
                for library in threadpoolctl.threadpool_info()
                if library["internal_api"] == "openblas"
            }
        )
        found["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
    return found


def canary() -> str:
    """`matches` or `differs` as the last `stages.canary` found here, or `not run`."""
    if not VERDICT.exists():
        return "not run"
    found = json.loads(VERDICT.read_text(encoding="utf-8"))
    return found["verdict"] if found["of"] == canary_of() else "not run"


def canary_of() -> dict[str, Any]:
    """What a canary's verdict holds for; with another CPU, version or record it is void."""
    record = CANARY.read_bytes() if CANARY.exists() else b""
    return {
        "cpu": cpu_name(),
        "pinned": pinned(),
        "versions": versions(),
        "record": hashlib.sha256(record).hexdigest()[:16],
    }
