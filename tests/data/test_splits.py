"""Sets by name, and the stratified cut of a validation split."""

import gzip
import hashlib
import struct
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ceit.data.cut import SHARE_STREAM
from ceit.data.path_array import PathArray
from ceit.data.preprocessing import fit, to_array, to_image
from ceit.data.sources.archives import ARRAY_NAMES
from ceit.data.sources.choose import load_dataset
from ceit.data.sources.known_sets import SETS
from ceit.data.splits import ArraySplit, FileSplit, channel_statistics, cut_validation, stratified

DIGITS_SHA256 = ("5fbe9ac2f283f9d8", "679818d6fb5472a2")  # beginning, of the training and of the test images


def split_of(labels: list[int]) -> ArraySplit:
    """Images whose only pixel is their position."""
    images = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return ArraySplit(images, torch.tensor(labels))


def test_digits_are_the_published_ones() -> None:
    digits = load_dataset("digits")
    assert isinstance(digits.train, ArraySplit)
    assert isinstance(digits.test, ArraySplit)
    assert (len(digits.train), len(digits.test), digits.validation) == (1437, 360, None)
    assert digits.train.images.shape == (1437, 1, 8, 8)
    assert digits.train.images.dtype == torch.uint8
    assert (digits.img_size, digits.in_chans, len(digits.class_names)) == ((8, 8), 1, 10)
    counts = torch.bincount(digits.test.labels)
    assert counts.min() >= 35
    assert counts.max() <= 37
    assert "Alpaydin" in digits.citation
    hashes = [hashlib.sha256(split.pixels().tobytes()).hexdigest()[:16] for split in (digits.train, digits.test)]
    assert tuple(hashes) == DIGITS_SHA256


def test_the_test_split_of_digits_is_the_stratified_one_of_seed_0() -> None:
    digits = load_dataset("digits")
    counts = np.bincount(digits.test.labels.numpy())
    with files("ceit.data").joinpath("digits.npz").open("rb") as file, np.load(file) as stored:
        assert np.array_equal(stratified(stored["labels"], counts, seed=0), stored["test"])


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (16, 24)])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_images_come_at_the_size_and_channels_asked_for(size: tuple[int, int], in_chans: int) -> None:
    native, asked = load_dataset("digits").test, load_dataset("digits", img_size=size, in_chans=in_chans)
    assert isinstance(native, ArraySplit)
    assert isinstance(asked.test, ArraySplit)
    assert asked.test.images.shape == (360, in_chans, *size)
    assert (asked.img_size, asked.in_chans) == (size, in_chans)
    expected = to_array(fit(to_image(native.pixels()[7]), size))
    assert np.array_equal(asked.test.pixels()[7], expected.repeat(in_chans, axis=2))


def test_rgb_becomes_grey_by_luminance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path))
    (tmp_path / "cifar10").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    for name in ARRAY_NAMES:
        np.save(tmp_path / "cifar10" / f"{name}.npy", pixels if "images" in name else np.arange(5, dtype=np.uint8))
    grey, colour = load_dataset("cifar10", in_chans=1).test, load_dataset("cifar10").test
    assert isinstance(grey, ArraySplit)
    assert isinstance(colour, ArraySplit)
    assert np.array_equal(colour.pixels(), pixels)
    assert np.array_equal(grey.pixels()[2, :, :, 0], np.asarray(Image.fromarray(pixels[2]).convert("L")))


def test_a_large_size_is_left_to_the_loader() -> None:
    digits = load_dataset("digits", img_size=(224, 224))
    assert isinstance(digits.test, ArraySplit)
    assert digits.img_size == (224, 224)
    assert digits.test.images.shape[2:] == (8, 8)
    assert digits.preprocessing.crop == 1.0


def test_a_set_that_was_not_fetched_says_how() -> None:
    with pytest.raises(ValueError, match="get it with `ceit data fetch cifar10`, or use digits, which ships"):
        load_dataset("cifar10")


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown data set 'cifar01'; did you mean 'cifar10'.*no folder of that name"):
        load_dataset("cifar01")
    with pytest.raises(ValueError, match="data folder some/where does not exist"):
        load_dataset("some/where")


def test_impossible_wishes() -> None:
    with pytest.raises(ValueError, match=r"image size \(0, 8\) must be positive"):
        load_dataset("digits", img_size=(0, 8))
    with pytest.raises(ValueError, match=r"with 2 channels: use 1 \(grey\) or 3 \(RGB\)"):
        load_dataset("digits", in_chans=2)


