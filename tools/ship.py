"""Weights that come with the package, out of a finished run: in float16, with a card whose figures are measured.

python -m tools.ship runs/nano ceit_nano_patch4_32.cifar10
"""

import io
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ceit import shipped
from ceit.atomic import replace_files
from ceit.cli import evaluate, export
from ceit.data.sources.known_sets import SETS
from ceit.messages import unknown
from ceit.model import MODELS, CeiTConfig
from ceit.train.config import TrainConfig, config_from
from ceit.train.cost import mean_macs
from ceit.train.model_card import FinishedRun, calibration_told, classes_told, limits, outstanding, steps_of, training
from ceit.weights import load_checkpoint, save_checkpoint

MOST_BYTES = {"pico": 1e6, "mini": 1.1e6, "nano": 3.5e6}
"""What the weights of a size may take in the wheel."""
_OPTIONS = [field.name for field in fields(TrainConfig)]


def ship(run: Path, name: str) -> str:
    """Write the three files of ``name`` beside the others that ship, in the place of earlier ones; returns the card.

    Raises: ValueError for a name that is no ``MODEL.TAG``, a run that has not ended or is not of a published set, and
    for weights that float16 does not hold or that are too large.
    """
    found, (model, _, tag) = FinishedRun.read(run), name.partition(".")
    data = found.report["data"]
    if model not in MODELS or not tag:
        raise ValueError(f"{name} must be MODEL.TAG, such as {shipped.DEFAULT}; {unknown('model', model, MODELS)}")
    if data not in SETS:
        raise ValueError(f"{run} was trained on {data}: only a run on {', '.join(SETS)} ships, whose licence is known")
    with TemporaryDirectory() as folder:
        weights = Path(folder, f"{name}.safetensors")
        description = _halved(run, weights, model, found)
        if (size := weights.stat().st_size) > (most := MOST_BYTES[model.split("_")[1]]):
            raise ValueError(
                f"{name} takes {size / 1e6:.2f} MB, and at most {most / 1e6:g} MB ship: train a smaller one"
            )
        figures = _measured(run, weights, data)
        top1 = figures["as it ships, in float16"]["top1_percent"]
        _halved(run, weights, model, found, test_top1_percent=top1)
        card = _card(name, found, description["config"], figures)
        side = weights.with_suffix(".json")
        files = {weights.name: weights.read_bytes(), side.name: side.read_bytes(), f"{name}.md": card.encode()}
    replace_files({shipped.FOLDER / file: content for file, content in files.items()})
    return card


def _halved(run: Path, path: Path, model: str, found: FinishedRun, **more: Any) -> dict[str, Any]:
    """Writes the run's weights in float16; what their side file says."""
    network = load_checkpoint(run).half()
    for key, value in network.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(f"{key} of {run} is larger than float16 holds")
    save_checkpoint(path, network, model_name=model, training=found.description["training"] | more)
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def _measured(run: Path, weights: Path, data: str) -> dict[str, dict[str, Any]]:
    """The test split under the run's weights, under those that ship, and under an int8 export, each with its size."""
    on_test = ["--data", data, "--split", "test", "--precision", "float32", "--json"]

    def tested(checkpoint: Path, files: Sequence[Path]) -> dict[str, Any]:
        result = _printed(evaluate.main, ["--checkpoint", str(checkpoint), *on_test])
        return result | {"bytes": sum(file.stat().st_size for file in files)}

    int8 = weights.with_name("int8.xml")
    to_int8 = ["--checkpoint", str(run), "--data", data, "--format", "openvino", "--precision", "int8"]
    _printed(export.main, [*to_int8, "--output", str(int8), "--json"])
    return {
        "as it was trained, in float32": tested(run, [run / "model.safetensors"]),
        "as it ships, in float16": tested(weights, [weights]),
        "exported to OpenVINO, in int8": tested(int8, [int8, int8.with_suffix(".bin")]),
    }


def _printed(main: Callable[[list[str]], None], arguments: list[str]) -> dict[str, Any]:
    """The JSON document that a verb prints."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        main(arguments)
    return json.loads(printed.getvalue())


def _raw_loss(figure: dict[str, Any]) -> float:
    return (figure["uncalibrated"] or figure["calibration"])["loss"]


def _card(name: str, found: FinishedRun, config: dict[str, Any], figures: dict[str, dict[str, Any]]) -> str:
    data = found.report["data"]
    known, ships = SETS[data], figures["as it ships, in float16"]
    rows = [
        f"| {words} | {figure['bytes'] / 1e6:.2f} MB | {figure['top1_percent']:.2f} % | {_raw_loss(figure):.4f} |"
        for words, figure in figures.items()
    ]
    options = config_from({key: value for key, value in found.options.items() if key in _OPTIONS})
    flops = 3 * 2 * mean_macs(options, CeiTConfig(**config)) * steps_of(found) * options.batch_size
    by_default = "ceit predict photo.jpg" if name == shipped.DEFAULT else f"ceit predict --checkpoint {name} photo.jpg"
    test = f"ceit evaluate --checkpoint {name} --data {data} --split test --precision float32"
    tune = f"ceit train --data FOLDER --output RUN --initial-checkpoint {name}"
    parts = [
        f"# {name}",
        f"A small image classifier that comes with `ceit-vision`, trained on {known.title}. {classes_told(found)}",
        "## Use it",
        f"```\n{by_default}\n```",
        "Or from Python. It needs no network:",
        "```python\nimport timm\n\nimport ceit  # registers the model with timm\n\n"
        f'model = timm.create_model("{name}", pretrained=True).eval()\n```',
        "## How good it is",
        f"On the {ships['images']:,} test images of {known.title}, which neither trained nor chose it:",
        "\n".join(["| weights | size | top-1 | loss without temperature |", "|---|---|---|---|", *rows]),
        *calibration_told(ships),
        *outstanding(ships["per_class"]),
        f"This measures the second row: `{test}`.",
        "## How it was trained",
        *training(found, f"- Work: {flops / 1e15:.3g} PFLOP, forward and backward, without evaluation."),
        "## Intended use",
        "To try ceit out, to check an installation, to compare with, and to start from on small images of your own:",
        f"```\n{tune}\n```",
        "Do not let it decide where a wrong answer does harm.",
        "## Limits",
        "\n".join(limits(found)),
        "## Licence",
        f"Weights: Apache-2.0, as ceit. The images of {known.title}: {known.licence}. To cite: {known.citation}.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(ship(Path(sys.argv[1]), sys.argv[2]))
