"""How a folder is understood: splits and classes by usual names, and one sentence for what looks like a mistake."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from ceit.data.sources.layout import Layout, understand

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Makes files named as images: ``tree("cat/1.png", ...)``; a name that ends with ``/`` is an empty folder."""

    def make(*names: str) -> Path:
        root = tmp_path / "photos"
        root.mkdir(exist_ok=True)
        for name in names:
            path = root / name
            if name.endswith("/"):
                path.mkdir(parents=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"")
        return root

    return make


def found(layout: Layout) -> dict[str, dict[str, list[str]]]:
    return {
        split: {
            name: [path.relative_to(layout.root).as_posix() for path in paths] for name, paths in part.classes.items()
        }
        for split, part in layout.splits.items()
    }


def counts(root: Path) -> dict[str, dict[str, int]]:
    return {
        split: {name: len(paths) for name, paths in part.classes.items()}
        for split, part in understand(root).splits.items()
    }


def test_class_folders_are_one_split(tree: Tree) -> None:
    layout = understand(tree("dog/1.png", "cat/2.png", "cat/deep/3.png"))
    assert found(layout) == {"all": {"cat": ["cat/2.png", "cat/deep/3.png"], "dog": ["dog/1.png"]}}
    assert layout.remarks == ()
    assert layout.lines() == ["all: photos, 2 classes, 3 images"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("Training", "Testing"), ["train", "test"]),
        (("Train", "Test"), ["train", "test"]),
        (("train", "Val"), ["train", "validation"]),
        (("TRAIN", "VALID", "TEST"), ["train", "validation", "test"]),
        (("train_set", "dev-set", "test set"), ["train", "validation", "test"]),
        (("train2017", "val2017"), ["train", "validation"]),
        (("train_images", "test_images"), ["train", "test"]),
        (("images_train", "images_val"), ["train", "validation"]),
        (("training_data", "validation_data", "evaluation"), ["train", "validation", "test"]),
        (("train", "test1"), ["train", "test"]),
        (("val", "test"), ["validation", "test"]),
        (("test",), ["test"]),
    ],
)
def test_p2_usual_names_of_splits(tree: Tree, names: tuple[str, ...], splits: list[str]) -> None:
    root = tree(*(f"{name}/{kind}/1.png" for name in names for kind in ("cat", "dog", "owl")))
    layout = understand(root)
    assert list(layout.splits) == splits
    assert [part.folder.name for part in layout.splits.values()] == list(names)
    assert all(list(part.classes) == ["cat", "dog", "owl"] for part in layout.splits.values())
    assert layout.lines()[0] == f"{splits[0]}: {names[0]}, 3 classes, 3 images"


