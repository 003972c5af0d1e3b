"""Tensors out of a file, executing nothing in it: safetensors, and what ``torch.save`` writes, zip or legacy."""

import io
import logging
import mmap
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ceit.limits import PICKLE, PICKLE_VALUES, require_stored
from ceit.paths import require_utf8

logger = logging.getLogger("ceit")

_NAMING = "ceit convert PATH OUT.safetensors --entry NAME, in Python entry=NAME"
_LEGACY_PICKLES = 5  # magic number, protocol, machine, content, keys of the storages
_REFUSED = "is refused because"
_NOTHING_RUNS = (
    ", and nothing in a file is executed; save model.state_dict() alone, or ask its author for that or for safetensors"
)
_SHARED, _SMALL = 4, 200 << 20  # times the bytes of a file: tensors may share what is stored once; less is no harm
USUAL_ENTRIES = ("model", "state_dict")
_OF_NUMPY = (
    *("dtype", "core.multiarray.scalar", "_core.multiarray.scalar"),
    *(f"dtypes.{kind}DType" for kind in ("Float64", "Float32", "Float16", "Int64", "Int32", "Bool")),
)
"""What a number of numpy consists of in a file."""


def read_tensors(path: Path, entry: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The named tensors of a file, on the CPU and in memory of their own, and the metadata of a safetensors file.

    A training script's ``.pth`` holds them in an ``entry`` of a dictionary: by default in ``model`` or
    ``state_dict``, else at the top.

    Raises: ValueError for a file that is damaged, foreign, or that asks to execute something; OSError for one that
    cannot be read.
    """
    if not _is_safetensors(path):
        return _state_dict(_unpickle(path), path, entry), {}
    if entry is not None:
        raise ValueError(f"{path} is a safetensors file, which has no entries: leave out the entry {entry!r}")
    with _opened(path) as file:
        names = file.keys()
        return {name: file.get_tensor(name).clone() for name in names}, dict(file.metadata() or {})


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, none of any other. Raises: as ``read_tensors``, but for damaged tensors."""
    if not _is_safetensors(path):
        return {}
    with _opened(path) as file:
        return dict(file.metadata() or {})


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    require_utf8(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}); copy or download it again") from error


class _Namespace:
    """Stands in for ``argparse.Namespace``, which trainers store beside their weights: accepts any state, keeps none.

    The class itself would let a crafted file set attributes, ``__setstate__`` and ``__class__`` among them.
    """

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Forget it."""


class _Number(_Namespace):
    """As ``_Namespace``, for a number of numpy and its type, such as the best accuracy so far."""

    __slots__ = ()

    def __init__(self, *values: object) -> None:
        """Forget them."""


def _unpickle(path: Path) -> Any:
    _require_modest(path)
    try:
        stand_ins = [(_Namespace, "argparse.Namespace"), *((_Number, f"numpy.{name}") for name in _OF_NUMPY)]
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may fail in any way
        name = _refused_global(path, error) if isinstance(error, pickle.UnpicklingError) else None
        if name is None:
            raise ValueError(
                f"{path} is damaged or not what torch.save writes by default; copy or download it again"
            ) from error
        raise ValueError(f"{path} {_REFUSED} loading it would call {name}{_NOTHING_RUNS}") from error


def _require_modest(path: Path) -> None:
    """Raises: ValueError for a file that would take more memory or time than its own size explains."""
    pickles: list[int] = []
    with suppress(
        zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, OSError, UnicodeDecodeError
    ):  # torch names damage
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any("/code/" in name for name in archive.namelist()):
                    raise ValueError(f"{path} {_REFUSED} it is a TorchScript program{_NOTHING_RUNS}")
                try:
                    require_stored(archive, path.stat().st_size)
                except ValueError as error:
                    raise ValueError(f"{path} {_REFUSED} {error}; ask its author for safetensors") from error
                for member in archive.infolist():
                    if member.filename.endswith("data.pkl"):
                        PICKLE.require(member.file_size, path)
                        pickles.append(_values_in(io.BytesIO(archive.read(member))))
        elif path.stat().st_size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                pickles += [_values_in(content) for _ in range(_LEGACY_PICKLES)]
    PICKLE_VALUES.require(max(pickles, default=0), path)


def _values_in(file: Any) -> int:
    """The values of a pickle, tuples in tuples counted as if each stood there in full; nothing is run."""
    stack: list[int | None] = []  # how many values each entry holds, None for a mark
    memo: dict[Any, int | None] = {}
    most = 0
    with suppress(ValueError, IndexError):  # a damaged one: torch refuses it
        for opcode, argument, _position in pickletools.genops(file):
            before, values = opcode.stack_before, 1
            if opcode.name == "MARK":
                stack.append(None)
                continue
            if "PUT" in opcode.name or opcode.name == "MEMOIZE":
                memo[len(memo) if argument is None else argument] = stack[-1]
                continue
            if "GET" in opcode.name:
                values = memo.get(argument) or 1
            if pickletools.markobject in before:
                while (top := stack.pop()) is not None:
                    values += top
                before = before[: before.index(pickletools.markobject)]
            values += sum(stack.pop() or 0 for _ in before)
            most = max(most, values)
            if most > PICKLE_VALUES.value:
                break
            stack += [values] * len(opcode.stack_after)
    return most


def _refused_global(path: Path, error: pickle.UnpicklingError) -> str | None:
    """The name that torch's restricted unpickler has refused, or the first suspect one in a pickle too new for it."""
    if refused := re.search(r"GLOBAL (\S+)", str(error)):
        return refused[1]
    try:
        names = _globals_in(_pickle_of(path))
    except (ValueError, OSError, RuntimeError, EOFError, zipfile.BadZipFile):
        return None  # it cannot even be parsed
    return next((name for name in names if not name.startswith(("torch.", "collections."))), None)


