"""What faster arithmetic costs in accuracy.

``python -m benchmarks.agreement --checkpoint RUN --data NAME --output FILE.json`` takes, over a test split, every
backend in every precision against eager float32: accuracy, how often the first answer is the same, the largest
difference of a logit, and the size of the file. int8 is calibrated on training images.

Letters: B batch, C channels, H height, W width, K classes.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ceit.atomic import replace_files
from ceit.bench.backends import save
from ceit.bench.worker import FAILURES, sentence
from ceit.data.batches.loader import Loader, make_loader
from ceit.data.preprocessing import Preprocessing
from ceit.data.sources.choose import load_dataset
from ceit.data.splits import ImageDataset
from ceit.inference.backend import BACKENDS, PRECISIONS_OF, Network, prepare
from ceit.inference.device import machine
from ceit.inference.predictor import preprocessing_of
from ceit.machine import usable_cores
from ceit.model import CeiT
from ceit.weights import load_checkpoint


def main() -> None:
    """Measure and write the result; exit code 1 if a combination failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", required=True, metavar="RUN|FILE")
    parser.add_argument("--data", required=True, metavar="NAME|DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS), metavar="B")
    parser.add_argument("--precisions", nargs="+", metavar="P", help="default: all that a backend has")
    parser.add_argument("--calibration-images", type=int, default=300, metavar="N", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=100, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=usable_cores(), metavar="N")
    asked = parser.parse_args()
    chosen = [
        (backend, precision)
        for backend in asked.backends
        for precision in PRECISIONS_OF[backend]
        if asked.precisions is None or precision in asked.precisions
    ]
    if not chosen:
        allowed = "; ".join(f"{name} has {' '.join(PRECISIONS_OF[name])}" for name in asked.backends)
        parser.error(f"nothing to compare, {allowed}")
    torch.set_num_threads(asked.threads)
    messages = Console(stderr=True, highlight=False)
    result = compare(
        asked.checkpoint,
        asked.data,
        chosen,
        calibration_images=asked.calibration_images,
        batch_size=asked.batch_size,
        threads=asked.threads,
        say=lambda text: messages.print(text, soft_wrap=True),
    )
    replace_files({asked.output: (json.dumps(result, indent=1) + "\n").encode()})
    failed = [row for row in result["rows"] if row["error"]]
    if failed:
        raise SystemExit(f"error: {failed[0]['backend']} {failed[0]['precision']}: {failed[0]['error']}")


def compare(
    checkpoint: str,
    data: str,
    chosen: list[tuple[str, str]],
    *,
    calibration_images: int,
    batch_size: int,
    threads: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """A row for every combination, against the checkpoint as it is, in eager float32.

    Raises: ValueError for a checkpoint or data that cannot be read, or whose classes differ in number.
    """
    model = load_checkpoint(checkpoint)
    preprocessing = preprocessing_of(model)
    dataset = load_dataset(data, img_size=model.config.image_hw, in_chans=model.config.in_chans)
    if len(dataset.class_names) != model.config.num_classes:
        raise ValueError(
            f"the model tells {model.config.num_classes} classes apart, {dataset.name} has {len(dataset.class_names)}"
        )
    loader = make_loader(
        dataset.test, batch_size=batch_size, img_size=model.config.image_hw, preprocessing=preprocessing
    )
    calibration = calibration_batch(dataset, model, preprocessing, calibration_images)
    expected_nk, labels_n = logits_of(model, loader)
    accuracy = _percent(expected_nk.argmax(1) == labels_n)
    say(f"eager float32, not fused: {accuracy:.2f} % of {len(labels_n)} images")
    rows = []
    for backend, precision in chosen:
        row: dict[str, Any] = {"backend": backend, "precision": precision, "error": None}
        rows.append(row)
        try:
            network = prepare(
                model,
                backend,
                precision,
                image_shape=(model.config.in_chans, *model.config.image_hw),
                threads=threads,
                calibration=calibration if "int8" in precision else None,
            )
            found_nk, _ = logits_of(network, loader)
            row |= _figures(found_nk, expected_nk, labels_n, accuracy)
            row["file_bytes"] = file_bytes(model, backend, precision, calibration)
        except FAILURES as error:
            row["error"] = sentence(error)
        say(f"{backend} {precision}: {row['error'] or row}")
    for row in rows:
        whole = next((r for r in rows if (r["backend"], r["precision"]) == (row["backend"], "float32")), {})
        if row.get("file_bytes") and whole.get("file_bytes"):
            row["file_percent_of_float32"] = round(100 * row["file_bytes"] / whole["file_bytes"], 2)
    return {
        "checkpoint": Path(checkpoint).name,
        "data": dataset.name,
        "images": len(labels_n),
        "calibration_images": len(calibration),
        "top1_percent": accuracy,
        "rows": rows,
        "machine": machine(torch.device("cpu")),
    }


def logits_of(network: Network, loader: Loader) -> tuple[Tensor, Tensor]:
    """Logits ``(n, K)`` and labels ``(n,)`` over everything that the loader reads."""
    logits, labels = [], []
    with torch.inference_mode():
        for images_bchw, labels_b in loader.epoch(0):
            logits.append(network(images_bchw).float())
            labels.append(labels_b)
    return torch.cat(logits), torch.cat(labels)


def calibration_batch(dataset: ImageDataset, model: CeiT, preprocessing: Preprocessing, images: int) -> Tensor:
    """Training images as the network sees them, ``(n, C, H, W)``: drawn by seed 0, not varied."""
    loader = make_loader(
        dataset.train,
        batch_size=min(images, len(dataset.train)),
        img_size=model.config.image_hw,
        preprocessing=preprocessing,
        shuffle=True,
    )
    images_bchw, _ = next(loader.epoch(0))
    return images_bchw


def file_bytes(model: CeiT, backend: str, precision: str, calibration: Tensor) -> int:
    """Bytes of the files that the combination needs at run time."""
    with TemporaryDirectory() as folder:
        shape = (model.config.in_chans, *model.config.image_hw)
        save(model, backend, precision, shape, Path(folder), calibration)
        return sum(file.stat().st_size for file in Path(folder).iterdir())


def _figures(found_nk: Tensor, expected_nk: Tensor, labels_n: Tensor, accuracy: float) -> dict[str, float]:
    top1 = _percent(found_nk.argmax(1) == labels_n)
    return {
        "top1_percent": top1,
        "accuracy_loss_points": round(accuracy - top1, 4),
        "agreement_percent": _percent(found_nk.argmax(1) == expected_nk.argmax(1)),
        "largest_logit_error": round(float((found_nk - expected_nk).abs().max()), 6),
    }


def _percent(right_n: Tensor) -> float:
    return round(100 * int(right_n.sum()) / len(right_n), 4)


if __name__ == "__main__":
    main()