@pytest.mark.parametrize("name", ["trains", "contest", "valley", "retrain", "tester", "devil", "trial", "te", "evals"])
def test_p2_what_only_sounds_like_a_split_is_a_class(tree: Tree, name: str) -> None:
    assert counts(tree(f"{name}/a/1.png", "cat/1.png")) == {"all": {"cat": 1, name: 1}}


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            ["train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "valid/cat/1.png"],
            "has 2 folders for validation, val and valid: keep one of them there",
        ),
        (
            ["train/cat/1.png", "train/dog/1.png", "owl/1.png"],
            "has train for its parts, and beside them owl with 1 image: call it train, validation or test if it is a "
            "part, move it into the parts if it is a class, or out of the folder",
        ),
        (  # Spanish
            ["train/cat/1.png", "train/dog/1.png", "prueba/cat/1.png", "prueba/dog/1.png"],
            "has train for its parts, and beside them prueba with 2 images: call it train, validation or test",
        ),
        (  # Spanish for both
            [f"{part}/{kind}/1.png" for part in ("Entrenamiento", "Prueba") for kind in ("cat", "dog")],
            "Entrenamiento and Prueba of folder ROOT hold the same folders, cat and dog: call them train, validation "
            "and test if they are the parts of the set; if they are classes, list the images in a CSV table",
        ),
        (
            [f"fold{part}/{kind}/1.png" for part in range(6) for kind in "abcdefgh"[: part + 2]],
            "fold0, fold1, fold2, fold3 and 2 more of folder ROOT hold the same folders, a, b, c, d and 2 more",
        ),
        (
            [f"{kind}/{part}/1.png" for part in ("train", "test") for kind in ("cat", "dog")],
            "class folder ROOT/cat has test and train inside: turn it around, ROOT/test/cat",
        ),
        (
            [f"archive/dataset/{part}/{kind}/1.png" for part in ("train", "test") for kind in ("cat", "dog")],
            "all folders of ROOT are in archive/dataset: say ROOT/archive/dataset instead",
        ),
        (["archive/cat/1.png", "archive/dog/1.png", "sample.png"], "are in archive: say ROOT/archive instead"),
        (
            [f"{part}/{part}/{kind}/1.png" for part in ("train", "test") for kind in ("cat", "dog")],
            "all folders of ROOT/train are in train: move what is in it up into ROOT/train",
        ),
        (
            ["train/1.png", "test/2.png", "sample_submission.csv", "test.csv", "train.csv"],
            "test and train of folder ROOT hold images without class folders: put those of each class in a folder of "
            "its name, or name them in a CSV table with the columns path and label; if train.csv tells the classes, "
            "say ROOT/train.csv",
        ),
        (  # as the Stanford cars are packed
            ["cars_train/1.png", "cars_test/2.png"],
            "cars_test and cars_train of folder ROOT are named as parts of a set: call them train, validation and test",
        ),
        (  # as the Intel scenes are packed
            [f"seg_{part}/seg_{part}/{kind}/1.png" for part in ("train", "test") for kind in ("sea", "wood")],
            "seg_test and seg_train of folder ROOT are named as parts of a set",
        ),
        (  # as the American sign language letters are packed
            ["train-asl/train-asl/a/1.png", "train-asl/train-asl/b/1.png", "Test-ASL/Test-ASL/1.png"],
            "Test-ASL and train-asl of folder ROOT are named as parts of a set",
        ),
        (
            [f"{part}/{part}/{kind}/1.png" for part in ("Lernen", "Messen") for kind in ("cat", "dog")],
            "Lernen and Messen of folder ROOT hold the same folders, cat and dog",
        ),
        (["Train/1.png"], "Train of folder ROOT hold images without class folders"),
        (
            ["train/1.png", "val/cat/1.png", "val/dog/1.png"],
            "ROOT/train holds 1 image without class folders, though val beside it has them",
        ),
        (
            ["1.png", "2.png"],
            "folder ROOT has 2 images in no class folder: it must hold a folder of images for each class",
        ),
        (
            ["cat/", "cat.txt"],
            "folder ROOT has no images (passed over: 1 .txt): it must hold a folder of images for each",
        ),
        (["train/cat/1.png", "train/dog/1.png", "test/cat/"], "folder ROOT/test has no images: it must hold"),
        (
            ["train/Cat/1.png", "train/dog/1.png", "test/cat/1.png"],
            "class 'Cat' of folder ROOT is called 'cat' in test: rename one of the two",
        ),
        (
            ["train/red cat/1.png", "train/dog/1.png", "test/red  cat /1.png"],
            "class 'red cat' of folder ROOT is called 'red  cat ' in test: rename one of the two",
        ),
    ],
)
def test_p2_what_looks_like_a_mistake_is_refused_with_the_fix(tree: Tree, names: list[str], sentence: str) -> None:
    root = tree(*names)
    with pytest.raises(ValueError, match="folder") as raised:
        understand(root)
    assert sentence.replace("ROOT", str(root)) in str(raised.value)


@pytest.mark.parametrize(
    ("names", "remark"),
    [
        (["cat/1.png", "dog/1.png", "1.png", "2.png"], "left out: 2 images in no class folder"),
        (["train/cat/1.png", "train/dog/1.png", "train/1.png"], "left out: 1 image of train in no class folder"),
        (
            ["train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dog/1.png", "1.png", "2.png"],
            "left out: 2 images beside test and train",
        ),
        (["cat/1.png", "dog/1.png", "owl/", "ape/x/"], "no images in 'ape' and 'owl'"),
        (["train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dog/"], "no images in 'dog' of test"),
        (["train/cat/1.png", "train/dog/1.png", "test/1.png"], "left out: test, 1 image without class folders"),
        (
            ["train/cat/1.png", "train/dog/1.png", "Val/1.png", "Val/2.png"],
            "left out: Val, 2 images without class folders",
        ),
        (["Cat/1.png", "cat/1.png"], "classes that differ in case, spaces or invisible signs alone: 'Cat' and 'cat'"),
        (
            ["a/1.png", "a\u200b/1.png"],
            "classes that differ in case, spaces or invisible signs alone: 'a' and 'a\\u200b'",
        ),
        (["train/1.png", "train/empty/", "tram/1.png"], "train is taken as a class, like the folders beside it"),
        (
            ["cat/kittens/1.png", "cat/adults/1.png", "dog/1.png"],
            "1 class has its images in folders: cat in adults and kittens",
        ),
        (
            [f"{kind}/images/1.png" for kind in ("n01", "n02", "n03")],  # as Tiny ImageNet
            "3 classes have their images in folders: n01 in images, n02 in images, ...",
        ),
        (["cat/1.png", "dog/1.png", "notes.txt", "cat/.hidden.png"], "passed over: 1 .txt, 1 hidden"),
    ],
)
def test_p15_what_is_left_out_is_said(tree: Tree, names: list[str], remark: str) -> None:
    assert understand(tree(*names)).remarks == (remark,)


