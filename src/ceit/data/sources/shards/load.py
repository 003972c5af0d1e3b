"""WebDataset shards as a data set: read at random by offset, so that an epoch is the same as from the folder.

On the disk: ``train-000000.tar``, ... (``val-``, ``test-``), plain tar files of ``NUMBER.jpg``, ``NUMBER.cls`` (the
class number) and ``NUMBER.json`` (label, class, key and number of the sample); ``samples.safetensors``, the place of
every sample; ``index.json``, what the set is and what its shards must be. See docs/decisions/shards.md.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ceit.data.cache import file_state, remembered
from ceit.data.labelled import LabelledSet, SizeChoice, chosen_size
from ceit.data.preprocessing import fit, to_array
from ceit.data.sources.layout import has_class_folders
from ceit.data.sources.listing import broken_sentence, content_digests, usual_statistics
from ceit.data.sources.shards.foreign import find_shards, scan_shards
from ceit.data.sources.shards.index import INDEX, ShardSet, read_index, shard_set
from ceit.data.sources.shards.split import ShardSplit, forget_open_shards
from ceit.data.splits import (
    IN_MEMORY_SIDE,
    ArraySplit,
    Split,
    from_pixels,
)
from ceit.data.threads import each


def has_shards(root: Path) -> bool:
    """Whether a folder holds shards, itself or in folders of splits; tar files beside class folders are none."""
    return (root / INDEX).is_file() or (bool(find_shards(root)) and not has_class_folders(root))


def open_shards(root: Path) -> ShardSet:
    """The shards in ``root``, none of whose images has been decoded yet.

    Raises: ValueError, naming the shard, if one is missing, changed, cut short or unknown to the index.
    """
    forget_open_shards()
    if not (root / INDEX).is_file():
        return scan_shards(root)
    index, table = read_index(root)
    for shard in index.shards:
        _check_size(root / shard.name, shard.bytes)
    known = {shard.name for shard in index.shards}
    if strange := sorted(path.name for path in root.glob("*.tar") if path.name not in known):
        raise ValueError(f"shard {root / strange[0]} is not in {INDEX}: remove it, or write the shards anew")
    return shard_set(root, index, table, checked=True)


def load_shards(root: Path, img_size: SizeChoice, in_chans: int | None, skip_broken: bool) -> LabelledSet:
    """The set in the shards of ``root``: the same samples in the same order as where they were written from.

    Shards of others are scanned once: see ``foreign``. Up to 64 px all images are held in memory, as those of a folder
    are.

    Raises: ValueError as ``open_shards``, or, unless ``skip_broken``, for samples that cannot be read.
    """
    found = open_shards(root)
    index, samples = found.index, found.samples
    size, chans = chosen_size(img_size, index.img_size), in_chans or len(index.mean)
    in_memory = max(size) <= IN_MEMORY_SIDE
    pixels_nhwc = np.zeros((len(samples) if in_memory else 0, *size, chans), np.uint8)
    if in_memory:
        broken = _read_into(pixels_nhwc, samples, chans)
    else:
        broken = {} if found.checked else _check_all(root, found, chans)
    lines = [f"{samples.key(row)} of {_shard_name(found, row)} ({reason})" for row, reason in broken.items()]
    if broken and not skip_broken:
        raise ValueError(broken_sentence(lines, len(samples)))
    if samples.digests is None:  # written by an earlier version
        samples = replace(samples, digests=content_digests(samples.encoded, range(len(samples))))

    def as_split(rows_n: np.ndarray) -> Split:
        part = samples.subset(torch.from_numpy(rows_n))
        if not in_memory:
            return part
        keys = tuple(part.key(number) for number in range(len(part)))
        return ArraySplit(from_pixels(pixels_nhwc[rows_n]), part.labels, keys, part.digests)

    rows = {split: np.setdiff1d(listed, [*broken]) for split, listed in found.rows.items()}
    mean, std = (index.mean, index.std) if chans == len(index.mean) else usual_statistics(chans)
    return LabelledSet(
        name=index.name,
        place=f"the folder of shards {root}",
        class_names=index.class_names,
        parts={split: as_split(kept) for split, kept in rows.items() if len(kept)},
        mean=mean,
        std=std,
        img_size=size,
        licence=index.licence,
        citation=index.citation,
        skipped=tuple(lines),
        mirror_safe=index.mirror_safe,
    )


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise ValueError(f"shard {path} is missing: copy it anew")
    if (found := path.stat().st_size) != expected:
        raise ValueError(f"shard {path} has {found:,} bytes, {INDEX} says {expected:,}: copy it anew")


def _shard_name(found: ShardSet, row: int) -> str:
    return found.index.shards[found.samples.table.shard[row]].name


def _read_into(pixels_nhwc: np.ndarray, samples: ShardSplit, chans: int) -> dict[int, str]:
    """Decodes every sample into its place; why some cannot be, by row."""
    size = pixels_nhwc.shape[1:3]
    broken = {}
    for row, result in each(lambda row: to_array(fit(samples.read(row, chans), size)), range(len(samples)), "reading"):
        if isinstance(result, str):
            broken[row] = result
        else:
            pixels_nhwc[row] = result
    return broken


def _check_all(root: Path, found: ShardSet, chans: int) -> dict[int, str]:
    """Why samples cannot be read, by row, by decoding each once; the verdict is kept while no shard changes."""
    samples = found.samples
    return remembered(
        ["shards", f"{chans}", *(file_state(root / shard.name) for shard in found.index.shards)],
        lambda: [
            reason
            for _, reason in each(lambda row: samples.read(row, chans).size, range(len(samples)), "checking images")
        ],
    )
