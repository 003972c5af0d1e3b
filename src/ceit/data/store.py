"""What is remembered of images that were read: whether they can be decoded, and small copies of large ones.

One SQLite file in the cache folder. Nothing needs it: where it is missing, damaged, locked, full or cannot be written,
images are read again, and ``trouble`` says why. See docs/decisions/reading-images.md.

Letters: H height, W width, C channels.
"""

import atexit
import os
import shutil
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ceit.data import pillow
from ceit.data.cache import NoCacheError, cache_dir

FILE_NAME = "images-2.sqlite"  # another number for another layout
SIZE_VARIABLE = "CEIT_CACHE_GB"
MOST_GB = 20.0
DISK_SHARE = 0.1  # of what is free
RECENT_SECONDS = 3600  # a copy that was used within them is not dropped: sets larger than the store keep a part
_LOCK_SECONDS = 20
_AT_ONCE = 500  # values in one question; SQLite takes at least 999
_READER = "3"  # another number wherever the pixels of a copy change, or bytes that were refused are read

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (
    state BLOB, reader TEXT, limit_megapixels REAL, digest INTEGER, reason TEXT, PRIMARY KEY (state, reader)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS facts_of_digest ON facts (digest);
CREATE TABLE IF NOT EXISTS copies (id INTEGER PRIMARY KEY, name BLOB UNIQUE, used INTEGER, shape TEXT, sum INTEGER);
CREATE INDEX IF NOT EXISTS copies_by_use ON copies (used);
CREATE TABLE IF NOT EXISTS pixels (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
"""

_HOLDS = "reader = ? AND limit_megapixels <= ?"  # as something else may decode, or refuse what was let through


class Fact(NamedTuple):
    """What is known of encoded bytes: their ``digest_of`` and, if they cannot be decoded, why."""

    digest: int
    reason: str | None = None


class Copy(NamedTuple):
    """uint8 ``(H, W, C)`` made of the bytes with this digest, in the form that ``form`` describes."""

    digest: int
    form: str
    pixels_hwc: np.ndarray


@lru_cache
def reader() -> str:
    """A hash of what decodes here: a copy or a verdict, good or bad, holds for as long as this is the same."""
    return blake2b(f"{_READER} {pillow.versions()} {pillow.formats()}".encode(), digest_size=8).hexdigest()


def size_limit_bytes(folder: Path, held_bytes: int = 0) -> int:
    """How large the store may become: CEIT_CACHE_GB, or 20 GB, but at most a tenth of what the disk has free.

    Raises: ValueError for a variable that is no number of gigabytes.
    """
    asked = os.environ.get(SIZE_VARIABLE, "").strip()
    if not asked:
        return int(min(MOST_GB * 1e9, DISK_SHARE * (shutil.disk_usage(folder).free + held_bytes)))
    with suppress(ValueError):
        if 0 <= (gigabytes := float(asked)) < 1e9:
            return int(gigabytes * 1e9)
    raise ValueError(f"{SIZE_VARIABLE} {asked!r} must be a number of gigabytes; 0 keeps no copies of images")


def open_store() -> "Store":
    """The store in the cache folder: one for all threads of a process, another after a fork."""
    try:
        folder = cache_dir()
    except NoCacheError as error:
        return Store(None, str(error))
    with _lock:
        if folder not in _stores or _stores[folder].is_another_file():
            _stores[folder] = Store(folder)
        return _stores[folder]


class Store:
    """Facts of images by their state, a line that changes when the bytes do; small copies by digest and form.

    Every method may be called from any thread. None fails because of the file: it then finds and keeps nothing.
    """

    def __init__(self, folder: Path | None, trouble: str | None = None) -> None:
        """Opens the file in ``folder``. Raises: ValueError for a CEIT_CACHE_GB that is no number."""
        self._lock = threading.RLock()
        self._connection, self._is_open = sqlite3.connect(":memory:", check_same_thread=False), False
        self._connection.close()  # until the file is open every use fails, which ``_attempt`` expects
        self.path = None if folder is None else folder / FILE_NAME
        self.limit_bytes = 0
        self.trouble = trouble
        self.refused_copies = 0
        """Copies that were not kept since the store is full."""
        self._used: dict[str, list[int]] = {}  # copies that were read, by form, of which the file does not know yet
        self._inode: int | None = None
        self._writable, self._renewed = True, False
        try:
            self._open()
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def facts(self, states: Sequence[str]) -> dict[str, Fact]:
        """What is known of the images in these states."""
        by_name, judge = {_name(state): state for state in states}, _judge()
        question = f"SELECT state, digest, reason FROM facts WHERE {_HOLDS} AND state IN"
        with self._attempt():
            rows = self._rows(question, list(by_name), judge)
            return {by_name[name]: Fact(digest % 2**64, reason) for name, digest, reason in rows}
        return {}

    def fact_of(self, digest: int) -> Fact | None:
        """What is known of an image with this digest, wherever it lay."""
        values = _signed(digest), *_judge()
        with self._attempt():
            rows = self._query(f"SELECT reason FROM facts WHERE digest = ? AND {_HOLDS} LIMIT 1", values)
            return Fact(digest, rows[0][0]) if rows else None
        return None

    def copy(self, digest: int, form: str) -> np.ndarray | None:
        """The copy in this form, uint8 ``(H, W, C)``; so many at once are noted as in use."""
        found = self.copies([digest], form).get(digest)
        if found is not None:
            with self._lock:
                used = self._used.setdefault(form, [])
                used.append(digest)
                if len(used) >= _AT_ONCE:
                    self.touch(self._used.pop(form), form)
        return found

    def copies(self, digests: Sequence[int], form: str) -> dict[int, np.ndarray]:
        """The copies in this form that are there, by digest."""
        by_name = {_copy_name(digest, form): digest for digest in digests}
        question = "SELECT name, shape, sum, bytes FROM copies JOIN pixels USING (id) WHERE name IN"
        with self._attempt():
            return {
                by_name[name]: np.frombuffer(data, np.uint8).reshape([int(side) for side in shape.split()])
                for name, shape, checksum, data in self._rows(question, list(by_name))
                if _checksum(shape, data) == checksum
            }
        return {}

    def touch(self, digests: Sequence[int], form: str) -> None:
        """Notes that these copies are in use, so that older ones are dropped before them."""
        now, names = int(time.time()), [_copy_name(digest, form) for digest in digests]
        if not self._writable:
            return
        with self._attempt():
            rows = self._rows("SELECT id, used FROM copies WHERE name IN", names)
            if stale := [(now, number) for number, used in rows if used < now - RECENT_SECONDS // 2]:
                with self._transaction() as connection:
                    connection.executemany("UPDATE copies SET used = ? WHERE id = ?", stale)

    def add(self, facts: Iterable[tuple[str, Fact]], copies: Sequence[Copy]) -> None:
        """Keeps facts by state, and copies as far as they fit; those not used for longest are dropped for them."""
        judge = _judge()
        rows = [(_name(state), *judge, _signed(fact.digest), fact.reason) for state, fact in facts]
        if not self._writable or not (rows or copies):
            return
        with self._attempt(), self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?)", rows)
            kept = self._make_room(copies)
            for copy in copies[:kept]:
                self._insert(connection, copy)
            self.refused_copies += len(copies) - kept

    def is_another_file(self) -> bool:
        """Whether the file was removed or replaced since it was opened."""
        if self.path is None or not self._is_open:
            return False
        try:
            return self.path.stat().st_ino != self._inode
        except OSError:
            return True

    def close(self) -> None:
        """Closes the file; what was kept stays."""
        with self._lock:
            self._connection.close()
            self._is_open = False

    def __del__(self) -> None:
        self.close()

    def _open(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False)
        self._connection, self._is_open, self._inode = connection, True, self.path.stat().st_ino
        # A rollback journal works on network drives, where the processes of several machines share the folder; SQLite's
        # write-ahead log does not. After a power cut the file may be damaged, and is then begun anew.
        for setting in ("page_size = 16384", "journal_mode = TRUNCATE", "synchronous = OFF"):
            connection.execute(f"PRAGMA {setting}")
        if len(self._query("SELECT name FROM sqlite_master WHERE type = 'table'")) < _SCHEMA.count("TABLE"):
            with self._transaction():
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    connection.execute(statement)
        self.limit_bytes = size_limit_bytes(self.path.parent, self._held_bytes())

    @contextmanager
    def _attempt(self) -> Iterator[None]:
        """Leaves undone what the file does not allow."""
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                if self._is_open:  # else it was given up before
                    self._give_up(error)

    def _give_up(self, error: sqlite3.Error | OSError) -> None:
        """Goes on without writing, or without the file; a damaged one is begun anew, once."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the lower byte says what kind it is
        self.trouble = f"{self.path} cannot be used ({error})"
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY) and self._is_open:
            self._writable = False
            return
        self.close()
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) and self.path is not None and not self._renewed:
            self._renewed = True
            try:
                if self.path.stat().st_ino == self._inode:  # else another process has put a new one in its place
                    self.path.with_name(f"{FILE_NAME}-journal").unlink(missing_ok=True)
                    self.path.unlink()
                self._open()
                self.trouble = None
            except (sqlite3.Error, OSError) as again:
                self._give_up(again)

    def _query(self, question: str, values: Sequence[object] = ()) -> list[tuple]:
        return self._connection.execute(question, values).fetchall()

    def _rows(self, question: str, names: Sequence[bytes], values: Sequence[object] = ()) -> Iterator[tuple]:
        """The answers to ``question IN (names)``; ``values`` are those of the question itself."""
        for start in range(0, len(names), _AT_ONCE):
            part = names[start : start + _AT_ONCE]
            yield from self._query(f"{question} ({', '.join('?' * len(part))})", [*values, *part])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it is kept, or nothing."""
        with self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    def _held_bytes(self) -> int:
        pragmas = ("page_count", "freelist_count", "page_size")
        pages, free, size = (self._query(f"PRAGMA {name}")[0][0] for name in pragmas)
        return (pages - free) * size

    def _make_room(self, copies: Sequence[Copy]) -> int:
        """How many of the copies fit, after dropping those that were not used for longest, but not lately."""
        room = self.limit_bytes - self._held_bytes()
        needed = sum(copy.pixels_hwc.nbytes for copy in copies)
        if room < needed <= self.limit_bytes:
            old = "SELECT id, length(bytes) FROM copies JOIN pixels USING (id) WHERE used < ? ORDER BY used LIMIT 1000"
            before = int(time.time()) - RECENT_SECONDS
            while room < needed and (rows := self._query(old, (before,))):
                for number, size in rows:
                    if room >= needed:
                        break
                    self._query("DELETE FROM copies WHERE id = ?", (number,))
                    self._query("DELETE FROM pixels WHERE id = ?", (number,))
                    room += size
        sizes = accumulate(copy.pixels_hwc.nbytes for copy in copies)
        return sum(size <= room for size in sizes)

    def _insert(self, connection: sqlite3.Connection, copy: Copy) -> None:
        data = copy.pixels_hwc.tobytes()
        shape = " ".join(map(str, copy.pixels_hwc.shape))
        row = (_copy_name(copy.digest, copy.form), int(time.time()), shape, _checksum(shape, data))
        inserted = connection.execute("INSERT OR IGNORE INTO copies VALUES (NULL, ?, ?, ?, ?)", row)
        if inserted.rowcount > 0:  # else another process was first
            connection.execute("INSERT OR REPLACE INTO pixels VALUES (?, ?)", (inserted.lastrowid, data))


def _name(text: str) -> bytes:
    return blake2b(text.encode(errors="surrogateescape"), digest_size=16).digest()


def _copy_name(digest: int, form: str) -> bytes:
    return _name(f"{digest} {form} {reader()}")


def _checksum(shape: str, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(shape.encode()))


def _judge() -> tuple[str, float]:
    """What decides here whether an image can be read. Raises: as ``limit_megapixels``."""
    return reader(), pillow.limit_megapixels()


def _signed(digest: int) -> int:
    """The digest as SQLite stores it, between -(2**63) and 2**63."""
    return digest - 2**64 if digest >= 2**63 else digest


_stores: dict[Path, Store] = {}
_lock = threading.Lock()
_abandoned: list[dict[Path, Store]] = []  # a parent's: never used here, and never closed, which would touch its locks


def _begin_in_child() -> None:
    global _stores, _lock
    _abandoned.append(_stores)
    _stores, _lock = {}, threading.Lock()


def _close_all() -> None:
    for store in _stores.values():
        store.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
atexit.register(_close_all)
