"""The database of a listening test: SQLite, in which an answer is on the disk before it is acknowledged.

Tokens are stored as hashes. Deleting a listener deletes every row of theirs; the file is then rewritten, so that
nothing of them is left in free pages or in the log.
"""

import hashlib
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffdpo.errors import DataError
from diffdpo.runs import sync

DATABASE = "listen.sqlite"
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE consents (key TEXT PRIMARY KEY, language TEXT NOT NULL, text TEXT NOT NULL, license TEXT NOT NULL);
CREATE TABLE songs (key TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE raters (
  id TEXT PRIMARY KEY,
  token_hash TEXT NOT NULL UNIQUE,
  seed INTEGER NOT NULL,
  stage TEXT NOT NULL,
  consent TEXT NOT NULL REFERENCES consents (key),
  background TEXT NOT NULL DEFAULT '{}',
  headphones TEXT NOT NULL DEFAULT '{}',
  created_at REAL NOT NULL,
  active_since REAL,
  last_seen REAL,
  break_until REAL
);
CREATE TABLE trials (
  id TEXT PRIMARY KEY,
  rater TEXT NOT NULL REFERENCES raters (id) ON DELETE CASCADE,
  number INTEGER NOT NULL,
  kind TEXT NOT NULL,
  body TEXT NOT NULL,
  heard TEXT NOT NULL,
  playing INTEGER,
  since REAL NOT NULL DEFAULT 0,
  created_at REAL NOT NULL,
  UNIQUE (rater, number)
);
CREATE TABLE stimuli (
  token TEXT PRIMARY KEY,
  trial TEXT NOT NULL REFERENCES trials (id) ON DELETE CASCADE,
  position INTEGER NOT NULL
);
CREATE INDEX stimuli_trial ON stimuli (trial);
CREATE TABLE answers (
  trial TEXT PRIMARY KEY REFERENCES trials (id) ON DELETE CASCADE,
  consent TEXT NOT NULL,
  body TEXT NOT NULL,
  created_at REAL NOT NULL
);
CREATE TABLE tombstones (id TEXT PRIMARY KEY, deleted_at REAL NOT NULL);
"""

DatabaseRow = sqlite3.Row


def new_token() -> str:
    """A secret that cannot be guessed: 192 random bits."""
    return secrets.token_urlsafe(24)


def token_hash(token: str) -> str:
    """What is stored of a token."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


class Database:
    """An open database; its methods may be called from several threads."""

    def __init__(self, path: Path, *, for_reading: bool = False) -> None:
        self.path = path
        self._lock, self._flush_lock = threading.RLock(), threading.Lock()
        self._commits = self._flushes = 0
        is_new = not path.exists()
        if is_new:
            if for_reading:
                raise DataError(f"{path}: no such listening test; run `diffdpo listen` first")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
        self._connection.row_factory = sqlite3.Row
        try:
            self._open(for_reading)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise DataError(
                f"{path}: damaged, or no database of a listening test ({error}); bring back a copy, or "
                "choose another out=…"
            ) from None

    def _open(self, for_reading: bool) -> None:
        execute = self._connection.execute
        execute("PRAGMA foreign_keys = ON")
        if not for_reading:
            execute("PRAGMA journal_mode = WAL")
            execute("PRAGMA synchronous = NORMAL")  # `transaction` flushes what has to last
            execute("PRAGMA secure_delete = ON")
        version = execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and not for_reading:
            self._connection.executescript(
                f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        elif version != SCHEMA_VERSION:
            raise DataError(
                f"{self.path}: a listening test of version {version}, this diffdpo reads version {SCHEMA_VERSION}; "
                "use the diffdpo that made it, or choose another out=…"
            )

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Changes that are in the database, all of them, when the block ends, or none after an error.

        They survive the end of the process; if `durable` they are on the disk too, and survive that of the machine.
        """
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
            self._commits += 1
            number = self._commits
        if durable:
            self._flush(number)

    def _flush(self, number: int) -> None:
        """Return when a commit is on the disk. Threads that wait at the same time share one flush of the log."""
        with self._flush_lock:
            if self._flushes >= number:
                return
            flushes = self._commits
            log = self.path.with_name(f"{self.path.name}-wal")
            if log.exists():
                sync(log)
            self._flushes = flushes

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[DatabaseRow]:
        """All rows of a query."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def row(self, query: str, values: Sequence[Any] = ()) -> DatabaseRow | None:
        """The first row of a query."""
        with self._lock:
            return self._connection.execute(query, values).fetchone()

    def delete_rater(self, rater: str, now: float) -> str:
        """Delete every row of a listener and leave a tombstone, whose id and time are all that is left."""
        tombstone = secrets.token_hex(16)
        with self._lock:
            with self.transaction() as connection:
                connection.execute("DELETE FROM raters WHERE id = ?", (rater,))
                connection.execute("INSERT INTO tombstones VALUES (?, ?)", (tombstone, now))
            self._connection.execute("VACUUM")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return tombstone

    def close(self) -> None:
        """Close the database; its log becomes part of the file."""
        with self._lock:
            self._connection.close()


def open_secret(path: Path) -> str:
    """The secret in a file that only its owner can read; made at the first call."""
    if path.exists():
        text = path.read_text(encoding="utf-8").strip()
        if len(text) < 24:
            raise DataError(f"{path}: a token needs at least 24 characters; delete the file to get a new one")
        return text
    token = new_token()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f"{token}\n")
    return token


def to_json(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """A value as it is stored."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
