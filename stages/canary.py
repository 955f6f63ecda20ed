"""Say whether this machine gives the recorded bits: a tiny run of all that decides the toy's.

    python -m stages.canary [--record]

Trains tiny models for a few updates, decodes, resamples (`heima.toy.canary`), compares the hashes
with those in `reports/canary.json`, and prints one line with the CPU's name and the verdict. The
verdict is kept in `.cache/canary.json`, from where the provenance of every result takes it.
`--record` makes this machine's bits the recorded ones. Exits 1 where they differ.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

from heima import config
from heima.results import machine
from heima.results.files import read_json, write_json

PROFILE = "profiles/toy.yaml"


def verdict() -> str:
    """One line on whether this machine gives the recorded bits, from the last run if it holds."""
    return known() or judge(_bits(), _of())


def known() -> str | None:
    """The line of the last run, if that still holds; imports nothing that computes."""
    if machine.VERDICT.exists():
        found = read_json(machine.VERDICT)
        if found["of"] == machine.canary_of() and found["code"] == _of()["code"]:
            return found["line"]
    return None


def judge(bits: dict[str, str], of: dict[str, Any]) -> str:
    """Compare with the record, keep the verdict, and give it in a line."""
    record = read_json(machine.CANARY)
    wrong = [part for part, hashed in bits.items() if record["bits"].get(part) != hashed]
    found = "differs" if wrong or bits.keys() != record["bits"].keys() else "matches"
    line = f"canary {found}: {of['cpu']} gives the bits recorded on {record['cpu']}"
    if found == "differs":
        line = (
            f"canary DIFFERS: {of['cpu']} does not give the bits recorded on {record['cpu']} "
            f"(from part {(wrong or ['?'])[0]!r} on); {_reasons(record, of)}"
        )
    write_json(
        machine.VERDICT,
        {"verdict": found, "line": line, "code": of["code"], "of": machine.canary_of()},
    )
    return line


def _reasons(record: dict[str, Any], of: dict[str, Any]) -> str:
    """What else is not as it was recorded; without such, it is the machine."""
    reasons = [
        f"{name} is {of['versions'][name]}, recorded with {version}"
        for name, version in record["versions"].items()
        if of["versions"].get(name) != version
    ]
    if not of["pinned"]:
        reasons.append("nothing is pinned here")
    if of["code"] != record["code"]:
        reasons.append("the code or profile has changed (on a machine that matched: --record)")
    return "; ".join(reasons) or "code, versions and pins are as recorded, so it is the machine"


def _of() -> dict[str, Any]:
    """What the bits are of: code and profile as a hash, versions, CPU."""
    code = hashlib.sha256()
    for path in [*sorted(Path("heima").rglob("*.py")), Path(PROFILE)]:
        code.update(path.read_bytes())
    return {
        "cpu": machine.cpu_name(),
        "pinned": machine.pinned(),
        "versions": machine.versions(),
        "code": code.hexdigest()[:16],
    }


def _bits() -> dict[str, str]:
    from heima.toy import canary

    return canary.bits(config.load(PROFILE))


def main(record: bool) -> None:
    bits, of = _bits(), _of()
    if record:
        write_json(machine.CANARY, {**of, "bits": bits})
    line = judge(bits, of)
    print(line)
    if "DIFFERS" in line:
        sys.exit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--record", action="store_true", help="make this machine's bits the recorded ones"
    )
    main(parser.parse_args().record)
