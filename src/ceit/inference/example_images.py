"""Images to check and to calibrate an exported network with, as the network sees them.

Letters: n images, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ceit.data.batches.loader import make_loader
from ceit.data.image import read_image
from ceit.data.labelled import LabelledSet
from ceit.data.preprocessing import Preprocessing
from ceit.data.splits import Split

_SEED = 0


@dataclass(frozen=True)
class ExampleImages:
    """Preprocessed images ``(n, C, H, W)``, the labels ``(n,)`` where known, and where they come from, in words."""

    images: Tensor
    origin: str
    labels: Tensor | None = None
    real: bool = True

    def __len__(self) -> int:
        return len(self.images)


def of_dataset(
    found: LabelledSet,
    split: Split,
    split_name: str,
    count: int,
    *,
    image_hw: tuple[int, int],
    preprocessing: Preprocessing,
    class_names: Sequence[str] | None,
) -> ExampleImages:
    """``count`` images of a split of the set, drawn by a fixed seed, or all if there are fewer.

    Labels are numbered as ``class_names``; where the classes of the set are others, there are no labels.
    """
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(_SEED))[:count].sort().values
    loader = make_loader(
        split.subset(chosen), batch_size=len(chosen), img_size=image_hw, preprocessing=preprocessing, workers=0
    )
    images, labels = next(loader.epoch(0))
    if class_names is None or set(class_names) != set(found.class_names):
        known = None
    else:
        known = torch.tensor([list(class_names).index(name) for name in found.class_names])[labels]
    return ExampleImages(images.contiguous(), f"{found.name}, {split_name}", known)


def of_files(paths: Sequence[Path], *, image_hw: tuple[int, int], preprocessing: Preprocessing) -> ExampleImages:
    """Pictures of any kind. Raises: BrokenImageError or OSError for one that cannot be read."""
    images = [preprocessing.apply(read_image(path, preprocessing.in_chans), image_hw) for path in paths]
    return ExampleImages(torch.stack(images), "pictures given")


def synthetic(count: int, *, image_hw: tuple[int, int], preprocessing: Preprocessing) -> ExampleImages:
    """Smooth fields of colour with a sharp-edged rectangle in each: no real images, and called so."""
    generator = torch.Generator().manual_seed(_SEED)
    coarse = torch.rand(count, preprocessing.in_chans, 4, 4, generator=generator)
    pixels = F.interpolate(coarse, image_hw, mode="bicubic").clamp(0, 1)
    corners = torch.rand(count, 4, generator=generator)
    for image, (top, left, height, width) in zip(pixels, corners.tolist(), strict=True):
        y, x = int(top * image_hw[0]), int(left * image_hw[1])
        patch = image[:, y : y + 1 + int(height * image_hw[0] / 2), x : x + 1 + int(width * image_hw[1] / 2)]
        patch.copy_(1 - patch.mean(dim=(1, 2), keepdim=True).expand_as(patch))
    pixels_nhwc = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    images = preprocessing.normalise(np.ascontiguousarray(pixels_nhwc)).permute(0, 3, 1, 2).contiguous()
    return ExampleImages(images, "synthetic images, for want of real ones", real=False)
