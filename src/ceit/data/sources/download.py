"""Gets a named set onto the disk once: download, decode, check, keep the arrays."""

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from posixpath import basename
from typing import BinaryIO
from urllib.parse import quote

import numpy as np
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ceit.atomic import move, naming, write_array
from ceit.data.sources.addresses import web_address
from ceit.data.sources.archives import ARRAY_NAMES, Arrays, open_archives
from ceit.data.sources.known_sets import SETS, NamedSet, Source
from ceit.limits import DOWNLOAD, TooMuchError
from ceit.paths import expanded
from ceit.terminal import stderr_console

TIMEOUT_SECONDS = 20
_RESUMPTIONS = 5  # of a connection that was cut, within one call
_CHUNK_BYTES = 1 << 18
_OF_ADDRESSES = "%/:?#[]@!$&'()*+,;=~"  # what means something there, or is written with % already


def fetch_named(name: str, cache: Path) -> Path:
    """Gets the set ``name`` into the cache unless it is there, and returns the folder of its arrays.

    The copy that the environment variable CEIT_DATA_MIRROR offers, a URL or a directory that holds the archives by file
    name, is tried first, then the sources in order. A download that was cut is resumed, by the next call too. The
    folder ``{train,test}_{images,labels}.npy`` appears whole or not at all, and only if the hashes are right. Raises:
    as ``choose.fetch``.
    """
    named, folder = SETS[name], cache / name
    downloads, failures, mirror = folder.with_name(f"{name}.downloads"), [], _mirror()
    if not named.sources or is_whole(folder, [f"{key}.npy" for key in ARRAY_NAMES]):
        shutil.rmtree(downloads, ignore_errors=True)  # of a process that was killed when it was done
        return folder
    mirrored = [
        replace(it, urls=tuple(f"{mirror}/{basename(url)}" for url in it.urls)) for it in named.sources if mirror
    ]
    for source in [*mirrored, *named.sources]:
        try:
            arrays = _arrays_from(source, named, downloads)
        except SourceError as failure:
            failures.append(str(failure))
        else:
            _store(arrays, folder)
            shutil.rmtree(downloads)
            return folder
    offline = "the set digits ships with the package and needs no network"
    raise ConnectionError(f"{name} could not be fetched; tried {'; '.join(failures)}; {offline}")


def is_whole(folder: Path, needed: Iterable[str]) -> bool:
    """Whether a set is there; not so if nothing is. An empty folder in its place goes.

    Raises: ValueError for a folder that holds something but not all that the set needs.
    """
    if not folder.is_dir():
        return False
    missing = next((name for name in needed if not (folder / name).exists()), None)
    if missing is None:
        return True
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is there without {missing}: remove the folder, and fetch the set again")
    folder.rmdir()
    return False


class SourceError(Exception):
    """A source that could not be used: its address and why."""

    def __init__(self, url: str, error: Exception) -> None:
        reason = getattr(error, "reason", None) or error
        super().__init__(f"{url} ({' '.join(str(reason).split())})")


def copy_from_mirror(names: Sequence[str], folder: Path) -> list[str]:
    """Downloads files of these names into ``folder`` from CEIT_DATA_MIRROR, if set; returns what failed, and why."""
    mirror, failures = _mirror(), []
    for name in names if mirror else ():
        try:
            get_files({f"{mirror}/{name}": folder / name})
        except SourceError as failure:
            failures.append(str(failure))
    return failures


def _mirror() -> str | None:
    mirror = os.environ.get("CEIT_DATA_MIRROR")
    if not mirror:
        return None
    return quote(mirror.rstrip("/"), safe=_OF_ADDRESSES) if "://" in mirror else expanded(mirror).absolute().as_uri()


def _arrays_from(source: Source, named: NamedSet, downloads: Path) -> Arrays:
    """The checked arrays of one source. Raises: SourceError; downloaded files that are not right are removed."""
    files = {url: downloads / hashlib.sha256(url.encode()).hexdigest()[:8] / basename(url) for url in source.urls}
    get_files(files)
    paths = list(files.values())
    try:
        for path, expected in zip(paths, source.sha256, strict=False):
            check_hash(path.name, path.read_bytes(), expected)
        arrays = {key: np.ascontiguousarray(array) for key, array in source.decode(open_archives(paths)).items()}
        _check(arrays, named)
    except Exception as error:  # a damaged archive makes tarfile, gzip, lzma, json and Pillow raise almost anything
        for path in paths:
            path.unlink()
        raise SourceError(source.urls[0], error) from error
    return arrays


