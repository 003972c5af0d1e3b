"""WebDataset shards that somebody else wrote: found, scanned once, and remembered while they do not change.

Members of one sample follow each other and share their name up to the first dot: ``cat7.jpg``, ``cat7.cls``. The class
is told by ``.cls`` (a number or a name), else ``.json`` (``label``, ``cls`` or ``class``), else ``.txt`` (a name). The
names of numbered classes come from ``classnames.txt`` beside the shards, a line each, else from ``class_name`` in
``.json``, else they are the numbers.
"""

import hashlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from tarfile import TarFile, TarInfo
from typing import NamedTuple

from ceit.data.cache import cache_dir, file_state
from ceit.data.cut import digest_of
from ceit.data.image import image_suffixes
from ceit.data.labelled import UNSPLIT
from ceit.data.sources.class_names import class_name
from ceit.data.sources.listing import usual_geometry, usual_statistics
from ceit.data.sources.shards.index import Shard, ShardIndex, ShardSet, read_index, shard_set, write_index
from ceit.data.sources.shards.split import SampleTable
from ceit.data.sources.split_names import SPLITS, split_of
from ceit.data.sources.walk import HOW_TO_READ
from ceit.data.threads import with_progress_bar
from ceit.json_file import parse_json
from ceit.limits import CLASSES, IMAGE, LABEL, MEMBERS

_CLASS_NAMES = "classnames.txt"
_LABELS = (".cls", ".json", ".txt")


def find_shards(root: Path) -> dict[str, list[Path]]:
    """The tar files of every split, sorted; under ``all`` those whose names tell of none.

    ``train-00.tar`` and ``set_train_00.tar`` are of a split by their names, ``train/00.tar`` by its folder's.
    """
    found: dict[str, list[Path]] = {split: [] for split in (*SPLITS, UNSPLIT)}
    for path in sorted(root.glob("[!.]*.tar")):
        told = [split for word in re.split(r"[-_.]", path.stem) if (split := split_of(word))]
        found[told[-1] if told else UNSPLIT].append(path)  # the set's own name may have such a word, before the part's
    for folder in sorted(root.glob("[!.]*")):
        if split := split_of(folder.name):
            found[split] += sorted(folder.glob("[!.]*.tar"))
    return {split: paths for split, paths in found.items() if paths}


def scan_shards(root: Path) -> ShardSet:
    """The set in the tar files of ``root``; they are read once, and what is known of the samples is kept in the cache.

    Raises: ValueError, naming the shard, for one that is no tar file, was cut or goes on behind its end, for a part
    without samples, for a sample without an image or a class or with a dot in its name, and for shards of which only
    some belong to a split.
    """
    with suppress(OSError, ValueError):  # what is not there, or damaged, is written anew
        return shard_set(root, *read_index(scanned_folder(root)))
    index, table = _scan(root)
    with suppress(OSError):  # a cache that cannot be written costs the next run this scan, no more
        folder = scanned_folder(root)
        folder.mkdir(parents=True, exist_ok=True)
        write_index(folder, index, table)
    return shard_set(root, index, table)


def scanned_folder(root: Path) -> Path:
    """Where the cache keeps what is known of the shards in ``root`` as they are now."""
    rules = f"4 {sorted(image_suffixes())}"  # by which they are scanned
    state = hashlib.sha256(rules.encode())
    for path in [*chain(*find_shards(root).values()), root / _CLASS_NAMES]:
        state.update(f"{file_state(path)}\n".encode(errors="surrogateescape"))
    return cache_dir() / "shards" / state.hexdigest()[:32]


class _Sample(NamedTuple):
    """A sample of a shard: where its image lies, and its class, a number that may have a name, or a name."""

    offset: int
    size: int
    key: str
    digest: int
    label: int | str
    class_name: str | None


