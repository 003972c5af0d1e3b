"""Programs of torch.export as files, ``.pt2``: written without anything to execute, and read only if they have nothing.

torch itself would unpickle parts of such a file without restriction, look up any name of torch, and evaluate the
expressions of shapes as Python. What is read here must be of the kind that is written here: plain tensors, operators
from a list, shapes that are sums and products of numbers and symbols.
"""

import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram

from ceit.json_file import parse_json
from ceit.limits import require_stored

_DESCRIPTION = "ceit.json"
_MEMBERS = re.compile(
    r"[^/]+/(data/weights/weight_\d+|data/(weights|constants)/model_(weights|constants)_config\.json"
    r"|models/model\.json|data/sample_inputs/model\.pt|extra/ceit\.json"
    r"|archive_format|archive_version|byteorder|\.data/(version|serialization_id)|\.format_version)"
)
_OPERATORS = (
    "_assert_tensor_metadata add alias bmm cat chunk clone contiguous conv2d div dropout expand expand_as flatten gelu "
    "layer_norm linear matmul max_pool2d mean mul permute reshape scaled_dot_product_attention select slice softmax "
    "split split_with_sizes squeeze stack sub sym_size to transpose unflatten unsqueeze view zeros_like"
)
_TARGET = re.compile(rf"torch\.ops\.aten\.({_OPERATORS.replace(' ', '|')})\.\w+")
_OWN_TARGETS = frozenset({"_operator.getitem", "_operator.add", "_operator.mul", "_operator.floordiv"})
_SHAPE = re.compile(r"(Symbol\('s\d+'(, (positive|integer|nonnegative)=True)*\)|Integer|Add|Mul|s\d+|\d+|[ ,()+*-])+")
_SYMBOL = re.compile(r"s\d+")
_TREE_TYPES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict"})


def to_bytes(program: ExportedProgram, description: str) -> bytes:
    """The program as the content of a ``.pt2`` file, with a text of ours and without notes on where it was made."""
    for node in program.graph.nodes:
        for note in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(note, None)
    program.example_inputs = None
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={_DESCRIPTION: description})
    return buffer.getvalue()


def from_bytes(content: bytes) -> tuple[ExportedProgram, str]:
    """The program and the text that ``to_bytes`` put in.

    Raises: ValueError for a file that is damaged, not ours, or holds more than ours do.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            require_stored(archive, len(content))
            refused = next(_strange(archive), None)
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"it is damaged or no program of torch.export ({error})") from error
    if refused is not None:
        raise ValueError(f"it is refused because it holds {refused}, and only what ceit export writes is read")
    texts: dict[str, Any] = {_DESCRIPTION: ""}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")  # of torch 2.10, about itself
            return torch.export.load(io.BytesIO(content), extra_files=texts), str(texts[_DESCRIPTION])
    except Exception as error:  # of a damaged program anything may fail in torch
        raise ValueError(f"it is damaged, or of another version of torch ({type(error).__name__})") from error


def _strange(archive: zipfile.ZipFile) -> Iterator[str]:
    """What in the file is not of the kind that ``to_bytes`` writes."""
    names = [member.filename for member in archive.infolist()]
    yield from (f"{name!r} twice" for name in names if names.count(name) > 1)
    yield from (f"the member {name!r}" for name in names if not _MEMBERS.fullmatch(name))
    if len({name.partition("/")[0] for name in names}) != 1:
        yield "more than one folder"
    for name in names:
        if name.endswith("model.pt") and archive.read(name):
            yield "pickled inputs"
        elif name.endswith("_config.json"):
            config = parse_json(name, archive.read(name))["config"]
            yield from (f"the pickled tensor {key!r}" for key, entry in config.items() if entry["use_pickle"])
        elif name.endswith("models/model.json"):
            program = parse_json(name, archive.read(name))
            yield from (f"the guard {guard!r}" for guard in program.get("guards_code") or ())
            yield from (f"the symbol {key!r}" for key in program["range_constraints"] if not _SYMBOL.fullmatch(key))
            yield from _strange_values(program)


def _strange_values(program: dict[str, Any]) -> Iterator[str]:
    for value in _dictionaries(program):
        for key, item in value.items():
            if key == "target" and item not in _OWN_TARGETS and not _TARGET.fullmatch(str(item)):
                yield f"the operator {item!r}"
            elif key == "expr_str" and not _SHAPE.fullmatch(item):
                yield f"the shape {item!r}"
            elif key in ("in_spec", "out_spec"):
                types = [tree.get("type") for tree in _dictionaries(parse_json(key, item))]
                yield from (f"inputs of the type {kind!r}" for kind in types if kind not in _TREE_TYPES)
            elif key in ("metadata", "custom_obj_values", "treespec_namedtuple_fields") and item:
                yield f"{key} {str(item)[:60]!r}"


def _dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    """All in a value of JSON, at any depth."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _dictionaries(item)