def test_p2_a_folder_without_images_beside_the_splits_is_nothing_to_say(tree: Tree) -> None:
    layout = understand(tree("train/cat/1.png", "train/dog/1.png", "docs/", "test/"))
    assert list(layout.splits) == ["train"]
    assert layout.remarks == ()


def test_p2_classes_may_have_the_words_of_parts_in_their_names(tree: Tree) -> None:
    names = ("driving_test", "model_train", "test_tube", "train_station")
    assert list(counts(tree(*(f"{name}/1.png" for name in names)))["all"]) == list(names)


def test_p2_folders_of_a_few_equal_names_are_classes(tree: Tree) -> None:
    root = tree("cat/young/1.png", "cat/adult/1.png", "dog/puppy/1.png", "dog/adult/1.png", "dog/old/1.png")
    assert counts(root) == {"all": {"cat": 2, "dog": 3}}


def test_p4_a_class_may_have_any_name(tree: Tree) -> None:
    names = (
        "__background__",
        "_",
        "red cat",
        "\N{CAT FACE}",
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
        "007",
        "1e3",
        "no",
    )
    assert list(counts(tree(*(f"{name}/1.png" for name in names)))["all"]) == sorted(names)


def test_p5_a_class_folder_may_be_a_link(tree: Tree, tmp_path: Path) -> None:
    root = tree("cat/1.png")
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "2.png").write_bytes(b"")
    (root / "dog").symlink_to(tmp_path / "pets")
    (root / "owl").symlink_to("gone")
    layout = understand(root)
    assert found(layout) == {"all": {"cat": ["cat/1.png"], "dog": ["dog/2.png"]}}
    assert layout.remarks == ("passed over: 1 link to nowhere (owl)",)


def test_p15_one_name_in_two_unicode_forms_is_one_class(tree: Tree) -> None:
    composed = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    decomposed = unicodedata.normalize("NFD", composed)
    root = tree(f"train/{composed}/1.png", "train/tea/1.png", f"test/{decomposed}/2.png")
    assert found(understand(root)) == {
        "train": {composed: [f"train/{composed}/1.png"], "tea": ["train/tea/1.png"]},
        "test": {composed: [f"test/{decomposed}/2.png"]},
    }
    tree(f"train/{decomposed}/3.png")
    with pytest.raises(ValueError, match=f"train has two class folders called '{composed}', whose accents are stored"):
        understand(root)


def test_p15_a_class_folder_of_undecodable_bytes_is_named(tree: Tree) -> None:
    root = tree("tea/1.png", f"{os.fsdecode(b'caf' + bytes([0xE9]))}/1.png")
    with pytest.raises(ValueError, match=r"the name of class folder b'caf\\xe9' in .*photos is not UTF-8: rename it"):
        understand(root)


def test_a_file_is_no_folder(tree: Tree) -> None:
    with pytest.raises(ValueError, match=r"data .*1\.png is not a folder"):
        understand(tree("1.png") / "1.png")


@pytest.mark.parametrize("folder", ["images", "test", "Unknown"])
def test_a_part_whose_images_lie_in_one_folder_that_is_no_class_is_left_out(tree: Tree, folder: str) -> None:
    root = tree("train/ant/images/1.png", "train/bee/images/2.png", f"test/{folder}/3.png", f"test/{folder}/4.png")
    layout = understand(root)
    assert layout.splits.keys() == {"train"}
    assert "left out: test, 2 images without class folders" in layout.remarks


def test_a_part_of_one_class_is_a_part(tree: Tree) -> None:
    assert understand(tree("train/images/1.png", "train/bee/2.png", "test/images/3.png")).splits.keys() == {
        "train",
        "test",
    }
