"""Does a model know what it does not know? ``python -m benchmarks.outsiders``.

Images that show none of its classes: those of another set, of classes that were left out of its training, noise, one
colour. Each is judged twice: by its familiarity (``ceit.inference.familiarity``) and by the calibrated probability of
the answer. Both call unknown what validation images say: 5 % of those would be. AUROC is the chance that an outsider
looks less known than a test image of the known classes.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from ceit.atomic import replace_files
from ceit.data.preprocessing import to_image
from ceit.data.sources.choose import load_dataset, load_images
from ceit.data.splits import Split, cut_validation
from ceit.evaluation.scores import auroc_per_class
from ceit.inference.device import machine
from ceit.inference.familiarity import KNOWN_REJECTED
from ceit.inference.predictor import Predictor
from ceit.weights import read_description

SCORES = ("familiarity", "probability")
COARSE = 4  # pixels of a side of smooth noise, before it is enlarged
Judged = dict[str, np.ndarray]


def main() -> None:
    """Measure, write the result and print it as a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outsiders", description="Images of no known class.")
    parser.add_argument("--checkpoint", required=True, metavar="RUN|FILE|NAME")
    parser.add_argument("--name", help="in the result; default: that of the checkpoint")
    parser.add_argument("--other", default="fashion_mnist", help="a set of other things; default: %(default)s")
    parser.add_argument("--images", type=int, default=2000, help="outsiders of each kind; default: %(default)s")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    asked = parser.parse_args()
    result = {"model": asked.name or str(asked.checkpoint), **measured(asked.checkpoint, asked.other, asked.images)}
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    replace_files({asked.output: (json.dumps(result, indent=1) + "\n").encode()})
    Console().print(table(result))


def measured(checkpoint: str, other: str, count: int) -> dict[str, Any]:
    """Both scores on the model's own test images and on outsiders."""
    description = read_description(checkpoint)
    assert description is not None
    assert description.training is not None
    training, config, names = description.training, description.config, tuple(description.class_names or ())
    predictor = Predictor.from_checkpoint(checkpoint, unknown_below=KNOWN_REJECTED)
    dataset = load_dataset(training["data"], img_size=config.image_hw, classes=names)
    _, validation = cut_validation(
        dataset.train, float(training["validation_percent"]), training.get("split_seed", training["seed"])
    )
    known = judged(predictor, read(dataset.test, config.in_chans))
    right = known["answer"] == np.array([names[label] for label in dataset.test.labels.tolist()])
    of_validation = judged(predictor, read(validation, config.in_chans))
    limits = {"familiarity": KNOWN_REJECTED}
    limits["probability"] = float(np.quantile(of_validation["probability"], KNOWN_REJECTED))
    found: dict[str, Any] = {
        score: {
            "unknown_below": round(limits[score], 4),
            "known_rejected": _share(known[score] < limits[score]),
            "mistakes_rejected": _share(known[score][~right] < limits[score]),
            "outsiders": {},
        }
        for score in SCORES
    }
    for name, images in outsiders(training["data"], names, other, config.in_chans, config.image_hw, count):
        strange = judged(predictor, images)
        for score in SCORES:
            both = np.concatenate([known[score], strange[score]])[:, None]
            (area,) = auroc_per_class(both, np.repeat([0, 1], [len(known[score]), len(strange[score])]))
            assert area is not None
            share = _share(strange[score] < limits[score])
            found[score]["outsiders"][name] = {"auroc": round(area, 4), "rejected": share}
    heading = {"data": training["data"], "classes": len(names), "known_images": len(dataset.test), "images": count}
    return {**heading, "scores": found, "machine": machine(torch.device("cpu"))}


def outsiders(
    data: str, names: tuple[str, ...], other: str, in_chans: int, image_hw: tuple[int, int], count: int
) -> Iterator[tuple[str, Iterable[Image.Image]]]:
    """Images of no class of the model, by kind."""
    left_out = [name for name in load_images(data).class_names if name not in names]
    if left_out:
        test = load_dataset(data, img_size=image_hw, classes=left_out).test
        yield f"classes left out: {', '.join(left_out)}", read(test, in_chans, count)
    yield other, read(load_images(other).parts["test"], in_chans, count)
    generator, (height, width) = np.random.default_rng(0), image_hw

    def drawn(rows: int, columns: int) -> Iterator[Image.Image]:
        for _ in range(count):
            pixels = generator.integers(0, 256, (rows, columns, in_chans), dtype=np.uint8)
            yield to_image(pixels).resize((width, height), Image.Resampling.BILINEAR)

    yield "noise", drawn(height, width)
    yield "smooth noise", drawn(COARSE, COARSE)
    yield "one colour", drawn(1, 1)


def read(split: Split, in_chans: int, count: int | None = None) -> Iterator[Image.Image]:
    """Its first images, by default all."""
    for index in range(min(len(split), count or len(split))):
        yield split.read(index, in_chans)


def judged(predictor: Predictor, images: Iterable[Image.Image]) -> Judged:
    """``answer``, ``probability`` and ``familiarity`` of every image."""
    found = list(predictor.predict_stream(images, top_k=1))
    if broken := [one.error for one in found if one.error is not None]:
        raise ValueError(broken[0])
    best = [one.predictions[0] for one in found]
    return {
        "answer": np.array([score.label for score in best]),
        "probability": np.array([score.probability for score in best]),
        "familiarity": np.array([one.familiarity for one in found]),
    }


def table(result: dict[str, Any]) -> Table:
    """The result for a terminal."""
    columns = Table("", *(f"{score}: {what}" for score in SCORES for what in ("AUROC", "unknown")))
    scores = [result["scores"][score] for score in SCORES]
    for row, key in (("known images", "known_rejected"), ("of them, answered wrongly", "mistakes_rejected")):
        columns.add_row(row, *(cell for score in scores for cell in ("", f"{100 * score[key]:.1f} %")))
    for name in scores[0]["outsiders"]:
        own = [score["outsiders"][name] for score in scores]
        columns.add_row(name, *(c for one in own for c in (f"{one['auroc']:.3f}", f"{100 * one['rejected']:.1f} %")))
    return columns


def _share(chosen: np.ndarray) -> float:
    return round(float(chosen.mean()), 4)


if __name__ == "__main__":
    main()
