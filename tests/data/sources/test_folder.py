"""Folders of images: found whatever their layout, split evenly, and refused in one sentence where they cannot serve."""

import errno
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ceit.data import reduced, survey
from ceit.data.audit.check import check
from ceit.data.batches.loader import make_loader
from ceit.data.preprocessing import IMAGENET, Preprocessing
from ceit.data.sources import listing
from ceit.data.sources.choose import load_dataset
from ceit.data.splits import ArraySplit, FileSplit, ImageDataset

ImageFolder = Callable[..., Path]
SPLIT = {"train/cat": 4, "train/dog": 5, "test/cat": 2, "test/dog": 1}


def sizes(dataset: ImageDataset) -> tuple[int, int, int]:
    return len(dataset.train), 0 if dataset.validation is None else len(dataset.validation), len(dataset.test)


def origins(dataset: ImageDataset) -> list[list[tuple[int, int]]]:
    """The mark that the fixture left in each image, by split."""
    marks = []
    for split in (dataset.train, dataset.validation, dataset.test):
        assert isinstance(split, ArraySplit)
        marks.append([(int(number), int(index)) for number, index, _ in split.pixels()[:, 0, 0]])
    return marks


def break_files(root: Path, count: int = 2) -> None:
    """A file cut in the middle, and texts that are named as images."""
    whole = io.BytesIO()
    Image.effect_noise((40, 40), 90).convert("RGB").save(whole, "JPEG")
    (root / "a.jpg").write_bytes(whole.getvalue()[:-300])
    for number in range(1, count):
        (root / f"b{number}.jpg").write_text("not an image")


def test_train_and_test(image_folder: ImageFolder) -> None:
    dataset = load_dataset(image_folder(SPLIT))
    assert sizes(dataset) == (9, 0, 3)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 5
    assert dataset.test.labels.tolist() == [0, 0, 1]
    assert dataset.name == "photos"


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_names_of_the_validation_split(image_folder: ImageFolder, name: str) -> None:
    assert sizes(load_dataset(image_folder({**SPLIT, f"{name}/dog": 2}))) == (9, 2, 3)


