"""Draws to images: read, varied and normalised, a whole batch at once.

Letters: B batch, C channels, H height, W width.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor

from ceit.data.batches.augment import SINGLE_IMAGE_STREAM, Augmentation
from ceit.data.batches.order import COPY
from ceit.data.preprocessing import INTERPOLATIONS, Preprocessing, to_array
from ceit.data.random_bits import random_bits
from ceit.data.reduced import Size, training_cover
from ceit.data.splits import Split

ImagesOf = Callable[[int, np.ndarray], Tensor]
"""Epoch and draws ``(B,)`` to images ``(B, C, H, W)``, channels-last in memory."""


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory, ``(n, H, W, C)``: one gather of pixels does reading, flip and translation."""

    pixels_nhwc: np.ndarray
    preprocessing: Preprocessing
    augmentation: Augmentation | None
    seed: int

    def __call__(self, epoch: int, draws: np.ndarray) -> Tensor:
        indices = draws % COPY
        if self.augmentation is None:
            return self.preprocessing.normalise(self.pixels_nhwc[indices]).permute(0, 3, 1, 2)
        _, height, width, channels = self.pixels_nhwc.shape
        rows_bh, columns_bw = self.augmentation.source_rows_and_columns((height, width), self.seed, epoch, draws)
        source_bhw = (indices[:, None, None] * height + rows_bh[:, :, None]) * width + columns_bw[:, None, :]
        pixels_bhwc = self.pixels_nhwc.reshape(-1, channels).take(source_bhw, axis=0)
        images_bhwc = self.preprocessing.normalise(pixels_bhwc)
        return self.augmentation.cut_out_(images_bhwc, self.seed, epoch, draws).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class SingleImages:
    """Images one by one: files, large sizes, and the augmentations that need Pillow."""

    split: Split
    img_size: tuple[int, int]
    preprocessing: Preprocessing
    augmentation: Augmentation | None
    seed: int

    @property
    def cover(self) -> Size:
        """What images are reduced to before anything else."""
        crop_scale = None if self.augmentation is None else self.augmentation.crop_scale
        return training_cover(self.img_size, self.preprocessing.crop, crop_scale)

    def __call__(self, epoch: int, draws: np.ndarray) -> Tensor:
        images_bhwc = torch.empty(len(draws), *self.img_size, self.preprocessing.in_chans)
        indices = (draws % COPY).tolist()
        if self.augmentation is None:
            for image_hwc, index in zip(images_bhwc, indices, strict=True):
                image_hwc.copy_(self.preprocessing.apply(self._read(index), self.img_size).permute(1, 2, 0))
            return images_bhwc.permute(0, 3, 1, 2)
        vary = _SingleTransform(self.augmentation, self.preprocessing, self.img_size)
        seeds = random_bits(self.seed, epoch, draws, SINGLE_IMAGE_STREAM) >> np.uint64(32)
        rows_bh, columns_bw = self.augmentation.source_rows_and_columns(self.img_size, self.seed, epoch, draws)
        for image_hwc, index, seed, rows, columns in zip(
            images_bhwc, indices, seeds.tolist(), rows_bh, columns_bw, strict=True
        ):
            with _seeded(seed):
                image_hwc.copy_(vary(self._read(index), rows, columns))
        return self.augmentation.cut_out_(images_bhwc, self.seed, epoch, draws).permute(0, 3, 1, 2)

    def _read(self, index: int) -> Image.Image:
        return self.split.read(index, self.preprocessing.in_chans, self.cover)


class _SingleTransform:
    """Random resized crop (or centre crop), RandAugment, flip and translation, normalisation, random erasing."""

    def __init__(self, augmentation: Augmentation, preprocessing: Preprocessing, img_size: tuple[int, int]) -> None:
        self.preprocessing, self.img_size = preprocessing, img_size
        self.resize: Callable[[Image.Image], Any] = self._centre_crop
        self.rand_augment = self.erase = None
        if augmentation.crop_scale is not None:
            self.resize = RandomResizedCropAndInterpolation(
                img_size, scale=augmentation.crop_scale, interpolation=preprocessing.interpolation
            )
        if augmentation.rand_augment is not None:
            options = {
                "translate_const": int(min(img_size) * 0.45),
                "img_mean": tuple(round(255 * mean) for mean in preprocessing.mean),
                "interpolation": INTERPOLATIONS[preprocessing.interpolation],
            }
            self.rand_augment = rand_augment_transform(augmentation.rand_augment, options)
            for operation in self.rand_augment.ops:
                if operation.name.startswith("Posterize"):
                    operation.aug_fn = _posterize
        if augmentation.random_erasing > 0:
            self.erase = RandomErasing(augmentation.random_erasing, mode="pixel", device="cpu")

    def __call__(self, image: Image.Image, rows: np.ndarray, columns: np.ndarray) -> Tensor:
        """The image as float32 ``(H, W, C)``."""
        image = self.resize(image)
        if self.rand_augment is not None:
            image = self.rand_augment(image)
        pixels_hwc = to_array(image).take(rows, 0).take(columns, 1)
        image_hwc = self.preprocessing.normalise(pixels_hwc)
        if self.erase is not None:
            self.erase(image_hwc.permute(2, 0, 1))  # in place
        return image_hwc

    def _centre_crop(self, image: Image.Image) -> Image.Image:
        return self.preprocessing.fit(image, self.img_size)


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keeps the upper ``bits`` of each channel. RandAugment may ask for 0, black; Pillow's own refuses that."""
    mask = 256 - (1 << (8 - bits))
    return image.point([value & mask for value in range(256)] * len(image.getbands()))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators that timm's transforms draw from, and puts them back afterwards."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would reset the accelerators' generators
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(torch_state)
