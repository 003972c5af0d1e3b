"""The file that remembers images: nothing depends on it, whatever becomes of it."""

import os
import sqlite3
import sys
import threading
from pathlib import Path

import numpy as np
import pillow_heif
import pytest

from ceit.data import pillow
from ceit.data import store as store_module
from ceit.data.cache import NoCacheError
from ceit.data.store import Copy, Fact, Store, open_store, reader, size_limit_bytes

PIXELS = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
LARGEST = 2**64 - 1


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of its own."""
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def filled(folder: Path) -> Store:
    store = Store(folder)
    store.add([("good", Fact(LARGEST)), ("bad", Fact(7, "cut short"))], [Copy(LARGEST, "form", PIXELS)])
    return store


def is_found(store: Store) -> bool:
    """Whether all that ``filled`` keeps is there."""
    copy = store.copy(LARGEST, "form")
    facts = store.facts(["good", "bad", "other"])
    return facts == {"good": Fact(LARGEST), "bad": Fact(7, "cut short")} and copy is not None and (copy == PIXELS).all()


def test_what_is_kept_is_found_by_another_process(cache: Path) -> None:
    filled(cache).close()
    store = Store(cache)
    assert is_found(store)
    assert store.fact_of(7) == Fact(7, "cut short")
    assert store.fact_of(8) is None
    assert store.copy(LARGEST, "another form") is None
    assert store.trouble is None


def test_p14_verdicts_and_copies_belong_to_what_decodes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(cache)
    monkeypatch.setattr(store_module, "reader", lambda: "a newer Pillow")
    assert store.facts(["good", "bad"]) == {}
    assert store.fact_of(7) is None
    assert store.copy(LARGEST, "form") is None
    refused = Fact(LARGEST, "no longer read")
    store.add([("good", refused)], [])
    assert store.facts(["good", "bad"]) == {"good": refused}
    assert store.fact_of(LARGEST) == refused
    monkeypatch.undo()
    assert is_found(store)


def test_p14_verdicts_hold_where_the_limit_is_no_lower(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEIT_MAX_MEGAPIXELS", "100")
    store = filled(cache)
    for limit, held in (("100", True), ("99.9", False), ("500", True), ("inf", True), ("", True)):
        monkeypatch.setenv("CEIT_MAX_MEGAPIXELS", limit)
        assert is_found(store) == held
        assert (store.fact_of(7) is not None) is held
    monkeypatch.setenv("CEIT_MAX_MEGAPIXELS", "500MP")
    with pytest.raises(ValueError, match="CEIT_MAX_MEGAPIXELS must be a number above 0, got '500MP'"):
        store.facts(["good"])


def test_p14_another_version_or_lack_of_a_plugin_is_another_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    read = reader.__wrapped__  # not as it was before
    usual, formats = read(), pillow.formats()
    monkeypatch.setattr(pillow_heif, "__version__", "0.0.1")
    assert read() != usual
    monkeypatch.undo()
    assert read() == usual
    monkeypatch.setattr(pillow, "formats", lambda: tuple(name for name in formats if name != "HEIF"))
    assert read() != usual


@pytest.mark.parametrize("damage", ["text", "zeros within", "cut"])
def test_m5_a_damaged_file_is_begun_anew(cache: Path, damage: str) -> None:
    store = filled(cache)
    store.close()
    path = cache / store_module.FILE_NAME
    content = path.read_bytes()
    spoiled = {"text": b"no database" * 999, "zeros within": content[:100] + bytes(len(content)), "cut": content[:9999]}
    path.write_bytes(spoiled[damage])
    store = Store(cache)
    assert store.facts(["good", "bad"]) == {}
    store.add([], [])
    assert is_found(filled(cache))


def test_m5_a_copy_whose_bytes_have_changed_is_not_given_out(cache: Path) -> None:
    filled(cache).close()
    with sqlite3.connect(cache / store_module.FILE_NAME) as connection:
        connection.execute("UPDATE pixels SET bytes = zeroblob(60)")
    connection.close()
    assert Store(cache).copy(LARGEST, "form") is None


def test_m5_a_file_that_another_process_holds_is_done_without(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(cache).close()
    monkeypatch.setattr(store_module, "_LOCK_SECONDS", 0.01)
    holder = sqlite3.connect(cache / store_module.FILE_NAME, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    store = Store(cache)
    assert store.facts(["good"]) == {}
    assert store.trouble is not None
    assert "locked" in store.trouble
    store.add([("new", Fact(1))], [])
    holder.close()
    assert is_found(Store(cache))


def test_m5_a_file_that_cannot_be_written_is_still_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(cache).close()
    connect = sqlite3.connect

    def read_only(path: Path, **options: object) -> sqlite3.Connection:
        connection = connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
        return connection

    monkeypatch.setattr(sqlite3, "connect", read_only)
    store = Store(cache)
    store.add([("new", Fact(1))], [Copy(1, "form", PIXELS)])
    assert store.trouble is not None
    assert "readonly" in store.trouble
    assert is_found(store)


def test_m5_a_full_disk_keeps_what_was_there(cache: Path) -> None:
    store = filled(cache)
    assert store._connection is not None
    store._connection.execute("PRAGMA max_page_count = 1")  # which becomes what the file has now
    store.add([], [Copy(number, "form", np.zeros((100, 100, 3), np.uint8)) for number in range(9)])
    assert store.trouble is not None
    assert "full" in store.trouble
    assert is_found(store)


def nowhere() -> Path:
    raise NoCacheError("there is no place to keep data sets in")


@pytest.mark.parametrize("home", ["", None])
def test_m5_without_a_home_or_a_folder_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    if home is None:
        monkeypatch.delenv("CEIT_DATA")
        monkeypatch.setattr(store_module, "cache_dir", nowhere)
    else:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("CEIT_DATA", str(tmp_path / "file"))
    store = open_store()
    store.add([("good", Fact(1))], [Copy(1, "form", PIXELS)])
    assert store.facts(["good"]) == {}
    assert store.copy(1, "form") is None
    assert store.trouble


def test_m5_the_size_has_a_limit_and_the_longest_unused_go_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEIT_CACHE_GB", "0.001")
    large = np.zeros((256, 256, 3), np.uint8)  # a fifth of the limit
    clock = [10_000.0]
    monkeypatch.setattr(store_module.time, "time", lambda: clock[0])
    store = Store(cache)
    store.add([], [Copy(number, "form", large) for number in range(4)])
    clock[0] += 60
    store.add([], [Copy(4, "form", large)])
    assert store.refused_copies == 1  # all are in use: a set that is too large keeps a part
    clock[0] += 7200
    store.touch([0], "form")
    store.add([], [Copy(5, "form", large)])
    held = [number for number in range(6) if store.copy(number, "form") is not None]
    assert held == [0, 2, 3, 5]
    assert (cache / store_module.FILE_NAME).stat().st_size < 1.2e6


def test_m5_copies_that_are_read_one_by_one_are_in_use(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As training reads them, which may last longer than a copy counts as new."""
    monkeypatch.setattr(store_module, "_AT_ONCE", 2)
    monkeypatch.setenv("CEIT_CACHE_GB", "0.001")
    large = np.zeros((256, 256, 3), np.uint8)  # a fifth of the limit
    clock = [10_000.0]
    monkeypatch.setattr(store_module.time, "time", lambda: clock[0])
    store = Store(cache)
    store.add([], [Copy(number, "form", large) for number in range(4)])
    clock[0] += 7200
    assert all(store.copy(number, "form") is not None for number in (0, 2))
    store.add([], [Copy(number, "form", large) for number in range(5, 7)])
    assert [number for number in range(7) if store.copies([number], "form")] == [0, 2, 5, 6]


