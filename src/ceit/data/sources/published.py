"""The large published sets of the paper, read where their owners' archives were unpacked; what they are and whose.

The images stay on the disk, and none is decoded before it is needed: ``ceit data check`` reads a whole set.
"""

import json
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.error import HTTPError

from ceit.atomic import move
from ceit.data.cache import cache_dir
from ceit.data.labelled import LabelledSet
from ceit.data.reduced import Form, evaluation_cover, usual_crop
from ceit.data.sources.download import copy_from_mirror, is_whole
from ceit.data.sources.layout import read_split
from ceit.data.sources.listing import LARGE_SIZE, Listing, shown_path, usual_statistics
from ceit.data.sources.load_options import LoadOptions
from ceit.data.sources.matlab import read_matlab
from ceit.data.sources.split_names import SPLITS
from ceit.data.survey import survey
from ceit.json_file import as_written
from ceit.terminal import stderr_console

Contents = tuple[dict[str, Listing], Sequence[str]]  # of each official split; all class names in the order of numbers


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """A set and its official splits; ``validation_images`` is 0 where there is none."""

    title: str
    classes: int
    train_images: int
    validation_images: int = 0
    test_images: int
    licence: str
    citation: str
    owner: str  # where its owner offers it
    layout: tuple[str, ...]  # what must lie in its folder, beginning with what ``read`` needs
    read: Callable[[Path], Contents]
    form: str = ""  # more about what lies there
    downloader: str = ""
    """Of a set that may be had without asking: the class of torchvision that gets it, unless its archives are there."""
    archives: tuple[str, ...] = ()  # the files that it gets


def load_published(name: str, folder: Path | None, options: LoadOptions) -> LabelledSet:
    """The set ``name`` out of ``folder`` or the cache, by default at 224 px and in colour.

    A set that is not whole is used as it is, and stderr says so. With ``skip_broken`` every file is read once.
    Raises: ValueError if something is missing that must be in the folder, or an annotation file is not of its form.
    """
    published, place = PUBLISHED[name], folder or cache_dir() / name
    inner, slash, _ = published.layout[0].partition("/")
    is_inner = slash and place.name == inner and not (place / inner).exists()  # the one that the owner's archive makes
    root = place.parent if is_inner else place
    if missing := [entry for entry in published.layout if not (root / entry).exists()]:
        raise ValueError(f"{name} is not in {place}, where {missing[0]} is missing: {_how_to_get(name, place)}")
    parts, class_names = published.read(root)
    named = {class_name for part in parts.values() for class_name in part.class_names}
    if strange := sorted(named - set(class_names)):
        raise ValueError(f"the files of {name} in {place} name class {strange[0]!r} in two ways: unpack them anew")
    _say_if_partial(name, place, parts, class_names)
    size, chans, lines = options.size_for(LARGE_SIZE), options.in_chans or 3, []
    for split, part in parts.items() if options.skip_broken else ():
        broken = survey(part.split(class_names), Form(chans, evaluation_cover(size, usual_crop(size)))).broken
        lines += [f"{shown_path(part.paths[row], root)} ({reason})" for row, reason in broken.items()]
        parts[split] = part.take(row for row in range(len(part.paths)) if row not in broken)
    if empty := [split for split, part in parts.items() if not part.paths]:
        raise ValueError(f"the {empty[0]} split of {name} in {place} has no image that can be read")
    return LabelledSet(
        name=name,
        place=f"{name} in {place}",
        class_names=tuple(class_names),
        parts={split: part.split(class_names) for split, part in parts.items()},
        statistics=usual_statistics(chans),
        img_size=size,
        licence=published.licence,
        citation=published.citation,
        skipped=tuple(lines),
    )


def fetch_published(name: str, cache: Path) -> Path:
    """Gets the set into the cache unless it is there, and returns its folder, which appears whole or not at all.

    Archives that CEIT_DATA_MIRROR offers are taken from there, if they are the owner's to the byte. Raises: as
    ``choose.fetch``.
    """
    import torchvision.datasets

    published, folder = PUBLISHED[name], cache / name
    is_there = is_whole(folder, published.layout) if published.downloader else folder.is_dir()
    if is_there:
        return folder
    if not published.downloader:
        raise ValueError(f"{name} cannot be fetched: {_how_to_get(name, folder)}")
    downloads = folder.with_name(f"{name}.downloads")
    for unpacked in downloads.glob("*/*/"):  # perhaps not to the end; the archives beside it are taken up
        shutil.rmtree(unpacked)
    downloads.mkdir(parents=True, exist_ok=True)
    inner = published.layout[0].split("/")[0]
    failures = copy_from_mirror(published.archives, downloads / inner)
    try:
        with _unpacked_inside():
            getattr(torchvision.datasets, published.downloader)(downloads, download=True)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("scipy"):  # torchvision reads by it what is whole by now
            raise
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        if isinstance(error, HTTPError):
            error.close()
        tried = "; ".join([*failures, f"{published.owner} ({getattr(error, 'reason', None) or error})"])
        raise ConnectionError(f"{name} could not be fetched; tried {tried}") from error
    for archive in published.archives:
        if archive.endswith("gz"):
            (downloads / inner / archive).unlink()
    move(downloads, folder)
    return folder


