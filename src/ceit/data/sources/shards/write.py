"""A data set written as shards; what they look like stands in ``ceit.data.sources.shards.load``."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ceit.data.cut import digest_of
from ceit.data.image import image_suffixes, is_image_name
from ceit.data.random_bits import shuffled
from ceit.data.sources.shards.index import PREFIX, Shard, ShardIndex, write_index
from ceit.data.sources.shards.split import SampleTable
from ceit.data.splits import EncodedSplit, FileSplit, ImageDataset, Split

SHARD_BYTES = 256 * 2**20
_ORDER_EPOCH = -2  # no epoch of training has this number, nor has the cut of a split
_SUFFIX = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}  # of Pillow's formats whose suffix is not their name


def write_shards(
    dataset: ImageDataset,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
    say: Callable[[str], None] = lambda _line: None,
) -> ShardIndex:
    """Writes every split of ``dataset`` into the folder ``out`` as shards of up to ``shard_bytes``, and an index.

    Image files go in as they are, images in memory as PNG. In the shards the samples of a split are shuffled by
    ``seed``, so that any few shards hold all classes; the table has them in their own order. The bytes depend on
    nothing else. ``out`` appears when all is written and on the disk; a write that was stopped leaves at most
    ``.out.partial`` beside it, which the next one clears away.

    Raises: ValueError if ``out`` is not empty or a file; OSError if it cannot be written.
    """
    if shard_bytes < 1:
        raise ValueError(f"shards of {shard_bytes} bytes cannot be written: give a positive size")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"output {out} is {'not empty' if out.is_dir() else 'a file'}: name a new folder")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        index = _write_all(dataset, partial, shard_bytes, seed, say)
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return index


def _write_all(
    dataset: ImageDataset, folder: Path, shard_bytes: int, seed: int, say: Callable[[str], None]
) -> ShardIndex:
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    present = {name: split for name, split in splits.items() if split is not None}
    shards: list[Shard] = []
    places: list[tuple[int, int, int]] = []
    digests: list[int] = []
    for name, split in present.items():
        writer = _SplitWriter(dataset, name, split, folder, shard_bytes, first_shard=len(shards), say=say)
        places += writer.write(shuffled(len(split), seed, _ORDER_EPOCH))
        shards += writer.shards
        digests += writer.digests
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
    write_index(folder, index, SampleTable.of(places, labels, keys, digests))
    return index


@dataclass
class _SplitWriter:
    """The shards of one split, one after the other."""

    dataset: ImageDataset
    name: str
    split: Split
    folder: Path
    shard_bytes: int
    first_shard: int
    say: Callable[[str], None]
    shards: list[Shard] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)

    def write(self, order: np.ndarray) -> list[tuple[int, int, int]]:
        """Writes the samples in ``order``; returns shard, offset and size of each, by its number in the split."""
        places = [(0, 0, 0)] * len(order)
        self.digests = [0] * len(order)
        samples = ((number, self._members(number)) for number in order.tolist())
        waiting = next(samples, None)
        while waiting is not None:
            path = self.folder / f"{PREFIX[self.name]}-{len(self.shards):06}.tar"
            count = 0
            with path.open("xb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                    while waiting and (not count or archive.offset + _tar_bytes(waiting[1]) <= self.shard_bytes):
                        number, members = waiting
                        # A USTAR header is one block, so the image begins right behind it.
                        begin = archive.offset + tarfile.BLOCKSIZE
                        places[number] = self.first_shard + len(self.shards), begin, len(members[0][1])
                        self.digests[number] = digest_of(members[0][1])
                        _add(archive, members)
                        count += 1
                        waiting = next(samples, None)
                file.flush()
                os.fsync(file.fileno())
            self._close(path, count)
        return places

    def _close(self, path: Path, samples: int) -> None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        self.shards.append(Shard(path.name, self.name, size, samples, digest))
        self.say(f"{path.name}  {samples:>9,} images  {size / 2**20:>8,.1f} MB")

    def _members(self, number: int) -> list[tuple[str, bytes]]:
        """The files of one sample, the image first."""
        suffix, image = self._image(number)
        label = int(self.split.labels[number])
        class_name = self.dataset.class_names[label]
        record = {"label": label, "class_name": class_name, "key": self.split.key(number), "number": number}
        name = f"{number:09}"  # the key is in the record: a dot or a slash in it would mean something to readers
        contents = {suffix: image, ".cls": str(label).encode(), ".json": json.dumps(record).encode()}
        return [(name + suffix, content) for suffix, content in contents.items()]

    def _image(self, number: int) -> tuple[str, bytes]:
        if isinstance(self.split, FileSplit) and is_image_name((path := self.split.paths[number]).name):
            return path.suffix.lower(), path.read_bytes()
        if isinstance(self.split, EncodedSplit):
            data = self.split.encoded(number)
            with Image.open(io.BytesIO(data)) as image:
                form = image.format or ""
            suffix = _SUFFIX.get(form, f".{form.lower()}")
            if suffix in image_suffixes():
                return suffix, data
        buffer = io.BytesIO()
        self.split.read(number, self.dataset.in_chans).save(buffer, "PNG")
        return ".png", buffer.getvalue()


def _add(archive: tarfile.TarFile, members: list[tuple[str, bytes]]) -> None:
    for name, content in members:
        entry = tarfile.TarInfo(name)  # of time 0, nobody's, mode 644
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))


def _tar_bytes(members: list[tuple[str, bytes]]) -> int:
    """What members take up: a header each, and contents padded to whole blocks."""
    return sum(tarfile.BLOCKSIZE * (1 + -(-len(content) // tarfile.BLOCKSIZE)) for _, content in members)
