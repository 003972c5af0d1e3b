"""WebDataset shards as a data set: read at random by offset, so that an epoch is the same as from the folder.

On the disk: ``train-000000.tar``, ... (``val-``, ``test-``), plain tar files of ``NUMBER.jpg``, ``NUMBER.cls`` (the
class number) and ``NUMBER.json`` (label, class, key and number of the sample); ``samples.safetensors``, the place of
every sample; ``index.json``, what the set is and what its shards must be. See docs/decisions/shards.md.
"""

from dataclasses import replace
from pathlib import Path

import torch

from ceit.data.labelled import LabelledSet
from ceit.data.sources.class_names import remarks_of_look_alikes
from ceit.data.sources.layout import has_class_folders
from ceit.data.sources.listing import usual_statistics
from ceit.data.sources.load_options import LoadOptions
from ceit.data.sources.shards.foreign import find_shards, scan_shards
from ceit.data.sources.shards.index import INDEX, ShardSet, is_written_here, read_index, shard_set
from ceit.data.sources.shards.split import forget_open_shards
from ceit.data.splits import readable
from ceit.data.survey import Survey


def has_shards(root: Path) -> bool:
    """Whether a folder holds shards, itself or in folders of splits; tar files beside class folders are none."""
    return is_written_here(root) or (bool(find_shards(root)) and not has_class_folders(root))


def open_shards(root: Path) -> ShardSet:
    """The shards in ``root``, none of whose images has been decoded yet.

    Raises: ValueError, naming the shard, if one is missing, changed, cut short or unknown to the index.
    """
    forget_open_shards()
    if not is_written_here(root):
        return scan_shards(root)
    index, table = read_index(root)
    known = {root / shard.name: shard.bytes for shard in index.shards}
    for path, size in known.items():
        if not path.is_file():
            raise ValueError(f"shard {path} is missing: copy it anew")
        if (found := path.stat().st_size) != size:
            raise ValueError(f"shard {path} has {found:,} bytes, {INDEX} says {size:,}: copy it anew")
    if strange := set(root.glob("[!.]*.tar")) - known.keys():
        raise ValueError(f"shard {min(strange)} is not in {INDEX}: remove it, or write the shards anew")
    return shard_set(root, index, table)


def load_shards(root: Path, options: LoadOptions) -> LabelledSet:
    """The set in the shards of ``root``: the same samples in the same order as where they were written from.

    Shards of others are scanned once: see ``foreign``. Images up to 64 px are held in memory, as those of a folder are.

    Raises: ValueError as ``open_shards``, or, unless ``skip_broken``, for samples that cannot be read.
    """
    found = open_shards(root)
    index, samples = found.index, found.samples
    size, chans = options.size_for(index.img_size), options.in_chans or len(index.mean)
    form = options.form_for(len(samples), size, index.img_size, chans)
    if is_written_here(root) and samples.digests is not None and form.size is None:
        surveyed = Survey(samples.digests, {}, None)  # whoever wrote the shards had read the images
    else:
        surveyed = options.survey(samples, form)
    shard_of = samples.table.shard
    lines = [f"{samples.key(i)} of {index.shards[shard_of[i]].name} ({why})" for i, why in surveyed.broken.items()]
    options.require_whole(lines, len(samples))
    samples = replace(samples, digests=surveyed.digests)
    parts = {
        split: readable(samples.subset(torch.from_numpy(rows)), surveyed, rows)
        for split, rows in found.rows.items()
        if len(rows)
    }
    return LabelledSet(
        name=index.name,
        place=f"the folder of shards {root}",
        class_names=index.class_names,
        parts=parts,
        statistics=(index.mean, index.std) if chans == len(index.mean) else usual_statistics(chans),
        img_size=size,
        licence=index.licence,
        citation=index.citation,
        remarks=remarks_of_look_alikes(index.class_names),
        skipped=tuple(lines),
        mirror_safe=index.mirror_safe,
    )
