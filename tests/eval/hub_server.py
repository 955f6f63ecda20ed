"""A server on loopback that speaks the hub's API for data sets and models, and fails on demand.

What is sent to it becomes a commit, large files by LFS.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secretsecretsecretsecretsecret"


@dataclass
class Repository:
    """Commits, oldest first: commit -> file -> bytes.

    `state` is open, gated, private, or not granted: gated, and refused to this account, too.
    """

    commits: dict[str, dict[str, bytes]]
    state: str = "open"


@dataclass
class Hub:
    """`log` has every request.

    `may_write` says whether the token of this account may. `blobs` are the large files sent so far.
    `cut` names files whose next download breaks off in the middle, `stall` those whose download
    stops in the middle and keeps its client waiting. `sizes` and `sums` (SHA-256) replace what is
    told of a file.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    stall: set[str] = field(default_factory=set)
    sums: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    log: list[tuple[str, str, str | None]] = field(default_factory=list)
    down: bool = False
    may_write: bool = True
    blobs: dict[str, bytes] = field(default_factory=dict)

    def __enter__(self) -> Hub:
        hub = self
        self.closing = threading.Event()

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def downloads(self) -> list[tuple[str, str | None]]:
        """Path and Range of each download so far."""
        return [
            (path, part)
            for method, path, part in self.log
            if method == "GET" and "/resolve/" in path
        ]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        path = urlsplit(self.path).path
        self.hub.log.append(("PUT", path, None))
        content = self._sent()
        oid = path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != oid:
            return self._refuse(400, "")
        self.hub.blobs[oid] = content
        return self._json({})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append(("POST", path, None))
        sent = self._sent()
        if self.hub.down:
            return self._refuse(503, "")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "")
        if not self.hub.may_write:
            return self._refuse(403, "")
        if path == "/api/repos/create":
            return self._create(json.loads(sent))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = json.loads(sent)["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": f"{self.hub.url}/upload/{one['oid']}"}}
            return self._json({"transfer": "basic", "objects": objects})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        if found is None or found.group(1) not in self.hub.repositories:
            return self._refuse(404, "RepoNotFound")
        if found.group(2) == "preupload":
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if _is_large(one["path"]) else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(sent)["files"]
            ]
            return self._json({"files": files})
        return self._commit(found.group(1), sent)

    def _create(self, asked: dict[str, str]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            return self._json({"url": f"{self.hub.url}/{name}"}, status=409)
        state = "private" if asked.get("visibility") == "private" else "open"
        self.hub.repositories[name] = Repository({"0" * 40: {}}, state)
        return self._json({"url": f"{self.hub.url}/{name}"})

    def _commit(self, name: str, sent: bytes) -> None:
        commits = self.hub.repositories[name].commits
        files = dict(list(commits.values())[-1])
        for line in map(json.loads, sent.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        commit = hashlib.sha1(sent).hexdigest()
        commits[commit] = files
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})

    def _sent(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append((self.command, path, self.headers.get("Range")))
        if self.hub.down:
            return self._refuse(503, "")
        found = re.fullmatch(
            r"/api/(?:datasets|models)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path
        ) or re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)", path)
        if found is None:
            return self._refuse(404, "")
        name, call, revision = found.group(1), found.group(2), found.group(3)
        repository = self.hub.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.state == "private" and not known):
            return self._refuse(404 if known else 401, "RepoNotFound")
        commit = list(repository.commits)[-1] if revision in (None, "main") else revision
        if commit not in repository.commits:
            return self._refuse(404, "RevisionNotFound")
        files = repository.commits[commit]
        if call == "resolve":
            if repository.state == "gated" and not known:
                return self._refuse(401, "GatedRepo")
            if repository.state == "not granted":
                return self._refuse(403 if known else 401, "GatedRepo")
            return self._file(commit, found.group(4), files)
        if call == "tree":
            return self._json([self._described(file, files[file]) for file in sorted(files)])
        siblings = [
            {"rfilename": file, **self._described(file, files[file])} for file in sorted(files)
        ]
        private = repository.state == "private"
        return self._json({"id": name, "sha": commit, "private": private, "siblings": siblings})

    def _described(self, file: str, content: bytes) -> dict[str, object]:
        size = self.hub.sizes.get(file, len(content))
        found = {"type": "file", "path": file, "size": size}
        if not _is_large(file):
            blob = _git_blob(content)
            return found | {"oid": blob, "blobId": blob}
        digest = self.hub.sums.get(file, hashlib.sha256(content).hexdigest())
        lfs = {"oid": digest, "sha256": digest, "size": size, "pointerSize": 100}
        return found | {"oid": digest[:40], "blobId": digest[:40], "lfs": lfs}

    def _file(self, commit: str, file: str, files: dict[str, bytes]) -> None:
        if file not in files:
            return self._refuse(404, "EntryNotFound")
        content = files[file]
        part = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(part.group(1)) if part else 0
        self.send_response(206 if part else 200)
        self.send_header("X-Repo-Commit", commit)
        etag = hashlib.sha256(content).hexdigest() if _is_large(file) else _git_blob(content)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Accept-Ranges", "bytes")
        if part:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if file in self.hub.cut:
            self.hub.cut.discard(file)
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            self.wfile.flush()
            self.close_connection = True
            return None
        if file in self.hub.stall:
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            self.wfile.flush()
            self.hub.closing.wait()
            self.close_connection = True
            return None
        self.wfile.write(content[start:])
        return None

    def _json(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", f"{code} for {self.headers.get('Authorization')}")
        self.send_header("Content-Length", "0")
        self.end_headers()


def _is_large(file: str) -> bool:
    """Whether the hub keeps such a file in LFS."""
    return file.endswith((".parquet", ".jsonl", ".safetensors", ".bin", ".zip")) or ".part-" in file


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