@pytest.mark.parametrize("zipped", [False, True])
def test_the_files_of_the_owners_archive(tmp_path: Path, zipped: bool) -> None:
    """MNIST's four files, as they come or unpacked, wherever they lie in the folder that is named."""
    images = {"train": np.arange(12, dtype=np.uint8).reshape(3, 2, 2), "t10k": np.full((2, 2, 2), 9, np.uint8)}
    (tmp_path / "raw").mkdir()
    for part, pixels in images.items():
        for kind, values in (("images", pixels), ("labels", np.arange(len(pixels), dtype=np.uint8))):
            header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
            data, name = header + values.tobytes(), f"{part}-{kind}-idx{values.ndim}-ubyte"
            (tmp_path / "raw" / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(data) if zipped else data)
    mnist = load_dataset(f"mnist:{tmp_path}")
    assert isinstance(mnist.train, ArraySplit)
    assert (len(mnist.train), len(mnist.test), mnist.mirror_safe) == (3, 2, False)
    assert mnist.licence == SETS["mnist"].licence
    assert mnist.test.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"cifar10 is not in .*: it holds no data_batch_1\.bin"):
        load_dataset(f"cifar10:{tmp_path}")
    with pytest.raises(ValueError, match=r"mnist is not in .*nowhere: there is no such folder"):
        load_dataset(f"mnist:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match=r"digits is not in .*: it ships with the package"):
        load_dataset(f"digits:{tmp_path}")


def test_some_classes_of_a_named_set() -> None:
    whole, some = load_dataset("digits"), load_dataset("digits", classes=["7", "1"])
    assert isinstance(whole.train, ArraySplit)
    assert isinstance(some.train, ArraySplit)
    assert some.class_names == ("7", "1")
    assert len(some.train) == int(((whole.train.labels == 7) | (whole.train.labels == 1)).sum())
    for index in (0, 1, 2, 3):
        key = int(some.train.key(index))
        assert torch.equal(some.train.images[index], whole.train.images[key])
        assert some.class_names[some.train.labels[index]] == whole.class_names[whole.train.labels[key]]
    assert (some.licence, some.citation, some.mirror_safe) == (whole.licence, whole.citation, False)
    assert some.mean != whole.mean
    with pytest.raises(ValueError, match=r"unknown class 'seven'.* in digits"):
        load_dataset("digits", classes=["seven", "1"])


def test_every_source_table_is_complete() -> None:
    for name, named in SETS.items():
        assert named.licence, name
        assert named.citation, name
        assert named.sources or name == "digits"
        assert set(named.sha256) in (set(), set(ARRAY_NAMES))
        assert named.sha256 or name in ("digits", "cifar100")
        assert len(set(named.class_names)) == len(named.class_names)
    assert len(SETS["cifar100"].class_names) == 100
    assert list(SETS["cifar100"].class_names) == sorted(SETS["cifar100"].class_names)


@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=120),
    percent=st.floats(1, 99),
    seed=st.integers(0, 2**63 - 1),
)
def test_the_cut_is_stratified_and_loses_nothing(labels: list[int], percent: float, seed: int) -> None:
    split = split_of(labels)
    count = max(1, round(len(labels) * percent / 100))
    if not 0 < count <= len(labels) - len(set(labels)):
        with pytest.raises(ValueError, match="every class keeps an image"):
            cut_validation(split, percent, seed)
        return
    rest, part = cut_validation(split, percent, seed)
    assert isinstance(rest, ArraySplit)
    assert isinstance(part, ArraySplit)
    assert len(part) == count
    positions = torch.cat([rest.images.flatten(), part.images.flatten()])
    assert positions.sort().values.tolist() == list(range(len(labels)))
    for kept in (rest, part):
        assert kept.labels.tolist() == [labels[position] for position in kept.images.flatten().tolist()]
    for label in set(labels):
        share = labels.count(label) * count / len(labels)
        assert part.labels.tolist().count(label) <= share + 1
        assert rest.labels.tolist().count(label) >= 1


