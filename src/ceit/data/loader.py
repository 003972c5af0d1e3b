"""Batches of a split: an epoch is a function of (seed, epoch, index), whatever the batch size or number of workers.

Letters: B batch, C channels, H height, W width. A batch is images float32 ``(B, C, H, W)``, channels-last in memory,
and labels int64 ``(B,)``.
"""

import os
import random
import sys
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
from torch.utils.data import DataLoader, Dataset

from ceit.data.augment import SINGLE_IMAGE_STREAM, Augmentation
from ceit.data.dataset import IN_MEMORY_SIDE, ArraySplit, FileSplit, Split, resized
from ceit.data.image import read_image
from ceit.data.preprocessing import INTERPOLATIONS, Preprocessing, to_array, to_image
from ceit.data.random_bits import random_bits, shuffled

Batch = tuple[Tensor, Tensor]
ImagesOf = Callable[[int, np.ndarray], Tensor]
"""Epoch and indices ``(B,)`` to images ``(B, C, H, W)``."""


def make_loader(
    split: Split,
    *,
    batch_size: int,
    img_size: tuple[int, int],
    preprocessing: Preprocessing,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    shuffle: bool = False,
    drop_last: bool = False,
    workers: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> "Loader":
    """A loader of ``split`` at ``img_size = (H, W)``; without an augmentation images come as prediction sees them.

    ``workers`` are processes; None chooses: none for images in memory and on macOS and Windows, else one per core, at
    most 8. ``shard = (rank, processes)``: of every batch of ``batch_size`` images this process gets every
    ``processes``-th, from ``rank`` on. No image comes twice, so in the last batch one process may get an image more
    than another, or none.

    Raises: ValueError for an empty split, a batch size out of range, images of another number of channels than the
    preprocessing, or a translation larger than the image.
    """
    if len(split) == 0:
        raise ValueError("the split has no images")
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size} must be at least 1")
    if drop_last and len(split) < batch_size:
        raise ValueError(f"batch size {batch_size} is larger than the split of {len(split)} images: lower it")
    if isinstance(split, ArraySplit) and split.images.shape[1] != preprocessing.in_chans:
        found, expected = split.images.shape[1], preprocessing.in_chans
        raise ValueError(f"the images have {found} channels, the preprocessing {expected}: load the set with in_chans")
    if augmentation is not None:
        augmentation.check_size(img_size)
    single = augmentation is not None and augmentation.image_by_image
    if isinstance(split, ArraySplit) and not single and max(img_size) <= IN_MEMORY_SIDE:
        pixels_nhwc = resized(split.pixels(), img_size, preprocessing.interpolation)
        images_of, usual_workers = _ArrayImages(pixels_nhwc, preprocessing, augmentation, seed), 0
    else:
        images_of, usual_workers = _SingleImages(split, img_size, preprocessing, augmentation, seed), _usual_workers()
    return Loader(
        images_of=images_of,
        labels=split.labels,
        batch_size=batch_size,
        order_seed=seed if shuffle else None,
        drop_last=drop_last,
        workers=usual_workers if workers is None else workers,
        shard=shard,
    )