def _check(arrays: Arrays, named: NamedSet) -> None:
    classes = len(named.class_names)
    for split, images in (("train", named.train_images), ("test", named.test_images)):
        shape, labels = arrays[f"{split}_images"].shape, arrays[f"{split}_labels"]
        if shape != (images, *named.image_shape) or labels.shape != (images,):
            raise ValueError(f"{split}: shape {shape}, {len(labels)} labels; expected {(images, *named.image_shape)}")
        if not named.sha256 and set(np.bincount(labels, minlength=classes)) != {images // classes}:
            raise ValueError(f"{split}: not {images // classes} images of each class")
    for key, expected in named.sha256.items():
        check_hash(key, arrays[key].tobytes(), expected)


def check_hash(what: str, data: bytes, expected: str) -> None:
    """Raises: ValueError unless ``expected`` is the SHA-256 of the data."""
    if (found := hashlib.sha256(data).hexdigest()) != expected:
        raise ValueError(f"{what}: SHA-256 {found[:12]}..., expected {expected[:12]}...")


def _store(arrays: Arrays, folder: Path) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        for key in ARRAY_NAMES:
            write_array(partial / f"{key}.npy", arrays[key])
        move(partial, folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def get_files(files: Mapping[str, Path]) -> None:
    """Downloads what lies at each address, as ``web_address`` takes it, to its path, unless it is there.

    Bars on stderr, if that is a terminal, show how far it is. Raises: SourceError.
    """
    console = stderr_console()
    speed = TransferSpeedColumn(), TimeRemainingColumn()
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), *speed
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        for address, path in files.items():
            if path.exists():
                continue
            console.print(f"fetching {address}", highlight=False, soft_wrap=True)
            try:
                url = web_address(address)
            except (OSError, ValueError) as error:
                raise SourceError(address, error) from error
            task = bars.add_task(path.name, total=None)
            _download(url, path, lambda size, total, task=task: bars.update(task, completed=size, total=total))


def _download(url: str, path: Path, advance: Callable[[int, int | None], None]) -> None:
    """Downloads to ``path`` by way of ``path.part``, which a later call goes on with. Raises: SourceError.

    ``advance`` is told the bytes present and, where known, the bytes in all.
    """
    part = path.with_name(f"{path.name}.part")
    size, total = _size(part), None
    for _ in range(_RESUMPTIONS + 1):
        before, total = size, _append(url, part, advance)
        size = _size(part)
        if total is None or size == total:
            move(part, path)
            return
        if size > total:  # what was there before belonged to another file
            part.unlink()
        elif size <= before:
            break
    raise SourceError(url, ConnectionError(f"the connection was cut at {size} of {total} bytes"))


def _append(url: str, part: Path, advance: Callable[[int, int | None], None]) -> int | None:
    """One request: what is missing is appended to ``part``, or all written anew if the server cannot resume.

    Returns the size of the whole file, 0 where it has less than ``part``, None where the server does not tell it.
    """
    start = _size(part)
    headers = {"User-Agent": "ceit-vision"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: an address that is none
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            if start and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                return 0
        raise SourceError(url, error) from error
    part.parent.mkdir(parents=True, exist_ok=True)
    mode = "ab" if response.status == http.client.PARTIAL_CONTENT else "wb"
    with response, naming(part), open(part, mode) as file:  # to be named where closing writes the last piece, too
        length = response.headers.get("Content-Length")
        total = file.tell() + int(length) if length is not None and length.isdecimal() else None
        _require_size(url, total or 0)
        while chunk := _read(response, url, total):
            _require_size(url, file.tell() + len(chunk))
            file.write(chunk)
            advance(file.tell(), total)
    return total


def _require_size(url: str, size: int) -> None:
    try:
        DOWNLOAD.require(size, "it")
    except TooMuchError as error:
        raise SourceError(url, error) from error


def _read(response: BinaryIO, url: str, total: int | None) -> bytes:
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        if total is None:
            raise SourceError(url, error) from error
        return b""  # the missing bytes tell that the connection was cut


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
