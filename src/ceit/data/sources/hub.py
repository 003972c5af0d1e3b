"""Data sets of the Hugging Face ``datasets`` library, by name or out of a folder."""

import json
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ceit.data.cache import file_state
from ceit.data.encoded import EncodedSplit
from ceit.data.image import image_bytes
from ceit.data.labelled import UNSPLIT, LabelledSet
from ceit.data.sources.class_names import class_name, remarks_of_look_alikes
from ceit.data.sources.columns import as_text
from ceit.data.sources.listing import usual_geometry, usual_statistics
from ceit.data.sources.load_options import LoadOptions
from ceit.data.sources.split_names import SPLITS, split_of
from ceit.data.sources.walk import image_files
from ceit.data.splits import Split, readable
from ceit.paths import expanded

if TYPE_CHECKING:
    import datasets

PREFIX = "hf:"
LABEL_COLUMNS = ("label", "labels", "class", "target")
_OTHER_CLASSES = "has other classes than the other parts, or in another order: save all parts with the same features"


@dataclass(frozen=True)
class HubSplit(EncodedSplit):
    """Images in a table, its files mapped into memory: sample ``i`` is row ``numbers[i]``, and that is its key."""

    place: str
    rows: "datasets.Dataset"
    column: str
    numbers: Tensor
    labels: Tensor
    digests: np.ndarray | None = None
    table_state: str = ""

    def key(self, index: int) -> str:
        return str(int(self.numbers[index]))

    def subset(self, indices: Tensor) -> "HubSplit":
        digests = None if self.digests is None else self.digests[indices.numpy()]
        return replace(self, numbers=self.numbers[indices], labels=self.labels[indices], digests=digests)

    def encoded(self, index: int) -> bytes:
        """Empty where there is none."""
        cell = self.rows[int(self.numbers[index])][self.column] or {"bytes": b"", "path": None}
        return image_bytes(cell["path"]) if cell["bytes"] is None else cell["bytes"]

    def name(self, index: int) -> str:
        return f"row {self.key(index)} of {self.place}"

    def state(self, index: int) -> str:
        """A line that changes when the table does; empty where it lies in no file."""
        return f"{self.table_state}\0{self.key(index)}" if self.table_state else ""


def load_hub(name: str, options: LoadOptions) -> LabelledSet:
    """The data set ``name`` of the Hugging Face Hub, or in a folder: saved by ``save_to_disk``, or Parquet files.

    The images are those of the one column of type Image; the labels the first column of type ClassLabel, or else the
    column named ``label`` (``labels``, ``class``, ``target``) of text or whole numbers. Splits are the official ones.
    Of several such columns, and of splits that are left out for another name or for want of labels, there is a remark.
    The rest is as in a folder.

    Raises: ValueError for a set that cannot be had, without such columns or usual splits, or with broken images.
    """
    if not name:
        raise ValueError(f"{PREFIX} names no data set: say {PREFIX}OWNER/NAME or {PREFIX}DIR")
    place, remarks = expanded(name), list[str]()
    tables = _open(name, place, remarks)
    first = tables.get("train", next(iter(tables.values())))
    column, label_column = _columns(name, first, remarks)
    tables = _with_columns_of(first, name, tables, column, label_column, remarks)
    _require_names_of_all_files(name, place, label_column)
    cells = {split: [*map(_label, table.with_format(None)[label_column][:])] for split, table in tables.items()}
    class_names, labels = _labels(name, first.features[label_column], cells, remarks)
    parts = {split: _split(f"{name} {split}", tables[split], column, of) for split, of in labels.items()}
    everything = [(part, row) for part in parts.values() for row in range(len(part))]
    usual_size, chans = usual_geometry(everything, lambda place: place[0].header(place[1]), options.in_chans)
    size = options.size_for(usual_size)
    form = options.form_for(len(everything), size, usual_size, chans)
    splits, lines = dict[str, Split](), list[str]()
    for split, part in parts.items():
        found = options.survey(part, form)
        splits[split] = readable(replace(part, digests=found.digests), found, np.arange(len(part)))
        lines += [f"{split} {part.key(row)} ({reason})" for row, reason in found.broken.items()]
    options.require_whole(lines, len(everything))
    info = first.info
    page = info.homepage or ("where it came from" if place.is_dir() else f"https://huggingface.co/datasets/{name}")
    return LabelledSet(
        name=place.resolve().name if place.is_dir() else name,
        place=f"{PREFIX}{name}",
        class_names=class_names,
        parts=splits,
        statistics=usual_statistics(chans),
        img_size=size,
        licence=info.license or f"none stated; see {page}",
        citation=" ".join((info.citation or "").split()),
        skipped=tuple(lines),
        remarks=tuple(remarks),
    )


