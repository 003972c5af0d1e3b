"""Draws to a batch: images read and augmented, then normalised.

Letters: B batch, C channels, H height, W width.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
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


class Varied(NamedTuple):
    """A batch before it is normalised, a quarter of the bytes: uint8 ``(B, H, W, C)``, and labels int64 ``(B,)``.

    ``noise`` has the values of all rectangles that are to be erased, one ``(C, height, width)`` after another, and
    ``erased`` int64 ``(n, 5)`` says where they are: image, top, left, height, width.
    """

    pixels_bhwc: Tensor
    labels_b: Tensor
    noise: Tensor
    erased: np.ndarray

    def to(self, device: torch.device) -> "Varied":
        """The same there; from pinned memory to a CUDA device without waiting.

        Elsewhere torch is not to be trusted with that: Apple's GPUs may read memory which has been freed meanwhile.
        """
        is_cuda = device.type == "cuda"
        pixels_bhwc, labels_b, noise = (tensor.to(device, non_blocking=is_cuda) for tensor in self[:3])
        return Varied(pixels_bhwc, labels_b, noise, self.erased)

    def pinned(self) -> "Varied":
        """The same in memory from which a GPU copies while it computes."""
        pixels_bhwc, labels_b, noise = (tensor.pin_memory() for tensor in self[:3])
        return Varied(pixels_bhwc, labels_b, noise, self.erased)


@dataclass(frozen=True)
class Batches(Dataset[Batch]):
    """Every batch of a split, made when it is asked for; without an augmentation as prediction sees the images.

    A batch is made in two steps: ``read``, for any process, and ``finish``, for the device that computes.
    """

    split: Split
    img_size: tuple[int, int]
    preprocessing: Preprocessing
    augmentation: Augmentation | None
    seed: int
    pixels_nhwc: np.ndarray | None = None
    """The images of the split at ``img_size``, if they are held in memory and augmented all at once."""

    def __getitem__(self, request: Request) -> Batch:
        return self.finish(request, self.read(request))

    def read(self, request: Request) -> Varied:
        """The images read and varied, as far as that is done to bytes."""
        epoch, draws = request
        noise, erased = torch.empty(0), np.empty((0, 5), np.int64)
        if self.pixels_nhwc is not None:
            pixels_bhwc = self._gather_from_memory(self.pixels_nhwc, epoch, draws)
        elif self.augmentation is None:
            pixels_bhwc = self._fitted(draws)
        else:
            pixels_bhwc, noise, erased = self._varied_one_by_one(self.augmentation, epoch, draws)
        return Varied(torch.from_numpy(pixels_bhwc), self.split.labels[torch.from_numpy(draws % COPY)], noise, erased)

    def finish(self, request: Request, varied: Varied) -> Batch:
        """What ``read`` gave for this request, normalised and erased where the pixels lie: on the CPU or a device."""
        epoch, draws = request
        images_bhwc = self.preprocessing.normalise(varied.pixels_bhwc)
        first, channels = 0, images_bhwc.shape[3]
        for image, top, left, height, width in varied.erased.tolist():
            values = varied.noise[first : first + channels * height * width].view(channels, height, width)
            images_bhwc[image, top : top + height, left : left + width] = values.permute(1, 2, 0)
            first += values.numel()
        if self.augmentation is not None:
            self.augmentation.brighten_(images_bhwc, self.seed, epoch, draws)
            self.augmentation.cut_out_(images_bhwc, self.seed, epoch, draws)
        return images_bhwc.permute(0, 3, 1, 2), varied.labels_b

    def _fitted(self, draws: np.ndarray) -> np.ndarray:
        """Images as prediction sees them, uint8 ``(B, H, W, C)``."""
        cover = training_cover(self.img_size, self.preprocessing.crop)
        pixels_bhwc = np.empty((len(draws), *self.img_size, self.preprocessing.in_chans), np.uint8)
        for pixels_hwc, index in zip(pixels_bhwc, (draws % COPY).tolist(), strict=True):
            picture = self.split.read(index, self.preprocessing.in_chans, cover)
            pixels_hwc[:] = to_array(self.preprocessing.fit(picture, self.img_size))
        return pixels_bhwc

    def _varied_one_by_one(
        self, augmentation: Augmentation, epoch: int, draws: np.ndarray
    ) -> tuple[np.ndarray, Tensor, np.ndarray]:
        """Images from files, large ones, and those of augmentations that need Pillow: as in ``Varied``."""
        cover = training_cover(self.img_size, self.preprocessing.crop, augmentation.crop_scale)
        indices, in_chans = (draws % COPY).tolist(), self.preprocessing.in_chans
        augment = ImageAugmentation(augmentation, self.preprocessing, self.img_size)
        seeds = random_bits(self.seed, epoch, draws, SINGLE_IMAGE_STREAM) >> np.uint64(32)
        rows_bh, columns_bw = augmentation.source_rows_and_columns(self.img_size, self.seed, epoch, draws)
        pixels_bhwc = np.empty((len(draws), *self.img_size, in_chans), np.uint8)
        erased = Erased((in_chans, *self.img_size))
        variations = zip(indices, seeds.tolist(), rows_bh, columns_bw, strict=True)
        last, picture = -1, Image.new("L", (1, 1))
        with generators_kept():
            for number, (index, seed, rows, columns) in enumerate(variations):
                if index != last:  # the copies of an image follow each other
                    last, picture = index, self.split.read(index, in_chans, cover)
                seed_generators(seed)
                pixels_bhwc[number] = augment(picture, rows, columns)
                if augment.erase is not None:
                    erased.image = number
                    augment.erase(erased)
        return pixels_bhwc, erased.noise(), erased.where()

    def _gather_from_memory(self, pixels_nhwc: np.ndarray, epoch: int, draws: np.ndarray) -> np.ndarray:
        """One gather of pixels does reading, flip and translation: uint8 ``(B, H, W, C)``."""
        indices = draws % COPY
        if self.augmentation is None:
            return pixels_nhwc[indices]
        _, height, width, channels = pixels_nhwc.shape
        rows_bh, columns_bw = self.augmentation.source_rows_and_columns((height, width), self.seed, epoch, draws)
        source_bhw = (indices[:, None, None] * height + rows_bh[:, :, None]) * width + columns_bw[:, None, :]
        return pixels_nhwc.reshape(-1, channels).take(source_bhw, axis=0)


class Erased:
    """Takes the place of a float32 image ``(C, H, W)`` where rectangles are replaced, and keeps what was put there."""

    dtype = torch.float32

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape, self.image = shape, 0
        self._values: list[Tensor] = []
        self._where: list[tuple[int, ...]] = []

    def size(self) -> tuple[int, int, int]:
        return self.shape

    def __setitem__(self, place: tuple[slice, slice, slice], values: Tensor) -> None:
        self._values.append(values.flatten())
        self._where.append((self.image, place[1].start, place[2].start, *values.shape[1:]))

    def noise(self) -> Tensor:
        """Every value, one rectangle after another."""
        return torch.cat([torch.empty(0), *self._values])

    def where(self) -> np.ndarray:
        """Image, top, left, height and width of every rectangle: int64 ``(n, 5)``."""
        return np.array(self._where, np.int64).reshape(-1, 5)


class ImageAugmentation:
    """One picture varied; what is random about it is drawn from the global generators.

    Random resized crop (or centre crop), colour jitter, RandAugment or TrivialAugment, flip and translation; then
    ``erase``, if there is one, which is for normalised values.
    """

    def __init__(self, augmentation: Augmentation, preprocessing: Preprocessing, img_size: tuple[int, int]) -> None:
        self.translates = augmentation.translate > 0
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

    def __call__(self, image: Image.Image, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The image as uint8 ``(H, W, C)``, of these rows and columns of what was cropped."""
        image = self.crop(image)
        for vary in (self.jitter, self.rand_augment, self.trivial_augment):
            if vary is not None:
                image = vary(image)
        if self.translates:
            return to_array(image).take(rows, 0).take(columns, 1)
        return to_array(ImageOps.mirror(image) if columns[0] > columns[-1] else image)


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keeps the upper ``bits`` of each channel. RandAugment may ask for 0, black; Pillow's own refuses that."""
    mask = 256 - (1 << (8 - bits))
    return image.point([value & mask for value in range(256)] * len(image.getbands()))


@contextmanager
def generators_kept() -> Iterator[None]:
    """Puts the global generators that timm's transforms draw from back afterwards."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(torch_state)


def seed_generators(seed: int) -> None:
    """Seeds these generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would reset the accelerators' generators
