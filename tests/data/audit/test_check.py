"""The check of a whole set: everything planted is found, and nothing in a clean set."""

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import ceit_cli
from ceit.cli import data as verb
from ceit.data.audit.check import check
from ceit.data.audit.report import Report
from ceit.data.sources.choose import load_dataset
from ceit.data.sources.shards.write import write_shards
from ceit.train.config import TrainConfig
from ceit.train.images import load_run_images

ImageFolder = Callable[..., Path]
CLASSES = ("boat", "lamp", "tree")
COUNTS = {"train": 20, "val": 6, "test": 6}


def scene(seed: int, size: tuple[int, int]) -> Image.Image:
    """Something like a photograph: smooth colours, shapes with edges, grain."""
    random = np.random.default_rng(seed)
    field = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(field)
    for _ in range(4):
        left, top = random.integers(0, size[0] - 20), random.integers(0, size[1] - 20)
        right, bottom = left + random.integers(10, size[0] // 2), top + random.integers(10, size[1] // 2)
        paint = draw.ellipse if random.random() < 0.5 else draw.rectangle
        paint((int(left), int(top), int(right), int(bottom)), fill=tuple(random.integers(0, 256, 3).tolist()))
    grain = random.normal(0, 4, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(field) + grain, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, three splits, JPEG files of several sizes."""
    root, seed = tmp_path_factory.mktemp("check") / "photos", 0
    for split, count in COUNTS.items():
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                seed += 1
                scene(seed, (96 + seed % 3 * 16, 80)).save(root / split / name / f"{index:02}.jpg", quality=92)
    return root


@pytest.fixture
def planted(clean: Path, tmp_path: Path) -> Path:
    """The same with five duplicates across splits, three broken files and an empty class."""
    root = tmp_path / "photos"
    shutil.copytree(clean, root)
    shutil.copy(root / "train/boat/03.jpg", root / "test/boat/copy.jpg")
    shutil.copy(root / "train/lamp/11.jpg", root / "val/lamp/copy.jpg")
    with Image.open(root / "train/tree/07.jpg") as image:
        image.save(root / "test/lamp/other.png")  # the same pixels in another file
    for source, target, quality in (("train/boat/15", "val/boat/again", 60), ("val/tree/02", "test/tree/again", 80)):
        with Image.open(root / f"{source}.jpg") as image:
            image.save(root / f"{target}.jpg", quality=quality)
    whole = (root / "train/boat/00.jpg").read_bytes()
    (root / "train/boat/truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "val/lamp/text.jpg").write_text("no image")
    (root / "test/tree/empty.png").write_bytes(b"")
    (root / "train/snow").mkdir()
    return root


def named(report: Report) -> set[tuple[str, ...]]:
    return {tuple(f"{image.split}/{image.name}" for image in group.images) for group in report.copies}


def test_all_nine_are_found(planted: Path) -> None:
    report = check(planted)
    assert named(report) == {
        ("train/boat/03.jpg", "test/boat/copy.jpg"),
        ("train/lamp/11.jpg", "validation/lamp/copy.jpg"),
        ("train/tree/07.jpg", "test/lamp/other.png"),
        ("train/boat/15.jpg", "validation/boat/again.jpg"),
        ("validation/tree/02.jpg", "test/tree/again.jpg"),
    }
    assert len(report.leaks) == 5
    assert [group.exact for group in report.copies].count(False) == 2
    assert [group.of_several_classes for group in report.copies].count(True) == 1
    assert {image.name for image in report.unreadable} == {
        "boat/truncated.jpg",
        "lamp/text.jpg",
        "tree/empty.png",
    }
    assert report.empty_classes == ("snow",)
    assert report.errors == ("3 unreadable images", "5 images copied across splits", "1 empty class")


def test_none_in_a_clean_set(clean: Path) -> None:
    report = check(clean)
    assert report.errors == ()
    assert [*report.copies, *report.unreadable, *report.blank, *report.untested_classes] == []
    assert report.counts == {name: {"train": 20, "validation": 6, "test": 6} for name in CLASSES}
    assert (report.smallest, report.largest, report.modes) == ((96, 80), (128, 80), {"RGB": 96})


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("size", [None, (90, 64), (150, 120)])
def test_every_image_is_found_again(clean: Path, tmp_path: Path, quality: int, size: tuple[int, int] | None) -> None:
    for split in ("train", "test"):
        shutil.copytree(clean / "val", tmp_path / "set" / split)
    for path in (tmp_path / "set" / "test").rglob("*.jpg"):
        with Image.open(path) as image:
            (image if size is None else image.resize(size)).save(path, quality=quality)
    report = check(tmp_path / "set")
    assert len(report.leaks) == 18
    assert named(report) == {
        (f"train/{name}/{index:02}.jpg", f"test/{name}/{index:02}.jpg") for name in CLASSES for index in range(6)
    }


def test_p15_images_of_12_bits_in_16_are_counted(image_folder: ImageFolder) -> None:
    root = image_folder({"train/cat": 2, "train/dog": 2, "test/cat": 2, "test/dog": 2}, size=(40, 40))
    values = np.random.default_rng(0).integers(0, 4096, (40, 40), dtype=np.uint16)
    Image.fromarray(values).save(root / "train" / "cat" / "dark.png")
    Image.fromarray(values * 16).save(root / "train" / "cat" / "scaled.png")
    report = check(root)
    assert [image.name for image in report.dark] == ["cat/dark.png"]
    assert [image["name"] for image in report.as_dict()["dark"]] == ["cat/dark.png"]


def test_jpegs_that_were_cut_and_given_an_end_are_counted(image_folder: ImageFolder) -> None:
    root = image_folder({"train/cat": 2, "train/dog": 2, "test/cat": 2, "test/dog": 2}, size=(40, 40))
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    for name, more in (("upright", {}), ("turned", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0"})):
        path = root / "train" / "cat" / f"{name}.jpg"
        Image.fromarray(noise).save(path, "JPEG", **more)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3] + b"\xff\xd9")
        (root / "train" / "dog" / f"{name}.jpg").write_bytes(whole)
    Image.new("RGB", (40, 40), (128, 128, 128)).save(root / "train" / "dog" / "blank.png")
    report = check(root)
    assert [image.name for image in report.cut] == ["cat/turned.jpg", "cat/upright.jpg"]
    assert [image["name"] for image in report.as_dict()["cut"]] == ["cat/turned.jpg", "cat/upright.jpg"]
    assert [image.name for image in report.blank] == ["dog/blank.png"]


def test_blank_and_flat_images_are_no_copies(image_folder: ImageFolder) -> None:
    root = image_folder({"train/cat": 3, "train/dog": 3, "test/cat": 3, "test/dog": 3}, size=(40, 40))
    random = np.random.default_rng(0)
    for number in range(8):
        split = "train" if number % 2 else "test"
        Image.new("RGB", (40, 40)).save(root / split / "cat" / f"black{number}.png")
        haze = random.normal(128, 2, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(haze).save(root / split / "dog" / f"haze{number}.png")
    report = check(root)
    assert not report.copies
    assert {image.name.split("/")[1][:5] for image in report.blank} >= {"black"}


def test_things_that_are_alike_are_no_copies(tmp_path: Path) -> None:
    """The digits lie close together: a one is a one. Copies among them are found all the same."""
    digits = load_dataset("digits", img_size=(64, 64))
    for split, images, count in (("train", digits.train, 200), ("test", digits.test, 60)):
        for index in range(count):
            folder = tmp_path / split / str(int(images.labels[index]))
            folder.mkdir(parents=True, exist_ok=True)
            images.read(index, 1).save(folder / f"{index}.png")
            if split == "train" and index % 40 == 0:
                images.read(index, 1).save(tmp_path / f"{index}.jpg", quality=80)
    assert not check(tmp_path).copies
    for path in tmp_path.glob("*.jpg"):
        path.rename(tmp_path / "test" / "0" / path.name)
    assert len(check(tmp_path).leaks) == 5


def test_modes_are_counted_and_no_error(clean: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(clean, root)
    images = [scene(1000 + number, (96, 80)) for number in range(4)]
    images[0].convert("CMYK").save(root / "train/boat/print.jpg")
    images[1].putalpha(99)
    images[1].save(root / "train/boat/clear.png")
    images[2].convert("L").save(root / "train/boat/grey.jpg")
    Image.fromarray(np.asarray(images[3].convert("L")).astype(np.uint16) * 257).save(root / "train/boat/deep.png")
    report = check(root)
    assert report.modes == {"RGB": 96, "CMYK": 1, "RGBA": 1, "L": 1, "I;16": 1}
    assert report.errors == ()


def test_classes_in_one_split_only(clean: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(clean, root)
    (root / "train" / "lamp").rename(root / "train" / "owl")
    report = check(root)
    assert report.untrained_classes == ("lamp",)
    assert report.untested_classes == ("owl",)
    assert report.errors == ("1 class without training images",)
    assert report.balance == (("boat", 20), ("boat", 20))


def test_an_unsplit_folder_is_one_split(clean: Path) -> None:
    report = check(clean / "val")
    assert (report.splits, report.images, report.errors) == (("all",), 18, ())


def test_shards_and_a_table_of_labels_are_checked_alike(planted: Path, tmp_path: Path) -> None:
    expected = {frozenset(Path(name).with_suffix("").name for name in group) for group in named(check(planted))}
    write_shards(load_dataset(planted, skip_broken=True), tmp_path / "shards")
    rows = [f"{path},{path.parts[-2]},{path.parts[-3]}" for path in sorted(planted.rglob("*.*"))]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *rows]))
    for data, broken in ((tmp_path / "shards", 0), (tmp_path / "labels.csv", 3)):
        report = check(data)
        assert {frozenset(Path(name).with_suffix("").name for name in group) for group in named(report)} == expected
        assert (len(report.leaks), len(report.unreadable), report.images) == (5, broken, 101)


def test_a_changed_shard(clean: Path, tmp_path: Path) -> None:
    write_shards(load_dataset(clean), tmp_path / "shards")
    shard = tmp_path / "shards" / "val-000000.tar"
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    report = check(tmp_path / "shards")
    assert report.changed_shards == ("val-000000.tar",)
    assert report.errors[-1] == "1 changed shard"


def test_the_command(planted: Path, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(["data", "check", str(clean)]) == 0
    assert "✓" in (printed := capsys.readouterr().out)
    assert "✗" not in printed
    assert ceit_cli.main(["data", "check", str(planted)]) == 1
    captured = capsys.readouterr()
    sentence = "photos has 3 unreadable images, 5 images copied across splits and 1 empty class"
    assert captured.err.strip() == f"error: {sentence}"
    for text in (
        "train/boat/03.jpg  =  test/boat/copy.jpg",
        "3 exact, 2 encoded or resized anew",
        "lamp/text.jpg",
        "snow",
    ):
        assert text in captured.out
    output = tmp_path / "report.json"
    assert ceit_cli.main(["data", "check", str(planted), "--json", "--output", str(output)]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(output.read_text())
    assert len(document["copies"]) == 5
    assert document["empty_classes"] == ["snow"]
    assert document["class_counts"]["boat"] == {"train": 20, "validation": 7, "test": 7}


def test_shard_and_check_by_command(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "shard", str(clean), str(tmp_path / "out"), "--shard-megabytes", "1"]
    assert ceit_cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "train-000000.tar" in printed
    assert "60 train, 18 validation, 18 test images of 3 classes" in printed
    assert ceit_cli.main(words) == 1
    assert capsys.readouterr().err.strip().endswith("out is not empty: name a new folder")
    assert ceit_cli.main(["data", "check", str(tmp_path / "out")]) == 0


def test_the_tree_is_shown_as_it_was_understood(image_folder: ImageFolder, capsys: pytest.CaptureFixture[str]) -> None:
    root = image_folder({"Training/cat": 3, "Training/dog": 4, "Testing/cat": 2, "Val": 5, "Training/__MACOSX": 1})
    assert ceit_cli.main(["data", "check", str(root)]) == 0
    assert capsys.readouterr().out.splitlines()[1:5] == [
        "  train: Training, 2 classes, 7 images",
        "  test: Testing, 1 class, 2 images",
        "! left out: Val, 5 images without class folders",
        "! passed over: 1 __MACOSX/",
    ]
    assert ceit_cli.main(["data", "check", str(root), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["layout"] == ["train: Training, 2 classes, 7 images", "test: Testing, 1 class, 2 images"]
    assert document["remarks"][1] == "passed over: 1 __MACOSX/"
    assert document["splits"] == ["train", "test"]


def test_what_is_left_out_is_said_when_shards_are_written(
    image_folder: ImageFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = image_folder({"train/cat": 3, "train/dog": 4, "test/cat": 2, "test/dog": 2, "val": 5})
    assert ceit_cli.main(["data", "shard", str(root), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == "left out: val, 5 images without class folders\n"


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({"cat": 4, "dog": 2}, "class 'dog' has 2 images: a set that is not split yet needs 3 of each"),
        ({"train/cat": 4, "train/dog": 2}, "class 'dog' has 2 images: a set that is not split yet needs 3 of each"),
        ({"cat": 8}, "folder {} has only the class 'cat': a classifier needs at least two"),
        ({"train/cat": 8, "test/cat": 2}, "folder {} has only the class 'cat': a classifier needs at least two"),
        (
            {"val/cat": 3, "val/dog": 3, "test/cat": 3, "test/dog": 3},
            "folder {} has no training images, only validation and test: add a part named train",
        ),
    ],
)
def test_p2_what_training_refuses_is_an_error(
    counts: dict[str, int], sentence: str, image_folder: ImageFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = image_folder(counts, size=(40, 40))
    sentence = sentence.format(root)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_dataset(root)
    assert check(root).errors == (sentence,)
    assert ceit_cli.main(["data", "check", str(root)]) == 1
    captured = capsys.readouterr()
    assert f"✗ {sentence}" in captured.out
    assert "classes without training images" not in captured.out  # no tick beside it
    assert captured.err == f"error: {sentence}\n"


def test_p2_no_image_to_choose_by_is_an_error(image_folder: ImageFolder) -> None:
    root = image_folder({"train/cat": 1, "train/dog": 1, "test/cat": 2, "test/dog": 2}, size=(40, 40))
    (error,) = check(root).errors
    assert error.startswith("training chooses its model by some of the training images: a validation part of 1 images")
    assert error.endswith("add images or a validation part, or train with --validation-percent 0 --select last")
    with pytest.raises(ValueError, match="a validation part of 1 images cannot be cut off 2: every class keeps"):
        load_run_images(TrainConfig(img_size=(32, 32)), str(root), lambda message: None)
    for name in range(58):  # of 62 images training wants three, and may have two
        shutil.copytree(root / "train/cat", root / f"train/{name}")
        Image.new("RGB", (40, 40), (4 * name, 0, 0)).save(root / f"train/{name}/0.png")
    for number in range(2):
        Image.new("RGB", (40, 40), (0, 9 + 100 * number, 0)).save(root / f"train/cat/more{number}.png")
    assert "a validation part of 3 images cannot be cut off 62" in check(root).refusal
    for name in ("cat", "dog"):
        (root / "validation" / name).mkdir(parents=True)
        (root / "test" / name / "0.png").rename(root / "validation" / name / "0.png")
    assert check(root).errors == ()


def test_p2_copies_and_broken_files_do_not_make_a_class_large_enough(image_folder: ImageFolder) -> None:
    """Training counts contents that can be read, and an empty class is none to it."""
    root = image_folder({"cat": 4, "dog": 2}, size=(40, 40))
    shutil.copy(root / "dog/0.png", root / "dog/copy.png")
    (root / "dog/broken.png").write_text("no image")
    (root / "owl").mkdir()
    report = check(root)
    assert report.refusal.startswith("class 'dog' has 2 images (3 files, the others are copies): a set that is not")
    assert report.errors == ("1 unreadable image", "1 empty class", report.refusal)
    assert report.verdict == f"photos has 1 unreadable image and 1 empty class; {report.refusal}"
    with Image.open(root / "dog/0.png") as image:
        image.rotate(90).save(root / "dog/third.png")
    assert check(root).refusal == ""


def test_p2_nothing_that_can_be_read_is_refused(image_folder: ImageFolder) -> None:
    root = image_folder({"cat": 0, "dog": 0})
    for name in ("cat", "dog"):
        (root / name / "broken.png").write_text("no image")
    report = check(root)
    assert report.errors[:2] == ("2 unreadable images", "2 empty classes")
    assert report.refusal == f"folder {root} has no training image that can be read: a classifier needs at least two"


def test_a_place_that_takes_no_report_is_told_before_any_image_is_read(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(data: str) -> None:
        pytest.fail(f"{data} was read")

    monkeypatch.setattr(verb, "check", read)
    (tmp_path / "there.json").write_text("mine")
    for name, code, reason in (
        ("nowhere/x.json", 1, "cannot be written: there is no folder"),
        ("there.json", 1, "exists: name another file for --output, or remove it"),
        ("labels.csv", 2, "must end in .json"),
    ):
        assert ceit_cli.main(["data", "check", str(clean), "--output", str(tmp_path / name)]) == code
        assert f"{tmp_path / name} {reason}" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "there.json").read_text() == "mine"


def test_a_report_that_cannot_be_saved_is_printed(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(contents: dict[Path, bytes]) -> None:
        raise OSError(errno.ENOSPC, "cannot save", str(next(iter(contents))))

    monkeypatch.setattr(verb, "replace_files", full)
    assert ceit_cli.main(["data", "check", str(clean), "--json", "--output", str(tmp_path / "x.json")]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == 96
    assert "no space left on the disk" in captured.err


@pytest.mark.parametrize("name", ["[b]", "[bold red]x", ":dog:"])
def test_a_class_may_be_called_as_markup(
    name: str, image_folder: ImageFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ceit_cli.main(["data", "check", str(image_folder({name: 5, "cat": 3}))]) == 0
    assert f"5 of {name}, 3 of cat" in capsys.readouterr().out


def test_shards_do_not_go_into_the_data(image_folder: ImageFolder, capsys: pytest.CaptureFixture[str]) -> None:
    photos = image_folder({"cat": 3, "dog": 3})
    assert ceit_cli.main(["data", "shard", str(photos), str(photos / "shards")]) == 1
    assert "and would be taken for a part of it: name a folder beside it" in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in photos.iterdir()) == ["cat", "dog"]
