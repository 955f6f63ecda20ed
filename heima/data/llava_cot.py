"""LLaVA-CoT's data: downloaded from the hub, and looked through wherever it lies.

On the hub its images are one zip in parts (`image.zip.part-aa`, `-ab`, …). Every part is downloaded
straight to its place in `images.zip.partial` and its checksum taken there, so that the disk holds
the images once. A download that is stopped, whenever and however, goes on from the byte that it had
reached: the partial file's size says how far it came, `download.json` how much of it is verified.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from heima.config import HubSource
from heima.data import hub
from heima.data.hub import HubError, RemoteFile, Repository
from heima.data.images import ImageZip
from heima.data.records import Drop, read_records
from heima.results.files import read_json, sha256, write_json

RECORDS = "train.jsonl"
IMAGES = "images.zip"
STATE = "download.json"
"""{id, revision, train.jsonl and images.zip: {parts: […], verified: how many}}, beside them."""

_ARCHIVE = re.compile(r"(?P<zip>[^/]+\.zip)(\.part-(?P<suffix>[a-z]+))?")
_SHOWN = 5


class SourceError(RuntimeError):
    """Source data that cannot be used; says what to do."""


def download(source: HubSource) -> dict[str, Any]:
    """Download the records and the images into `source.path`; returns what `download.json` says.

    A pinned commit that lies there whole needs no network.

    Raises:
        HubError: for what cannot be had from the hub, no room on the disk, a damaged file (which
            the next run fetches anew), or a folder that holds other files of those names.
    """
    folder = Path(source.path)
    # Of runs that were killed while they wrote it; `atomic` names them so.
    for left in folder.glob(f".{STATE}.*.tmp"):
        left.unlink()
    repository = Repository(
        "dataset",
        source.id,
        source.revision,
        key="source",
        again="run `dvc repro -f prepare`",
        instead="or download it elsewhere and give its folder with source.kind = folder",
    )
    kept = read_json(folder / STATE) if (folder / STATE).exists() else None
    if kept is None:
        _check_ours(repository, folder)
    elif (kept["id"], kept["revision"]) == (source.id, source.revision) and _is_whole(folder):
        _check_sizes(repository, folder, kept)
        return kept
    info = repository.info()
    state = _plan(repository, info)
    if kept is not None:
        _check_same(repository, folder, kept, state)
        for name in (RECORDS, IMAGES):
            state[name]["verified"] = kept[name]["verified"]
    needed = sum(_lacking(folder / name, state[name]["parts"]) for name in (RECORDS, IMAGES))
    repository.check_room(needed, folder, "give another disk's folder as source.path")
    folder.mkdir(parents=True, exist_ok=True)

    def note(name: str, verified: int) -> None:
        state[name]["verified"] = verified
        write_json(folder / STATE, state)

    for name in (RECORDS, IMAGES):
        verified = state[name]["verified"]
        note(name, verified)
        parts = [RemoteFile(**part) for part in state[name]["parts"]]
        _join(
            repository,
            repository.commit(info),
            folder / name,
            parts,
            verified,
            functools.partial(note, name),
        )
    _check_sizes(repository, folder, state)
    return state


def _is_whole(folder: Path) -> bool:
    return all((folder / name).exists() for name in (RECORDS, IMAGES))


def _plan(repository: Repository, info: Any) -> dict[str, Any]:
    """A `download.json` of nothing yet."""
    files = repository.files(info)
    try:
        parts = {RECORDS: [files[RECORDS]], IMAGES: [files[name] for name in in_order(files)]}
    except KeyError as error:
        raise HubError(f"{repository.title} at {info.sha} has no {error.args[0]}") from error
    except ValueError as error:
        raise HubError(f"{repository.title} at {info.sha}: {error}; {repository.instead}") from None
    return {"id": repository.id, "revision": info.sha} | {
        name: {"parts": [asdict(part) for part in some], "verified": 0}
        for name, some in parts.items()
    }


def in_order(names: Iterable[str]) -> list[str]:
    """The files that make up the zip of images: itself, or its parts as `split` names them.

    Raises `ValueError` where there is none, more than one, or a part is missing in the sequence.
    """
    found = {name: match for name in names if (match := _ARCHIVE.fullmatch(name))}
    if not found:
        raise ValueError("it holds no .zip and no .zip.part-aa of images")
    archives = sorted({match["zip"] for match in found.values()})
    whole = [name for name, match in found.items() if match["suffix"] is None]
    if len(archives) > 1 or (whole and len(found) > 1):
        raise ValueError(f"it holds more than one zip: {', '.join(sorted(found))}")
    if whole:
        return whole
    parts = sorted(found)
    width = len(found[parts[-1]]["suffix"])
    expected = [f"{archives[0]}.part-{_suffix(place, width)}" for place in range(len(parts))]
    if missing := [name for name in expected if name not in found]:
        raise ValueError(f"{missing[0]} is missing: it holds {', '.join(parts)}")
    return parts


def _suffix(place: int, width: int) -> str:
    """0 -> aa, 1 -> ab, 26 -> ba."""
    letters = ""
    for _ in range(width):
        place, letter = divmod(place, 26)
        letters = chr(ord("a") + letter) + letters
    return letters


def _check_ours(repository: Repository, folder: Path) -> None:
    """Files that were not downloaded here are nobody's to overwrite."""
    names = [name for name in (RECORDS, IMAGES) if (folder / name).exists()]
    if names:
        raise HubError(
            f"{repository.title}: {folder} holds {' and '.join(names)} already, and no {STATE}: "
            "give the folder with source.kind = folder, or another source.path"
        )


