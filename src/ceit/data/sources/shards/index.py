"""What is written down about a set of shards: ``index.json`` for its description, and a table of its samples."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PureWindowsPath

import numpy as np
import torch

from ceit.atomic import replace_files
from ceit.data.sources.shards.split import SampleTable, ShardSplit
from ceit.json_file import parse_json
from ceit.limits import JSON, read_file
from ceit.options import require_types
from ceit.version import NewerFormatError, refuse_newer

INDEX = "index.json"
SAMPLES = "samples.safetensors"
_KIND, FORMAT_VERSION = "ceit shards", 1
FORMAT = f"{_KIND} {FORMAT_VERSION}"
PREFIX = {"train": "train", "validation": "val", "test": "test"}  # how the shards of a split begin


@dataclass(frozen=True)
class Shard:
    """A tar file as the index tells of it; ``sha256`` is empty where nobody has written it down."""

    name: str
    split: str
    bytes: int
    samples: int
    sha256: str = ""


def sha256_of(path: Path) -> str:
    """The hash of a whole shard, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class ShardIndex:
    """What ``index.json`` holds. ``img_size``, ``mean`` and ``std`` are those of the set the shards were written from.

    ``splits`` counts the samples of each split; in the table they follow each other in this order.
    """

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, int]
    img_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shards: tuple[Shard, ...]
    licence: str = ""
    citation: str = ""
    mirror_safe: bool = True


@dataclass(frozen=True, eq=False)
class ShardSet:
    """Shards on the disk: their index, all samples, and which of these make up each split; ``all`` where unsplit."""

    index: ShardIndex
    samples: ShardSplit
    rows: dict[str, np.ndarray]


def shard_set(root: Path, index: ShardIndex, table: SampleTable) -> ShardSet:
    """The set of an index and its table."""
    rows, paths = np.arange(len(table.label)), tuple(root / shard.name for shard in index.shards)
    samples = ShardSplit(paths, table, rows, torch.from_numpy(table.label), table.digest)
    rows_of_splits = np.split(rows, np.cumsum([*index.splits.values()])[:-1])
    return ShardSet(index, samples, dict(zip(index.splits, rows_of_splits, strict=True)))


def write_index(folder: Path, index: ShardIndex, table: SampleTable) -> None:
    """Writes the table, then the index, which holds the table's hash."""
    samples = table.to_bytes()
    document = {"format": FORMAT, "samples_sha256": hashlib.sha256(samples).hexdigest(), **asdict(index)}
    replace_files({folder / SAMPLES: samples, folder / INDEX: json.dumps(document, indent=1).encode()})


def is_written_here(folder: Path) -> bool:
    """Whether a folder has an index of ours, damaged or not: others, too, call a file ``index.json``."""
    path = folder / INDEX
    return path.is_file() and ((folder / SAMPLES).is_file() or f'"{FORMAT}"'.encode() in path.read_bytes())


def read_index(folder: Path) -> tuple[ShardIndex, SampleTable]:
    """The inverse of ``write_index``. Raises: ValueError if a file is damaged, or they do not belong together."""
    fix = "copy the folder anew"
    try:
        document = parse_json("it", read_file(folder / INDEX, JSON))
        kind, _, version = document["format"].rpartition(" ")
        if kind == _KIND and version.isdecimal():
            refuse_newer(folder / INDEX, int(version), FORMAT_VERSION)
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']!r}, not {FORMAT!r}")
        given = {field.name: document[field.name] for field in fields(ShardIndex)}
        given |= {name: tuple(given[name]) for name in ("class_names", "img_size", "mean", "std")}
        given["shards"] = tuple(Shard(**shard) for shard in given["shards"])
        index, expected = ShardIndex(**given), document["samples_sha256"]
        for of, values in ((ShardIndex, given), *((Shard, vars(shard)) for shard in index.shards)):
            require_types(of, values)
        if len(index.mean) != len(index.std) or min(*index.img_size, 1 + min(index.splits.values(), default=0)) < 1:
            raise ValueError("its sizes make no sense")
    except NewerFormatError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder / INDEX} is no index of shards ({type(error).__name__}: {error}): {fix}") from error
    path = folder / SAMPLES
    if not path.is_file():
        raise ValueError(f"{path} is missing: {fix}")
    if hashlib.sha256(samples := path.read_bytes()).hexdigest() != expected:
        raise ValueError(f"{path} is not the one that {INDEX} tells of: {fix}")
    table = SampleTable.from_bytes(samples)
    try:
        for shard in index.shards:
            if {"..", ""} & set(re.split(r"[/\\]", shard.name)) or PureWindowsPath(shard.name).drive:
                raise ValueError(f"the shard {shard.name!r} lies outside of the folder")
        table.require_within([shard.bytes for shard in index.shards], len(index.class_names))
        if sum(index.splits.values()) != len(table.label):
            raise ValueError(f"it has {len(table.label)} samples, {INDEX} says {sum(index.splits.values())}")
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged ({error}): {fix}") from error
    return index, table
