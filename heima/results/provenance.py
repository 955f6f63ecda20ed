"""Where a result came from: its stage, seeds, code, parameters, versions and machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from heima.config import Params
from heima.results import machine
from heima.results.files import sha256


def digest(value: BaseModel | Mapping[str, Any]) -> str:
    """A short SHA-256 of parameters, independent of the order of keys."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def provenance(stage: str, params: Params, **details: Any) -> dict[str, Any]:
    """Where a result comes from: stage, profile, seed, code, params, details, versions, machine.

    The code fingerprint is that of the stage's module (`fingerprints/<module>.json`); it is
    "unknown" only where no fingerprint was taken, as in a direct call outside the pipeline.
    `hardware` is left out of `params`, as of what DVC watches: where a stage ran decides nothing.
    """
    fingerprint = Path("fingerprints") / f"{stage.partition('@')[0]}.json"
    code = sha256(fingerprint)[:16] if fingerprint.exists() else "unknown"
    return {
        "stage": stage,
        "profile": params.profile,
        "family": params.family,
        "seed": params.seed,
        "code": code,
        "params": digest(params.model_dump(mode="json", exclude={"hardware"})),
        **details,
        "versions": machine.versions(),
        "machine": machine.facts(),
    }
