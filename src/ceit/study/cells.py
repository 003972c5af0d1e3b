"""What a finished cell of a study has found: one JSON file, sealed by a digest of its own content."""

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import ceit
from ceit.atomic import write_text
from ceit.study.plan import Cell, Study, scales, slug

FORMAT = 1
_CODE = ("model", "data", "train")

Record = dict[str, Any]


def folder_of(root: Path, study: str, scale: str) -> Path:
    """Where the cells of a study at a scale lie."""
    return root / study / scale


def path_of(root: Path, cell: Cell) -> Path:
    """The file of a cell."""
    return folder_of(root, cell.study, cell.scale) / f"{cell.name}.json"


def write_cell(root: Path, cell: Cell, found: Record) -> None:
    """Seal and write what was found; the file appears whole or not at all."""
    record: Record = {
        "format": FORMAT,
        "study": cell.study,
        "scale": cell.scale,
        "arm": cell.arm,
        "seed": cell.seed,
        "data": cell.data,
        "options": cell.options,
        "code": {"ceit": ceit.__version__, "source": source_digest()},
        **found,
    }
    path = path_of(root, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record | {"sha256": _digest(record)}, indent=1, ensure_ascii=False) + "\n")


def read_cell(root: Path, cell: Cell) -> Record | None:
    """What a cell has found, None if it is not finished.

    Raises: ValueError if the file was changed since it was written, or the study asks for something else by now.
    """
    path = path_of(root, cell)
    if not path.is_file():
        return None
    record = read_record(path)
    wanted = json.loads(json.dumps({"data": cell.data} | cell.options))
    found = {"data": record["data"]} | record["options"]
    for key in sorted(wanted.keys() | found.keys()):
        if found.get(key) != wanted.get(key):
            raise ValueError(
                f"{path} was measured with {key} {found.get(key)}, the study has {wanted.get(key)} now: remove it and "
                "its run directory to measure it again"
            )
    return record


def read_record(path: Path) -> Record:
    """A cell's file. Raises: ValueError if it is not as it was written."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("sha256") == _digest(record) and record["format"] == FORMAT:
            return record
        reason = None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        reason = error
    raise ValueError(
        f"{path} is not as it was written when the cell was finished: restore it, or remove it and its run directory "
        "to measure it again"
    ) from reason


def records_of(root: Path, study: Study, scale: str) -> dict[str, list[Record]]:
    """The finished cells by arm, seeds in order; arms without any, and those no longer in the study, are left out.

    Raises: ValueError as ``read_record``.
    """
    found: dict[str, list[Record]] = {}
    names = {arm.name for arm in study.arms_at(scales()[scale])}
    for path in folder_of(root, study.name, scale).glob("*.seed*.json"):
        record = read_record(path)
        named = f"{slug(record['arm'])}.seed{record['seed']}.json"  # a copy under another name is no further seed
        if record["arm"] in names and path.name == named:
            found.setdefault(record["arm"], []).append(record)
    for records in found.values():
        records.sort(key=lambda record: record["seed"])
    return found


def same_elsewhere(root: Path, cell: Cell) -> Path | None:
    """Another study's file of a run that was this one: the same data, options and seed; no copy of a third one's."""
    options = json.loads(json.dumps(cell.options))
    if cell.needs:
        return None
    for path in sorted(root.glob(f"*/{cell.scale}/*.seed{cell.seed}.json")):
        record = None if path == path_of(root, cell) else _read_if_sealed(path)
        if (
            record is not None
            and "measured_as" not in record
            and record["data"] == cell.data
            and record["options"] == options
        ):
            return path
    return None


def _read_if_sealed(path: Path) -> Record | None:
    try:
        return read_record(path)
    except ValueError:  # its own study says so
        return None


def pack(right: list[bool]) -> str:
    """A bit for every test image, in the order of the split, as text."""
    return base64.b64encode(np.packbits(np.array(right, dtype=bool)).tobytes()).decode()


def unpack(record: Record) -> np.ndarray:
    """Whether each test image was recognised: bool ``(images,)``."""
    test = record["test"]
    packed = np.frombuffer(base64.b64decode(test["right"]), dtype=np.uint8)
    return np.unpackbits(packed, count=test["images"]).astype(bool)


@cache
def source_digest() -> str:
    """Of the package's files that a result depends on: network, data, training."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in sorted(path for part in _CODE for path in (package / part).glob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _digest(record: Record) -> str:
    text = json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