def _check_same(
    repository: Repository, folder: Path, kept: dict[str, Any], state: dict[str, Any]
) -> None:
    """What was begun is finished or kept, and not replaced by another commit's files."""
    if kept["id"] != state["id"] or any(
        kept[name]["parts"] != state[name]["parts"] for name in (RECORDS, IMAGES)
    ):
        raise HubError(
            f"{repository.title} at {state['revision']} has other files than {folder}, which holds "
            f"{kept['id']} at {kept['revision']}: pin that commit as source.revision, or give "
            "another source.path"
        )


def _check_sizes(repository: Repository, folder: Path, state: dict[str, Any]) -> None:
    for name in (RECORDS, IMAGES):
        size, whole = (folder / name).stat().st_size, _total(state[name]["parts"])
        if size != whole:
            raise HubError(
                f"{repository.title}: {folder / name} has {size} bytes, not {whole}: delete it and "
                f"{repository.again}"
            )


def _total(parts: Sequence[dict[str, Any]]) -> int:
    return sum(part["bytes"] for part in parts)


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")


def _lacking(target: Path, parts: Sequence[dict[str, Any]]) -> int:
    """How many bytes of a file are still to come."""
    if target.exists():
        return 0
    partial = _partial(target)
    return _total(parts) - (partial.stat().st_size if partial.exists() else 0)


def _join(
    repository: Repository,
    commit: str,
    target: Path,
    parts: Sequence[RemoteFile],
    verified: int,
    note: Callable[[int], None],
) -> None:
    """Download `parts` one behind the other into `target`, from where an earlier run stopped.

    `verified` parts are known to be right; `note` is told each time that one more is.
    """
    if target.exists():
        return
    starts = [sum(part.bytes for part in parts[:place]) for place in range(len(parts) + 1)]
    partial = _partial(target)
    partial.touch()
    with partial.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HubError(
                f"{repository.title}: another process is downloading {partial}"
            ) from error
        size = file.seek(0, os.SEEK_END)
        whole = sum(start <= size for start in starts[1:])
        for place in range(min(verified, whole), len(parts)):
            part, start = parts[place], starts[place]
            file.truncate(min(size, starts[place + 1]))
            size = file.seek(0, os.SEEK_END)
            repository.resume(part, commit, file, size - start)
            file.flush()
            os.fsync(file.fileno())
            file.seek(start)
            found = hub.checksum(part.checksum, file, part.bytes)
            if found != part.checksum:
                file.truncate(start)
                raise HubError(
                    f"{repository.title}: {part.name} arrived damaged, its checksum is {found}, "
                    f"not {part.checksum}: it was thrown away, {repository.again}"
                )
            size = starts[place + 1]
            note(place + 1)
    partial.rename(target)


def inspect(folder: Path) -> dict[str, Any]:
    """What identifies the records and the images of a folder, and how far they belong together.

    An image that records name and the zip lacks is counted here; `rewrite` drops its turns and
    lists them.

    Raises `SourceError` where a file is missing, is no zip, or where no image is found at all.
    """
    lacking = [name for name in (RECORDS, IMAGES) if not (folder / name).is_file()]
    if lacking:
        parts = sorted(path.name for path in folder.glob("*.zip.part-*"))
        join = f" (join its parts: cat {folder / '*.zip.part-*'} > {folder / IMAGES})"
        raise SourceError(
            f"source.path = {folder} lacks {' and '.join(lacking)}: put LLaVA-CoT-100k's {RECORDS} "
            f"and its images, as {IMAGES}, there{join if parts else ''}"
        )
    try:
        archive = ImageZip(folder / IMAGES)
    except ValueError as error:
        raise SourceError(
            f"{folder / IMAGES} is not a whole zip ({error}): if it was joined from parts, the "
            "last may be missing, or they may be out of order"
        ) from error
    records, unreadable, named = 0, 0, set()
    for _, record in read_records(folder / RECORDS):
        records += 1
        if isinstance(record, Drop):
            unreadable += 1
        else:
            named.add(record["image"])
    missing = sorted(name for name in named if name not in archive)
    if missing:
        print(
            f"{len(missing)} of {len(named)} images are not in {folder / IMAGES}: "
            f"{', '.join(missing[:_SHOWN])}{', …' if len(missing) > _SHOWN else ''}"
        )
    if len(missing) == len(named):
        raise SourceError(
            f"{folder / IMAGES} holds none of the {len(named)} images that {RECORDS} names, for "
            f"example {(missing or ['no image'])[0]!r}; it holds "
            f"{sorted(archive.names())[:_SHOWN]} and others: is it the zip of this data set?"
        )
    return {
        RECORDS: {"sha256": sha256(folder / RECORDS), "records": records, "unreadable": unreadable},
        IMAGES: {"bytes": (folder / IMAGES).stat().st_size, "members": len(archive)},
        "images": {"named": len(named), "missing": len(missing)},
    }