def test_m5_no_copies_are_kept_where_none_are_wanted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEIT_CACHE_GB", "0")
    store = filled(cache)
    assert store.facts(["good"]) == {"good": Fact(LARGEST)}
    assert store.copy(LARGEST, "form") is None


def test_m5_a_tenth_of_the_free_disk_is_used_at_most(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, expected in ((50e9, 5e9), (900e9, 20e9)):
        usage = type("Usage", (), {"free": int(free)})
        monkeypatch.setattr(store_module.shutil, "disk_usage", lambda folder, usage=usage: usage)
        assert size_limit_bytes(cache) == expected
    for strange in ("many", "-1", "nan"):
        monkeypatch.setenv("CEIT_CACHE_GB", strange)
        with pytest.raises(ValueError, match=f"CEIT_CACHE_GB '{strange}' must be a number of gigabytes; 0 keeps no"):
            open_store()


def test_m5_a_fork_does_not_use_the_file_of_its_parent(cache: Path) -> None:
    store = open_store()
    store.add([("good", Fact(LARGEST)), ("bad", Fact(7, "cut short"))], [Copy(LARGEST, "form", PIXELS)])
    store._lock.acquire()
    held = threading.Thread(target=store_module._lock.acquire)  # as another thread may, at the moment of the fork
    held.start()
    held.join()
    if (child := os.fork()) == 0:
        own = open_store()
        os._exit(0 if own is not store and is_found(own) else 1)
    store_module._lock.release()
    store._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert is_found(store)


def test_m5_a_folder_that_was_deleted_is_made_again(cache: Path) -> None:
    open_store().add([("good", Fact(1))], [])
    (cache / store_module.FILE_NAME).unlink()
    assert open_store().facts(["good"]) == {}
    open_store().add([("good", Fact(2))], [])
    assert Store(cache).facts(["good"]) == {"good": Fact(2)}


def test_names_that_are_no_unicode_are_states(cache: Path) -> None:
    store = Store(cache)
    name = os.fsdecode(b"\xff.png")
    store.add([(name, Fact(1))], [])
    assert store.facts([name]) == {name: Fact(1)}
    assert sys.getfilesystemencodeerrors() == "surrogateescape"


def test_old_small_copies_make_room_for_all_new_ones(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, limit = np.zeros((16, 16, 3), np.uint8), 8_000_000
    monkeypatch.setattr(store_module, "size_limit_bytes", lambda folder, held_bytes=0: limit)
    store = Store(cache)
    while not store.refused_copies:
        start = store._query("SELECT count(*) FROM copies")[0][0]
        store.add([], [Copy(start + number, "form", small) for number in range(1500)])
    with sqlite3.connect(cache / store_module.FILE_NAME) as connection:
        connection.execute("UPDATE copies SET used = 0")
    connection.close()
    store.refused_copies = 0
    store.add([], [Copy(10**6 + number, "form", small) for number in range(2500)])
    assert store.refused_copies == 0
