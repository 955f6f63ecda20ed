"""Images, read straight from the zip that they ship in."""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageFile

# PIL raises SyntaxError for a broken PNG chunk, OSError for a truncated or unknown file.
_IMAGE_FAULTS = (
    OSError,
    SyntaxError,
    EOFError,
    Image.DecompressionBombError,
    zipfile.BadZipFile,
    zlib.error,
)


class ImageZip:
    """Images read straight from the zip they ship in.

    Raises `FileNotFoundError` naming the zip when it is absent, `ValueError` when it is no zip.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._zip = zipfile.ZipFile(self.path)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.path} is missing: the source needs train.jsonl and images.zip in one folder"
            ) from error
        except zipfile.BadZipFile as error:
            raise ValueError(f"{self.path} is not a zip file: {error}") from error
        self._names = set(self._zip.namelist())
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ImageZip.__init__(self, state["path"])

    def fingerprint(self) -> str:
        """A short SHA-256 of the names, sizes and checksums (CRC-32) of all files in the zip."""
        total = hashlib.sha256()
        for one in self._zip.infolist():
            total.update(f"{one.filename}\0{one.file_size} {one.CRC}\n".encode(errors="replace"))
        return total.hexdigest()[:16]

    def read(self, name: str) -> Image.Image:
        """The decoded RGB image. Raises `ImageFault` with a countable reason."""
        return self._decode(name, reduced=False)

    def read_file(self, name: str) -> bytes:
        """The image's file as it ships. Raises `ImageFault` with a countable reason."""
        self._find(name)
        try:
            return self._zip.read(name)
        except _IMAGE_FAULTS as error:
            raise ImageFault("broken_image", f"{name!r} cannot be read: {error}") from error

    def verify(self, name: str, by: Literal["decode", "header", "exists"]) -> None:
        """Raise `ImageFault` with a countable reason where an image cannot be used.

        `exists` asks whether the zip has the name, `header` whether Pillow knows what the file
        begins with; `decode` reads all of it: whatever passes, `read` can read.
        """
        if by == "decode":
            self._decode(name, reduced=True)
            return
        self._find(name)
        if by == "header":
            try:
                with self._zip.open(name) as file, Image.open(file):
                    pass
            except _IMAGE_FAULTS as error:
                raise ImageFault("broken_image", f"{name!r} has no header: {error}") from error

    def _find(self, name: str) -> None:
        if self._process != os.getpid():
            # A forked process has its parent's open file, and with it the place where it reads.
            ImageZip.__init__(self, self.path)
        if posixpath.isabs(name) or ".." in name.replace("\\", "/").split("/"):
            raise ImageFault("unsafe_image_path", f"{name!r} leaves the zip")
        if name not in self._names:
            raise ImageFault("missing_image", f"{name!r} is not in {self.path.name}")

    def _decode(self, name: str, *, reduced: bool) -> Image.Image:
        data = self.read_file(name)
        # lmms-eval switches on, for the whole process, that what is cut off is filled with grey.
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            with Image.open(io.BytesIO(data)) as image:
                if reduced:
                    # A JPEG's bits are all read, but its pixels computed at an eighth of the size.
                    image.draft("RGB", (1, 1))
                return image.convert("RGB")
        except _IMAGE_FAULTS as error:
            raise ImageFault("broken_image", f"{name!r} cannot be decoded: {error}") from error


class ImageFault(ValueError):
    """An image that cannot be used; `reason` is a short, countable name."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
