"""Networks as graphs, in memory: for torch.export, ONNX and OpenVINO.

A graph takes ``images``, float32 ``(B, C, H, W)``, and gives ``logits``, float32 ``(B, classes)``.
Letters: B batch, ``H W`` token grid, D embed dim.
"""

import contextlib
import functools
import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ceit.model import CeiT
from ceit.model.i2t import ImageToTokens
from ceit.model.leff import to_tokens

if TYPE_CHECKING:
    import onnx
    import openvino

INPUT, OUTPUT = "images", "logits"
ONNX_OPSET = 20  # the first with GELU as one operator
_ONNX_IR = 9  # what belongs to that opset; the exporter writes 10 for notes of its own, and older runtimes refuse it
_AXES = ("batch", "channels", "height", "width")
_EXAMPLE_BATCH = 2  # torch.export specialises sizes 0 and 1
_CUBIC = -0.75  # the cubic kernel's parameter in torch's bicubic interpolation


def exported_program(
    network: nn.Module, image_shape: tuple[int, int, int], *, batch_size: int | None = None, any_size: bool = False
) -> ExportedProgram:
    """The network in eval mode as a program of ATen operators, for images ``(C, H, W)`` of ``image_shape``.

    Without ``batch_size`` any batch will do. ``any_size`` is for a CeiT: images may have any sides that are multiples
    of its patch size, and the position embedding is interpolated in the graph as ``set_input_size`` would.

    Raises: ValueError for ``any_size`` of another network.
    """
    shape: dict[int, Any] = {} if batch_size is not None else {0: Dim("batch")}
    if any_size:
        if not isinstance(network, CeiT):
            raise ValueError(f"a {type(network).__name__} has one image size: only a CeiT can be exported for any")
        patch, network = network.config.patch_size, _AnySize(network)
        shape |= {2: patch * Dim("rows"), 3: patch * Dim("columns")}
    with torch.no_grad():
        images = torch.zeros(batch_size or _EXAMPLE_BATCH, *image_shape)
        return torch.export.export(network.eval(), (images,), dynamic_shapes=(shape,) if shape else None)


def onnx_model(
    network: nn.Module, image_shape: tuple[int, int, int], *, batch_size: int | None = None, any_size: bool = False
) -> "onnx.ModelProto":
    """The network as an ONNX model with its weights inside; arguments and errors as of ``exported_program``."""
    program = exported_program(network, image_shape, batch_size=batch_size, any_size=any_size)
    with _quietly(), torch.no_grad():
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=ONNX_OPSET, input_names=[INPUT], output_names=[OUTPUT], verbose=False
        )
    assert exported is not None
    return _compact(exported.model_proto)


def openvino_model(
    network: nn.Module, image_shape: tuple[int, int, int], *, any_size: bool = False
) -> "openvino.Model":
    """The network as an OpenVINO model for any batch; arguments and errors as of ``exported_program``.

    By way of ONNX: from torch's own operators OpenVINO does not recognise attention once products are int8.
    """
    content = onnx_model(network, image_shape, any_size=any_size).SerializeToString()
    model = openvino_core().read_model(io.BytesIO(content))
    model.inputs[0].get_tensor().set_names({INPUT})
    model.outputs[0].get_tensor().set_names({OUTPUT})
    shorten(model)
    return model


def save_openvino(model: "openvino.Model", file: Path) -> None:
    """Write FILE.xml, without the indentation that is a sixth of its text, and the weights beside it as FILE.bin."""
    import openvino

    openvino.save_model(model, file, compress_to_fp16=False)
    file.write_bytes(re.sub(rb">\s+<", b"><", file.read_bytes()))


def shorten(model: "openvino.Model") -> None:
    """Make the text of the model as short as it can be: equal constants become one, names say the operator."""
    known: dict[tuple[str, tuple[int, ...], bytes], Any] = {}
    for number, node in enumerate(model.get_ordered_ops()):
        kind = node.get_type_name()
        if kind == "Constant":
            key = (str(node.get_element_type()), tuple(node.shape), node.data.tobytes())
            for reader in node.output(0).get_target_inputs() if key in known else ():
                reader.replace_source_output(known[key].output(0))
            known.setdefault(key, node)
        if kind not in ("Parameter", "Result"):
            node.set_friendly_name(f"{kind}{number}")
            for output in node.outputs():
                output.get_tensor().set_names(output.get_names() & {OUTPUT})