@contextmanager
def _unpacked_inside() -> Iterator[None]:
    """An archive that would write outside its folder is refused, as Python itself does from 3.14 on."""
    if not hasattr(tarfile, "data_filter"):  # before 3.11.4
        yield
        return
    before = vars(tarfile.TarFile)["extraction_filter"]
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def _how_to_get(name: str, place: Path) -> str:
    published = PUBLISHED[name]
    source = f"its owner offers it at {published.owner} ({published.licence});"
    if published.downloader:
        source = f"get it with `ceit data fetch {name}`, or"
    entries = " and ".join(published.layout) + published.form
    return f"{source} unpack it there, so that {place} holds {entries}, or name its place as {name}:DIR"


def _say_if_partial(name: str, place: Path, parts: dict[str, Listing], class_names: Sequence[str]) -> None:
    published = PUBLISHED[name]
    official = published.classes, published.train_images, published.validation_images, published.test_images
    found = [len(class_names), *(len(parts[split].paths) if split in parts else 0 for split in SPLITS)]
    counts = zip(found, ("classes", "training", "validation", "test"), official, strict=True)
    if different := [f"{here:,} {what} of {count:,}" for here, what, count in counts if here != count]:
        sentence = f"{name} in {place} is not the whole published set: {', '.join(different)}"
        stderr_console().print(sentence, markup=False, highlight=False, soft_wrap=True)


def _read_imagenet(root: Path) -> Contents:
    parts = {split: read_split(root / folder).listing for split, folder in (("train", "train"), ("test", "val"))}
    if empty := [part.root for part in parts.values() if not part.paths]:
        raise ValueError(f"folder {empty[0]} has no images: it must hold a folder of images for each class")
    class_names = sorted(set(parts["train"].class_names))
    if strange := set(parts["test"].class_names) - set(class_names):
        raise ValueError(f"class {min(strange)!r} of {root} is in val but not in train: add it or remove it")
    return parts, class_names


def _read_inaturalist(year: int, root: Path) -> Contents:
    names, parts = {}, {}
    for split, part in (("train", "train"), ("test", "val")):
        path = root / f"{part}{year}.json"
        try:
            document = json.loads(path.read_bytes())
            names |= {category["id"]: str(category["name"]) for category in document["categories"]}
            files = {image["id"]: root / image["file_name"] for image in document["images"]}
            pairs = [(files[entry["image_id"]], entry["category_id"]) for entry in document["annotations"]]
            parts[split] = Listing(root, [file for file, _ in pairs], [names[number] for _, number in pairs])
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path} is no annotation file of iNaturalist ({reason}): unpack it anew") from error
    if strange := [number for number in names if not isinstance(number, int)]:
        raise ValueError(f"category {strange[0]!r} of {root} is no number: unpack it anew")
    class_names = [names[number] for number in sorted(names)]
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"two categories in the annotation files of {root} have one name: unpack them anew")
    return parts, class_names


def _read_cars(root: Path) -> Contents:
    folder, parts = root / "stanford_cars", {}
    with as_written(folder, "unpack it anew"):
        class_names = list(map(str, read_matlab(folder / "devkit" / "cars_meta.mat")["class_names"]))
        for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
            cars, images = read_matlab(folder / file)["annotations"], folder / f"cars_{split}"
            paths = [images / name for name in cars["fname"]]
            parts[split] = Listing(images, paths, _named(class_names, [int(n.item()) for n in cars["class"]], file))
    return parts, class_names


def _named(class_names: Sequence[str], numbers: Sequence[int], file: str) -> list[str]:
    """The names of classes that are counted from 1. Raises: ValueError for a number that no class has."""
    if strange := [number for number in numbers if not 1 <= number <= len(class_names)]:
        raise ValueError(f"{file} has class {strange[0]}, there are {len(class_names)}: unpack it anew")
    return [class_names[number - 1] for number in numbers]


def _read_flowers102(root: Path) -> Contents:
    # Not through torchvision's reader: it refuses annotation files other than the owner's, and so any small set.
    from torchvision.datasets import Flowers102

    folder, class_names = root / "flowers-102", Flowers102.classes
    parts = {}
    with as_written(folder, "unpack it anew"):
        labels = read_matlab(folder / "imagelabels.mat")["labels"].ravel()  # of image 1, 2, ..., and counted from 1
        labels = list(map(int, labels))
        numbers = read_matlab(folder / "setid.mat")
        for split, key in (("train", "trnid"), ("validation", "valid"), ("test", "tstid")):
            images = list(map(int, numbers[key].ravel()))
            paths = [folder / "jpg" / f"image_{image:05d}.jpg" for image in images]
            if strange := [image for image in images if not 1 <= image <= len(labels)]:
                raise ValueError(f"{folder / 'setid.mat'} has image {strange[0]} of {len(labels)}: unpack it anew")
            own = [labels[image - 1] for image in images]
            parts[split] = Listing(folder / "jpg", paths, _named(class_names, own, "imagelabels.mat"))
    return parts, class_names