def _open(name: str, place: Path, remarks: list[str]) -> dict[str, "datasets.Dataset"]:
    """The tables of the usual splits; others are said. Raises: ValueError if there are none."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            loaded = datasets.load_from_disk(place)
        else:
            loaded = datasets.load_dataset(str(place) if place.is_dir() else name)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason, *more = (str(error) or type(error).__name__).strip().splitlines()
        fix = ""
        if "config name is missing" in reason.lower():
            reason = " ".join([reason, *more])
            fix = f"; load the one that is meant, save it by save_to_disk, and say {PREFIX}DIR"
        raise ValueError(f"{PREFIX}{name} cannot be loaded by the library datasets: {reason}{fix}") from error
    _require_whole_folder(name, place, loaded)
    if isinstance(loaded, datasets.Dataset):
        return {UNSPLIT: loaded}
    assert isinstance(loaded, datasets.DatasetDict)  # nothing was asked to be streamed
    names = {str(name): split for name in loaded if (split := split_of(str(name)))}
    for split in SPLITS:
        if len(same := [name for name, of in names.items() if of == split]) > 1:
            raise ValueError(f"{PREFIX}{name} has {len(same)} splits for {split}: {', '.join(same)}; save it with one")
    if not names:
        found = ", ".join(map(str, loaded)) or "none"
        raise ValueError(f"{PREFIX}{name} has no split train, validation or test: its splits are {found}")
    remarks += [
        f"left out: {split}, {len(table):,} images: it is not called train, validation or test"
        for split, table in loaded.items()
        if str(split) not in names
    ]
    return {split: loaded[name] for name, split in names.items()}


def _require_whole_folder(name: str, place: Path, loaded: Any) -> None:
    """Raises: ValueError for class folders of which the library leaves out files: it takes some by their names."""
    tables = list(loaded.values()) if isinstance(loaded, dict) else [loaded]
    if not place.is_dir() or any(
        table.info.builder_name != "imagefolder" or "label" not in table.features for table in tables
    ):  # no classes, or told by a table
        return
    card = place / "README.md"
    if card.is_file() and "data_files" in card.read_text(encoding="utf-8", errors="replace"):  # which names those meant
        return
    taken, there = sum(map(len, tables)), len(image_files(place)[0])
    if taken < there:
        what = f"{PREFIX}{name} has {there:,} images, of which the library datasets takes {taken:,}, by their names"
        raise ValueError(f"{what}: say {name}, without {PREFIX}, to take all")


def _columns(name: str, table: "datasets.Dataset", remarks: list[str]) -> tuple[str, str]:
    """The column of images and that of labels."""
    import datasets

    features = table.features
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    plain = ("string", "large_string", "int", "uint")
    labels += [name for name in LABEL_COLUMNS if getattr(features.get(name), "dtype", "").startswith(plain)]
    if len(images) != 1 or not labels:
        found = ", ".join(f"{column} ({_type(feature)})" for column, feature in features.items())
        named = f"named {' or '.join(LABEL_COLUMNS)}, of text or whole numbers"
        needed = f"one column of type Image and one of type ClassLabel, or {named}"
        raise ValueError(f"{PREFIX}{name} must have {needed}; its columns are {found}")
    chosen, *others = dict.fromkeys(labels)
    if others:
        listed = " or ".join(map(repr, others))
        remarks.append(f"column {chosen!r} of {PREFIX}{name} is the class, not {listed}")
    return images[0], chosen


def _with_columns_of(
    first: "datasets.Dataset",
    name: str,
    tables: dict[str, "datasets.Dataset"],
    column: str,
    label_column: str,
    remarks: list[str],
) -> dict[str, "datasets.Dataset"]:
    """The splits that are labelled, as ``first`` is: a number means the class that its own split says it does.

    Raises: ValueError for one with other columns, or with other classes or their order.
    """
    alike = dict[str, "datasets.Dataset"]()
    for split, table in tables.items():
        if label_column not in table.features:
            remarks.append(_without_labels(split, len(table)))
            continue
        if column not in table.features:
            raise ValueError(f"{PREFIX}{name} {split} has no column {column!r}: save all splits with the same columns")
        if _classes_in(table.features[label_column]) != _classes_in(first.features[label_column]):
            raise ValueError(f"{PREFIX}{name} {split} {_OTHER_CLASSES}")
        alike[split] = table
    return alike


def _type(feature: Any) -> str:
    """``Image``, ``ClassLabel`` or, of plain values, ``float32``."""
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else name


def _without_labels(split: str, images: int) -> str:
    return f"left out: {split}, {images:,} images without labels"


def _classes_in(feature: Any) -> tuple[str, ...]:
    """The names of a ClassLabel, as they are kept; of another column whether it holds text or numbers."""
    return tuple(map(class_name, getattr(feature, "names", ("text" if "string" in feature.dtype else "numbers",))))


def _require_names_of_all_files(name: str, place: Path, label_column: str) -> None:
    """Raises: ValueError for Parquet files whose classes differ: the library gives all the names of the first."""
    from pyarrow import parquet

    known: list[str] | None = None
    for file in sorted(place.rglob("*.parquet")) if place.is_dir() else ():
        about = (parquet.read_schema(file).metadata or {}).get(b"huggingface", b"{}")
        names = json.loads(about).get("info", {}).get("features", {}).get(label_column, {}).get("names")
        known = known or names
        if names is not None and names != known:
            raise ValueError(f"{PREFIX}{name} {file.relative_to(place).as_posix()} {_OTHER_CLASSES}")


def _labels(
    name: str, feature: Any, cells: dict[str, list[Any]], remarks: list[str]
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Class names, and the labels of every split that is labelled; others are said."""
    import datasets

    unlabelled = [split for split, column in cells.items() if split != "train" and not any(map(_is_label, column))]
    remarks += [_without_labels(split, len(cells.pop(split))) for split in unlabelled]
    for split, column in cells.items():
        if bare := sum(not _is_label(cell) for cell in column):
            raise ValueError(f"{bare} of {len(column)} images of {PREFIX}{name} {split} have no label: remove them")
    if isinstance(feature, datasets.ClassLabel):
        values, class_names = range(len(feature.names)), _classes_in(feature)
    else:
        values = class_names = sorted(set(chain(*cells.values())))
    remarks += remarks_of_look_alikes(map(str, class_names))
    numbers = {value: number for number, value in enumerate(values)}
    labels = {split: torch.tensor([numbers[cell] for cell in of], dtype=torch.int64) for split, of in cells.items()}
    return tuple(map(str, class_names)), labels


def _label(cell: Any) -> Any:
    """A cell as tables have it: a name without spaces around it and in one form of accents."""
    return class_name(as_text(cell)) if isinstance(cell, str) else cell


def _is_label(cell: Any) -> bool:
    """Whether it is one: unlabelled test images have -1 or nothing in its place."""
    return cell is not None and (bool(cell) if isinstance(cell, str) else cell >= 0)


def _split(place: str, table: "datasets.Dataset", column: str, labels: Tensor) -> HubSplit:
    """The images as files, for ``read_image`` to decode."""
    import datasets

    rows = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    files = [file_state(file["filename"]) for file in rows.cache_files]
    state = f"{place} {column} {len(rows)} {files}" if files else ""
    return HubSplit(place, rows, column, torch.arange(len(labels)), labels, table_state=state)
