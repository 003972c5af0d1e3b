"""Tables of labels: columns by their usual names, official splits or a cut, and one sentence for what is wrong."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from ceit.data.sources.choose import load_dataset
from ceit.data.splits import ArraySplit, FileSplit, ImageDataset

Photo = Callable[[Path, int], Path]
Rows = Sequence[Sequence[object]]
SPLIT = [
    ("img/a.jpg", "owl", "train"),
    ("img/b.jpg", "cat", "train"),
    ("img/c.jpg", "owl", "val"),
    ("d.jpg", "cat", "test"),
]


@pytest.fixture
def table(tmp_path: Path, photo: Photo) -> Callable[..., Path]:
    """Writes a table, and the images that it names: ``table(rows, header="path,label", suffix=".csv")``."""

    def make(rows: Rows, header: str = "path,label,split", suffix: str = ".csv") -> Path:
        path, columns = tmp_path / "set" / f"labels{suffix}", header.split(",")
        path.parent.mkdir(exist_ok=True)
        for number, row in enumerate(rows):
            photo(path.parent / str(row[0]), 40 + number)
        if suffix == ".parquet":
            cells = {name: [row[index] for row in rows] for index, name in enumerate(columns)}
            pyarrow.parquet.write_table(pyarrow.table(cells), path)
        else:
            lines = [header, *(",".join(map(str, row)) for row in rows)]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
        return path

    return make


def keys(dataset: ImageDataset) -> list[list[str]]:
    splits = (dataset.train, dataset.validation, dataset.test)
    return [[] if split is None else [split.key(index) for index in range(len(split))] for split in splits]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_official_splits(table: Callable[..., Path], suffix: str) -> None:
    dataset = load_dataset(table(SPLIT, suffix=suffix))
    assert dataset.class_names == ("cat", "owl")
    assert keys(dataset) == [["img/a", "img/b"], ["img/c"], ["d"]]
    assert dataset.train.labels.tolist() == [1, 0]
    assert dataset.name == f"labels{suffix}"
    assert isinstance(dataset.train, ArraySplit)
    assert dataset.img_size == (32, 32)
    assert np.asarray(dataset.test.read(0, 3)).mean() == pytest.approx(43, abs=3)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("header", ["path,label", "FILE,class", " filename,Target", "image,label"])
def test_usual_names_of_columns(table: Callable[..., Path], header: str, suffix: str) -> None:
    rows = [(f"{name}{number}.jpg", name) for name in ("cat", "owl") for number in range(3)]
    dataset = load_dataset(table(rows, header, suffix))
    assert [len(split) for split in keys(dataset)] == [2, 2, 2]


def test_a_table_that_comes_unsplit_is_cut_like_a_folder(table: Callable[..., Path]) -> None:
    rows = [(f"{name}/{number:02}.jpg", name, "train") for name in ("cat", "owl") for number in range(20)]
    unsplit = load_dataset(table([row[:2] for row in rows], "path,label"), seed=3)
    folder = load_dataset(table(rows).parent, seed=3)
    assert [len(split) for split in keys(unsplit)] == [32, 4, 4]
    assert keys(unsplit) == keys(folder)
    assert torch.equal(unsplit.train.labels, folder.train.labels)
    assert keys(load_dataset(table(rows), seed=3)) == keys(folder)  # train alone in the column
    assert keys(load_dataset(table(rows), seed=4)) != keys(folder)


def test_without_test_the_validation_split_is_reported(table: Callable[..., Path]) -> None:
    assert keys(load_dataset(table(SPLIT[:3]))) == [["img/a", "img/b"], [], ["img/c"]]


def test_large_images_stay_on_the_disk(table: Callable[..., Path]) -> None:
    path = table(SPLIT)
    dataset = load_dataset(path, img_size=(96, 96))
    assert isinstance(dataset.train, FileSplit)
    assert dataset.train.paths == (path.parent / "img/a.jpg", path.parent / "img/b.jpg")
    assert keys(dataset) == [["img/a", "img/b"], ["img/c"], ["d"]]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_classes_that_are_numbers_are_in_their_order(table: Callable[..., Path], suffix: str) -> None:
    rows = [("a.jpg", 10, "train"), ("b.jpg", 9, "train"), ("c.jpg", 9, "test")]
    dataset = load_dataset(table(rows, suffix=suffix))
    assert dataset.class_names == ("9", "10")
    assert dataset.train.labels.tolist() == [1, 0]


def test_a_path_may_be_absolute(table: Callable[..., Path], photo: Photo, tmp_path: Path) -> None:
    far = photo(tmp_path / "far" / "e.jpg", 200)
    dataset = load_dataset(table([*SPLIT, (far, "owl", "test")]))
    assert keys(dataset)[2] == ["d", far.with_suffix("").as_posix()]


@pytest.mark.parametrize("img_size", [None, (96, 96)])
def test_missing_and_broken_images_are_named(table: Callable[..., Path], img_size: tuple[int, int] | None) -> None:
    rows = [*SPLIT, ("e.jpg", "cat", "train"), ("f.jpg", "owl", "train")]
    path = table(rows)
    (path.parent / "e.jpg").unlink()
    (path.parent / "f.jpg").write_text("no image")
    message = (
        r"^2 of 6 files cannot be read: e\.jpg \(No such file or directory\), f\.jpg \(not an image\); remove them or"
    )
    with pytest.raises(ValueError, match=message):
        load_dataset(path, img_size=img_size)
    dataset = load_dataset(path, img_size=img_size, skip_broken=True)
    assert keys(dataset)[0] == ["img/a", "img/b"]
    assert dataset.skipped == ("e.jpg (No such file or directory)", "f.jpg (not an image)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has no column 'path' or 'file' or 'filename' or 'image': its columns are none"),
        ("url,label\na,b\n", r"has no column 'path' or .*: its columns are 'url', 'label'"),
        ("path,kind\na,b\n", r"has no column 'label' or 'class' or 'target': its columns are 'path', 'kind'"),
        ("path,label\n", "has no rows"),
        ("path,label\na.jpg,b,c\n", r"row 1 of .*labels\.csv has 3 cells, its header 2: quote commas"),
        ("path,label\na.jpg,x\n,y\n", r"column 'path' of .* is empty in row 2"),
        ("path,label\na.jpg, \n", r"column 'label' of .* is empty in row 1"),
        ("path,label,split\na.jpg,x,tset\n", r"row 1 of .*: unknown split 'tset'; did you mean 'test'"),
        ('path,label\n"a.jpg,x\n', r"is no CSV file in UTF-8"),
    ],
)
def test_what_is_no_table(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path / "labels.csv")


def test_what_cannot_serve(table: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"class 'dog' of file .*labels\.csv is in test but not in train"):
        load_dataset(table([*SPLIT, ("e.jpg", "dog", "test")]))
    with pytest.raises(ValueError, match=r"file .*labels\.csv has only the class 'owl'"):
        load_dataset(table([SPLIT[0], SPLIT[2]]))
    with pytest.raises(ValueError, match="class 'cat' has 1 images: a set that is not split yet needs 3 of each"):
        load_dataset(table(SPLIT[:2]))


def test_what_is_no_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    with pytest.raises(ValueError, match=r"labels file .*labels\.parquet does not exist"):
        load_dataset(path)
    path.write_text("path,label\n")
    with pytest.raises(ValueError, match=r"labels\.parquet is no Parquet file"):
        load_dataset(path)
    images = pyarrow.array([{"bytes": b"", "path": None}])
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": ["a"]}), path)
    with pytest.raises(ValueError, match=r"column 'image' of .* holds neither paths nor labels: .* say hf:"):
        load_dataset(path)
    pyarrow.parquet.write_table(pyarrow.table({"url": ["a"], "label": ["a"]}), path)
    with pytest.raises(ValueError, match=r"no column 'path' .* its columns are 'url', 'label'"):
        load_dataset(path)
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a", None], "label": ["a", "b"]}), path)
    with pytest.raises(ValueError, match=r"column 'path' of .* is empty in row 2"):
        load_dataset(path)


def test_classes_may_be_chosen(table: Callable[..., Path]) -> None:
    rows = [(f"{name}{number}.jpg", name, split) for name in "abc" for number, split in enumerate(("train", "test"))]
    dataset = load_dataset(table(rows), classes=["c", "a"])
    assert dataset.class_names == ("c", "a")
    assert keys(dataset) == [["a0", "c0"], [], ["a1", "c1"]]
    assert dataset.train.labels.tolist() == [1, 0]
    assert dataset.train.labels.dtype == torch.int64
    assert isinstance(dataset.train, ArraySplit)
    assert np.allclose(dataset.mean, (dataset.train.pixels() / 255).mean((0, 1, 2)), atol=1e-5)  # of these alone
    with pytest.raises(ValueError, match=r"unknown class 'd'; known: a, b, c in labels\.csv"):
        load_dataset(table(rows), classes=["d", "a"])
    with pytest.raises(ValueError, match="class 'a' is named twice"):
        load_dataset(table(rows), classes=["a", "b", "a"])
    with pytest.raises(ValueError, match=r"1 classes of labels\.csv are kept: a classifier needs at least two"):
        load_dataset(table(rows), classes=["a"])
    with pytest.raises(ValueError, match=r"the test split of labels\.csv has no image of the classes a, b"):
        load_dataset(table([row for row in rows if row[1] == "c" or row[2] == "train"]), classes=["a", "b"])
