"""How a folder of images is understood: which folders are splits, which are classes, and what looks like a mistake.

Nothing is guessed in silence: a layout is read in the one way that it has, with a remark where something is left out,
or it is refused with what to change. See docs/folders.md.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ceit.data.labelled import UNSPLIT, LabelledSet
from ceit.data.sources.class_names import class_name, folded, remarks_of_look_alikes
from ceit.data.sources.listing import Listing, load_files
from ceit.data.sources.load_options import LoadOptions
from ceit.data.sources.split_names import SPLITS, split_of
from ceit.data.sources.table import SUFFIXES
from ceit.data.sources.walk import Folder, open_folder, passed_over_line, printable
from ceit.messages import listed

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
_NO_CLASS = ("image", "images", "img", "imgs", "unknown", "unlabeled", "unlabelled")  # in a part, of what has no labels
_TABLE = "a CSV table with the columns path and label"


@dataclass(frozen=True)
class SplitFolder:
    """One split: the images of every class in the order of their names, of an empty class folder none."""

    folder: Path
    classes: dict[str, list[Path]]

    @property
    def listing(self) -> Listing:
        """The images of all classes, class by class."""
        paths = [path for images in self.classes.values() for path in images]
        return Listing(self.folder, paths, [name for name, images in self.classes.items() for _ in images])


@dataclass(frozen=True)
class Layout:
    """A folder as it is understood, and a line for what is left out or was not to be expected."""

    root: Path
    splits: dict[str, SplitFolder]
    remarks: tuple[str, ...]

    def lines(self) -> list[str]:
        """A line for each split: where it lies, and what it holds."""
        return [
            f"{split}: {_relative(part.folder, self.root) if split != UNSPLIT else part.folder.name or part.folder}, "
            f"{_count(len(part.classes), 'class', 'classes')}, {_count(len(part.listing.paths), 'image')}"
            for split, part in self.splits.items()
        ]


def load_folder(root: Path, options: LoadOptions) -> LabelledSet:
    """The images in ``root``, as ``understand`` and then ``listing.load_files`` read them. Raises: as both."""
    layout = understand(root)
    listings = {split: part.listing for split, part in layout.splits.items()}
    return load_files(listings, root, options, remarks=layout.remarks)


def understand(root: Path) -> Layout:
    """The layout of ``root``: class folders, or folders named after splits (``split_of``) that hold class folders.

    Raises: ValueError, with the fix, for a folder without images or that cannot be listed, for splits that are doubled,
    beside classes, within them, or under names not known, and for a class whose name cannot be told from another's.
    """
    if root.is_file() and root.suffix.lower() in _ARCHIVES:
        raise ValueError(f"data {root} is an archive: unpack it, and name the folder")
    if not root.is_dir():
        raise ValueError(f"data {root} is not a folder, and no table of labels: those end in .csv, .tsv or .parquet")
    top, remarks = open_folder(root), list[str]()
    folders = _split_folders(top, remarks)
    for folder in folders.values():
        _refuse_wrapper(folder, top)
        _refuse_empty(folder)
    splits = {split: SplitFolder(folder.path, _classes(folder, root, remarks)) for split, folder in folders.items()}
    _refuse_other_spellings(splits, root)
    if line := passed_over_line(top.passed_over):
        remarks.append(line)
    return Layout(root, splits, tuple(remarks))


def has_class_folders(root: Path) -> bool:
    """Whether a folder holds two folders of images or more, or one that holds such. Raises: as ``walk``."""
    filled = open_folder(root).filled
    return len(filled) > 1 or any(folder.filled for folder in filled)


def read_split(folder: Path) -> SplitFolder:
    """The class folders in ``folder``. Raises: as ``understand``, for what is wrong with classes."""
    return SplitFolder(folder, _classes(open_folder(folder), folder, []))


def _split_folders(top: Folder, remarks: list[str]) -> dict[str, Folder]:
    """The folder of each split; ``UNSPLIT``, the folder itself, where none is named after one."""
    named = [(split, child) for child in top.folders if (split := split_of(child.name)) and _may_hold_classes(child)]
    classes = {class_name(child.name) for split, part in named if split == "train" for child in part.filled}
    if classes:
        named = [(split, part) for split, part in named if split == "train" or not _is_unlabelled(part, classes)]
    if not named:
        _refuse_loose_splits(top, remarks)
        return {UNSPLIT: top}
    for split in SPLITS:
        if len(same := [child for of, child in named if of == split]) > 1:
            have = f"has {len(same)} folders for {split}, {_names(same)}"
            raise ValueError(f"folder {top.path} {have}: keep one of them there")
    splits = [child for _, child in named]
    for child in top.folders:
        if child not in splits and (images := sum(1 for _ in child.walk())):
            _leave_out(child, _count(images, "image"), splits, top, remarks)
    if top.images:
        remarks.append(f"left out: {_count(len(top.images), 'image')} beside {_names(splits)}")
    return {split: folder for split in SPLITS for of, folder in named if of == split}


def _is_unlabelled(part: Folder, classes: Collection[str]) -> bool:
    """Whether its images lie in one folder that is no class: ``val/images``, ``test/test`` or ``test/unknown``."""
    if len(part.filled) != 1 or not part.filled[0].images:
        return False
    name = class_name(part.filled[0].name)
    return name not in classes and (name.lower() in _NO_CLASS or split_of(name) is not None)


def _may_hold_classes(folder: Folder) -> bool:
    return bool(folder.filled or (folder.folders and not folder.images))


def _leave_out(child: Folder, images: str, splits: Sequence[Folder], top: Folder, remarks: list[str]) -> None:
    """A folder of images beside those of splits: said where it is a split without labels, else refused."""
    split, beside = split_of(child.name), _names(splits)
    if split == "train":
        found = f"holds {images} without class folders, though {beside} beside it has them"
        raise ValueError(f"{child.path} {found}: put the images of each class in a folder of its name")
    if split is None:
        fix = "call it train, validation or test if it is a part, move it into the parts if it is a class"
        found = f"has {beside} for its parts, and beside them {child.name} with {images}"
        raise ValueError(f"folder {top.path} {found}: {fix}, or out of the folder")
    remarks.append(f"left out: {child.name}, {images} without class folders")


def _refuse_loose_splits(top: Folder, remarks: list[str]) -> None:
    """``train/`` and ``test/`` of images without class folders are no classes; one of them among classes is."""
    filled = [child for child in top.folders if child.images]
    loose = [child for child in filled if split_of(child.name)]
    if loose and (len(loose) > 1 or len(loose) == len(filled)):
        fix = f"put those of each class in a folder of its name, or name them in {_TABLE}{_tables_in(top.path)}"
        raise ValueError(f"{_names(loose)} of folder {top.path} hold images without class folders: {fix}")
    remarks += [f"{child.name} is taken as a class, like the folders beside it" for child in loose]


def _refuse_wrapper(folder: Folder, top: Folder) -> None:
    """A folder that holds nothing but one folder of folders, as archives are unpacked."""
    filled = folder.filled
    inner = _unwrapped(filled[0]) if len(filled) == 1 else folder
    if inner is not folder and len(inner.filled) > 1 and not inner.images:
        fix = f"say {inner.path} instead" if folder is top else f"move what is in it up into {folder.path}"
        raise ValueError(f"all folders of {folder.path} are in {_relative(inner.path, folder.path)}: {fix}")


def _unwrapped(folder: Folder) -> Folder:
    """The folder itself, or the first below it that holds images or several folders."""
    while not folder.images and len(filled := folder.filled) == 1:
        folder = filled[0]
    return folder


def _classes(folder: Folder, root: Path, remarks: list[str]) -> dict[str, list[Path]]:
    """The images of every class folder, under its name; what lies there in no class is said."""
    where = "" if folder.path == root else f" of {_relative(folder.path, root)}"
    _refuse_nested_splits(folder)
    classes: dict[str, list[Path]] = {}
    for child in folder.folders:
        if printable(child.name) != child.name:
            name = os.fsencode(child.name)
            raise ValueError(f"the name of class folder {name!r} in {folder.path} is not UTF-8: rename it")
        if (name := class_name(child.name)) in classes:
            twins = f"two class folders called {name!r}, whose accents are stored differently"
            raise ValueError(f"folder {folder.path} has {twins}: move the images of one into the other")
        classes[name] = list(child.walk())
    if folder.images and classes:
        remarks.append(f"left out: {_count(len(folder.images), 'image')}{where} in no class folder")
    if empty := [name for name, images in classes.items() if not images]:
        remarks.append(f"no images in {listed(map(repr, empty))}{where}")
    remarks += remarks_of_look_alikes(classes, where)
    if nested := [child for child in folder.folders if child.filled and not child.images]:
        inner = ", ".join(f"{child.name} in {_names(child.filled)}" for child in nested[:2])
        have = "class has its" if len(nested) == 1 else "classes have their"
        remarks.append(f"{len(nested):,} {have} images in folders{where}: {inner}{', ...' if len(nested) > 2 else ''}")
    return classes


def _refuse_nested_splits(folder: Folder) -> None:
    """Folders within classes that are the splits or the classes, and those that hold them the other."""
    for child in folder.folders:
        inside = child.filled
        parts = [inner for inner in inside if split_of(inner.name)]
        if len(parts) > 1 or (parts and len(parts) == len(inside)):
            fix = f"turn it around, {folder.path / parts[0].name / child.name}, or list the images in {_TABLE}"
            raise ValueError(f"class folder {child.path} has {_names(parts)} inside: {fix}")
    rename, otherwise = "call them train, validation and test", f"if they are classes, list the images in {_TABLE}"
    if parts := _parts_by_ending(folder.filled):
        fix = f"{rename}, with a folder of images for each class inside; {otherwise}"
        raise ValueError(f"{_names(parts)} of folder {folder.path} are named as parts of a set: {fix}")
    nested = [child for child in folder.folders if not child.images and child.filled]
    inside = [{folded(inner.name) for inner in _unwrapped(child).filled} for child in nested]
    times = Counter(name for names in inside for name in names)
    shared = [name for name, count in times.items() if count > 1]
    if len(times) > 1 and len(shared) * 2 >= len(times):
        have = f"{_names(nested)} of folder {folder.path} hold the same folders, {listed(sorted(shared))}"
        raise ValueError(f"{have}: {rename} if they are the parts of the set; {otherwise}")


def _parts_by_ending(folders: Sequence[Folder]) -> list[Folder]:
    """Folders like ``cars_train`` and ``cars_test``, or ``train_cars`` and ``test_cars``: all but the part is equal."""
    parts_of: dict[tuple[str, str], dict[str, Folder]] = {}
    for folder in folders:
        for pattern in (r"(?P<rest>.+)[\s_.-](?P<part>[^\s_.-]+)", r"(?P<part>[^\s_.-]+)[\s_.-](?P<rest>.+)"):
            if (found := re.fullmatch(pattern, folder.name.lower())) and (part := split_of(found["part"])):
                parts_of.setdefault((pattern, found["rest"]), {})[part] = folder
    return next((list(parts.values()) for parts in parts_of.values() if len(parts) > 1), [])


def _refuse_other_spellings(splits: dict[str, SplitFolder], root: Path) -> None:
    """A class that is written in another way where it is trained is one class to people, two to a table of names."""
    trained = splits["train"].classes if "train" in splits else {}
    spelt = {folded(name): name for name, images in trained.items() if images}
    for split, part in splits.items():
        for name, images in part.classes.items():
            if images and name not in trained and (known := spelt.get(folded(name))):
                both = f"class {known!r} of folder {root} is called {name!r} in {split}"
                raise ValueError(f"{both}: rename one of the two")


def _refuse_empty(folder: Folder) -> None:
    if not folder.filled:
        found = f"{_count(len(folder.images), 'image')} in no class folder" if folder.images else "no images"
        passed = f" ({line})" if (line := passed_over_line(folder.passed_over)) else ""
        fix = f"it must hold a folder of images for each class{_tables_in(folder.path)}"
        raise ValueError(f"folder {folder.path} has {found}{passed}: {fix}")


def _tables_in(folder: Path) -> str:
    """The advice to name a table that lies there, if there is one: rather ``train.csv`` than ``sample_submission.csv``
    of a competition."""
    tables = [path for path in folder.glob("[!.]*") if path.suffix.lower() in SUFFIXES]
    words = {path: path.stem.lower() for path in tables}
    tables.sort(key=lambda path: ("submission" in words[path] or "test" in words[path], path))
    return f"; if {tables[0].name} tells the classes, say {tables[0]}" if tables else ""


def _names(folders: Iterable[Folder]) -> str:
    return listed(folder.name for folder in folders)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
