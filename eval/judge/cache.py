"""What judges have answered and what that cost: one SQLite file, outside of DVC's outs.

A reply is found by the hash of everything that could change it (`key`): the prompt's version, the
server, and the whole request, its model included. So a reply is never paid twice, by whichever
stage, run or mode it was first asked for; a killed run has lost only the requests in flight.
Each reply has a hash of all that is kept of it, without which it is not used.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.judge import JudgeError

_VERSION = 2
_ADDED_HASH = "ALTER TABLE replies ADD COLUMN sha256 TEXT NOT NULL DEFAULT ''"
"""What version 2 has and 1 had not."""
_SCHEMA = """
CREATE TABLE replies (
    key TEXT PRIMARY KEY, judge TEXT NOT NULL, content TEXT NOT NULL, model TEXT NOT NULL,
    system_fingerprint TEXT, prompt_tokens INTEGER, completion_tokens INTEGER,
    created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE charges (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, judge TEXT NOT NULL, what TEXT NOT NULL,
    usd REAL NOT NULL, created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE batches (
    id TEXT PRIMARY KEY, judge TEXT NOT NULL, requests INTEGER NOT NULL, ended TEXT,
    created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
"""

_HASHED = "key, judge, content, model, system_fingerprint, prompt_tokens, completion_tokens"

Body = Mapping[str, Any]
"""A whole request to `chat/completions`."""


@dataclass(frozen=True)
class Reply:
    """A judge's text, who wrote it as the server names it, and the tokens if it reports them."""

    content: str
    model: str
    system_fingerprint: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def key(version: str, judge: str, body: Body) -> str:
    """The SHA-256 of a prompt's version, the judge's identity, and a whole request."""
    text = json.dumps([version, judge, body], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _row_hash(row: Sequence[Any]) -> str:
    # Somebody may have put bytes there.
    text = json.dumps(list(row), ensure_ascii=False, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """The replies in one file, made when it does not exist; a context manager.

    Each write is committed at once, from any thread. Raises `JudgeError` where the file is no such
    cache.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # One connection for all threads: a statement of another one must not join a transaction.
        self._lock = threading.RLock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(
                path, isolation_level=None, timeout=60, check_same_thread=False
            )
            # Readers do not wait, and a killed process loses nothing that was committed.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            with self._transaction():
                (found,) = self._database.execute("PRAGMA user_version").fetchone()
                if found == 0:
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        self._database.execute(statement)
                if found < 2:
                    self._add_hashes()
                    self._database.execute(f"PRAGMA user_version = {_VERSION}")
        except sqlite3.DatabaseError as error:
            raise JudgeError(
                f"{path} is no cache of judge replies ({error}); it may hold paid answers, so move "
                "it away yourself, or set judge.cache to another file"
            ) from error
        if found > _VERSION:
            raise JudgeError(
                f"{path} has the layout {found} of another version of this project, expected "
                f"{_VERSION}; set judge.cache to another file"
            )

    def _add_hashes(self) -> None:
        """Give a file of version 1 the hashes of what it holds: its replies are paid."""
        self._database.execute(_ADDED_HASH)
        for row in self._database.execute(f"SELECT {_HASHED} FROM replies").fetchall():
            self._database.execute(
                "UPDATE replies SET sha256 = ? WHERE key = ?", (_row_hash(row), row[0])
            )

    def __enter__(self) -> ReplyCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def _rows(self, statement: str, *values: object) -> list[Any]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()

    def get(self, key: str) -> Reply | None:
        """The reply to a request; raises `JudgeError` where it is not what was kept."""
        rows = self._rows(f"SELECT sha256, {_HASHED} FROM replies WHERE key = ?", key)
        if not rows:
            return None
        written, *row = rows[0]
        if written != _row_hash(row):
            raise JudgeError(
                f"{self.path}: the reply {key} is not what was kept (its hash differs); bring back "
                "a copy of the file, or delete that row and it is asked for again: "
                f"DELETE FROM replies WHERE key = '{key}'"
            )
        return Reply(*row[2:])

    def altered(self) -> list[str]:
        """The keys of all replies that are not what was kept."""
        rows = self._rows(f"SELECT sha256, {_HASHED} FROM replies ORDER BY key")
        return [row[0] for written, *row in rows if written != _row_hash(row)]

    def missing(self, keys: Collection[str]) -> list[str]:
        """Those of `keys` without a reply, in their order."""
        return [key for key in keys if self.get(key) is None]

    def add(self, key: str, judge: str, reply: Reply, usd: float, what: str = "reply") -> None:
        """Keep a reply and what it cost; a reply that is there already stays."""
        row = (
            key,
            judge,
            reply.content,
            reply.model,
            reply.system_fingerprint,
            reply.prompt_tokens,
            reply.completion_tokens,
        )
        with self._transaction():
            self._database.execute(
                f"INSERT OR IGNORE INTO replies ({_HASHED}, sha256) VALUES (?{', ?' * 7})",
                (*row, _row_hash(row)),
            )
            self._charge(key, judge, what, usd)

    def charge(self, key: str, judge: str, what: str, usd: float) -> None:
        """Count what was paid for no usable reply."""
        with self._transaction():
            self._charge(key, judge, what, usd)

    def _charge(self, key: str, judge: str, what: str, usd: float) -> None:
        self._database.execute(
            "INSERT INTO charges (key, judge, what, usd) VALUES (?, ?, ?, ?)",
            (key, judge, what, usd),
        )

    def spent(self) -> float:
        """US dollars paid for everything in this file, unusable replies included."""
        return self._rows("SELECT COALESCE(SUM(usd), 0) FROM charges")[0][0]

    def add_batch(self, batch: str, judge: str, requests: int) -> None:
        self._rows(
            "INSERT OR IGNORE INTO batches (id, judge, requests) VALUES (?, ?, ?)",
            batch,
            judge,
            requests,
        )

    def end_batch(self, batch: str, how: str) -> None:
        self._rows("UPDATE batches SET ended = ? WHERE id = ?", how, batch)

    def batches(self, judge: str) -> dict[str, str | None]:
        """The batches that were handed in, and how each ended (None: not yet)."""
        return dict(
            self._rows("SELECT id, ended FROM batches WHERE judge = ? ORDER BY created, id", judge)
        )
