"""Which commit's code and parameters make the results here."""

from __future__ import annotations

import subprocess
from pathlib import Path

from heima.config.profiles import written_out

PARAMS = Path("params.yaml")
PROFILES = Path("profiles")
_CODE = ("*.py", "profiles", "dvc.yaml", "eval")


class RevisionError(RuntimeError):
    """No commit has this code and these parameters."""


def named(profile: str) -> str:
    """The commit that is checked out, if its code and its profile of that name are what is here.

    `params.yaml` may be any profile of the commit, as `stages.profile` writes it out. Raises
    `RevisionError`, in a sentence that says what differs.
    """
    try:
        head, changed = (
            subprocess.run(["git", *words], capture_output=True, text=True)
            for words in (
                ("rev-parse", "--short=12", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no", "--", *_CODE),
            )
        )
    except FileNotFoundError as error:
        raise RevisionError("unknown: there is no git") from error
    if head.returncode:
        raise RevisionError("unknown: this is no git repository")
    short = head.stdout.strip()
    path = PROFILES / f"{profile}.yaml"
    if changed.stdout:
        files = ", ".join(line[3:] for line in changed.stdout.splitlines())
        raise RevisionError(f"{short}, changed since ({files})")
    if not path.is_file() or PARAMS.read_text(encoding="utf-8") != written_out(path):
        raise RevisionError(f"{short}, with parameters that are not those of {path}")
    return short


def commit(profile: str) -> str:
    """The same in words, for a reader: the commit, or what differs from it."""
    try:
        return named(profile)
    except RevisionError as error:
        return str(error)
