"""Repositories of the hub: what they hold, how files are fetched, what to do when they cannot be.

Data, benchmarks and models are fetched through this module alone, so that a fault has one wording.
Nothing is fetched before it is known that the disk has room for it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from httpx2 import HTTPError
from huggingface_hub import (
    DatasetInfo,
    HfApi,
    ModelInfo,
    constants,
    get_token,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from heima.config.base import REPOSITORY
from heima.data.hub_cache import Kind
from heima.data.licences import terms

_CHUNK = 1 << 20
_TIMEOUT = 60
"""Seconds that a question to the hub may take."""


class HubError(RuntimeError):
    """Something of the hub that cannot be had; says what to do."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: `checksum` is sha256:… for large files, git-blob:… for others."""

    name: str
    bytes: int
    checksum: str


@dataclass(frozen=True)
class Repository:
    """A repository that params name under `key`, at the commit `revision` or the newest.

    `again` (run …) and `instead` (or …) say in messages how to go on.
    """

    kind: Kind
    id: str
    revision: str | None
    key: str
    again: str
    instead: str

    @property
    def title(self) -> str:
        what = {"dataset": "data set", "model": "model"}[self.kind]
        return f"{self.key}: the {what} {self.id}"

    @property
    def page(self) -> str:
        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.id}"

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Raise what the library raises as `HubError`s.

        The library's messages may quote what a server sent; ours hold nothing but names.
        """
        try:
            yield
        except RevisionNotFoundError as error:
            raise HubError(
                f"{self.title} has moved: params pin {self.revision}, the hub's newest commit is "
                f"{self._newest()}; set {self.key}.revision to a commit that is there and "
                f"{self.again}, {self.instead}"
            ) from error
        except GatedRepoError as error:
            licence = f" ({text})" if (text := terms(self.id)) else ""
            raise HubError(
                f"{self.title} is gated: accept its licence at its page, {self.page}{licence}, set "
                f"HF_TOKEN to a token of that account and {self.again}, {self.instead}"
            ) from error
        except RepositoryNotFoundError as error:
            raise HubError(
                f"{self.title} is not on the hub, or hidden from you (HTTP "
                f"{error.response.status_code}): check the id; if it is private or gated, set "
                f"HF_TOKEN; {self.instead}"
            ) from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            advice = (
                "check HF_TOKEN and the licence on its page"
                if status in (401, 403)
                else f"wait and {self.again}"
            )
            raise HubError(
                f"{self.title} was refused by the hub (HTTP {status}): {advice}, {self.instead}"
            ) from error
        except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            raise HubError(
                f"{self.title} cannot be downloaded, the hub is out of reach "
                f"({type(error).__name__}): check the network, HF_ENDPOINT and HF_HUB_OFFLINE and "
                f"{self.again} (whole files are kept), {self.instead}"
            ) from error

    def _newest(self) -> str:
        try:
            found = HfApi().repo_info(self.id, repo_type=self.kind, timeout=_TIMEOUT)
        except HTTPError:
            return "unknown (the hub did not answer)"
        return found.sha or "unknown (the hub names none)"

    def info(self) -> DatasetInfo | ModelInfo:
        """The repository's commit (`sha`) and its files with their sizes."""
        with self.explained():
            found = HfApi().repo_info(
                self.id,
                repo_type=self.kind,
                revision=self.revision,
                files_metadata=True,
                timeout=_TIMEOUT,
            )
        if not isinstance(found, (DatasetInfo, ModelInfo)):
            raise HubError(f"{self.title} is a {type(found).__name__} on the hub; {self.instead}")
        return found

    def commit(self, info: DatasetInfo | ModelInfo) -> str:
        """Which commit `info` is about. Raises `HubError` where the hub names none."""
        if info.sha is None:
            raise HubError(f"{self.title}: the hub names no commit; {self.instead}")
        return info.sha

    def files(self, info: DatasetInfo | ModelInfo) -> dict[str, RemoteFile]:
        """The files of a commit by name.

        Raises `HubError` where the hub does not state a size or a checksum.
        """
        found = {}
        for file in info.siblings or ():
            checksum = f"sha256:{file.lfs.sha256}" if file.lfs else f"git-blob:{file.blob_id}"
            if file.size is None or checksum == "git-blob:None":
                raise HubError(
                    f"{self.title}: the hub states neither size nor checksum of "
                    f"{file.rfilename}: check HF_ENDPOINT, {self.instead}"
                )
            found[file.rfilename] = RemoteFile(file.rfilename, file.size, checksum)
        return found

    def check_room(self, needed: int, place: Path, advice: str) -> None:
        """Raise `HubError` unless the disk of `place` has `needed` bytes free."""
        disk = next(one for one in (place, *place.absolute().parents) if one.exists())
        free = shutil.disk_usage(disk).free
        if needed > free:
            raise HubError(
                f"{self.title} needs {needed / 1e9:.2f} GB, {disk} has {free / 1e9:.2f} GB free: "
                f"make room, or {advice}"
            )

    def check_room_in_cache(self, info: DatasetInfo | ModelInfo, patterns: Sequence[str]) -> None:
        """As `check_room`, for the matching files that the hub's cache does not hold yet."""
        needed = sum(
            file.size or 0
            for file in info.siblings or ()
            if any(fnmatch(file.rfilename, pattern) for pattern in patterns)
            and not isinstance(
                try_to_load_from_cache(
                    self.id, file.rfilename, revision=info.sha, repo_type=self.kind
                ),
                str,
            )
        )
        self.check_room(needed, Path(constants.HF_HUB_CACHE), "set HF_HOME to another disk")

    def snapshot(self, info: DatasetInfo | ModelInfo, patterns: Sequence[str]) -> Path:
        """Download the matching files of a commit into the hub's cache; returns their folder."""
        with self.explained():
            return Path(
                snapshot_download(
                    self.id, repo_type=self.kind, revision=info.sha, allow_patterns=list(patterns)
                )
            )

    def file(self, info: DatasetInfo | ModelInfo, name: str) -> Path:
        """Download one file of a commit into the hub's cache."""
        with self.explained():
            return Path(hf_hub_download(self.id, name, repo_type=self.kind, revision=info.sha))

    def resume(self, file: RemoteFile, commit: str, target: BinaryIO, have: int) -> None:
        """Append the rest of a file to `target`, whose last `have` bytes are its beginning.

        `huggingface_hub` itself begins a file anew in every process, which at 10 GB a file is not
        to be borne.
        """
        if file.bytes > constants.MAX_HTTP_DOWNLOAD_SIZE:
            raise HubError(
                f"{self.title}: {file.name} has {file.bytes / 1e9:.0f} GB, and the hub gives "
                f"{constants.MAX_HTTP_DOWNLOAD_SIZE / 1e9:.0f} GB at most to a download that can "
                f"be resumed; {self.instead.removeprefix('or ')}"
            )
        address = hf_hub_url(self.id, file.name, repo_type=self.kind, revision=commit)
        with self.explained():
            try:
                http_get(
                    address,
                    target,
                    resume_size=have,
                    headers=build_hf_headers(),
                    expected_size=file.bytes,
                    displayed_filename=file.name,
                )
            except OSError as error:
                if isinstance(error, HfHubHTTPError | OfflineModeIsEnabled):
                    raise
                if error.errno == errno.ENOSPC:
                    fault = f"filled the disk; make room and {self.again} (what came is kept)"
                else:
                    fault = f"did not arrive whole: {self.again}"
                raise HubError(f"{self.title}: {file.name} {fault}") from error