def _scan(root: Path) -> tuple[ShardIndex, SampleTable]:
    found = find_shards(root)
    if not found:
        raise ValueError(f"folder {root} has no shards: they are tar files, for example train-000000.tar")
    if UNSPLIT in found and len(found) > 1:
        name = found[UNSPLIT][0].name
        raise ValueError(f"shard {name} of {root} belongs to no split, others do: put train-, val- or test- before it")
    samples, shards, places = list[_Sample](), list[Shard](), list[tuple[int, int, int, int]]()
    paths = [(split, path) for split, of_split in found.items() for path in of_split]
    for split, path in with_progress_bar(paths, "scanning shards", len(paths)):
        in_shard = list(_samples_of(path))
        places += [(len(shards), sample.offset, sample.size, sample.digest) for sample in in_shard]
        samples += in_shard
        shards.append(Shard(path.relative_to(root).as_posix(), split, path.stat().st_size, len(in_shard)))
    counts = {split: sum(shard.samples for shard in shards if shard.split == split) for split in found}
    if bare := [paths[0] for split, paths in found.items() if not counts[split]]:
        raise ValueError(f"shard {bare[0]} has no samples: each is an image and its class, 7.jpg and 7.cls")
    labels, class_names = _classes(root, samples)
    table = SampleTable.of(places, labels, [sample.key for sample in samples])
    index = ShardIndex(root.resolve().name, class_names, counts, (0, 0), (), (), tuple(shards))
    split = shard_set(root, index, table).samples
    size, chans = usual_geometry(range(len(split)), split.header)
    mean, std = usual_statistics(chans)
    return replace(index, img_size=size, mean=mean, std=std), table


def _samples_of(path: Path) -> Iterator[_Sample]:
    try:
        with tarfile.open(path, "r:") as archive:
            files = list(_files(archive))
            if path.stat().st_size < archive.offset + tarfile.BLOCKSIZE:  # two zero blocks end a tar file
                raise ValueError(f"shard {path} has no end: it was cut, or is still being written; copy it anew")
            if not _is_zero(path, archive.offset):
                fix = "copy it anew, or if tar files were joined to one, keep them apart"
                raise ValueError(f"shard {path} goes on behind its end at byte {archive.offset:,}: {fix}")
            samples = [(key, [pair[1:] for pair in of]) for key, of in groupby(files, lambda file: file[0])]
            are_apart = len(dict(samples)) < len(samples)
            order = "; files of one sample must follow each other: pack them by name" if are_apart else ""
            for key, members in samples:
                if len(dict(members)) < len(members):
                    fix = "give each sample a name of its own"
                    raise ValueError(f"shard {path} has two files of one kind for sample {key}: {fix}")
                if (sample := _sample(path, key, dict(members), archive, order)) is not None:
                    yield sample
    except tarfile.TarError as error:
        raise ValueError(f"shard {path} is no whole tar file ({error}): copy it anew") from error


def _is_zero(path: Path, start: int) -> bool:
    with path.open("rb") as file:
        file.seek(start)
        return not any(block.strip(b"\0") for block in iter(lambda: file.read(2**20), b""))


def _files(archive: TarFile) -> Iterator[tuple[str, str, TarInfo]]:
    """Key, suffix and member of every file but hidden ones: the key ends at the first dot of the file's name."""
    for number, member in enumerate(archive, 1):
        MEMBERS.require(number, archive.name)
        folder, _, name = member.name.rpartition("/")
        stem, dot, suffix = name.partition(".")
        if member.isreg() and stem and dot and not (stem.startswith("__") or folder.startswith("__")):
            yield f"{folder}/{stem}" if folder else stem, f".{suffix.lower()}", member


