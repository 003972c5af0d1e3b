"""An epoch is a function of (seed, epoch, index): batch size, workers, resuming and other draws change nothing."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from ceit.data.batches.augment import Augmentation
from ceit.data.batches.loader import Loader, make_loader
from ceit.data.path_array import PathArray
from ceit.data.preprocessing import Preprocessing, to_image
from ceit.data.splits import ArraySplit, FileSplit, Split, from_pixels

COLOUR = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
AUGMENTATIONS = [
    Augmentation(flip=True, translate=2, cutout=3),
    Augmentation(translate=1, rand_augment="rand-m9-mstd0.5-inc1"),
    Augmentation(crop_scale=(0.3, 1.0), random_erasing=0.5, cutout=2),
]


def noise_split(images: int = 23, side: int = 8, channels: int = 3) -> ArraySplit:
    pixels = np.random.default_rng(0).integers(0, 256, (images, side, side, channels), dtype=np.uint8)
    return ArraySplit(from_pixels(pixels), torch.arange(images))


@pytest.fixture
def split() -> ArraySplit:
    return noise_split()


@pytest.fixture
def files(tmp_path_factory: pytest.TempPathFactory, split: ArraySplit) -> FileSplit:
    """The same images on the disk."""
    paths = [tmp_path_factory.getbasetemp() / f"loader{index}.png" for index in range(len(split))]
    for path, pixels in zip(paths, split.pixels(), strict=True):
        to_image(pixels).save(path)
    return FileSplit(PathArray.of(paths), split.labels)


def loader_of(split: Split, batch_size: int = 5, **options: Any) -> Loader:
    usual = {"img_size": (8, 8), "preprocessing": COLOUR, "seed": 7, "shuffle": True, "workers": 0}
    return make_loader(split, batch_size=batch_size, **{**usual, **options})


def shown(loader: Loader, epoch: int = 0, start_batch: int = 0) -> dict[int, Tensor]:
    """Every image of an epoch by its label, which is its index."""
    batches = list(loader.epoch(epoch, start_batch))
    labels = [label for _, labels in batches for label in labels.tolist()]
    images = [image for images, _ in batches for image in images]
    assert len(set(labels)) == len(labels)
    return dict(zip(labels, images, strict=True))


def equal(first: dict[int, Tensor], second: dict[int, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_without_augmentation_images_come_as_prediction_sees_them(split: ArraySplit, files: FileSplit) -> None:
    expected = {i: COLOUR.apply(to_image(pixels), (8, 8)) for i, pixels in enumerate(split.pixels())}
    for source in (split, files):
        loader = loader_of(source, shuffle=False)
        assert equal(shown(loader), expected)
        images, labels = next(loader.epoch(0))
        assert labels.tolist() == [0, 1, 2, 3, 4]
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_batch_size_does_not_matter(split: ArraySplit, augmentation: Augmentation) -> None:
    alone = shown(loader_of(split, batch_size=1, augmentation=augmentation), epoch=3)
    assert equal(alone, shown(loader_of(split, batch_size=7, augmentation=augmentation), epoch=3))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS[1:])
def test_other_draws_do_not_matter_and_are_not_disturbed(split: ArraySplit, augmentation: Augmentation) -> None:
    expected = shown(loader_of(split, augmentation=augmentation))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    undisturbed = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert equal(shown(loader_of(split, augmentation=augmentation)), expected)
    assert (random.random(), np.random.rand(), torch.rand(1)) == undisturbed


@pytest.mark.parametrize("augmentation", AUGMENTATIONS[::2])
def test_files_and_arrays_are_varied_alike(split: ArraySplit, files: FileSplit, augmentation: Augmentation) -> None:
    in_memory = shown(loader_of(split, augmentation=augmentation))
    assert equal(in_memory, shown(loader_of(files, augmentation=augmentation)))


def test_workers_do_not_matter(files: FileSplit) -> None:
    state = torch.get_rng_state()
    serial, parallel = (loader_of(files, augmentation=AUGMENTATIONS[1], workers=workers) for workers in (0, 2))
    assert equal(shown(serial, epoch=2), shown(parallel, epoch=2))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("drop_last", [False, True])
def test_resuming_gives_the_rest(split: ArraySplit, drop_last: bool) -> None:
    loader = loader_of(split, augmentation=AUGMENTATIONS[0], drop_last=drop_last)
    whole, rest = list(loader.epoch(4)), list(loader.epoch(4, start_batch=2))
    assert len(whole) == len(loader) == (4 if drop_last else 5)
    assert loader.images == sum(len(labels) for _, labels in whole) == (20 if drop_last else 23)
    assert len(rest) == len(whole) - 2
    for (images, labels), (same_images, same_labels) in zip(whole[2:], rest, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
    assert list(loader.epoch(4, start_batch=len(loader))) == []
    some = list(loader.epoch(4, 1, 3))
    assert [labels.tolist() for _, labels in some] == [labels.tolist() for _, labels in whole[1:3]]
    assert len(list(loader.epoch(4, 1, 1000))) == len(loader) - 1


def test_seeds_and_epochs_differ(split: ArraySplit) -> None:
    augmentation = AUGMENTATIONS[0]
    variants = [(7, 0), (7, 1), (8, 0)]
    epochs = [shown(loader_of(split, augmentation=augmentation, seed=seed), epoch) for seed, epoch in variants]
    assert len({tuple(epoch) for epoch in epochs}) == 3  # the order
    assert not torch.equal(
        torch.stack([epochs[0][i] for i in range(23)]), torch.stack([epochs[1][i] for i in range(23)])
    )


def test_shards_share_every_batch_and_repeat_nothing(split: ArraySplit) -> None:
    whole = shown(loader_of(split, batch_size=6, augmentation=AUGMENTATIONS[0]))
    parts = [shown(loader_of(split, batch_size=6, augmentation=AUGMENTATIONS[0], shard=(r, 3))) for r in range(3)]
    assert sum(len(part) for part in parts) == len(whole)
    assert equal({**parts[0], **parts[1], **parts[2]}, {key: whole[key] for part in parts for key in part})


@pytest.mark.parametrize("augmentation", [None, AUGMENTATIONS[0], AUGMENTATIONS[1]])
def test_a_shard_without_images_is_an_empty_batch(augmentation: Augmentation | None) -> None:
    loader = loader_of(noise_split(4), batch_size=3, augmentation=augmentation, shard=(2, 3))
    assert [tuple(images.shape) for images, _ in loader.epoch(0)] == [(1, 3, 8, 8), (0, 3, 8, 8)]


@pytest.mark.parametrize("img_size", [(12, 12), (6, 10), (96, 72)])
@pytest.mark.parametrize("augmentation", [None, *AUGMENTATIONS])
def test_any_size(split: ArraySplit, img_size: tuple[int, int], augmentation: Augmentation | None) -> None:
    images = shown(loader_of(split, img_size=img_size, augmentation=augmentation))
    assert {tuple(image.shape) for image in images.values()} == {(3, *img_size)}
    if augmentation is None:
        assert torch.equal(images[3], COLOUR.apply(to_image(split.pixels()[3]), img_size))


REPEATED = Augmentation(crop_scale=(0.3, 1.0), repeats=3)


def labels_of(loader: Loader, epoch: int = 0, start_batch: int = 0) -> list[int]:
    return [label for _, labels in loader.epoch(epoch, start_batch) for label in labels.tolist()]


@pytest.mark.parametrize("augmentation", [REPEATED, Augmentation(translate=2, cutout=3, repeats=3)])
def test_copies_follow_each_other_and_differ(split: ArraySplit, augmentation: Augmentation) -> None:
    once = shown(loader_of(split, augmentation=replace(augmentation, repeats=1)), epoch=2)
    loader = loader_of(split, augmentation=augmentation)
    batches = list(loader.epoch(2))
    labels = torch.cat([labels for _, labels in batches]).tolist()
    images = torch.cat([images for images, _ in batches])
    assert len(labels) == loader.images == len(split) == 23
    assert [len(set(labels[start : start + 3])) for start in range(0, 21, 3)] == [1] * 7
    assert len(set(labels)) == 8  # seven images three times, the eighth is cut
    for start in range(0, 21, 3):
        copies = images[start : start + 3]
        assert torch.equal(copies[0], once[labels[start]])
        assert not torch.equal(copies[1], copies[2])
        assert not torch.equal(copies[0], copies[1])


@given(
    images=st.integers(3, 40),
    batch_size=st.integers(1, 16),
    repeats=st.integers(1, 4),
    processes=st.integers(1, 4),
    drop_last=st.booleans(),
    sampling=st.sampled_from(["shuffle", "balanced"]),
    epoch=st.integers(0, 50),
)
def test_processes_part_every_batch_and_any_batch_can_be_resumed_from(
    images: int, batch_size: int, repeats: int, processes: int, drop_last: bool, sampling: str, epoch: int
) -> None:
    batch_size = min(images, batch_size)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "augmentation": Augmentation(repeats=repeats),
        "drop_last": drop_last,
        "sampling": sampling,
    }
    split = noise_split(images)
    whole = list(loader_of(split, **options).epoch(epoch))
    parts = [list(loader_of(split, **options, shard=(rank, processes)).epoch(epoch)) for rank in range(processes)]
    assert sum(len(labels) for _, labels in whole) == (images // batch_size * batch_size if drop_last else images)
    for number, (pixels, labels) in enumerate(whole):
        for rank, part in enumerate(parts):
            assert torch.equal(part[number][0], pixels[rank::processes])
            assert torch.equal(part[number][1], labels[rank::processes])
    start = len(whole) // 2
    rest = list(loader_of(split, **options).epoch(epoch, start))
    assert len(rest) == len(whole) - start
    assert all(torch.equal(first, second) for (first, _), (second, _) in zip(whole[start:], rest, strict=True))


def test_as_many_processes_as_copies_see_no_image_twice(split: ArraySplit) -> None:
    for rank in range(3):
        for _, labels in loader_of(split, batch_size=12, augmentation=REPEATED, shard=(rank, 3)).epoch(0):
            assert len(set(labels.tolist())) == len(labels)


def test_copies_in_a_batch_are_decoded_once(split: ArraySplit, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = ArraySplit.read
    monkeypatch.setattr(ArraySplit, "read", lambda *asked: reads.append(asked[1]) or read(*asked))
    labels = labels_of(loader_of(split, batch_size=12, augmentation=REPEATED))
    assert len(labels) == 23
    assert reads == [*dict.fromkeys(labels)]
    del reads[:]
    assert labels_of(loader_of(split, batch_size=12, augmentation=replace(REPEATED, repeats=1))) == reads


def test_an_imagenet_epoch_of_repeated_images_has_the_released_length() -> None:
    """SPEC: floor(n / 256) * 256 samples, about n / 3 distinct images; and few images are no special case."""
    for images, batch_size, expected in ((1000, 256, 768), (300, 256, 256), (5, 4, 4)):
        loader = loader_of(
            noise_split(images, 4), batch_size=batch_size, img_size=(4, 4), augmentation=REPEATED, drop_last=True
        )
        labels = loader.keys(0)
        assert len(labels) == loader.images == expected == len(loader) * batch_size
        assert len(set(labels)) == -(-expected // 3)


def test_classes_are_balanced(split: ArraySplit) -> None:
    uneven = ArraySplit(split.images, torch.tensor([0] * 19 + [1] * 3 + [4]))
    loader = loader_of(uneven, sampling="balanced", augmentation=AUGMENTATIONS[0], drop_last=True)
    labels = torch.cat([labels for _, labels in loader.epoch(0)])
    assert torch.bincount(labels)[[0, 1, 4]].sort().values.tolist() == [6, 7, 7]
    batches = list(loader.epoch(0))
    only = torch.cat([images for images, _ in batches])[labels == 4]
    assert len({tuple(image.flatten().tolist()) for image in only}) >= 5  # the one image of its class, varied


def test_keys_are_what_an_epoch_shows(files: FileSplit) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"sampling": "balanced"},
        {"augmentation": REPEATED},
        {"shuffle": False},
    ]
    for options in variants:
        loader = loader_of(files, drop_last=True, **options)
        assert loader.keys(3) == [files.key(label) for label in labels_of(loader, 3)]
    assert loader_of(files, shuffle=False).keys(0) == [files.key(index) for index in range(23)]


def test_shards_are_gone_through_a_window_at_a_time(split: ArraySplit) -> None:
    in_shards = Shards(split.images, split.labels)
    loader = loader_of(in_shards, shard_window=2)
    for epoch in range(3):
        shards = [label // 5 for label in labels_of(loader, epoch)]
        assert sorted(labels_of(loader, epoch)) == list(range(23))
        assert all(shards[end:].count(shards[0]) == 0 for end in (10, 15))
    assert loader_of(in_shards, shard_window=5).keys(1) == loader_of(split).keys(1)


class Shards(ArraySplit):
    """Five images to a shard."""

    @property
    def shard_of(self) -> np.ndarray:
        return np.arange(len(self)) // 5


@pytest.mark.parametrize("drop_last", [False, True])
def test_few_batches_are_the_first_ones(split: ArraySplit, drop_last: bool) -> None:
    whole = labels_of(loader_of(split, drop_last=drop_last))
    for limit in (1, 2, 9):
        loader = loader_of(split, drop_last=drop_last, limit_batches=limit)
        labels = labels_of(loader)
        assert labels == whole[: 5 * limit]
        assert (len(loader), loader.images) == (-(-len(labels) // 5), len(labels))


def test_grey_images_go_through_everything() -> None:
    grey = Preprocessing((0.3,), (0.2,))
    everything = Augmentation(True, 2, 2, "rand-m9-mstd0.5-inc1", (0.5, 1.0), 0.5)
    images = shown(loader_of(noise_split(60, channels=1), preprocessing=grey, augmentation=everything))
    assert {tuple(image.shape) for image in images.values()} == {(1, 8, 8)}


def test_the_strongest_rand_augment(split: ArraySplit) -> None:
    """At magnitude 10 it posterizes to 0 bits, which Pillow's own function refuses."""
    augmentation = Augmentation(rand_augment="rand-m10-n9-p1-inc1")
    assert len(shown(loader_of(split, augmentation=augmentation))) == 23


