"""Draws to a batch: images read, augmented and normalised.

Letters: B batch, C channels, H height, W width.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import ColorJitter, InterpolationMode, TrivialAugmentWide

from ceit.data.batches.augment import SINGLE_IMAGE_STREAM, Augmentation
from ceit.data.batches.order import COPY
from ceit.data.preprocessing import INTERPOLATIONS, Preprocessing, to_array
from ceit.data.random_bits import random_bits
from ceit.data.reduced import training_cover
from ceit.data.splits import Split

Batch = tuple[Tensor, Tensor]
"""Images float32 ``(B, C, H, W)``, channels-last in memory, and labels int64 ``(B,)``."""
Request = tuple[int, np.ndarray]
"""An epoch and the draws of one batch ``(B,)``."""


@dataclass(frozen=True)
class Batches(Dataset[Batch]):
    """Every batch of a split, made when it is asked for; without an augmentation as prediction sees the images."""

    split: Split
    img_size: tuple[int, int]
    preprocessing: Preprocessing
    augmentation: Augmentation | None
    seed: int
    pixels_nhwc: np.ndarray | None = None
    """The images of the split at ``img_size``, if they are held in memory and augmented all at once."""

    def __getitem__(self, request: Request) -> Batch:
        epoch, draws = request
        if self.pixels_nhwc is None:
            images_bhwc = self._read_one_by_one(epoch, draws)
        else:
            images_bhwc = self._gather_from_memory(self.pixels_nhwc, epoch, draws)
        if self.augmentation is not None:
            self.augmentation.brighten_(images_bhwc, self.seed, epoch, draws)
            self.augmentation.cut_out_(images_bhwc, self.seed, epoch, draws)
        return images_bhwc.permute(0, 3, 1, 2), self.split.labels[torch.from_numpy(draws % COPY)]

    def _read_one_by_one(self, epoch: int, draws: np.ndarray) -> Tensor:
        """Images from files, large ones, and those of augmentations that need Pillow: ``(B, H, W, C)``."""
        crop_scale = None if self.augmentation is None else self.augmentation.crop_scale
        cover = training_cover(self.img_size, self.preprocessing.crop, crop_scale)
        indices, in_chans = (draws % COPY).tolist(), self.preprocessing.in_chans
        images_bhwc = torch.empty(len(draws), *self.img_size, in_chans)
        if self.augmentation is None:
            for image_hwc, index in zip(images_bhwc, indices, strict=True):
                picture = self.preprocessing.fit(self.split.read(index, in_chans, cover), self.img_size)
                image_hwc.copy_(self.preprocessing.normalise(to_array(picture)))
            return images_bhwc
        augment = ImageAugmentation(self.augmentation, self.preprocessing, self.img_size)
        seeds = random_bits(self.seed, epoch, draws, SINGLE_IMAGE_STREAM) >> np.uint64(32)
        rows_bh, columns_bw = self.augmentation.source_rows_and_columns(self.img_size, self.seed, epoch, draws)
        variations = zip(seeds.tolist(), rows_bh, columns_bw, strict=True)
        last, picture = -1, Image.new("L", (1, 1))
        for image_hwc, index, (seed, rows, columns) in zip(images_bhwc, indices, variations, strict=True):
            if index != last:  # the copies of an image follow each other
                last, picture = index, self.split.read(index, in_chans, cover)
            with seeded(seed):
                image_hwc.copy_(augment(picture, rows, columns))
        return images_bhwc

    def _gather_from_memory(self, pixels_nhwc: np.ndarray, epoch: int, draws: np.ndarray) -> Tensor:
        """One gather of pixels does reading, flip and translation: ``(B, H, W, C)``."""
        indices = draws % COPY
        if self.augmentation is None:
            return self.preprocessing.normalise(pixels_nhwc[indices])
        _, height, width, channels = pixels_nhwc.shape
        rows_bh, columns_bw = self.augmentation.source_rows_and_columns((height, width), self.seed, epoch, draws)
        source_bhw = (indices[:, None, None] * height + rows_bh[:, :, None]) * width + columns_bw[:, None, :]
        return self.preprocessing.normalise(pixels_nhwc.reshape(-1, channels).take(source_bhw, axis=0))


class ImageAugmentation:
    """One picture varied and normalised; what is random about it is drawn from the global generators.

    Random resized crop (or centre crop), colour jitter, RandAugment or TrivialAugment, flip and translation,
    normalisation, random erasing.
    """

    def __init__(self, augmentation: Augmentation, preprocessing: Preprocessing, img_size: tuple[int, int]) -> None:
        self.preprocessing = preprocessing
        self.crop: Callable[[Image.Image], Any] = partial(preprocessing.fit, size=img_size)
        self.jitter = self.rand_augment = self.trivial_augment = self.erase = None
        if augmentation.crop_scale is not None:
            self.crop = RandomResizedCropAndInterpolation(
                img_size, scale=augmentation.crop_scale, interpolation=preprocessing.interpolation
            )
        if augmentation.color_jitter > 0:
            self.jitter = ColorJitter(*[augmentation.color_jitter] * 3)
        mean_colour = tuple(round(255 * mean) for mean in preprocessing.mean)
        if augmentation.trivial_augment:
            interpolation = InterpolationMode(preprocessing.interpolation)
            self.trivial_augment = TrivialAugmentWide(interpolation=interpolation, fill=list(mean_colour))
        if augmentation.rand_augment is not None:
            options = {
                "translate_const": int(min(img_size) * 0.45),
                "img_mean": mean_colour,
                "interpolation": INTERPOLATIONS[preprocessing.interpolation],
            }
            self.rand_augment = rand_augment_transform(augmentation.rand_augment, options)
            for operation in self.rand_augment.ops:
                if operation.name.startswith("Posterize"):
                    operation.aug_fn = _posterize
        if augmentation.random_erasing > 0:
            self.erase = RandomErasing(augmentation.random_erasing, mode="pixel", device="cpu")

    def __call__(self, image: Image.Image, rows: np.ndarray, columns: np.ndarray) -> Tensor:
        """The image as float32 ``(H, W, C)``, of these rows and columns of what was cropped."""
        image = self.crop(image)
        for vary in (self.jitter, self.rand_augment, self.trivial_augment):
            if vary is not None:
                image = vary(image)
        image_hwc = self.preprocessing.normalise(to_array(image).take(rows, 0).take(columns, 1))
        if self.erase is not None:
            self.erase(image_hwc.permute(2, 0, 1))  # in place
        return image_hwc


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keeps the upper ``bits`` of each channel. RandAugment may ask for 0, black; Pillow's own refuses that."""
    mask = 256 - (1 << (8 - bits))
    return image.point([value & mask for value in range(256)] * len(image.getbands()))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
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
