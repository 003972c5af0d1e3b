"""How a model is computed: the options of the verbs that answer with one."""

from typing import Any

from ceit.cli._parser import adding_to
from ceit.inference.backend import BACKENDS
from ceit.inference.computing import PRECISIONS

BACKEND = "what computes; auto: the fastest, measured once for each model within a budget of accuracy, and remembered "
BACKEND += "(default: eager, which is torch, or openvino where that pays and answers as eager does)"
PRECISION = "number format; auto: bf16, or fp16 on older GPUs, where the machine computes it natively, else float32; "
PRECISION += "int8 is for the backends auto, onnxruntime and openvino, fp16 for GPUs"
DEVICE = "cpu, cuda (all that torch sees), cuda:1 or mps; several with commas between (default: all GPUs, else the CPU)"


def add_computing(group: Any) -> None:
    """Add ``--backend``, ``--precision`` and ``--device``."""
    add = adding_to(group)
    add("--backend", BACKEND, choices=("auto", *BACKENDS))
    add("--precision", PRECISION, choices=PRECISIONS, default="auto")
    add("--device", DEVICE, metavar="NAME")