@dataclass(frozen=True)
class Loader:
    """The batches of a split, epoch by epoch; ``len()`` is the number of batches. Made by ``make_loader``."""

    images_of: ImagesOf
    labels: Tensor
    batch_size: int
    order_seed: int | None
    drop_last: bool
    workers: int
    shard: tuple[int, int]

    @property
    def images(self) -> int:
        """Images an epoch, over all processes."""
        return len(self) * self.batch_size if self.drop_last else len(self.labels)

    def __len__(self) -> int:
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_batch`` on: to resume is to ask for the rest."""
        count = len(self.labels)
        order = np.arange(count) if self.order_seed is None else shuffled(count, self.order_seed, epoch)
        starts = range(start_batch * self.batch_size, self.images, self.batch_size)
        rank, processes = self.shard
        parts = [order[start : start + self.batch_size][rank::processes] for start in starts]
        batches = _Batches(self.images_of, self.labels, epoch, parts)
        if self.workers == 0:
            return (batches[number] for number in range(len(batches)))
        # With its own generator, for the workers' seeds would otherwise be drawn from torch's global one.
        return iter(DataLoader(batches, batch_size=None, num_workers=self.workers, generator=torch.Generator()))


@dataclass(frozen=True)
class _Batches(Dataset[Batch]):
    """One epoch as a data set whose items are whole batches."""

    images_of: ImagesOf
    labels: Tensor
    epoch: int
    parts: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> Batch:
        indices = self.parts[number]
        return self.images_of(self.epoch, indices), self.labels[torch.from_numpy(indices)]


@dataclass(frozen=True)
class _ArrayImages:
    """Images in memory: one gather of pixels does reading, flip and translation."""

    pixels_nhwc: np.ndarray
    preprocessing: Preprocessing
    augmentation: Augmentation | None
    seed: int

    def __call__(self, epoch: int, indices: np.ndarray) -> Tensor:
        if self.augmentation is None:
            return self.preprocessing.normalise(self.pixels_nhwc[indices]).permute(0, 3, 1, 2)
        _, height, width, channels = self.pixels_nhwc.shape
        rows_bh, columns_bw = self.augmentation.source_rows_and_columns((height, width), self.seed, epoch, indices)
        source_bhw = (indices[:, None, None] * height + rows_bh[:, :, None]) * width + columns_bw[:, None, :]
        pixels_bhwc = self.pixels_nhwc.reshape(-1, channels).take(source_bhw, axis=0)
        images_bhwc = self.preprocessing.normalise(pixels_bhwc)
        return self.augmentation.cut_out_(images_bhwc, self.seed, epoch, indices).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _SingleImages:
    """Images one by one: files, large sizes, and the augmentations that need Pillow."""

    split: Split
    img_size: tuple[int, int]
    preprocessing: Preprocessing
    augmentation: Augmentation | None
    seed: int

    def __call__(self, epoch: int, indices: np.ndarray) -> Tensor:
        if self.augmentation is None:
            images = [self.preprocessing.apply(self.read(i), self.img_size) for i in indices.tolist()]
            return _stack(images, self.img_size, self.preprocessing.in_chans).permute(0, 3, 1, 2)
        vary = _SingleTransform(self.augmentation, self.preprocessing, self.img_size)
        seeds = random_bits(self.seed, epoch, indices, SINGLE_IMAGE_STREAM) >> np.uint64(32)
        images = []
        for index, image_seed in zip(indices.tolist(), seeds.tolist(), strict=True):
            with _seeded(image_seed):
                images.append(vary(self.read(index)))
        images_bhwc = _stack(images, self.img_size, self.preprocessing.in_chans)
        rows_bh, columns_bw = self.augmentation.source_rows_and_columns(self.img_size, self.seed, epoch, indices)
        batch = np.arange(len(indices))[:, None, None]
        images_bhwc = images_bhwc[batch, rows_bh[:, :, None], columns_bw[:, None, :]]
        return self.augmentation.cut_out_(images_bhwc, self.seed, epoch, indices).permute(0, 3, 1, 2)

    def read(self, index: int) -> Image.Image:
        if isinstance(self.split, FileSplit):
            return read_image(self.split.paths[index], self.preprocessing.in_chans)
        return to_image(self.split.pixels()[index])


class _SingleTransform:
    """Random resized crop (or centre crop), RandAugment, normalisation, random erasing: the order of timm's recipes."""

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

    def __call__(self, image: Image.Image) -> Tensor:
        image = self.resize(image)
        if self.rand_augment is not None:
            image = self.rand_augment(image)
        image_chw = self.preprocessing.normalise(to_array(image)).permute(2, 0, 1)
        return image_chw if self.erase is None else self.erase(image_chw)

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


def _stack(images_chw: list[Tensor], size: tuple[int, int], channels: int) -> Tensor:
    """``(B, H, W, C)``, also of no images at all."""
    if not images_chw:
        return torch.empty(0, *size, channels)
    return torch.stack([image.permute(1, 2, 0) for image in images_chw])


def _usual_workers() -> int:
    return 0 if sys.platform in ("darwin", "win32") else min(8, os.cpu_count() or 1)
