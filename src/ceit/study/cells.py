"""The cells of studies and sweeps: what each one trains, where it lies, and the file of what it has found.

A cell is one training run: one variant (arm) with one seed. Its file is JSON, sealed by a digest of its own content.
"""

import base64
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ceit.atomic import write_text
from ceit.json_file import as_written, json_text, parse_json
from ceit.limits import JSON, read_file
from ceit.options import fits
from ceit.train.config import TrainConfig, config_from
from ceit.train.recipe import nested, read_recipe
from ceit.train.run_directory import MAY_CHANGE
from ceit.version import NewerFormatError, __version__, refuse_newer

FORMAT = 1
_CODE = ("model", "data", "train", "evaluation", "inference")

CHOOSE_IMAGES = ("classes", "validation_percent", "overfit_batches", "limit_batches")
"""Options that choose the images which a run trains, validates and tests by."""
OF_THE_MACHINE = frozenset(MAY_CHANGE) - {"data", "device_batch_size"}
"""Options of the machine and of the log, which change nothing in what a trial of a sweep tries."""

Record = dict[str, Any]
Options = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One arm with one seed. ``options`` are nested as in recipes, with ``{"arm": NAME}`` for another arm's model.

    Its file and its run directory lie in the folder ``study/scale``; those of a sweep have no scale.
    """

    study: str
    scale: str
    arm: str
    seed: int
    data: str
    options: Options
    recipe: str | None = None  # that the options begin with
    time_budget: str | None = None  # of the run, where not its options say how long it is

    @property
    def name(self) -> str:
        """Of its file and its run directory."""
        return f"{slug(self.arm)}.seed{self.seed}"

    def config(self, models: Mapping[str, Path] | None = None) -> TrainConfig:
        """What it trains. Raises: ValueError for options that no run takes."""
        return config_from(with_models(self.options, models or {}))

    @property
    def needs(self) -> list[str]:
        """The arms whose models it starts from or learns from."""
        return list(arms_in(self.options))

    @property
    def asked(self) -> Record:
        """What its file says beside what was found, as JSON has it; the recipe is in the options."""
        given = {key: value for key, value in vars(self).items() if key != "recipe" and value is not None}
        return json.loads(json.dumps(given))

    @property
    def digest(self) -> str:
        """Of the training run: the same for cells of other studies with the same data and options."""
        run = [self.data, self.options, self.time_budget, self.needs and self.study]  # whose arms it needs
        return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Places:
    """``results``: a folder of cells for each study and scale. ``runs``: the run directories of cells."""

    results: Path = Path("studies")
    runs: Path = Path("runs/studies")

    def run_of(self, cell: Cell) -> Path:
        """The run directory of a cell: its checkpoints until it is finished, its model for good."""
        return self.runs / cell.study / cell.scale / cell.name

    def lock_of(self, cell: Cell) -> Path:
        """The file that the process holds that trains a cell, or the same run for another study; or a trial."""
        return self.runs / f"{cell.digest if cell.scale else cell.name}.lock"

    def models_for(self, cell: Cell) -> dict[str, Path]:
        """Where the models lie that a cell needs, by arm: those of the same seed."""
        return {arm: self.run_of(replace(cell, arm=arm)) / "model.safetensors" for arm in cell.needs}


def path_of(root: Path, cell: Cell) -> Path:
    """The file of a cell."""
    return root / cell.study / cell.scale / f"{cell.name}.json"


def write_cell(root: Path, cell: Cell, found: Record) -> None:
    """Seal and write what was found; the file appears whole or not at all."""
    code = {"ceit": __version__, "source": source_digest()}
    record: Record = {"format": FORMAT, **cell.asked, "code": code, **found}
    path = path_of(root, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json_text(record | {"sha256": _digest(record)}, indent=1) + "\n")


def read_cell(root: Path, cell: Cell) -> Record | None:
    """What a cell has found, None if it is not finished.

    A trial of a sweep may have been trained with other options of the machine. Raises: ValueError if the file was
    changed since it was written, or the study asks for something else by now.
    """
    path = path_of(root, cell)
    if not path.is_file():
        return None
    record = read_record(path)
    if difference := first_difference(record, cell.asked, but=() if cell.scale else OF_THE_MACHINE):
        key, found, wanted = difference
        raise ValueError(
            f"{path} was measured with {key} {found}, the study has {wanted} now: remove it and its run directory to "
            "measure it again"
        )
    return record


def first_difference(record: Record, other: Record, but: Collection[str] = ()) -> tuple[str, Any, Any] | None:
    """The name of an option in which two runs differ, or ``data``, and both its values; None if there is none ``but``
    those named."""
    one, two = (
        {"data": run["data"], "split_seed": run["options"].get("seed")} | run["options"]  # the seed split before that
        for run in (record, other)
    )
    different = (key for key in sorted((one.keys() | two.keys()) - set(but)) if one.get(key) != two.get(key))
    return next(((key, one.get(key), two.get(key)) for key in different), None)


def read_record(path: Path) -> Record:
    """A cell's file. Raises: ValueError if it is not as it was written."""
    try:
        record = parse_json("it", read_file(path, JSON))
        refuse_newer(path, record["format"], FORMAT)
        if (record.pop("sha256"), record["format"]) != (_digest(record), FORMAT):
            raise ValueError("its digest or its format is another one")
        if not fits((record["arm"], record["seed"], record["data"], record["options"]), tuple[str, int, str, dict]):
            raise ValueError("it says of no run what it was")
    except NewerFormatError:
        raise
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not as it was written when the cell was finished: restore it, or remove it and its run "
            "directory to measure it again"
        ) from error
    return record