def test_the_cut_depends_on_the_seed_alone() -> None:
    split = split_of([0, 1] * 50)
    parts = [cut_validation(split, 20, seed)[1].labels.shape[0] for seed in (0, 0, 1)]
    assert parts == [20, 20, 20]  # an int is a number of images
    first, again, other = (cut_validation(split, 20.0, seed)[1] for seed in (0, 0, 1))
    assert isinstance(first, ArraySplit)
    assert isinstance(again, ArraySplit)
    assert isinstance(other, ArraySplit)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_subset_of_files() -> None:
    split = FileSplit(PathArray.of(["r/x/a.png", "r/x/b.png", "/far/c.png"]), torch.tensor([0, 1, 2]), Path("r"))
    chosen = split.subset(torch.tensor([2, 0]))
    assert tuple(chosen.paths) == (Path("/far/c.png"), Path("r/x/a.png"))
    assert chosen.labels.tolist() == [2, 0]
    assert [chosen.key(0), chosen.key(1)] == ["/far/c", "x/a"]


def test_a_sample_keeps_its_key_in_every_subset() -> None:
    split = split_of([0, 1, 0, 1])
    chosen = split.subset(torch.tensor([3, 1, 2])).subset(torch.tensor([2, 0]))
    assert [chosen.key(0), chosen.key(1)] == ["2", "3"]
    assert [chosen.read(i, 1).getpixel((0, 0)) for i in (0, 1)] == [2, 3]
    assert chosen.read(1, 3).getpixel((0, 0)) == (3, 3, 3)


@given(seed=st.integers(0, 2**32 - 1), channels=st.sampled_from([1, 3]))
def test_statistics_are_those_of_all_pixels(seed: int, channels: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 3, 5, channels), dtype=np.uint8)
    mean, std = channel_statistics(pixels)
    assert np.allclose(mean, (pixels / 255).mean((0, 1, 2)), atol=1e-5)
    assert np.allclose(std, (pixels / 255).std((0, 1, 2)), atol=1e-5)


def test_a_constant_channel_can_be_divided_by() -> None:
    assert channel_statistics(np.zeros((2, 3, 3, 1), np.uint8)) == ((0.0,), (1.0,))


@pytest.mark.parametrize("is_fixed", [True, False])
def test_a_percentage_of_few_images_is_one_image(is_fixed: bool) -> None:
    split = split_of([0] * 5 + [1] * 5)
    digests = np.random.default_rng(0).integers(0, 2**64, 10, dtype=np.uint64)
    split = split if is_fixed else replace(split, digests=digests)
    for seed in range(20):
        rest, part = cut_validation(split, 4.0, seed)
        assert len(part) == 1 if is_fixed else len(part) >= 1
        assert len(rest) + len(part) == 10
        assert set(rest.labels.tolist()) == {0, 1}
    with pytest.raises(ValueError, match="a validation part of 0 images cannot be cut off 10"):
        cut_validation(split, 0.0, 0)


def test_where_no_class_can_give_an_image_it_is_said() -> None:
    with pytest.raises(ValueError, match="every class keeps an image, so none is left for it"):
        cut_validation(split_of([0, 1]), 5.0, 0)
    copies = replace(split_of([0, 0, 1, 1]), digests=np.array([7, 7, 8, 8], np.uint64))
    with pytest.raises(ValueError, match="cannot be cut off 4 images: no class has two that differ"):
        cut_validation(copies, 5.0, 0)


@pytest.mark.parametrize("is_fixed", [True, False])
def test_p1_a_share_has_of_every_class_and_is_otherwise_what_it_was(is_fixed: bool) -> None:
    for labels in ([0] * 100 + [1] * 100 + [2] * 4 + [3], [0] * 90 + [1] * 60 + [2] * 30):
        split = split_of(labels)
        digests = np.random.default_rng(0).integers(0, 2**64, len(labels), dtype=np.uint64)
        split = split if is_fixed else replace(split, digests=digests)
        for seed in range(10):
            unused, share = cut_validation(split, 20, seed, SHARE_STREAM, least=1)
            _, before = cut_validation(split, 20, seed, SHARE_STREAM)
            assert len(unused) + len(share) == len(labels)
            assert set(share.labels.tolist()) == set(labels)
            forced = set(labels) - set(before.labels.tolist())
            as_before = [index for index in range(len(share)) if int(share.labels[index]) not in forced]
            assert [share.key(index) for index in as_before] == [before.key(index) for index in range(len(before))]
            assert len(share) - len(as_before) == len(forced)