def test_erasing_puts_noise_in() -> None:
    plain = ArraySplit(from_pixels(np.zeros((8, 16, 16, 3), np.uint8)), torch.arange(8))
    always = Augmentation(flip=False, random_erasing=1.0)
    images = shown(loader_of(plain, img_size=(16, 16), augmentation=always))
    assert all(image.unique().numel() > 10 for image in images.values())


def test_a_random_crop_shows_a_part() -> None:
    ramp = np.broadcast_to(np.arange(0, 256, 16, dtype=np.uint8)[None, None, :, None], (1, 16, 16, 3))
    split = ArraySplit(from_pixels(np.repeat(ramp, 30, axis=0)), torch.arange(30))
    crop = Augmentation(flip=False, crop_scale=(0.1, 0.2))
    spans = [
        float(i[0].max() - i[0].min()) for i in shown(loader_of(split, img_size=(16, 16), augmentation=crop)).values()
    ]
    assert max(spans) < 0.7 * 240 / 255 / COLOUR.std[0]


def test_file_channels_follow_the_preprocessing(files: FileSplit) -> None:
    grey = Preprocessing((0.3,), (0.2,))
    images = shown(loader_of(files, preprocessing=grey))
    with Image.open(files.paths[5]) as image:
        assert torch.equal(images[5], grey.apply(image.convert("L"), (8, 8)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size 0 must be at least 1"),
        ({"batch_size": 24, "drop_last": True}, "batch size 24 is larger than the split of 23 images"),
        ({"preprocessing": Preprocessing((0.5,), (0.5,))}, "the images have 3 channels, the preprocessing 1"),
        ({"augmentation": Augmentation(translate=9)}, "translate 9 must be below the image's shorter side of 8"),
        ({"limit_batches": 0}, "limit_batches 0 must be at least 1, or None for all"),
        ({"sampling": "ballanced"}, "unknown sampling 'ballanced'.*balanced"),
        ({"shard_window": -1}, "shard_window -1 must not be negative"),
        ({"shard_window": 4}, "shard_window 4 needs images in shards, which these are not: set it to 0"),
        ({"shard_window": 4, "sampling": "balanced"}, "balanced sampling draws from all images, not from 4 shards"),
    ],
)
def test_what_cannot_be_loaded_is_refused(split: ArraySplit, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loader_of(split, **options)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="the split has no images"):
        loader_of(FileSplit(PathArray.of([]), torch.empty(0, dtype=torch.int64)))