def _pickle_of(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        stored = [entry for entry in archive.infolist() if entry.compress_type == zipfile.ZIP_STORED]
        return b"".join(archive.read(entry) for entry in stored if entry.filename.endswith("data.pkl"))


def _globals_in(data: bytes) -> list[str]:
    """What a pickle would import, found by parsing it; nothing is run."""
    names: list[str] = []
    strings: list[str] = []
    memo: dict[Any, str | None] = {}
    top: str | None = None
    for opcode, argument, _position in pickletools.genops(data):
        if opcode.name in ("GLOBAL", "INST"):
            names.append(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.append(".".join(strings[-2:]))
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = top
        else:
            top = memo.get(argument) if opcode.name.endswith("BINGET") else argument
            top = top if isinstance(top, str) else None
            strings += [] if top is None else [top]
    return names


def _state_dict(content: Any, path: Path, entry: str | None) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__.lstrip('_')} where a state dict was expected")
    # A file may give its dictionaries and tensors attributes that hide their methods: call those of the class.
    inner = {key: value for key, value in dict.items(content) if isinstance(value, dict)}
    if entry is not None and entry not in inner:
        raise ValueError(f"{path} has no entry {entry!r}; it has {_list(inner) or 'none'}")
    entry = entry or _usual_entry(inner, path)
    state_dict = content if entry is None else inner[entry]
    for key, value in dict.items(state_dict):
        if not _is_plain(value):
            what = "tensor of another kind" if isinstance(value, Tensor) else type(value).__name__.lstrip("_")
            raise ValueError(
                f"{path} holds no plain state dict: {key!r} is a {what}"
                + (f"; it has the entries {_list(inner)}: name one ({_NAMING})" if inner and entry is None else "")
            )
    tensors = {str(key): Tensor.detach(value) for key, value in dict.items(state_dict)}
    if (needed := sum(tensor.nbytes for tensor in tensors.values())) > max(
        _SMALL, _SHARED * (there := path.stat().st_size)
    ):
        fix = "save it as safetensors, which stores each tensor, if that is meant"
        raise ValueError(f"{path} {_REFUSED} its tensors would take {needed:,} bytes, the file has {there:,}: {fix}")
    return tensors


def _usual_entry(inner: Mapping[str, dict[Any, Any]], path: Path) -> str | None:
    """The entry to take unasked: a usual one, else the only one that holds tensors; others like it are named."""
    of_tensors = [name for name, value in inner.items() if value and all(map(_is_plain, dict.values(value)))]
    chosen = next((name for name in USUAL_ENTRIES if name in inner), None)
    if chosen is None:
        return of_tensors[0] if len(of_tensors) == 1 else None
    alike = [name for name in of_tensors if dict.keys(inner[name]) == dict.keys(inner[chosen])]
    if others := {name: None for name in alike if name != chosen}:
        logger.warning("%s: took its entry %r; it also holds %s (%s)", path, chosen, _list(others), _NAMING)
    return chosen


def _is_plain(value: object) -> bool:
    """A dense tensor of numbers in memory: not sparse, not quantised, not on ``meta``."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.dtype.is_complex
    )


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, names))
