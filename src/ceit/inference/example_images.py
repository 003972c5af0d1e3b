"""Images to check and to calibrate an exported network with, as the network sees them.

Letters: n images, C channels, H height, W width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ceit.data.batches.loader import make_loader
from ceit.data.image import read_image
from ceit.data.labelled import LabelledSet
from ceit.data.preprocessing import Preprocessing, to_array
from ceit.data.reduced import evaluation_cover
from ceit.data.sources.walk import image_files, printable
from ceit.data.splits import Split
from ceit.data.threads import read_all
from ceit.inference.quantize import CALIBRATION_IMAGES

_SEED = 0
_FEWEST_FOR_INT8 = 20  # pictures: half to calibrate, half to check


@dataclass(frozen=True)
class ExampleImages:
    """Preprocessed images ``(n, C, H, W)``, the labels ``(n,)`` where known, and where they come from, in words.

    ``skipped`` has a line per picture that was to be among them and could not be read.
    """

    images: Tensor
    origin: str
    labels: Tensor | None = None
    real: bool = True
    skipped: tuple[str, ...] = ()

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

    Labels are numbered as ``class_names``; where the classes of the set are others, or two have
    one name, there are no labels.
    """
    chosen = _drawn(count, len(split)).sort().values
    loader = make_loader(
        split.subset(chosen), batch_size=len(chosen), img_size=image_hw, preprocessing=preprocessing, workers=0
    )
    images, labels = next(loader.epoch(0))
    named = set(class_names or ())
    if class_names is None or named != set(found.class_names) or len(named) < len(class_names):
        known = None
    else:
        known = torch.tensor([list(class_names).index(name) for name in found.class_names])[labels]
    return ExampleImages(images.contiguous(), f"{found.name}, {split_name}", known)


def of_files(
    paths: Sequence[Path], count: int, *, image_hw: tuple[int, int], preprocessing: Preprocessing
) -> ExampleImages:
    """``count`` pictures of any kind, drawn by a fixed seed and in the order drawn, or all if there are fewer.

    They are read as prediction reads them. Those that cannot be read are left out, and none takes their place.
    """
    cover = evaluation_cover(image_hw, preprocessing.crop)
    drawn = [paths[number] for number in _drawn(count, len(paths)).tolist()]
    images, read, skipped = torch.empty(len(drawn), preprocessing.in_chans, *image_hw), 0, list[str]()

    def fitted(path: Path) -> np.ndarray:
        return to_array(preprocessing.fit(read_image(path, preprocessing.in_chans, cover), image_hw))

    for path, pixels_hwc in read_all(fitted, drawn, "reading pictures"):
        if isinstance(pixels_hwc, str):
            skipped.append(f"{printable(str(path))} ({pixels_hwc})")
        else:
            images[read] = preprocessing.normalise(pixels_hwc).permute(2, 0, 1)
            read += 1
    origin = "pictures given" if len(drawn) == len(paths) else f"drawn from the {len(paths):,} pictures given"
    return ExampleImages(images[:read], origin, skipped=tuple(skipped))


def pictures_in(paths: Sequence[Path], say: Callable[[str], None]) -> list[Path]:
    """Files as given, and those in folders, each once. Raises: ValueError for no such path, and for an empty folder."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist")
        files, passed_over = image_files(path) if path.is_dir() else ([path], "")
        if passed_over:
            say(f"{path}: {passed_over}")
        found += files
    return list(dict.fromkeys(found))


def shared_out(pictures: ExampleImages) -> tuple[ExampleImages, ExampleImages]:
    """Those to check with, and those to calibrate int8 with: half of them, and no more than it needs.

    Raises: ValueError if there are too few.
    """
    if len(pictures) < _FEWEST_FOR_INT8:
        raise ValueError(
            f"{len(pictures)} pictures are too few for int8: give at least {_FEWEST_FOR_INT8}, of which half "
            "calibrate and half check"
        )
    end = min(CALIBRATION_IMAGES, len(pictures) // 2)
    return replace(pictures, images=pictures.images[end:]), replace(pictures, images=pictures.images[:end])


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


def _drawn(count: int, among: int) -> Tensor:
    """Distinct numbers below ``among``, at most ``count``, int64; the same every time."""
    return torch.randperm(among, generator=torch.Generator().manual_seed(_SEED))[:count]
