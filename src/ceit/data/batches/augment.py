"""Augmentation of whole batches, every image by its own random numbers.

Letters: B batch, H height, W width, C channels.
"""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ceit.data.random_bits import random_bits, random_integers
from ceit.options import ConflictError

# Streams: the independent draws of one image. SINGLE_IMAGE_STREAM seeds the transforms that work on single images.
_FLIP, _SHIFT_Y, _SHIFT_X, _CUT_Y, _CUT_X, SINGLE_IMAGE_STREAM, _FACTOR, _OFFSET = range(1, 9)
_FINE = 2**24  # steps from 0 to 1, all that float32 can tell apart there

_RAND_AUGMENT = re.compile(r"rand(-((m|mmax|inc)\d+|n([1-9]|1[0-4])|(p|mstd)\d+\.?\d*|t(weights|3aw?)))*")


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied; every choice is a function of (seed, epoch, index of the image, copy).

    Flip, translation, brightness and cut-out are computed for a whole batch at once; all others image by image, colour
    jitter and TrivialAugment by torchvision, the rest by timm.
    Raises: ValueError for a value out of range; ConflictError for two policies.
    """

    flip: bool | Literal["alternate"] = True
    """Mirror half of the images left to right. true: each epoch draws which. alternate: each image in every other
    epoch; the first epoch draws which begin."""
    translate: int = 0
    """Shift each image by up to this many pixels in each direction; its mirrored border fills the gap. 0: off."""
    cutout: int = 0
    """Side in pixels of a square set to the mean, its centre anywhere in the image. 0: off."""
    rand_augment: str | None = None
    """RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1. null: off."""
    crop_scale: tuple[float, float] | None = None
    """Smallest and largest share of the area in a random resized crop, such as [0.08, 1]. null: centre crop."""
    random_erasing: float = 0.0
    """Probability of replacing a random rectangle of 2 to 33 % of the area by noise."""
    repeats: int = 1
    """How often an epoch shows an image, varied anew each time. Epochs get no longer: each shows fewer images."""
    brightness: float = 0.0
    """Largest share b by which brightness and contrast change: a normalised image x becomes (1 + b u) x + b v, where u
    and v are drawn from -1 to 1. 0: off."""
    trivial_augment: bool = False
    """TrivialAugment (wide): one operation of random strength an image. It takes the place of RandAugment."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation of an image, each times a random number from 1 - color_jitter to 1 +
    color_jitter. 0: off."""

    def __post_init__(self) -> None:
        if self.translate < 0 or self.cutout < 0:
            raise ValueError(f"translate {self.translate} and cutout {self.cutout} must not be negative (pixels)")
        if not 0 <= self.brightness < 1:
            raise ValueError(f"brightness {self.brightness} must be in [0, 1): at 1 an image may lose all contrast")
        if self.rand_augment is not None and not _RAND_AUGMENT.fullmatch(self.rand_augment):
            form = "of the form 'rand-m9-n2-mstd0.5-inc1', n at most 14"
            raise ValueError(f"rand_augment {self.rand_augment!r} must be {form}")
        if self.trivial_augment and self.rand_augment is not None:
            raise ConflictError(
                f"rand_augment {self.rand_augment} and trivial_augment exclude each other: set one of them"
            )
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"color_jitter {self.color_jitter} must be between 0, which is off, and 1")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale {self.crop_scale} must be two shares, 0 < smallest <= largest <= 1")
        if not 0 <= self.random_erasing <= 1:
            raise ValueError(f"random_erasing {self.random_erasing} must be a probability between 0 and 1")
        if self.repeats < 1:
            raise ValueError(f"repeats {self.repeats} must be at least 1, which shows every image once an epoch")

    @property
    def image_by_image(self) -> bool:
        """Whether some part of it works on single images."""
        is_recoloured = self.rand_augment is not None or self.trivial_augment or self.color_jitter > 0
        return is_recoloured or self.crop_scale is not None or self.random_erasing > 0

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises ValueError if images of ``size`` are too small to be translated so far."""
        if self.translate >= min(size):
            raise ValueError(f"translate {self.translate} must be below the image's shorter side of {min(size)} pixels")

    def source_rows_and_columns(
        self, size: tuple[int, int], seed: int, epoch: int, indices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Flip and translation: from which row of its image each output row comes, ``(B, H)``; columns ``(B, W)``."""
        height, width = size
        shifts = (-self.translate, self.translate + 1)
        shift_y_b = random_integers(seed, epoch, indices, _SHIFT_Y, *shifts)
        shift_x_b = random_integers(seed, epoch, indices, _SHIFT_X, *shifts)
        drawn, turn = (0, epoch % 2) if self.flip == "alternate" else (epoch, 0)
        bits_b = random_bits(seed, drawn, indices, _FLIP) >> np.uint64(63)
        mirrored_b = bool(self.flip) & (bits_b != turn)
        columns_bw = np.where(mirrored_b[:, None], np.arange(width)[::-1], np.arange(width)) + shift_x_b[:, None]
        rows_bh = np.arange(height) + shift_y_b[:, None]
        return _reflect(rows_bh, height), _reflect(columns_bw, width)

    def brighten_(self, images_bhwc: Tensor, seed: int, epoch: int, indices: np.ndarray) -> Tensor:
        """Changes brightness and contrast of each normalised image, in place."""
        if self.brightness > 0:
            draws = (random_integers(seed, epoch, indices, stream, -_FINE, _FINE + 1) for stream in (_FACTOR, _OFFSET))
            u_b111, v_b111 = (torch.from_numpy(draw / _FINE).to(images_bhwc).view(-1, 1, 1, 1) for draw in draws)
            images_bhwc.mul_(1 + self.brightness * u_b111).add_(self.brightness * v_b111)
        return images_bhwc

    def cut_out_(self, images_bhwc: Tensor, seed: int, epoch: int, indices: np.ndarray) -> Tensor:
        """Sets a square of each normalised image to zero, the mean, in place; what reaches over the border is lost."""
        if self.cutout > 0:
            _, height, width, channels = images_bhwc.shape
            rows_bh = self._cut(random_integers(seed, epoch, indices, _CUT_Y, 0, height), height)
            columns_bw = self._cut(random_integers(seed, epoch, indices, _CUT_X, 0, width), width)
            cut = torch.from_numpy(rows_bh[:, :, None] & columns_bw.repeat(channels, axis=1)[:, None])
            cut = cut.to(images_bhwc.device, non_blocking=images_bhwc.is_cuda)
            images_bhwc.view(-1, height, width * channels).masked_fill_(cut, 0)
        return images_bhwc

    def _cut(self, centres_b: np.ndarray, size: int) -> np.ndarray:
        """Which of ``size`` rows or columns the square takes: bool ``(B, size)``."""
        from_first = np.arange(size) - (centres_b[:, None] - self.cutout // 2)
        return (from_first >= 0) & (from_first < self.cutout)


def _reflect(positions: np.ndarray, size: int) -> np.ndarray:
    """Positions outside ``0 .. size - 1`` mirrored at the border pixel, which is not repeated."""
    last = size - 1
    return last - np.abs(last - np.abs(positions))
