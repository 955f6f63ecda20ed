"""Switch to a profile: put `profiles/<name>.yaml` in place of `params.yaml`, say what changes.

    python -m stages.profile           # list the profiles, and which one is in use
    python -m stages.profile paper     # switch
    python -m stages.profile toy --force   # switch although params.yaml has changes of its own

A `params.yaml` that equals no profile holds somebody's changes: it is replaced with --force only,
and even then kept as `params.yaml.orig`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import yaml
from dvc.utils.flatten import flatten

from heima import config
from heima.config.profiles import written_out
from stages import runs

PROFILES = Path("profiles")
PARAMS = Path("params.yaml")


def changes(old: str, new: str) -> list[str]:
    """One line for each key that differs between two parameter texts."""
    try:
        before = flatten(yaml.safe_load(old) or {})
    except yaml.YAMLError:
        return [f"{PARAMS} was not YAML; all of it changes"]
    after = flatten(yaml.safe_load(new))
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if key not in after:
            lines.append(f"- {key}: {before[key]}")
        elif key not in before:
            lines.append(f"+ {key}: {after[key]}")
        elif before[key] != after[key]:
            lines.append(f"~ {key}: {before[key]} -> {after[key]}")
    return lines


def switch(name: str, *, force: bool) -> list[str]:
    """Put a profile in place and return what changed.

    Raises `config.ConfigError` for an unknown or invalid profile, or for changes that would be
    lost.
    """
    known = {path.stem: path for path in sorted(PROFILES.glob("*.yaml"))}
    if name not in known:
        raise config.ConfigError(f"profile {name!r} is not one of {sorted(known)}")
    new = written_out(known[name])
    config.parse(new, str(known[name]))
    old = PARAMS.read_text(encoding="utf-8") if PARAMS.exists() else ""
    if old and old not in {written_out(path) for path in known.values()}:
        if not force:
            raise config.ConfigError(
                f"{PARAMS} equals no profile, so it holds changes of yours; "
                f"--force keeps them as {PARAMS}.orig and switches"
            )
        kept = Path(f"{PARAMS}.orig")
        if kept.exists():
            raise config.ConfigError(f"{kept} exists already; move it away first")
        shutil.copy(PARAMS, kept)
    lines = changes(old, new)
    PARAMS.write_text(new, encoding="utf-8")
    runs.write(config.load(PARAMS))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("name", nargs="?", help="the profile to switch to")
    parser.add_argument("--force", action="store_true", help="replace a changed params.yaml")
    arguments = parser.parse_args()
    try:
        if arguments.name is None:
            current = PARAMS.read_text(encoding="utf-8") if PARAMS.exists() else ""
            for path in sorted(PROFILES.glob("*.yaml")):
                mark = "*" if written_out(path) == current else " "
                print(f"{mark} {path.stem}")
            return
        lines = switch(arguments.name, force=arguments.force)
    except config.ConfigError as error:
        sys.exit(f"error: {error}")
    print("\n".join(lines) if lines else "nothing changes")
    print(f"{PARAMS} is now the profile {arguments.name}; `dvc status` shows what would run")


if __name__ == "__main__":
    main()
