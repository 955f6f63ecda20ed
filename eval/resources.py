"""What a metric needs beside code: identified, or missing with the command that gets it."""

from __future__ import annotations

from pathlib import Path

from heima.results.files import sha256


class MissingResource(RuntimeError):
    """A metric's data or model is not on this machine; the message says how to get it."""


def check_hash(path: Path, expected: str) -> None:
    """Raise `MissingResource` unless the SHA-256 of the file is `expected`."""
    found = sha256(path)
    if found != expected:
        raise MissingResource(
            f"{path} has SHA-256 {found}, expected {expected}: it is damaged or another release; "
            "reinstall what it belongs to"
        )
