"""Images, read straight from the zip that they ship in."""

from __future__ import annotations

import hashlib
import os
import posixpath
import warnings
import zipfile
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from heima.config import ImageDecoding
from heima.data.pictures import PIL_FAULTS, ZIP_FAULTS, Picture, decode, size, worded

MOST_BYTES = 2**28
"""A file of more is no image of a data set; it would be read into memory as a whole."""


class ImageZip:
    """Images read straight from the zip they ship in, decoded as `decoding` says.

    Where all files of the zip lie in one folder, or in one inside the other, names may leave them
    out.

    Raises `FileNotFoundError` naming the zip when it is absent, `ValueError` when it is no zip.
    """

    def __init__(self, path: str | Path, decoding: ImageDecoding = "faithful") -> None:
        self.path = Path(path)
        self._decoding: ImageDecoding = decoding
        try:
            self._zip = zipfile.ZipFile(self.path)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.path} is missing: the source needs train.jsonl and images.zip in one folder"
            ) from error
        except zipfile.BadZipFile as error:
            raise ValueError(f"{self.path} is not a zip file: {error}") from error
        self._members = {one.filename: one for one in self._zip.infolist() if not one.is_dir()}
        self._folders = _leading_folders(list(self._members))
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "decoding": self._decoding}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ImageZip.__init__(self, state["path"], state["decoding"])

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: str) -> bool:
        return self._member(name) is not None

    def names(self) -> list[str]:
        """The files of the zip, in its order."""
        return list(self._members)

    def fingerprint(self) -> str:
        """A short SHA-256 of the names, sizes and checksums (CRC-32) of all files in the zip."""
        total = hashlib.sha256()
        for one in self._zip.infolist():
            total.update(f"{one.filename}\0{one.file_size} {one.CRC}\n".encode(errors="replace"))
        return total.hexdigest()[:16]

    def read(self, name: str) -> Image.Image:
        """The decoded RGB image. Raises `ImageFault` with a countable reason."""
        return self._decode(name).image

    def read_file(self, name: str) -> bytes:
        """The image's file as it ships. Raises `ImageFault` with a countable reason."""
        member = self._find(name)
        try:
            return self._zip.read(member)
        except ZIP_FAULTS as error:
            raise ImageFault("broken_image", f"{name!r} cannot be read: {worded(error)}") from error

    def size(self, name: str) -> tuple[int, int]:
        """Width and height that `read` will give, by the file's header alone.

        Raises `ImageFault` with a countable reason.
        """
        member = self._find(name)
        try:
            with self._zip.open(member) as file:
                return size(file, self._decoding)
        except (*PIL_FAULTS, *ZIP_FAULTS) as error:
            raise ImageFault("broken_image", f"{name!r} has no header: {worded(error)}") from error

    def verify(self, name: str, by: Literal["decode", "header", "exists"]) -> tuple[str, ...]:
        """Raise `ImageFault` with a countable reason where an image cannot be used.

        `exists` asks whether the zip has the name, `header` whether Pillow knows what the file
        begins with; `decode` reads all of it: whatever passes, `read` can read. Returns the
        conversions of `pictures` that it needs, which are known from its pixels alone.
        """
        if by == "decode":
            return self._decode(name, reduced=True).conversions
        member = self._find(name)
        if by == "header":
            try:
                with (
                    warnings.catch_warnings(action="ignore"),
                    self._zip.open(member) as file,
                    Image.open(file),
                ):
                    pass
            except (*PIL_FAULTS, *ZIP_FAULTS) as error:
                raise ImageFault(
                    "broken_image", f"{name!r} has no header: {worded(error)}"
                ) from error
        return ()

    def _member(self, name: str) -> zipfile.ZipInfo | None:
        return next(
            (
                self._members[folder + name]
                for folder in self._folders
                if folder + name in self._members
            ),
            None,
        )

    def _find(self, name: str) -> zipfile.ZipInfo:
        if self._process != os.getpid():
            # A forked process has its parent's open file, and with it the place where it reads.
            ImageZip.__init__(self, self.path, self._decoding)
        if posixpath.isabs(name) or ".." in name.replace("\\", "/").split("/"):
            raise ImageFault("unsafe_image_path", f"{name!r} leaves the zip")
        member = self._member(name)
        if member is None:
            raise ImageFault("missing_image", f"{name!r} is not in {self.path.name}")
        if member.file_size > MOST_BYTES:
            raise ImageFault(
                "huge_image", f"{name!r} has {member.file_size} bytes, more than {MOST_BYTES}"
            )
        return member

    def _decode(self, name: str, *, reduced: bool = False) -> Picture:
        data = self.read_file(name)
        try:
            return decode(data, self._decoding, reduced=reduced)
        except PIL_FAULTS as error:
            raise ImageFault(
                "broken_image", f"{name!r} cannot be decoded: {worded(error)}"
            ) from error


def _leading_folders(names: list[str]) -> list[str]:
    """Nothing, and each folder that all files lie in, from the outermost on: `a/`, then `a/b/`.

    What macOS adds to a zip does not count.
    """
    folders = [name.split("/")[:-1] for name in names if not name.startswith("__MACOSX/")]
    # Whatever is common to the first and the last in order is common to all.
    first, last = (min(folders), max(folders)) if folders else ([], [])
    found = [""]
    for one, other in zip(first, last, strict=False):
        if one != other:
            break
        found.append(f"{found[-1]}{one}/")
    return found


class ImageFault(ValueError):
    """An image that cannot be used; `reason` is a short, countable name."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
