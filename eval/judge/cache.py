"""What judges have answered and what that cost: one SQLite file, outside of DVC's outs.

A reply is found by the hash of everything that could change it (`key`): the prompt's version, the
server, and the whole request, its model included. So a reply is never paid twice, by whichever
stage, run or mode it was first asked for; a killed run has lost only the requests in flight.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.judge import JudgeError

_VERSION = 1
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


class ReplyCache:
    """The replies in one file, made when it does not exist; a context manager.

    Each write is committed at once. Raises `JudgeError` where the file is no such cache.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(path, isolation_level=None, timeout=60)
            # Readers do not wait, and a killed process loses nothing that was committed.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            with self._transaction():
                (found,) = self._database.execute("PRAGMA user_version").fetchone()
                if found == 0:
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        self._database.execute(statement)
                    self._database.execute(f"PRAGMA user_version = {_VERSION}")
        except sqlite3.DatabaseError as error:
            raise JudgeError(
                f"{path} is no cache of judge replies ({error}); it may hold paid answers, so move "
                "it away yourself, or set judge.cache to another file"
            ) from error
        if found not in (0, _VERSION):
            raise JudgeError(
                f"{path} has the layout {found} of another version of this project, expected "
                f"{_VERSION}; set judge.cache to another file"
            )

    def __enter__(self) -> ReplyCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def get(self, key: str) -> Reply | None:
        row = self._database.execute(
            "SELECT content, model, system_fingerprint, prompt_tokens, completion_tokens "
            "FROM replies WHERE key = ?",
            (key,),
        ).fetchone()
        return Reply(*row) if row else None

    def missing(self, keys: Collection[str]) -> list[str]:
        """Those of `keys` without a reply, in their order."""
        return [key for key in keys if self.get(key) is None]

    def add(self, key: str, judge: str, reply: Reply, usd: float) -> None:
        """Keep a reply and what it cost; a reply that is there already stays."""
        with self._transaction():
            self._database.execute(
                "INSERT OR IGNORE INTO replies (key, judge, content, model, system_fingerprint, "
                "prompt_tokens, completion_tokens) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    key,
                    judge,
                    reply.content,
                    reply.model,
                    reply.system_fingerprint,
                    reply.prompt_tokens,
                    reply.completion_tokens,
                ),
            )
            self._charge(key, judge, "reply", usd)

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
        return self._database.execute("SELECT COALESCE(SUM(usd), 0) FROM charges").fetchone()[0]

    def add_batch(self, batch: str, judge: str, requests: int) -> None:
        self._database.execute(
            "INSERT OR IGNORE INTO batches (id, judge, requests) VALUES (?, ?, ?)",
            (batch, judge, requests),
        )

    def end_batch(self, batch: str, how: str) -> None:
        self._database.execute("UPDATE batches SET ended = ? WHERE id = ?", (how, batch))

    def batches(self, judge: str) -> dict[str, str | None]:
        """The batches that were handed in, and how each ended (None: not yet)."""
        rows = self._database.execute(
            "SELECT id, ended FROM batches WHERE judge = ? ORDER BY created, id", (judge,)
        )
        return dict(rows.fetchall())
