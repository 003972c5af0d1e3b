"""Random erasing, RandAugment and the random crop by their properties: how often, how much, from which numbers."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from ceit.data.batches.augment import SINGLE_IMAGE_STREAM, Augmentation
from ceit.data.batches.batch import Batches, ImageAugmentation, generators_kept, seed_generators
from ceit.data.batches.order import COPY
from ceit.data.preprocessing import IMAGENET, Preprocessing, to_image
from ceit.data.random_bits import random_bits
from ceit.data.splits import ArraySplit, from_pixels

SIDE = 32
PLAIN = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"


def constant(images: int = 1, side: int = SIDE) -> ArraySplit:
    pixels = np.full((images, side, side, 3), 200, np.uint8)
    return ArraySplit(from_pixels(pixels), torch.zeros(images, dtype=torch.int64))


def noise(images: int = 4, side: int = SIDE) -> ArraySplit:
    pixels = np.random.default_rng(0).integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    return ArraySplit(from_pixels(pixels), torch.arange(images))


def images_of(split: ArraySplit, draws: np.ndarray, seed: int = 0, epoch: int = 0, **options: Any) -> Tensor:
    augmentation = Augmentation(**{"flip": False, **options})
    return Batches(split, (SIDE, SIDE), PLAIN, augmentation, seed)[epoch, draws][0]


COPIES = np.arange(1200) * COPY  # of one image


@pytest.fixture(scope="module")
def erased() -> tuple[Tensor, Tensor]:
    """Copies of a constant image, a quarter of them to be erased, and where they were, ``(B, H, W)``."""
    images = images_of(constant(), COPIES, random_erasing=0.25)
    background = PLAIN.normalise(np.full((1, 1, 3), 200, np.uint8)).view(3, 1, 1)
    return images, (images != background).any(1)


def test_as_many_images_are_erased_as_asked_for(erased: tuple[Tensor, Tensor]) -> None:
    hit = erased[1].flatten(1).any(1).float().mean().item()
    assert abs(hit - 0.25) < 5 * (0.25 * 0.75 / len(COPIES)) ** 0.5
    assert images_of(constant(), COPIES[:50], random_erasing=1.0).flatten(1).std(1).min() > 0


def test_a_rectangle_of_2_to_33_percent_is_erased(erased: tuple[Tensor, Tensor]) -> None:
    shares = []
    for mask in erased[1][erased[1].flatten(1).any(1)]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None])
        height, width = int(rows.sum()), int(columns.sum())
        shares.append(height * width / SIDE**2)
        assert (height + 0.5) * (width + 0.5) >= 0.02 * SIDE**2  # sides are rounded
        assert (height - 0.5) * (width - 0.5) <= SIDE**2 / 3
        assert 0.3 * (width - 0.5) <= height + 0.5
        assert 0.3 * (height - 0.5) <= width + 0.5
    assert min(shares) < 0.05
    assert max(shares) > 0.3
    tops, lefts = (erased[1].any(axis).float().mean(0) for axis in (2, 1))
    assert min(tops.min(), lefts.min()) > 0  # it reaches every row and column


def test_the_noise_is_standard_normal(erased: tuple[Tensor, Tensor]) -> None:
    images, where = erased
    values = images.permute(0, 2, 3, 1)[where].flatten()
    error = 5 / len(values) ** 0.5
    assert abs(values.mean()) < error
    assert abs(values.var() - 1) < 2 * error
    for limit, share in ((1.0, 0.6827), (2.0, 0.9545), (3.0, 0.9973)):
        assert abs((values.abs() < limit).float().mean() - share) < error


def test_what_is_not_erased_is_the_image(erased: tuple[Tensor, Tensor]) -> None:
    draws = np.arange(4)
    expected = torch.stack([PLAIN.apply(to_image(pixels), (SIDE, SIDE)) for pixels in noise().pixels()])
    assert torch.equal(images_of(noise(), draws, random_erasing=0.0), expected)
    erased_images = images_of(noise(), draws, random_erasing=1.0)
    untouched = (erased_images == expected).all(1).flatten(1).float().mean(1)
    assert untouched.min() > 0.6
    assert untouched.max() < 1


def test_it_is_erased_as_timm_erases_a_normalised_image() -> None:
    draws = np.arange(4)
    seeds = random_bits(0, 0, draws, SINGLE_IMAGE_STREAM) >> np.uint64(32)
    for seed, pixels, image in zip(seeds, noise().pixels(), images_of(noise(), draws, random_erasing=1.0), strict=True):
        expected = PLAIN.apply(to_image(pixels), (SIDE, SIDE))
        with generators_kept():
            seed_generators(int(seed))
            RandomErasing(1.0, mode="pixel", device="cpu")(expected)
        assert torch.equal(image, expected)


@pytest.mark.parametrize("options", [{}, {"random_erasing": 1.0}, {"crop_scale": (0.1, 0.5)}])
def test_a_batch_is_bytes_until_it_is_finished(options: dict[str, Any]) -> None:
    batches = Batches(noise(), (SIDE, SIDE), PLAIN, Augmentation(**options), 0)
    request = 0, np.arange(4)
    varied = batches.read(request)
    assert varied.pixels_bhwc.dtype == torch.uint8
    assert varied.noise.nbytes < varied.pixels_bhwc.nbytes * (4 / 3 if options.get("random_erasing") else 1e-9)
    images, labels = batches.finish(request, varied.to(torch.device("cpu")))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, batches[request][0])
    assert torch.equal(labels, torch.arange(4))


@pytest.mark.parametrize(
    "options",
    [
        {"random_erasing": 1.0},
        {"rand_augment": "rand-m9-n9-p1"},
        {"crop_scale": (0.1, 0.5)},
        {"color_jitter": 0.4},
        {"trivial_augment": True},
    ],
)
def test_variation_is_a_function_of_seed_epoch_image_and_copy(options: dict[str, Any]) -> None:
    split, draw = constant(3) if "random_erasing" in options else noise(3), np.array([1])
    same = images_of(split, draw, seed=4, epoch=2, **options)
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    assert torch.equal(images_of(split, np.array([0, 1]), seed=4, epoch=2, **options)[1:], same)
    for seed, epoch, other in ((5, 2, draw), (4, 3, draw), (4, 2, draw + COPY), (4, 2, draw + 1)):
        assert not torch.equal(images_of(split, other, seed=seed, epoch=epoch, **options), same)


def test_rand_augment_applies_every_operation_as_often() -> None:
    """Two of the operations are drawn for each image, each applied with probability 1/2."""
    transform = ImageAugmentation(Augmentation(rand_augment=RAND_AUGMENT), IMAGENET, (8, 8))
    assert transform.rand_augment is not None
    applied: Counter[str] = Counter()
    operations = transform.rand_augment.ops
    for operation in operations:
        operation.aug_fn = lambda image, *_, name=operation.name, **__: applied.update([name]) or image
    image, images = to_image(np.zeros((8, 8, 3), np.uint8)), 3000
    for seed in range(images):
        with generators_kept():
            seed_generators(seed)
            transform.rand_augment(image)
    assert len(applied) == len(operations) == 15
    expected = images * 2 * 0.5 / len(operations)
    assert max(abs(count - expected) for count in applied.values()) < 5 * expected**0.5


def test_colour_jitter_keeps_the_shape_of_things_and_stays_in_its_range() -> None:
    """A grey image has no contrast and no saturation to change: what is left is its brightness."""
    identity = Preprocessing((0.0,) * 3, (1.0,) * 3)
    grey = ArraySplit(from_pixels(np.full((1, SIDE, SIDE, 3), 100, np.uint8)), torch.zeros(1, dtype=torch.int64))
    augmentation = Augmentation(flip=False, color_jitter=0.3)
    images, _ = Batches(grey, (SIDE, SIDE), identity, augmentation, 0)[0, COPIES[:300]]
    levels = 255 * images[:, :, 0, 0]
    assert torch.equal(images, images[:, :1, :1, :1].expand_as(images))
    assert 69 <= levels.min() < 73
    assert 127 < levels.max() <= 131


def test_trivial_augment_does_one_thing_to_an_image_all_of_them_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: Counter[str] = Counter()

    def note(image: Image.Image, name: str, *_: object, **__: object) -> Image.Image:
        applied[name] += 1
        return image

    monkeypatch.setattr("torchvision.transforms.autoaugment._apply_op", note)
    images_of(noise(1), COPIES, trivial_augment=True)
    assert sum(applied.values()) == len(COPIES)
    assert len(applied) == 14
    expected = len(COPIES) / len(applied)
    assert max(abs(count - expected) for count in applied.values()) < 5 * expected**0.5


@pytest.mark.parametrize("options", [{"color_jitter": 0.4}, {"trivial_augment": True}, {"rand_augment": "rand-m9"}])
def test_grey_images_are_varied_too(options: dict[str, Any]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 1), dtype=np.uint8)
    grey = ArraySplit(from_pixels(pixels), torch.zeros(1, dtype=torch.int64))
    batches = Batches(grey, (SIDE, SIDE), Preprocessing((0.5,), (0.2,)), Augmentation(flip=False, **options), 0)
    images, _ = batches[0, COPIES[:100]]
    assert images.shape == (100, 1, SIDE, SIDE)
    assert len({image.numpy().tobytes() for image in images}) > 20


def test_a_random_crop_keeps_to_its_shares_and_proportions() -> None:
    """Red grows to the right and green downwards, one level a pixel: their spans tell the crop's width and height."""
    ramp = np.zeros((256, 256, 3), np.uint8)
    ramp[:, :, 0], ramp[:, :, 1] = np.arange(256)[None], np.arange(256)[:, None]
    identity = Preprocessing((0.0,) * 3, (1.0,) * 3)
    augmentation = Augmentation(flip=False, crop_scale=(0.08, 1.0))
    split = ArraySplit(from_pixels(ramp[None]), torch.zeros(1, dtype=torch.int64))
    crops, _ = Batches(split, (SIDE, SIDE), identity, augmentation, 0)[0, COPIES[:400]]
    red, green = (255 * crops[:, channel].flatten(1) for channel in (0, 1))
    widths = (red.amax(1) - red.amin(1)) * SIDE / (SIDE - 1)
    heights = (green.amax(1) - green.amin(1)) * SIDE / (SIDE - 1)
    shares, proportions = widths * heights / 256**2, widths / heights
    assert 0.07 < shares.min() < 0.12
    assert 0.9 < shares.max() < 1.03
    assert 0.7 < proportions.min() < 0.78
    assert 1.28 < proportions.max() < 1.43
    assert abs(shares.median() - 0.54) < 0.08  # uniform, less the widest that do not fit


def test_a_square_cut_out_of_a_brighter_image_is_the_mean() -> None:
    plain, bright = (images_of(noise(64), np.arange(64), cutout=8, brightness=share) for share in (0.0, 0.5))
    assert torch.equal((plain == 0).all(1), (bright == 0).all(1))  # no pixel's red is the mean
    assert (plain != bright).flatten(1).any(1).all()


def test_images_of_memory_and_of_files_get_the_same_brightness() -> None:
    split, options = noise(8), {"brightness": 0.3, "flip": "alternate"}
    augmentation, draws = Augmentation(**options), np.arange(8)
    held = Batches(split, (SIDE, SIDE), PLAIN, augmentation, 0, split.pixels())[3, draws][0]
    assert torch.equal(held, images_of(split, draws, epoch=3, **options))
