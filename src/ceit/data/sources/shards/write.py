"""A data set written as shards; what they look like stands in ``ceit.data.sources.shards.load``."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ceit.atomic import move, naming
from ceit.data.cut import digest_of
from ceit.data.encoded import EncodedSplit
from ceit.data.image import image_suffixes, is_image_name
from ceit.data.pillow import limit_lifted, reading
from ceit.data.random_bits import shuffled
from ceit.data.sources.shards.index import PREFIX, Shard, ShardIndex, sha256_of, write_index
from ceit.data.sources.shards.split import SampleTable
from ceit.data.sources.split_names import SPLITS
from ceit.data.splits import FileSplit, ImageDataset, Split
from ceit.lock import InUseError, locked

SHARD_BYTES = 256_000_000
_ORDER_EPOCH = -2  # no epoch of training has this number, nor has the cut of a split
_SUFFIX = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}  # of Pillow's formats whose suffix is not their name


def write_shards(
    dataset: ImageDataset,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    say: Callable[[str], None] = lambda _line: None,
) -> ShardIndex:
    """Writes every split of ``dataset`` into the folder ``out`` as shards of up to ``shard_bytes``, and an index.

    Image files go in as they are, images in memory as PNG. In the shards the samples of a split are shuffled, always in
    the same way, so that any few shards hold all classes; the table has them in their own order. ``out`` appears when
    all is written and on the disk; a write that was stopped leaves at most ``.out.partial`` beside it, which the next
    one clears away.

    Raises: ValueError if ``out`` is not empty, a file, a drive or the working directory; OSError if it cannot be
    written.
    """
    if shard_bytes < 1:
        raise ValueError(f"shards of {shard_bytes} bytes cannot be written: give a positive size")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"output {out} is {'not empty' if out.is_dir() else 'a file'}: name a new folder")
    out = out.resolve()
    for what, is_so in (("a drive", os.path.ismount(out)), ("where you are", out == Path.cwd())):
        if is_so:  # it cannot get another in its place
            raise ValueError(f"output {out} is {what}: name a folder in it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        partial = out.with_name(f".{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            index = _write_all(dataset, partial, shard_bytes, say)
            if out.is_dir():
                out.rmdir()
            move(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return index


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Raises: InUseError if another process is writing this folder."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(out.with_name(f".{out.name}.lock")))
        except InUseError as error:
            raise InUseError(f"{out} is being written by another ceit data shard: name another folder") from error
        yield


def _write_all(dataset: ImageDataset, folder: Path, shard_bytes: int, say: Callable[[str], None]) -> ShardIndex:
    present = {name: split for name in SPLITS if (split := getattr(dataset, name)) is not None}
    shards, places = list[Shard](), list[tuple[int, int, int, int]]()
    for name, split in present.items():
        first, order = len(places), shuffled(len(split), 0, _ORDER_EPOCH)
        places += [(0, 0, 0, 0)] * len(split)
        for path, samples in _written(dataset, split, order, folder / PREFIX[name], shard_bytes):
            for number, place in samples.items():
                places[first + number] = len(shards), *place
            shards.append(Shard(path.name, name, path.stat().st_size, len(samples), sha256_of(path)))
            say(f"{path.name}  {len(samples):>9,} images  {shards[-1].bytes / 1e6:>8,.1f} MB")
    labels = [label for split in present.values() for label in split.labels.tolist()]
    keys = [split.key(number) for split in present.values() for number in range(len(split))]
    index = ShardIndex(
        name=dataset.name,
        class_names=dataset.class_names,
        splits={name: len(split) for name, split in present.items()},
        img_size=dataset.img_size,
        mean=dataset.mean,
        std=dataset.std,
        shards=tuple(shards),
        licence=dataset.licence,
        citation=dataset.citation,
        mirror_safe=dataset.mirror_safe,
    )
    write_index(folder, index, SampleTable.of(places, labels, keys))
    return index


def _written(
    dataset: ImageDataset, split: Split, order: np.ndarray, prefix: Path, shard_bytes: int
) -> Iterator[tuple[Path, dict[int, tuple[int, int, int]]]]:
    """Writes the samples in ``order``; gives each shard's path, and by number its samples' offset, size and digest."""
    samples = ((number, _members(dataset, split, number)) for number in order.tolist())
    waiting, shards = next(samples, None), 0
    while waiting:
        places: dict[int, tuple[int, int, int]] = {}
        path = prefix.with_name(f"{prefix.name}-{shards:06}.tar")
        with naming(path), path.open("xb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                while waiting and (not places or archive.offset + _tar_bytes(waiting[1]) <= shard_bytes):
                    number, members = waiting
                    image = members[0][1]
                    # A USTAR header is one block, so the image begins right behind it.
                    places[number] = archive.offset + tarfile.BLOCKSIZE, len(image), digest_of(image)
                    for name, content in members:
                        entry = tarfile.TarInfo(name)  # of time 0, nobody's, mode 644
                        entry.size = len(content)
                        archive.addfile(entry, io.BytesIO(content))
                    waiting = next(samples, None)
            file.flush()
            os.fsync(file.fileno())
        yield path, places
        shards += 1


def _members(dataset: ImageDataset, split: Split, number: int) -> list[tuple[str, bytes]]:
    """The files of one sample, the image first."""
    suffix, image = _image(dataset, split, number)
    label = int(split.labels[number])
    record = {"label": label, "class_name": dataset.class_names[label], "key": split.key(number), "number": number}
    name = f"{number:09}"  # the key is in the record: a dot or a slash in it would mean something to readers
    contents = {suffix: image, ".cls": str(label).encode(), ".json": json.dumps(record).encode()}
    return [(name + suffix, content) for suffix, content in contents.items()]


def _image(dataset: ImageDataset, split: Split, number: int) -> tuple[str, bytes]:
    """Suffix and content of the image file: as it is, or of an image in memory as PNG."""
    if isinstance(split, FileSplit) and is_image_name((path := split.paths[number]).name):
        with naming(path):
            return path.suffix.lower(), path.read_bytes()
    if isinstance(split, EncodedSplit):
        data = split.encoded(number)
        form = ""
        with reading(), limit_lifted(), suppress(UnidentifiedImageError), Image.open(io.BytesIO(data)) as image:
            form = image.format or ""  # reading it has been tried before
        suffix = _SUFFIX.get(form, f".{form.lower()}")
        if suffix in image_suffixes():
            return suffix, data
    buffer = io.BytesIO()
    split.read(number, dataset.in_chans).save(buffer, "PNG")
    return ".png", buffer.getvalue()


def _tar_bytes(members: list[tuple[str, bytes]]) -> int:
    """What members take up: a header each, and contents padded to whole blocks."""
    return sum(tarfile.BLOCKSIZE * (1 + -(-len(content) // tarfile.BLOCKSIZE)) for _, content in members)
