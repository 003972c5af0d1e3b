"""Does the answer hang on the patches that a map names? ``python -m benchmarks.faithfulness``.

Deletion takes patches away, those first that the map names most, and follows the probability of the answer: the sooner
it falls, the better the map. Insertion puts them into a blurred image: the sooner it rises, the better. What is taken
away becomes the mean colour; what is not yet there is blurred over a quarter of the image. A random order is the
opponent, and each map's own figures come from the same images. Source: Petsiuk et al., RISE (arXiv 1806.07421).

Shapes: ``n`` images, ``H W`` patches, ``N = H W``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from ceit.atomic import replace_files
from ceit.data.batches.loader import make_loader
from ceit.data.sources.choose import load_dataset
from ceit.explain.capture import Attention, capture
from ceit.explain.maps import contributions, grad_cam, last_attention, rollout
from ceit.inference.device import machine
from ceit.inference.predictor import preprocessing_of
from ceit.model import CeiT
from ceit.weights import load_checkpoint

POINTS = 17  # of a curve, the first before any patch is moved
Maps = dict[str, Tensor]


def main() -> None:
    """Measure, write the result and print it as a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faithfulness", description="Maps, put to the test.")
    parser.add_argument("--checkpoint", required=True, metavar="RUN|FILE|NAME")
    parser.add_argument("--name", help="in the result; default: that of the checkpoint")
    parser.add_argument("--data", default="cifar10", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=500, help="the first of the test split; default: %(default)s")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    asked = parser.parse_args()
    model = load_checkpoint(asked.checkpoint)
    images, answers = first_images(model, asked.data, asked.images)
    result = {"model": asked.name or str(asked.checkpoint), "data": asked.data, "images": len(images)}
    result |= {"maps": measured(model, images, answers), "machine": machine(torch.device("cpu"))}
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    replace_files({asked.output: (json.dumps(result, indent=1) + "\n").encode()})
    Console().print(table(result))


def first_images(model: CeiT, data: str, count: int) -> tuple[Tensor, Tensor]:
    """The first test images as the network sees them, and its answers."""
    config = model.config
    test = load_dataset(data, img_size=config.image_hw).test.subset(torch.arange(count))
    loader = make_loader(test, batch_size=count, img_size=config.image_hw, preprocessing=preprocessing_of(model))
    images, _ = next(loader.epoch(0))
    with torch.no_grad():
        return images, model(images).argmax(1)


def maps_of(model: CeiT, images: Tensor, answers: Tensor) -> Maps:
    """Every map that this network has, of the class that it answers, and a random one: ``(n, H, W)``."""
    generator = torch.Generator().manual_seed(0)
    maps: Maps = {"random": torch.rand(len(images), *model.config.grid, generator=generator)}
    maps["Grad-CAM"] = grad_cam(model, images, answers)
    if model.config.global_pool != "token":
        maps["for and against"] = contributions(model, images, answers)
    if model.config.global_pool != "avg":
        attention = _attention(model, images)
        maps["attention, all layers"] = rollout(attention)
        maps["attention, last layer"] = last_attention(attention)
    return maps


def _attention(model: CeiT, images: Tensor) -> Attention:
    with torch.no_grad(), capture(model) as seen:
        model(images)
    return seen.attention()


def measured(model: CeiT, images: Tensor, answers: Tensor) -> dict[str, Any]:
    """Of each map both curves, their areas as means over images, and the gain over the random map with its interval."""
    empty = torch.zeros_like(images)  # the mean colour, as images are normalised
    side = max(3, min(images.shape[2:]) // 4 * 2 + 1)
    blurred = gaussian_blur(images, [side, side], [side / 4, side / 4])
    found: dict[str, Any] = {}
    areas: dict[tuple[str, str], np.ndarray] = {}
    for name, map_nhw in maps_of(model, images, answers).items():
        order = map_nhw.flatten(1).argsort(1, descending=True)
        found[name] = {}
        for kind, start, end in (("deletion", images, empty), ("insertion", blurred, images)):
            curves = _curves(model, start, end, order, answers)
            areas[name, kind] = (curves[:, 1:] + curves[:, :-1]).mean(1) / 2  # trapezoids
            gains = areas[name, kind] - areas["random", kind]
            low, high = _interval(gains)
            found[name][kind] = {
                "curve": np.round(curves.mean(0), 4).tolist(),
                "area": round(float(areas[name, kind].mean()), 4),
                "against_random": [round(float(gains.mean()), 4), round(low, 4), round(high, 4)],
            }
    return found


@torch.no_grad()
def _curves(model: CeiT, start: Tensor, end: Tensor, order_nn: Tensor, answers: Tensor) -> np.ndarray:
    """The probability of each answer while patches of ``start`` become those of ``end``: ``(n, POINTS)``."""
    patches, (height, width) = order_nn.shape[1], model.config.grid
    rank = order_nn.argsort(1).unflatten(1, (height, width))
    points: list[Tensor] = []
    for moved in np.linspace(0, patches, POINTS).round().astype(int).tolist():
        is_moved = F.interpolate((rank < moved)[:, None].float(), start.shape[2:], mode="nearest")
        probabilities = model(torch.where(is_moved > 0, end, start)).softmax(1)
        points.append(probabilities.gather(1, answers[:, None])[:, 0])
    return torch.stack(points, dim=1).double().numpy()


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Of the mean, 95 %: the percentile bootstrap over images."""
    drawn = np.random.default_rng(0).integers(len(values), size=(2_000, len(values)))
    low, high = np.percentile(values[drawn].mean(1), [2.5, 97.5]).tolist()
    return low, high


def table(result: dict[str, Any]) -> Table:
    """A row for each map."""
    shown = Table("map", "deletion", "against random", "insertion", "against random", title=result["model"])
    for name, found in result["maps"].items():
        cells: list[str] = []
        for kind in ("deletion", "insertion"):
            gain, low, high = found[kind]["against_random"]
            cells += [f"{found[kind]['area']:.3f}", f"{gain:+.3f} ({low:+.3f} to {high:+.3f})"]
        shown.add_row(name, *cells)
    return shown


if __name__ == "__main__":
    main()
