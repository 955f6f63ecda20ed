"""Remove from `metrics/` what the profile in use does not write: `python -m stages.other_profiles`

`metrics/` is of one profile at a time, and a clone begins with the committed one of the toy. What a
stage of the profile in use writes it replaces; what no stage writes would stay, be taken for a
result of this profile's, and have the tables refuse their work at the end of a run.

Removed is what git's HEAD has as it is, so that `git checkout HEAD -- metrics` brings it back;
anything else with --force alone. `python -m stages.repro` does so before it begins, where the files
are another profile's; the stage `resolve` refuses to go on with what is left.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from heima import config
from heima.results.files import read_json
from stages import arguments

FOLDER = Path("metrics")
_SHOWN = 3
"""How many files are named."""


@dataclass(frozen=True)
class LeftOver:
    """A file below `metrics/` that no stage writes, of which profile (None: it does not say).

    `committed`: HEAD has this content at this path.
    """

    path: Path
    profile: str | None
    committed: bool


def left_over(
    params: config.Params, written: Callable[[], Collection[Path]] | None = None
) -> list[LeftOver]:
    """The files that other profiles have left, and those that the tables of this one would refuse.

    `written` says what the stages write (default: DVC is asked, if need be); other files of this
    profile, such as those of a training seed that is no longer named, are in nobody's way.
    """
    # The folders that tables read as a whole.
    named: dict[Path, Collection[str]] = {
        FOLDER / "score": params.variants,
        FOLDER / "similarity": params.reconstructions,
        FOLDER / "effects": params.audit.checkpoints,
    }
    of = {path: _profile(path) for path in sorted(FOLDER.rglob("*.json"))}
    unnamed = {path for path in of if path.stem not in named.get(path.parent, (path.stem,))}
    foreign = {path for path, profile in of.items() if profile != params.profile}
    if foreign:
        foreign -= set((written or _written)())
    found = sorted(unnamed | foreign)
    safe = _committed(found)
    return [LeftOver(path, of[path], path in safe) for path in found]


def clear(params: config.Params, written: Callable[[], Collection[Path]]) -> str:
    """Remove what another profile has left and git has; in words, or "" if there is nothing."""
    return _remove(
        [
            one
            for one in left_over(params, written)
            if one.committed and one.profile not in (None, params.profile)
        ],
        params,
    )


def refusal(found: Sequence[LeftOver], params: config.Params) -> str:
    """Why a run cannot go on with these files, and the command that removes them."""
    lost = [one for one in found if not one.committed]
    command = "python -m stages.other_profiles"
    if lost:
        how = f"`{command} --force` removes them, and git cannot bring back {_files(lost)}"
    else:
        how = f"`{command}` removes them, and git has them"
    return f"no stage of the profile {params.profile} writes {_files(found)}: {how}"


def _files(found: Sequence[LeftOver]) -> str:
    """How many of which profile, the first by name."""
    profiles = Counter(one.profile or "no profile" for one in found)
    of = ", ".join(f"{count} of {name}" for name, count in sorted(profiles.items()))
    names = ", ".join(one.path.as_posix() for one in found[:_SHOWN])
    return f"{names}{', …' if len(found) > _SHOWN else ''} ({of})"


def _remove(found: Sequence[LeftOver], params: config.Params) -> str:
    if not found:
        return ""
    for one in found:
        one.path.unlink()
        for folder in one.path.parents:
            if folder == FOLDER or any(folder.iterdir()):
                break
            folder.rmdir()
    back = " (`git checkout HEAD -- metrics` brings them back)"
    return (
        f"removed what no stage of the profile {params.profile} writes: {_files(found)}"
        f"{back if all(one.committed for one in found) else ''}"
    )


def _profile(path: Path) -> str | None:
    """The profile that a metrics file says it is of."""
    try:
        content = read_json(path)
    except ValueError:
        # Cut short, or no JSON: whose it was is not known.
        return None
    made = content.get("provenance") if isinstance(content, dict) else None
    return made.get("profile") if isinstance(made, dict) else None


def _written() -> set[Path]:
    """The paths that stages of dvc.yaml write, from the working directory."""
    from dvc.repo import Repo

    with Repo() as repo:
        return {Path(out.fs_path).relative_to(Path.cwd()) for out in repo.index.outs}


def _committed(paths: Sequence[Path]) -> set[Path]:
    """Those whose content git's HEAD has at this path. Contents are compared, so that no mark in
    git's index hides a change; without git there is none."""
    files = [path for path in paths if path.is_file() and not path.is_symlink()]
    if not files:
        return set()
    names = "".join(f"{path.as_posix()}\n" for path in files)
    try:
        tree, here = (
            subprocess.run(["git", *words], input=given, capture_output=True, text=True)
            for words, given in (
                (("ls-tree", "-r", "-z", "HEAD", "--", str(FOLDER)), ""),
                (("hash-object", "--stdin-paths"), names),
            )
        )
    except FileNotFoundError:
        return set()
    if tree.returncode or here.returncode:
        return set()
    # MODE TYPE OBJECT, a tab, PATH
    head = {
        Path(name): about.split()[2]
        for about, _, name in (line.partition("\t") for line in tree.stdout.split("\0") if line)
    }
    return {
        path
        for path, content in zip(files, here.stdout.split(), strict=True)
        if head.get(path) == content
    }


def main() -> None:
    parser = arguments.parser_of(__doc__)
    parser.add_argument("--force", action="store_true", help="also what git does not have as it is")
    force = parser.parse_args().force
    try:
        params = config.load()
    except config.ConfigError as error:
        sys.exit(f"error: {error}")
    found = left_over(params)
    removed = [one for one in found if one.committed or force]
    print(_remove(removed, params) or f"nothing was removed from {FOLDER}/")
    if len(removed) < len(found):
        sys.exit(f"error: {refusal([one for one in found if one not in removed], params)}")


if __name__ == "__main__":
    main()