def require_same_images(records: Iterable[Record]) -> None:
    """Cells are compared that saw one set of images: pictures may have come or gone between two trainings.

    Cells of a set known by name say of no images, nor do older cells.
    Raises: ValueError, naming cells and what to do.
    """
    seen: dict[str, dict[str, list[str]]] = {}  # cells by what they ask for, then by the images that they found
    for record in records:
        if images := record.get("images"):
            asked = json.dumps([record["data"], *(record["options"].get(key) for key in CHOOSE_IMAGES)])
            seen.setdefault(asked, {}).setdefault(images, []).append(f"{slug(record['arm'])}.seed{record['seed']}")
    for asked, cells in seen.items():
        if len(cells) > 1:
            groups = " and ".join(
                f"{len(names)} ({names[0]}{', ...' if len(names) > 1 else ''})" for names in cells.values()
            )
            raise ValueError(
                f"the images of {json.loads(asked)[0]} have changed between cells, which cannot be compared: {groups} "
                "saw different ones; put the images back, or remove the files and run directories of the cells that "
                "saw the old ones"
            )


def same_elsewhere(root: Path, cell: Cell) -> Path | None:
    """Another study's file of a run that was this one: the same data, options and seed; no copy of a third one's."""
    if cell.needs:
        return None
    wanted = cell.asked
    for path in sorted(root.glob(f"*/{cell.scale}/*.seed{cell.seed}.json")):
        try:
            record = None if path == path_of(root, cell) else read_record(path)
        except ValueError:  # its own study says so
            record = None
        if record and "measured_as" not in record and all(record[key] == wanted[key] for key in ("data", "options")):
            return path
    return None


def pack(right: list[bool]) -> str:
    """A bit for every test image, in the order of the split, as text."""
    return base64.b64encode(np.packbits(np.array(right, dtype=bool)).tobytes()).decode()


def unpack(record: Record) -> np.ndarray:
    """Whether each test image was recognised: bool ``(images,)``."""
    with as_written(f"the cell {record.get('arm')}.seed{record.get('seed')}", "restore its file"):
        test = record["test"]
        packed = np.frombuffer(base64.b64decode(test["right"]), dtype=np.uint8)
        if not 0 <= test["images"] <= 8 * len(packed):
            raise ValueError(f"{len(packed)} bytes for {test['images']} images")
        return np.unpackbits(packed, count=test["images"]).astype(bool)


@cache
def source_digest() -> str:
    """Of the package's files that a result depends on: network, data, training, evaluation and what predicts."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in sorted(path for part in _CODE for path in (package / part).rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _digest(record: Record) -> str:
    text = json_text(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def slug(arm: str) -> str:
    """An arm's name as a file's: lower case, a dash for all that is neither letter nor digit, a plus spelt out."""
    return re.sub(r"(?:[^\w.]|_)+", "-", arm.lower().replace("+", " plus ").replace("%", " percent ")).strip("-")


def recipe_options(recipe: str | None) -> Options:
    """The options of a recipe in sections, none without one. Raises: ValueError as ``read_recipe``."""
    return {} if recipe is None else nested(read_recipe(recipe))


def joined(*layers: Options) -> Options:
    """Options with further ones over them, sections joined key by key; another optimizer takes no arguments of the
    one before."""
    result: Options = {}
    for layer in layers:
        if layer.get("optimizer", result.get("optimizer")) != result.get("optimizer"):
            result.pop("optimizer_args", None)
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict) and "arm" not in value
            result[key] = joined(result[key], value) if both else value
    return result


def arms_in(options: Options) -> Iterator[str]:
    """The arms whose models stand for files, ``{"arm": NAME}``."""
    for value in options.values():
        if isinstance(value, dict):
            if set(value) == {"arm"}:
                yield str(value["arm"])
            else:
                yield from arms_in(value)


def with_models(options: Options, models: Mapping[str, Path]) -> Options:
    """Options with the files of the arms' models; an arm that has none is described in its place."""
    result: Options = {}
    for key, value in options.items():
        if isinstance(value, dict) and set(value) == {"arm"}:
            result[key] = str(models.get(value["arm"], f"the model of {value['arm']}"))
        else:
            result[key] = with_models(value, models) if isinstance(value, dict) else value
    return result