def _sample(path: Path, key: str, members: dict[str, TarInfo], archive: TarFile, order: str) -> _Sample | None:
    """The sample of these members, by suffix; None for a licence, a list or a text alone among the samples.

    ``order`` is what to add to an error where files of a sample are apart.
    """
    images = [member for suffix, member in members.items() if suffix in image_suffixes()]
    for suffix, member in members.items():
        inner, _, ending = suffix.rpartition(".")
        is_image, is_class = bool(inner) and f".{ending}" in image_suffixes(), bool(inner) and ending == "cls"
        has_class = any(f"{inner}{label}" in members for label in _LABELS)  # without one it may be a mask of the image
        if (is_image and has_class) or (not images and (is_image or is_class)):
            fix = "rename it without the dot"
            raise ValueError(f"{member.name} of shard {path} has a dot in its name, at which its key ends: {fix}")
    told = {suffix: members[suffix] for suffix in _LABELS if suffix in members}
    if not images and ".cls" not in members and (not told or len(told) == len(members)):
        return None
    if len(images) != 1:
        found = f"{len(images)} images" if images else f"no image of a known kind, only {', '.join(members)}"
        fix = "".join(HOW_TO_READ.get(suffix, "") for suffix in members)
        raise ValueError(f"sample {key} of shard {path} has {found}: it must have one{fix}{order}")
    for member in told.values():
        LABEL.require(member.size, f"{member.name} of {path}")
    texts = {of: _utf8(_content(archive, file), f"{file.name} of {path}") for of, file in told.items()}
    try:
        label, name = _class_of(texts)
    except (AttributeError, ValueError) as error:
        raise ValueError(f"sample {key} of shard {path} tells no class: add it as {key}.cls{order}") from error
    if images[0].issparse():
        raise ValueError(f"sample {key} of shard {path} has a sparse image: pack it as it is")
    IMAGE.require(images[0].size, f"{images[0].name} of {path}")
    digest = digest_of(_content(archive, images[0]))
    return _Sample(images[0].offset_data, images[0].size, key, digest, label, name)


def _class_of(texts: dict[str, str]) -> tuple[int | str, str | None]:
    """The class, a number or a name, and the name of a numbered one where it is told."""
    record = parse_json("its JSON", texts[".json"]) if ".json" in texts else {}
    values = [texts.get(".cls"), *map(record.get, ("label", "cls", "class")), texts.get(".txt")]
    told = next((value for value in values if value is not None and str(value).strip()), None)
    if isinstance(told, float) and told.is_integer():  # as pandas writes whole numbers beside empty cells
        told = int(told)
    if not isinstance(told, (int, str)) or isinstance(told, bool):
        raise ValueError("neither a number nor a name")
    label, name = class_name(str(told).strip()), record.get("class_name")
    number = int(label) if label.isascii() and label.isdigit() else label
    return number, class_name(name) if isinstance(name, str) else None


def _utf8(data: bytes, name: object) -> str:
    """The text. Raises: ValueError, with the name, for bytes that are none."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 ({error}): write it anew") from error


def _content(archive: TarFile, member: TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _classes(root: Path, samples: Sequence[_Sample]) -> tuple[list[int], tuple[str, ...]]:
    """The class number of every sample and the names of all classes: numbers stay what they are."""
    texts = [sample.label for sample in samples if isinstance(sample.label, str)]
    labels = [sample.label for sample in samples if isinstance(sample.label, int)]
    if texts and labels:
        raise ValueError(f"the shards in {root} have classes by number and, {texts[0]!r}, by name: use one of them")
    if texts:
        names = sorted(set(texts))
        numbers = {name: number for number, name in enumerate(names)}
        return [numbers[text] for text in texts], tuple(names)
    count = max(labels, default=-1) + 1
    CLASSES.require(count, f"folder {root}")
    named = {sample.label: sample.class_name for sample in samples if sample.class_name}
    names = [named.get(number, str(number)) for number in range(count)]
    listed = root / _CLASS_NAMES
    if listed.is_file():
        names = [class_name(line.strip()) for line in _utf8(listed.read_bytes(), listed).splitlines() if line.strip()]
        if len(names) < count:
            raise ValueError(f"{listed} names {len(names)} classes, the shards have class {count - 1}: add its name")
    if len(set(names)) < len(names):
        names = [f"{number} {name}" for number, name in enumerate(names)]  # two kinds of crane
    return labels, tuple(names)