def test_without_test_the_validation_split_is_reported(image_folder: ImageFolder) -> None:
    root = image_folder({"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 1})
    assert sizes(load_dataset(root)) == (8, 0, 3)


def test_a_class_may_be_called_train(image_folder: ImageFolder) -> None:
    assert load_dataset(image_folder({"train": 5, "tram": 5})).class_names == ("train", "tram")


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_an_unsplit_folder_is_cut_class_by_class(image_folder: ImageFolder, prefix: str) -> None:
    root = image_folder({f"{prefix}cat": 40, f"{prefix}dog": 20, f"{prefix}owl": 3}, size=(8, 8))
    dataset = load_dataset(root, seed=1)
    assert sizes(dataset) == (44, 10, 9)  # about 80/10/10: every image is placed alone, by its content
    for split in (dataset.validation, dataset.test, dataset.train):
        assert split is not None
        counts = torch.bincount(split.labels).tolist()
        assert min(counts) == counts[2] == 1
    marks = origins(dataset)
    assert len({mark for split in marks for mark in split}) == 63
    assert origins(load_dataset(root, seed=1)) == marks
    assert origins(load_dataset(root, seed=2)) != marks


def test_small_images_are_held_at_their_median_size(image_folder: ImageFolder) -> None:
    dataset = load_dataset(image_folder(SPLIT, size=(30, 21)))
    assert (dataset.img_size, dataset.in_chans) == ((24, 24), 3)
    assert isinstance(dataset.train, ArraySplit)
    assert dataset.train.images.shape == (9, 3, 24, 24)
    assert dataset.train.images.dtype == torch.uint8
    assert np.allclose(dataset.mean, (dataset.train.pixels() / 255).mean((0, 1, 2)), atol=1e-5)
    assert dataset.preprocessing.crop == 1.0


def test_larger_images_stay_on_the_disk(image_folder: ImageFolder) -> None:
    dataset = load_dataset(image_folder(SPLIT, size=(70, 66)))
    assert (dataset.img_size, dataset.in_chans) == ((224, 224), 3)
    assert isinstance(dataset.train, FileSplit)
    assert [path.parent.name for path in dataset.train.paths] == ["cat"] * 4 + ["dog"] * 5
    assert dataset.preprocessing == IMAGENET


def test_asked_for_size_and_channels(image_folder: ImageFolder) -> None:
    root = image_folder(SPLIT, size=(70, 66))
    small = load_dataset(root, img_size=(16, 20), in_chans=1)
    assert isinstance(small.test, ArraySplit)
    assert small.test.images.shape == (3, 1, 16, 20)
    large = load_dataset(root, in_chans=1)
    assert isinstance(large.test, FileSplit)
    assert large.in_chans == 1


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_folder_of_greys_has_one_channel(image_folder: ImageFolder, tmp_path: Path, mode: str) -> None:
    root = image_folder(SPLIT, mode="L")
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            image.convert(mode).save(path)
    assert load_dataset(root).in_chans == 1
    Image.new("RGB", (8, 8)).save(root / "train" / "cat" / "colour.png")
    assert load_dataset(root).in_chans == 3


def test_other_files_and_hidden_ones_are_passed_over(image_folder: ImageFolder) -> None:
    root = image_folder(SPLIT)
    for name in ("train/cat/notes.txt", "train/cat/._0.png", "train/.DS_Store", "readme.md"):
        (root / name).write_text("no image")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "cat" / "more").mkdir()
    Image.new("RGB", (8, 8)).save(root / "train" / "cat" / "more" / "DEEP.JPG")
    assert sizes(load_dataset(root)) == (10, 0, 3)


def test_every_mode_in_one_folder(image_folder: ImageFolder) -> None:
    root = image_folder({"cat": 3, "dog": 3, "owl": 3}, size=(32, 32))
    colours = Image.effect_noise((32, 32), 90).convert("RGB")
    colours.save(root / "cat" / "photo.jpg")
    colours.convert("CMYK").save(root / "cat" / "print.jpg")
    colours.convert("RGBA").save(root / "dog" / "alpha.png")
    colours.convert("L").save(root / "dog" / "grey.jpg")
    Image.fromarray(np.full((32, 32), 40000, np.uint16)).save(root / "owl" / "deep.png")
    colours.quantize(16).save(root / "owl" / "palette.gif")
    dataset = load_dataset(root)
    assert (sum(sizes(dataset)), dataset.in_chans, dataset.img_size) == (15, 3, (32, 32))


@pytest.mark.parametrize("size", [(8, 8), (70, 66)])
def test_broken_files_are_named_and_counted(image_folder: ImageFolder, size: tuple[int, int]) -> None:
    root = image_folder(SPLIT, size=size)
    break_files(root / "train" / "dog")
    with pytest.raises(ValueError, match="cannot be read") as raised:
        load_dataset(root)
    sentence = str(raised.value)
    assert sentence.startswith("2 of 14 files cannot be read: train/dog/a.jpg (")
    fix = "ceit data check --json names all, --skip-broken leaves them out"
    assert sentence.endswith(f"train/dog/b1.jpg (not an image); {fix}")
    assert "truncated" in sentence


@pytest.mark.parametrize("size", [(8, 8), (70, 66)])
def test_broken_files_are_skipped_on_request(image_folder: ImageFolder, size: tuple[int, int]) -> None:
    root = image_folder(SPLIT, size=size)
    break_files(root / "train" / "dog")
    for _ in range(2):  # the second time out of the cache, for large images
        dataset = load_dataset(root, skip_broken=True)
        assert sizes(dataset) == (9, 0, 3)
        assert [line.split(" (")[0] for line in dataset.skipped] == ["train/dog/a.jpg", "train/dog/b1.jpg"]


def test_of_many_broken_files_three_are_named(image_folder: ImageFolder) -> None:
    root = image_folder(SPLIT)
    break_files(root / "train" / "dog", count=5)
    with pytest.raises(
        ValueError, match=r"5 of 17 files .*a\.jpg .*b1\.jpg .*b2\.jpg \(not an image\), \.\.\.; ceit data check"
    ):
        load_dataset(root)


def test_large_images_are_checked_once_until_they_change(
    image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    root, reads = image_folder(SPLIT, size=(70, 66)), []
    read_image = reduced.read_image
    monkeypatch.setattr(reduced, "read_image", lambda *given: reads.append(given) or read_image(*given))
    load_dataset(root)
    assert len(reads) == 12
    load_dataset(root)
    assert len(reads) == 12
    (root / "test" / "dog" / "0.png").write_text("broken now")
    with pytest.raises(ValueError, match=r"1 of 12 files cannot be read: test/dog/0.png"):
        load_dataset(root)


@pytest.mark.parametrize("size", [(8, 8), (70, 66)])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_p14_a_file_that_cannot_be_read_now_is_read_later(
    image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: tuple[int, int], number: int
) -> None:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    root, reopen = image_folder(SPLIT, size=size), io.open
    path = root / "train" / "dog" / "3.png"

    class Failing(io.FileIO):
        """Fails when it is read, as a drive does that is about to break."""

        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(errno.EIO, "Input/output error", str(path))

    def failing(file: Any, *given: Any, **options: Any) -> Any:
        if file != path:
            return reopen(file, *given, **options)
        if number == errno.EIO:
            return Failing(path)
        raise PermissionError(number, "Permission denied", str(path))

    reason = {errno.EACCES: "Permission denied", errno.EIO: "Input/output error"}[number]
    with monkeypatch.context() as patch:
        patch.setattr(io, "open", failing)
        with pytest.raises(ValueError, match=rf"^1 of 12 .* read: train/dog/3.png \({reason}\); ceit") as raised:
            load_dataset(root)
        assert "remove" not in str(raised.value)  # it may be a good image
        dataset = load_dataset(root, skip_broken=True)
        assert (sizes(dataset), dataset.skipped) == ((8, 0, 3), (f"train/dog/3.png ({reason})",))
    dataset = load_dataset(root, skip_broken=True)
    assert (sizes(dataset), dataset.skipped) == ((9, 0, 3), ())


def test_m5_a_set_larger_than_memory_is_trained_on_as_if_it_were_held(
    image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    root = image_folder(SPLIT, size=(300, 200))
    held = load_dataset(root, img_size=(32, 32))
    monkeypatch.setattr(survey, "memory_bytes", lambda: 1e5)
    read = load_dataset(root, img_size=(32, 32))
    assert isinstance(held.train, ArraySplit)
    assert isinstance(read.train, FileSplit)
    assert read.preprocessing.crop == held.preprocessing.crop == 1.0
    plain = Preprocessing((0.5,) * 3, (0.5,) * 3)

    def images(dataset: ImageDataset) -> torch.Tensor:
        loader = make_loader(dataset.train, batch_size=9, img_size=(32, 32), preprocessing=plain, workers=0)
        return next(loader.epoch(0))[0]

    assert torch.equal(images(read), images(held))


def test_a_cache_that_cannot_be_written_is_done_without(
    image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "file"))
    assert sizes(load_dataset(image_folder(SPLIT, size=(70, 66)))) == (9, 0, 3)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "photos has no images: it must hold a folder of images for each class"),
        ({"cat": 0, "dog": 0}, "photos has no images"),
        ({"cat": 5}, "photos has only the class 'cat': a classifier needs at least two"),
        ({"train/cat": 5, "test/cat": 2}, "has only the class 'cat'"),
        ({"train/cat": 5, "train/dog": 5, "test/cat": 0}, "test has no images"),
        ({**SPLIT, "test/owl": 1}, "class 'owl' of folder .*photos is in test but not in train"),
        ({**SPLIT, "val/owl": 1}, "class 'owl' of folder .*photos is in validation but not in train"),
        ({"cat": 5, "dog": 2}, "class 'dog' has 2 images: a set that is not split yet needs 3 of each"),
    ],
)
def test_what_is_no_data_set(image_folder: ImageFolder, counts: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset(image_folder(counts))


@pytest.mark.parametrize(
    "names", [("Training", "Testing"), ("train", "TEST"), ("train_set", "Val"), ("train2017", "dev")]
)
def test_p2_splits_in_any_usual_spelling(image_folder: ImageFolder, names: tuple[str, str]) -> None:
    counts = {f"{names[0]}/{kind}": 4 for kind in ("cat", "dog", "owl")} | {f"{names[1]}/cat": 2}
    dataset = load_dataset(image_folder(counts))
    assert dataset.class_names == ("cat", "dog", "owl")
    assert sizes(dataset) == (12, 0, 2)
    assert dataset.remarks == ()


def test_p2_a_validation_and_a_test_part_do_not_train(image_folder: ImageFolder) -> None:
    root = image_folder({"val/cat": 4, "val/dog": 4, "test/cat": 4, "test/dog": 4})
    with pytest.raises(ValueError, match="photos has no training images, only validation and test: add a part named"):
        load_dataset(root)


def test_p2_classes_that_hold_the_same_folders_are_questioned(image_folder: ImageFolder) -> None:
    root = image_folder({f"{part}/{kind}": 4 for part in ("Lernen", "Messen") for kind in ("cat", "dog")})
    with pytest.raises(ValueError, match=r"Lernen and Messen of folder .*photos hold the same folders, cat and dog"):
        load_dataset(root)


@pytest.mark.parametrize("suffix", ["avif", "jpe", "jp2", "PNG", "jfif", "tga"])
def test_p3_every_image_that_a_file_alone_may_be_is_used_in_a_folder(image_folder: ImageFolder, suffix: str) -> None:
    root = image_folder({"cat": 4, "dog": 4})
    for path in list(root.rglob("*.png")):
        with Image.open(path) as image:
            image.save(path.with_name(f"new{path.stem}.{suffix}"))
        path.unlink()
    assert sum(sizes(load_dataset(root))) == 8
    assert load_dataset(root).remarks == ()


def test_p4_a_background_class_is_a_class(image_folder: ImageFolder) -> None:
    dataset = load_dataset(image_folder({"cat": 3, "dog": 3, "__background__": 3, "__MACOSX": 3, ".cache": 3}))
    assert dataset.class_names == ("__background__", "cat", "dog")
    assert dataset.remarks == ("passed over: 1 .cache/, 1 __MACOSX/",)


def test_p5_links_are_followed_and_a_dangling_one_is_named(image_folder: ImageFolder, tmp_path: Path) -> None:
    root = image_folder({"cat": 3, "dog": 3})
    (tmp_path / "more").mkdir()
    for number in range(6):
        Image.new("RGB", (10, 8), (number, 9, 9)).save(tmp_path / "more" / f"{number}.png")
    (root / "cat" / "linked").symlink_to(tmp_path / "more")
    assert sum(sizes(load_dataset(root))) == 12
    (root / "cat" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(ValueError, match=r"1 of 13 files cannot be read: cat/gone\.png \(No such file or directory\)"):
        load_dataset(root)


def test_p7_a_set_known_by_name_comes_before_a_folder_called_so(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder({"cat": 3, "dog": 3}).rename(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    remark = "digits is the set known by that name; for the folder digits say ./digits"
    known = load_dataset("digits")
    assert len(known.class_names) == 10
    assert known.remarks == (remark,)
    report = check("digits")
    assert report.remarks == (remark,)
    assert len(report.counts) == 10
    for word in ("./digits", "digits/", str(tmp_path / "digits")):
        assert load_dataset(word).class_names == ("cat", "dog")
        assert list(check(word).counts) == ["cat", "dog"]
    (tmp_path / "digits").rename(tmp_path / "cars")
    with pytest.raises(ValueError, match=r"cars is not in .*; cars is the set known by that name; for the folder cars"):
        load_dataset("cars")


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_p15_tar_files_beside_class_folders_are_passed_over(image_folder: ImageFolder, prefix: str) -> None:
    root = image_folder({f"{prefix}cat": 3, f"{prefix}dog": 3})
    (root / prefix / "originals.tar").write_bytes(b"")
    dataset = load_dataset(root)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.remarks == ("passed over: 1 .tar",)
    assert check(root).remarks == dataset.remarks


def test_p15_unlabelled_test_images_are_left_out_and_counted(image_folder: ImageFolder) -> None:
    dataset = load_dataset(image_folder({"train/cat": 4, "train/dog": 4, "test": 5}))
    assert sum(sizes(dataset)) == 8
    assert dataset.remarks == ("left out: test, 5 images without class folders",)


@pytest.mark.parametrize("size", [(8, 8), (70, 66)])
def test_p15_a_class_of_broken_files_is_left_out_and_named(image_folder: ImageFolder, size: tuple[int, int]) -> None:
    root = image_folder({"cat": 3, "dog": 3}, size=size)
    (root / "owl").mkdir()
    break_files(root / "owl")
    dataset = load_dataset(root, skip_broken=True)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.remarks == ("class 'owl' is left out: none of its 2 images can be read",)
    with pytest.raises(
        ValueError, match="none of the 2 images of class 'owl' can be read: mend them, or leave it out of"
    ):
        load_dataset(root, skip_broken=True, classes=["cat", "dog", "owl"])


def test_p15_one_class_in_two_unicode_forms(image_folder: ImageFolder) -> None:
    composed, decomposed = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"
    dataset = load_dataset(
        image_folder({f"train/{composed}": 3, "train/tea": 3, f"test/{decomposed}": 2, "test/tea": 1})
    )
    assert dataset.class_names == (composed, "tea")
    assert sorted(dataset.test.labels.tolist()) == [0, 0, 1]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("")
    with pytest.raises(ValueError, match=r"a\.png is not a folder"):
        load_dataset(tmp_path / "a.png")


def test_a_class_whose_files_are_all_broken(image_folder: ImageFolder) -> None:
    root = image_folder({"train/cat": 5, "test/cat": 2})
    (root / "train" / "dog").mkdir()
    break_files(root / "train" / "dog")
    with pytest.raises(ValueError, match="has only the class 'cat'"):
        load_dataset(root, skip_broken=True)


def test_classes_that_are_left_out_are_not_read_and_decide_nothing(image_folder: ImageFolder) -> None:
    root = image_folder({"cat": 4, "dog": 5}, size=(10, 8), mode="L")
    (root / "owl").mkdir()
    break_files(root / "owl", count=3)
    for number in range(20):
        Image.effect_noise((60, 60), 90).convert("RGB").save(root / f"owl/{number}.png")
    dataset = load_dataset(root, classes=["dog", "cat"])
    assert (dataset.class_names, dataset.in_chans, dataset.img_size) == (("dog", "cat"), 1, (8, 8))
    assert sum(sizes(dataset)) == 9
    with pytest.raises(ValueError, match=r"unknown class 'owls'; did you mean 'owl'\? .* in photos"):
        load_dataset(root, classes=["owls", "cat"])


@pytest.fixture
def headers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose headers are read, of which two are looked at for the usual size."""
    read, read_header = list[str](), listing.read_header
    monkeypatch.setattr(listing, "read_header", lambda path: read.append(path.stem) or read_header(path))
    monkeypatch.setattr(listing, "_PROBED_IMAGES", 2)
    return read


def test_one_image_in_colour_makes_a_set_of_three_channels(image_folder: ImageFolder, headers: list[str]) -> None:
    root = image_folder({"cat": 6, "dog": 6}, mode="L")
    assert load_dataset(root).in_chans == 1
    assert len(headers) == 12
    headers.clear()
    for number in (1, 3, 5):  # every other one: the usual size is that of files 0 of both classes
        Image.new("RGB", (10, 8), (9, number, 0)).save(root / "cat" / f"{number}.png")
    assert load_dataset(root).in_chans == 3
    headers.clear()
    assert load_dataset(root, in_chans=1).in_chans == 1
    assert headers == ["0", "0"]
    Image.new("RGB", (10, 8)).save(root / "cat" / "0.png")
    headers.clear()
    assert load_dataset(root).in_chans == 3
    assert headers == ["0", "0"]


def test_a_broken_file_hides_no_colour(image_folder: ImageFolder, headers: list[str]) -> None:
    root = image_folder({"cat": 4, "dog": 4}, mode="L")
    (root / "cat" / "1.png").write_text("no image")
    assert load_dataset(root, skip_broken=True).in_chans == 1
    Image.new("RGB", (10, 8)).save(root / "dog" / "3.png")
    assert load_dataset(root, skip_broken=True).in_chans == 3
    assert headers


@pytest.mark.parametrize("text", ["{}", "[]", '{"photos": ["cat/0.png"]}', "no JSON"])
def test_p15_an_index_of_somebody_else_beside_class_folders_is_passed_over(
    image_folder: ImageFolder, text: str
) -> None:
    root = image_folder({"cat": 3, "dog": 3})
    (root / "index.json").write_text(text)
    dataset = load_dataset(root)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.remarks == ("passed over: 1 .json",)
    assert check(root).remarks == dataset.remarks


def test_p2_the_parts_of_a_contest_are_known(image_folder: ImageFolder) -> None:
    counts = {"Training": 4, "PublicTest": 2, "PrivateTest": 3}
    root = image_folder({f"{part}/{kind}": count for part, count in counts.items() for kind in ("glad", "sad")})
    assert sizes(load_dataset(root)) == (8, 4, 6)