def push(folder: Path, identity: str, *, public: bool, message: str) -> str:
    """Send the files of a folder to the model repository `identity`, as one commit; its address.

    The repository is created where there is none: to be seen by its owner alone, unless `public`.
    What it held stays in its history.

    Raises `HubError` for no token or one that may not write there, a repository that everybody sees
    while `public` was not said, and a hub that refuses or is out of reach.
    """
    where = f"the repository {identity} of {constants.ENDPOINT}"
    again = f"{folder} is whole: once that is put right, `hf upload {identity} {folder}` sends it"
    if not re.fullmatch(REPOSITORY, identity):
        raise HubError(f"{identity!r} is no repository's name: give it as OWNER/NAME; {again}")
    if get_token() is None:
        raise HubError(f"{where} needs a token that may write: set HF_TOKEN; {again}")
    api = HfApi()
    try:
        api.create_repo(identity, private=not public, exist_ok=True)
        found = api.repo_info(identity, repo_type="model", timeout=_TIMEOUT)
        if not public and not found.private:
            raise HubError(
                f"{where} is there and everybody sees it: say --public if that is meant, or name "
                "another"
            )
        done = api.upload_folder(repo_id=identity, folder_path=folder, commit_message=message)
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = (
            "check that HF_TOKEN is a token of an account that may write there"
            if status in (401, 403, 404)
            else "wait and try again"
        )
        raise HubError(f"{where} was refused (HTTP {status}): {advice}; {again}") from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise HubError(
            f"{where} is out of reach ({type(error).__name__}): check the network, HF_ENDPOINT and "
            f"HF_HUB_OFFLINE; {again}"
        ) from error
    return str(done.commit_url)


def checksum(like: str, content: BinaryIO, size: int) -> str:
    """The checksum of the next `size` bytes, of the same kind as the checksum `like`."""
    kind, _, _ = like.partition(":")
    # Git hashes a file with its size before it.
    whole = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % size)
    while size and (chunk := content.read(min(size, _CHUNK))):
        whole.update(chunk)
        size -= len(chunk)
    return f"{kind}:{whole.hexdigest()}"
