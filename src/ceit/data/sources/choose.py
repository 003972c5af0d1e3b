"""A data set by what it is called: which source has it."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from ceit.data.cache import cache_dir
from ceit.data.cut import TRAINING_SHARE
from ceit.data.encoded import EncodedSplit
from ceit.data.labelled import LabelledSet, as_dataset, of_classes, without_empty_classes
from ceit.data.sources.download import fetch_named
from ceit.data.sources.hub import PREFIX, load_hub
from ceit.data.sources.known_sets import SETS
from ceit.data.sources.layout import load_folder
from ceit.data.sources.listing import LARGE_SIZE
from ceit.data.sources.load_options import LoadOptions, SizeChoice
from ceit.data.sources.named import load_named
from ceit.data.sources.published import PUBLISHED, fetch_published, load_published
from ceit.data.sources.shards.load import has_shards, load_shards
from ceit.data.sources.table import SUFFIXES, load_labels
from ceit.data.splits import ImageDataset, Split
from ceit.lock import locked_in_turn
from ceit.messages import Say, unknown
from ceit.paths import expanded

_GLANCED_IMAGES = 200


def load_dataset(
    name_or_dir: str | Path,
    *,
    img_size: SizeChoice = None,
    in_chans: int | None = None,
    seed: int = 0,
    skip_broken: bool = False,
    classes: Sequence[str] | None = None,
) -> ImageDataset:
    """The data set that ``name_or_dir`` names, as training takes it; ``seed`` splits one that comes unsplit.

    The rest is as in ``load_images``. Raises: ValueError as there, and for a set that cannot train a classifier.
    """
    found = load_images(name_or_dir, img_size=img_size, in_chans=in_chans, skip_broken=skip_broken, classes=classes)
    return as_dataset(found, seed)


def load_images(
    name_or_dir: str | Path,
    *,
    img_size: SizeChoice = None,
    in_chans: int | None = None,
    skip_broken: bool = False,
    classes: Sequence[str] | None = None,
    crops: bool = False,
) -> LabelledSet:
    """The labelled images that ``name_or_dir`` names, in the parts in which they come.

    | given | read by |
    |---|---|
    | ``NAME``, in the cache | ``named`` (``cifar10``, ...) or ``published`` (``imagenet``, ...) |
    | ``NAME:DIR``, that set's files as its owner packs them, unpacked in DIR | the same |
    | ``hf:REPO`` or ``hf:DIR`` | ``hub`` |
    | ``FILE.csv``, ``FILE.parquet`` | ``table`` |
    | a folder of WebDataset shards | ``shards.load`` |
    | a folder of class folders | ``layout`` |

    ``img_size`` ``(H, W)``, or a function of the set's own, and ``in_chans`` (1 or 3) are those of the set unless
    given. Up to 64 px the images are held in memory at exactly that size, unless they are larger and ``crops``, parts
    of them, will be wanted; others stay as they are and the loader resizes them. ``skip_broken`` leaves unreadable
    files out and names them in ``skipped``. ``classes`` keeps the images of these classes alone, numbered in that
    order; of a folder or a table no others are read.

    Raises: ValueError for an unknown name, a set that is not there, data that are no data set, unreadable files, or as
    ``of_classes``.
    """
    found = _load(os.fspath(name_or_dir), LoadOptions(img_size, in_chans, skip_broken, classes, crops))
    return found if classes is None else of_classes(found, classes)


class Glance(NamedTuple):
    """What names and headers tell of a set: about how many images train, of how many classes, and how large they are.

    ``side`` is the median of the shorter sides, in pixels.
    """

    images: int
    classes: int
    side: int


def glance(name_or_dir: str | Path, classes: Sequence[str] | None = None) -> Glance:
    """A set at a glance: no image is decoded, and of its files only some are opened. Raises: as ``load_images``."""
    text = os.fspath(name_or_dir)
    if (named := place_of(text)) is not None:
        name, _ = named
        if name in SETS:
            small = SETS[name]
            images, of, side = small.train_images, len(small.class_names), min(small.image_shape[:2])
        else:
            images, of, side = PUBLISHED[name].train_images, PUBLISHED[name].classes, LARGE_SIZE[0]
        kept = of if classes is None else len(classes)
        return Glance(images * kept // of, kept, side)
    found = _load(text, LoadOptions(in_chans=3, classes=classes, only_headers=True))
    split = found.unsplit or found.parts.get("train") or next(iter(found.parts.values()))
    share = TRAINING_SHARE if found.unsplit is not None else 1.0
    return Glance(round(share * len(split)), len(found.class_names), _usual_side(split))


def _usual_side(split: Split) -> int:
    """The median of the shorter sides of some images, spread over the split; broken ones are passed over."""
    assert isinstance(split, EncodedSplit)  # no image has been decoded
    sides = []
    for index in range(0, len(split), max(1, -(-len(split) // _GLANCED_IMAGES))):
        with suppress(ValueError, OSError):  # it is reported when it is decoded
            sides.append(min(split.header(index)[0]))
    return int(median(sides)) if sides else LARGE_SIZE[0]


def absolute(name_or_dir: str | Path) -> str:
    """What was given to ``load_dataset``, so that it means the same in any working directory."""
    text = os.fspath(name_or_dir)
    if (named := place_of(text)) is not None:
        name, folder = named
        return name if folder is None else f"{name}:{folder.resolve()}"
    if text.startswith(PREFIX):
        folder = expanded(text.removeprefix(PREFIX))
        return f"{PREFIX}{folder.resolve()}" if folder.is_dir() else text
    return str(expanded(text).resolve())


def fetch(name: str, cache: Path | None = None, say: Say = lambda message: None) -> Path:
    """Gets the set ``name`` into the cache unless it is there, and returns its folder, which is whole or not there.

    If another process is getting it, this one waits, which ``say`` is told.

    Raises: ValueError for an unknown name or a set that only its owner gives, and says where to ask for it;
    ConnectionError, naming what was tried, if no source gave the set; OSError if it cannot be stored.
    """
    if name not in SETS and name not in PUBLISHED:
        raise ValueError(unknown("data set", name, [*SETS, *PUBLISHED]))
    place, get = cache or cache_dir(), fetch_named if name in SETS else fetch_published
    comes_with_the_package = name in SETS and not SETS[name].sources
    only_of_its_owner = name in PUBLISHED and not PUBLISHED[name].downloader
    if comes_with_the_package or only_of_its_owner or _is_filled(place / name):
        return get(name, place)
    place.mkdir(parents=True, exist_ok=True)
    with locked_in_turn(place / f"{name}.lock", say):
        return get(name, place)


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def describe(name: str) -> str:
    """What a set known by name is and whose, a line each: title, size, licence and citation."""
    if name in SETS:
        known, to_validate = SETS[name], 0
        size = f"{len(known.class_names)} classes of {' x '.join(map(str, known.image_shape))} pixels"
    else:
        known, to_validate = PUBLISHED[name], PUBLISHED[name].validation_images
        size = f"{known.classes:,} classes of photographs"
    counts = {"to train": known.train_images, "to validate": to_validate, "to test": known.test_images}
    images = ", ".join(f"{count:,} {use}" for use, count in counts.items() if count)
    return f"{known.title}: {size}\nimages     {images}\nlicence    {known.licence}\ncitation   {known.citation}"


def place_of(text: str) -> tuple[str, Path | None] | None:
    """Name and folder (None: the cache) of ``NAME`` or ``NAME:DIR``; None if that names no set known here."""
    name, colon, folder = text.partition(":")
    if name not in SETS and name not in PUBLISHED:
        return None
    if colon and not folder:
        raise ValueError(f"{text} names no folder: say {name} for the cache or {name}:DIR")
    return name, expanded(folder) if colon else None


def _load(text: str, options: LoadOptions) -> LabelledSet:
    if (named := place_of(text)) is not None:
        return _load_known(text, *named, options)
    if text.startswith(PREFIX):
        return without_empty_classes(load_hub(text.removeprefix(PREFIX), options))
    path = expanded(text)
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        return load_labels(path, options)
    if path.is_dir() and has_shards(path):
        return without_empty_classes(load_shards(path, options))
    if path.exists():
        return load_folder(path, options)
    if path.name == text:
        raise ValueError(f"{unknown('data set', text, [*SETS, *PUBLISHED])}; there is no folder of that name either")
    prefix, colon, _ = text.partition(":")
    if colon and len(prefix) > 1 and prefix.isidentifier():  # not C:, the drive
        raise ValueError(unknown("data set", prefix, [*SETS, *PUBLISHED]))
    raise ValueError(f"data folder {text} does not exist")


def _load_known(text: str, name: str, folder: Path | None, options: LoadOptions) -> LabelledSet:
    """A set known by name; where a folder lies here that is called so, it is said which of the two is meant."""
    load = load_named if name in SETS else load_published
    meant = f"{text} is the set known by that name; for the folder {text} say ./{text}"
    remarks = [meant] if Path(text).is_dir() else []
    try:
        found = load(name, folder, options)
    except ValueError as error:
        raise ValueError("; ".join([str(error), *remarks])) from error
    return replace(found, remarks=(*found.remarks, *remarks))