def _read_pets(root: Path) -> Contents:
    # torchvision's reader names the classes as here, but tells no paths.
    folder, names, parts = root / "oxford-iiit-pet", {}, {}
    for split, file in (("train", "trainval.txt"), ("test", "test.txt")):
        path = folder / "annotations" / file
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if strange := [row for row in rows if len(row) != 4 or not row[1].isdigit()]:
            raise ValueError(f"{path} is no list of pets ({' '.join(strange[0])}): unpack it anew")
        names |= {int(row[1]): row[0].rpartition("_")[0].replace("_", " ").title() for row in rows}
        paths = [folder / "images" / f"{row[0]}.jpg" for row in rows]
        parts[split] = Listing(folder / "images", paths, [names[int(row[1])] for row in rows])
    return parts, [names[number] for number in sorted(names)]


def _inaturalist(year: int, classes: int, train_images: int, test_images: int, more: str = "") -> PublishedSet:
    return PublishedSet(
        title=f"iNaturalist {year}",
        classes=classes,
        train_images=train_images,
        test_images=test_images,  # its validation images: those of its test are not labelled
        licence="non-commercial research and education only, images may not be passed on; terms at its owner's",
        citation="G. Van Horn, O. Mac Aodha, Y. Song, Y. Cui, C. Sun, A. Shepard, H. Adam, P. Perona and S. Belongie, "
        f"The iNaturalist Species Classification and Detection Dataset, CVPR 2018{more}",
        owner=f"https://github.com/visipedia/inat_comp/tree/master/{year}",
        layout=(f"train{year}.json", f"val{year}.json", f"train_val{year}"),
        read=partial(_read_inaturalist, year),
    )


PUBLISHED: dict[str, PublishedSet] = {
    "imagenet": PublishedSet(
        title="ImageNet-1k (ILSVRC 2012)",
        classes=1_000,
        train_images=1_281_167,
        test_images=50_000,  # its validation images: those of its test are not labelled
        licence="non-commercial research and education only, by the terms agreed to at its owner's",
        citation="O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, International Journal of "
        "Computer Vision 115(3), 2015",
        owner="https://image-net.org/download",
        layout=("train", "val"),
        form=" with a folder of JPEG files for each class in both",
        read=_read_imagenet,
    ),
    "inat2018": _inaturalist(2018, classes=8_142, train_images=437_513, test_images=24_426),
    "inat2019": _inaturalist(2019, 1_010, 265_213, 3_030, more="; the set of the FGVC6 competition, 2019"),
    "cars": PublishedSet(
        title="Stanford Cars",
        classes=196,
        train_images=8_144,
        test_images=8_041,
        licence="none stated; the images are not its authors' own, so take it for non-commercial research only",
        citation="J. Krause, M. Stark, J. Deng and L. Fei-Fei, 3D Object Representations for Fine-Grained "
        "Categorization, 3dRR workshop at ICCV 2013",
        owner="https://ai.stanford.edu/~jkrause/cars/car_dataset.html, no longer online when last tried by torchvision",
        layout=(
            "stanford_cars/devkit/cars_meta.mat",
            "stanford_cars/devkit/cars_train_annos.mat",
            "stanford_cars/cars_test_annos_withlabels.mat",
            "stanford_cars/cars_train",
            "stanford_cars/cars_test",
        ),
        read=_read_cars,
    ),
    "flowers102": PublishedSet(
        title="Oxford Flowers-102",
        classes=102,
        train_images=1_020,
        validation_images=1_020,
        test_images=6_149,
        licence="none stated; the images are their photographers', and the authors ask to be cited",
        citation="M.-E. Nilsback and A. Zisserman, Automated Flower Classification over a Large Number of Classes, "
        "ICVGIP 2008",
        owner="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        layout=("flowers-102/setid.mat", "flowers-102/imagelabels.mat", "flowers-102/jpg"),
        read=_read_flowers102,
        downloader="Flowers102",
        archives=("102flowers.tgz", "imagelabels.mat", "setid.mat"),
    ),
    "pets": PublishedSet(
        title="Oxford-IIIT Pet",
        classes=37,
        train_images=3_680,
        test_images=3_669,
        licence="CC BY-SA 4.0; the images are their photographers'",
        citation="O. M. Parkhi, A. Vedaldi, A. Zisserman and C. V. Jawahar, Cats and Dogs, CVPR 2012",
        owner="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        layout=(
            "oxford-iiit-pet/annotations/trainval.txt",
            "oxford-iiit-pet/annotations/test.txt",
            "oxford-iiit-pet/images",
        ),
        read=_read_pets,
        downloader="OxfordIIITPet",
        archives=("images.tar.gz", "annotations.tar.gz"),
    ),
}