@functools.cache
def openvino_core() -> "openvino.Core":
    """The one OpenVINO of the process, which stays.

    Each would give its thread a stack for signal handlers, and take it away again when it goes: two that go in the
    order in which they came leave the thread with a stack that is no more, and the next signal ends the process.

    Its bindings fill tables of element types at their first use, and two threads that meet there wait for each other
    for ever; so the tables are filled here.
    """
    silence_telemetry()
    import openvino

    openvino.Tensor(np.zeros(1, np.float32)).get_element_type().to_dtype()
    return openvino.Core()


def silence_telemetry() -> None:
    """Keep OpenVINO and NNCF from reporting to their makers: to be called before either is first imported.

    They do so through a package that they can do without; it is hidden from them.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)


def _compact(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The model without the exporter's notes, paths of this machine among them, and with its weights in their shape.

    What splits and transposes weights is done here once: a weight that is computed could not be quantised. Axes of any
    length get names, by which programs set them.
    """
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    del graph.value_info[:], graph.metadata_props[:]
    weights = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type not in ("Split", "Transpose", "Identity") or not all(name in weights for name in node.input):
            del node.metadata_props[:]
            kept.append(node)
            continue
        feed = {name: numpy_helper.to_array(weights[name]) for name in node.input}
        for name, value in zip(node.output, ReferenceEvaluator(node).run(None, feed), strict=True):
            weights[name] = numpy_helper.from_array(np.asarray(value), name)
    used = {name for node in kept for name in node.input} | {output.name for output in graph.output}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensor for name, tensor in weights.items() if name in used)
    for value in [*graph.input, *graph.output, *graph.initializer]:
        del value.metadata_props[:]
    name_of = dict(zip([dim.dim_param for dim in _dims(graph.input[0])], _AXES, strict=True))
    for dim in [dim for value in [*graph.input, *graph.output] for dim in _dims(value) if dim.dim_param]:
        dim.dim_param = name_of[dim.dim_param]
    model.ir_version = _ONNX_IR
    return model


def _dims(value: "onnx.ValueInfoProto") -> Any:
    """The lengths of its axes, which may be changed."""
    return value.type.tensor_type.shape.dim


class _AnySize(nn.Module):
    """A CeiT whose token grid is that of the image: what ``set_input_size`` and ``forward`` compute, in one graph."""

    def __init__(self, model: CeiT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        model = self.model
        embed = model.patch_embed
        if isinstance(embed, ImageToTokens):
            images = embed.pool(embed.norm(embed.conv(images)))
        map_bdhw = embed.proj(images)
        batch, _, height, width = map_bdhw.shape
        positions_1td = _resized(model.pos_embed, model.config.grid, (height, width))
        class_b1d = model.cls_token.expand(batch, -1, -1)
        tokens_btd = torch.cat([class_b1d, to_tokens(map_bdhw)], dim=1) + positions_1td
        return model.forward_head(model.encode(tokens_btd, (height, width), live_only=model.config.has_dead_rows))


def _resized(positions_1td: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """``resize_pos_embed`` as two matrix products, since the runtimes do not agree on what bicubic resizing is."""
    table_hwd = positions_1td[0, 1:].unflatten(0, old)
    rows, columns = _cubic_weights(old[0], new[0]), _cubic_weights(old[1], new[1])
    map_hwd = torch.einsum("ih,hwd->iwd", rows, table_hwd)
    map_hwd = torch.einsum("jw,iwd->ijd", columns, map_hwd)
    return torch.cat([positions_1td[:, :1], map_hwd.flatten(0, 1)[None]], dim=1)


def _cubic_weights(old: int, new: int) -> Tensor:
    """``(new, old)``: how much of each old point a new one takes; beyond the border the outermost is repeated."""
    source = (torch.arange(new) + 0.5) * old / new - 0.5
    first = source.floor()
    points = torch.arange(old)
    weights = torch.zeros(1)
    for step in range(-1, 3):
        point = first + step
        taken = (point.clamp(0, old - 1)[:, None] == points).float()
        weights = weights + _cubic(source - point)[:, None] * taken
    return weights


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with ``a = -0.75``, as torch has it."""
    x = distance.abs()
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC
    return torch.where(x <= 1, near, far)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The converters' notes to their own developers, on stdout and in logs, are no concern of the user's."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
