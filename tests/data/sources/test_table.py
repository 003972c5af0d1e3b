"""Tables of labels: columns by their usual names, official splits or a cut, and one sentence for what is wrong."""

import os
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
    assert tuple(dataset.train.paths) == (path.parent / "img/a.jpg", path.parent / "img/b.jpg")
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
    message = r"^2 of 6 files cannot be read: e\.jpg \(No such file or directory\), f\.jpg \(not an image\); ceit data"
    with pytest.raises(ValueError, match=message):
        load_dataset(path, img_size=img_size)
    dataset = load_dataset(path, img_size=img_size, skip_broken=True)
    assert keys(dataset)[0] == ["img/a", "img/b"]
    assert dataset.skipped == ("e.jpg (No such file or directory)", "f.jpg (not an image)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has no column 'path' or 'file' or 'filename' or 'filepath' or 'image': its columns are none"),
        ("url,label\na,b\n", r"has no column 'path' or .*: its columns are 'url', 'label'"),
        ("path,kind\na,b\n", r"has no column 'label' or 'class' or 'target': its columns are 'path', 'kind'"),
        ("path,label\n", "has no rows"),
        (
            "path,label\na.jpg,b,c\n",
            r"row 1 of .*labels\.csv has 3 cells, its header 2: put cells that hold ',' in quotes",
        ),
        ("path,label\na.jpg,x\n,y\n", r"column 'path' of .* is empty in row 2"),
        ("path,label\na.jpg, \n", r"column 'label' of .* is empty in row 1"),
        ("path,label,split\na.jpg,x,tset\n", r"row 1 of .*: unknown split 'tset'; did you mean 'test'"),
        ('path,label\n"a.jpg,x\n', r"is no CSV file in UTF-8 \(.*\): look for a quote that is not closed"),
        ('path,"label\n' + "a.jpg,x\n" * 20_000, r"is no CSV file in UTF-8 \(.*\): look for a quote"),
        ("path,label,is_valid\na.jpg,x,maybe\n", r"column 'is_valid' of .* has 'maybe' in row 1: write True for valid"),
    ],
)
def test_what_is_no_table(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path / "labels.csv")


def test_rows_may_lack_empty_cells_at_their_end_or_have_more(table: Callable[..., Path]) -> None:
    """As Excel saves them."""
    plain = load_dataset(path := table([*SPLIT], "path,label,split"))
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{header},notes", *(f"{row}{',' * (number % 4)}" for number, row in enumerate(rows))]))
    again = load_dataset(path)
    assert again.class_names == plain.class_names
    assert [len(part) for part in (again.train, again.test)] == [len(part) for part in (plain.train, plain.test)]


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


TABLE = [(f"{name}/{number}.jpg", name) for name in ("cat", "dog") for number in range(4)]


def counted(dataset: ImageDataset) -> int:
    return sum(map(len, keys(dataset)))


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_p15_a_label_that_is_missing_in_parquet_names_its_row(
    table: Callable[..., Path], missing: float | None
) -> None:
    rows = [(f"{number}.jpg", missing if number == 4 else float(number % 2)) for number in range(8)]
    with pytest.raises(
        ValueError, match=r"column 'label' of .*labels\.parquet is empty in row 5: fill it in or remove"
    ):
        load_dataset(table(rows, "path,label", ".parquet"))


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "<NA>", "#N/A"])
def test_p15_a_label_that_is_missing_in_csv_names_its_row(table: Callable[..., Path], cell: str) -> None:
    with pytest.raises(ValueError, match=r"column 'label' of .*labels\.csv is empty in row 9: fill it in or remove"):
        load_dataset(table([*TABLE, ("new.jpg", cell)], "path,label"))


@pytest.mark.parametrize("cell", ["None", "NA", "null", "-", "nant"])
def test_what_may_be_the_name_of_a_class_is_one(table: Callable[..., Path], cell: str) -> None:
    rows = [*TABLE, *((f"new{number}.jpg", cell) for number in range(3))]
    assert set(load_dataset(table(rows, "path,label")).class_names) == {"cat", "dog", cell}


@pytest.mark.parametrize(
    ("labels", "suffix", "class_names"),
    [
        ([0.0, 1.0, 10.0, 2.0], ".parquet", ("0", "1", "2", "10")),
        (["0", "0.0", "1.00", "1"], ".csv", ("0", "1")),
        (["0", "0.0", "1", "1.0"], ".parquet", ("0", "1")),
        (["007", "7", "8", "08"], ".csv", ("7", "007", "8", "08")),
        (["1.0", "1.5", "1.0", "1.5"], ".csv", ("1.0", "1.5")),
        (["v1.0", "2.0", "v1.0", "2.0"], ".csv", ("2.0", "v1.0")),
    ],
)
def test_p15_whole_numbers_are_one_class_however_they_are_written(
    table: Callable[..., Path], labels: list[object], suffix: str, class_names: tuple[str, ...]
) -> None:
    rows = [(f"{number}.jpg", labels[number % 4]) for number in range(16)]
    found = load_dataset(table(rows, "path,label", suffix)).class_names
    assert set(found) == set(class_names)
    assert [int(name) for name in found if name.isdigit()] == sorted(int(name) for name in found if name.isdigit())


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("twin", ["label", "Label", " LABEL "])
def test_p15_two_columns_of_one_name_are_refused(table: Callable[..., Path], suffix: str, twin: str) -> None:
    path = table(TABLE, "path,label", suffix)
    if suffix == ".csv":
        path.write_text(f"path,label,{twin}\na.jpg,cat,dog\n")
    else:
        arrays = [pyarrow.array(["a.jpg"]), pyarrow.array(["cat"]), pyarrow.array(["dog"])]
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, names=["path", "label", twin]), path)
    with pytest.raises(
        ValueError, match=f"has 2 columns called 'label', 'label' and '{twin.strip()}': keep one of them"
    ):
        load_dataset(path)


def test_p15_of_two_columns_that_may_be_meant_it_is_said_which_is_taken(table: Callable[..., Path]) -> None:
    dataset = load_dataset(table([(*row, "x", row[0]) for row in TABLE], "path,label,class,image"))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.remarks == (
        "column 'path' of labels.csv is taken, not 'image'",
        "column 'label' of labels.csv is taken, not 'class'",
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_p2_parts_in_a_column_are_called_as_folders_are(table: Callable[..., Path], suffix: str) -> None:
    names = ("Training", "train_set", "VAL", "Testing")
    rows = [(*row, names[number % 4]) for number, row in enumerate(TABLE)]
    dataset = load_dataset(table(rows, suffix=suffix))
    assert [len(split) for split in keys(dataset)] == [4, 2, 2]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_p2_a_column_of_parts_under_another_name_is_no_chance_cut(table: Callable[..., Path], suffix: str) -> None:
    rows = [(*row, "test" if number % 4 == 3 else "train") for number, row in enumerate(TABLE)]
    dataset = load_dataset(table(rows, "path,label,subset", suffix))
    assert keys(dataset)[2] == ["cat/3", "dog/3"]
    assert dataset.remarks == (f"column 'subset' of labels{suffix} tells the parts",)


def test_a_pipe_is_named_like_what_cannot_be_read(table: Callable[..., Path]) -> None:
    path = table([*TABLE, ("cat/pipe.jpg", "cat")], "path,label")
    (path.parent / "cat/pipe.jpg").unlink()
    os.mkfifo(path.parent / "cat/pipe.jpg")
    with pytest.raises(ValueError, match=r"1 of 9 files cannot be read: cat/pipe.jpg \(no regular file"):
        load_dataset(path)
    assert load_dataset(path, skip_broken=True).skipped == ("cat/pipe.jpg (no regular file: save it to one first)",)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_of_fastai_sets_validation_images_apart(table: Callable[..., Path], suffix: str) -> None:
    rows = [(*row, number % 4 == 3) for number, row in enumerate(TABLE)]
    dataset = load_dataset(table(rows, "path,label,is_valid", suffix))
    assert keys(dataset)[2] == ["cat/3", "dog/3"]
    tells = f"column 'is_valid' of labels{suffix} tells the parts: True is validation, False is train"
    assert dataset.remarks == (tells,)


def test_a_part_that_is_missing_names_its_row(table: Callable[..., Path]) -> None:
    rows = [(*row, "" if number == 2 else "train") for number, row in enumerate(TABLE)]
    with pytest.raises(ValueError, match=r"column 'split' of .*labels\.csv is empty in row 3"):
        load_dataset(table(rows))


def test_an_image_named_twice_counts_once(table: Callable[..., Path]) -> None:
    dataset = load_dataset(table([*TABLE, *TABLE[:2], ("./cat/2.jpg", "cat")], "path,label"))
    assert counted(dataset) == 8
    assert dataset.remarks == ("3 rows of labels.csv name an image again: it counts once",)


def test_an_image_of_two_classes_or_in_two_parts_is_refused(table: Callable[..., Path]) -> None:
    with pytest.raises(
        ValueError, match=r"rows 2 and 9 of .* name the same image, 1\.jpg, as 'cat' and as 'dog': remove"
    ):
        load_dataset(table([*TABLE, ("cat/1.jpg", "dog")], "path,label"))
    with pytest.raises(
        ValueError, match=r"rows 1 and 9 of .* same image, 0\.jpg, as 'train' and as 'test': remove one"
    ):
        load_dataset(table([*((*row, "train") for row in TABLE), ("cat/0.jpg", "cat", "test")]))


@pytest.mark.parametrize("written", ["cat\\{}.jpg", ".\\cat\\{}.jpg", "./cat/{}.jpg", " cat/{}.jpg "])
def test_paths_as_other_machines_write_them(table: Callable[..., Path], written: str) -> None:
    path = table(TABLE, "path,label")
    lines = [f"{written.format(number)},cat" for number in range(4)] + [f"dog/{number}.jpg,dog" for number in range(4)]
    path.write_text("\n".join(["path,label", *lines]))
    assert counted(load_dataset(path)) == 8


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "C:\\data\\cat\\1.jpg",
            r"row 1 of .* names C:\\data\\cat\\1\.jpg, a path of another machine: write paths rel",
        ),
        ("d:/data/cat/1.jpg", r"row 1 of .* names d:/data/cat/1\.jpg, a path of another machine"),
        ("\\\\server\\photos\\1.jpg", r"row 1 of .*, a path of another machine"),
        ("https://host/1.jpg", r"row 1 of .* names https://host/1\.jpg, an address: download the images and name the"),
        ("cat/1", r"none of the 2 images of .* is there, .*/cat/1 for one: paths are relative to the folder of"),
    ],
)
def test_paths_that_lead_nowhere(tmp_path: Path, file: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(f"path,label\n{file},cat\ngone.jpg,dog\n")
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path / "labels.csv")


def test_accents_of_paths_and_labels_may_be_in_either_form(table: Callable[..., Path]) -> None:
    composed, decomposed = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"
    path = table([*((f"{composed}/{number}.jpg", composed) for number in range(4)), *TABLE[:4]], "path,label")
    path.write_text(path.read_text(encoding="utf-8-sig").replace(composed, decomposed), encoding="utf-8")
    dataset = load_dataset(path)
    assert dataset.class_names == (composed, "cat")
    assert counted(dataset) == 8


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-with-mark"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("first", ["", "sep={}\r\n"])
def test_tables_that_excel_writes(table: Callable[..., Path], encoding: str, separator: str, first: str) -> None:
    path = table([*((f"na, ive/{number}.jpg", "na, ive") for number in range(4)), *TABLE[:4]], "path,label", ".parquet")
    rows = [("path", "label"), *((f"na, ive/{n}.jpg", "na, ive") for n in range(4)), *TABLE[:4]]
    quoted = [separator.join(f'"{cell}"' for cell in row) for row in rows]
    text = first.format(separator) + "\r\n".join([*quoted, separator, ""])  # and a row of empty cells
    csv = path.with_suffix(".csv")
    mark = b"\xff\xfe" if encoding == "utf-16-le-with-mark" else b""
    csv.write_bytes(mark + text.encode(encoding.removesuffix("-with-mark")))
    dataset = load_dataset(csv)
    assert dataset.class_names == ("cat", "na, ive")
    assert counted(dataset) == 8


def test_quotes_after_a_blank_are_quotes(table: Callable[..., Path]) -> None:
    path = table(TABLE, "path,label")
    path.write_text("path, label\n" + "".join(f'"{file}", "a {name}, or not"\n' for file, name in TABLE))
    assert load_dataset(path).class_names == ("a cat, or not", "a dog, or not")


def test_a_table_of_tabs_may_be_called_tsv(table: Callable[..., Path]) -> None:
    path = table(TABLE, "path,label").with_suffix(".tsv")
    path.write_text("file_name\tLabel\n" + "".join(f"{file}\t{name}\n" for file, name in TABLE))
    assert counted(load_dataset(path)) == 8


@pytest.mark.parametrize(
    "data", ["path,label\ncaf\N{LATIN SMALL LETTER E WITH ACUTE}.jpg,x\n".encode("cp1252"), b"p\0a\0"]
)
def test_other_encodings_are_refused_with_the_fix(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "labels.csv").write_bytes(data)
    with pytest.raises(ValueError, match=r"labels\.csv is no CSV file in UTF-8 \(.*\): save it as CSV UTF-8"):
        load_dataset(tmp_path / "labels.csv")


def test_rows_are_counted_as_they_stand_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("\npath,label\n\na.jpg,x\n,,\n\nb.jpg,\n")
    with pytest.raises(ValueError, match=r"column 'label' of .* is empty in row 5"):
        load_dataset(tmp_path / "labels.csv")


def test_labels_that_look_alike_are_said(table: Callable[..., Path]) -> None:
    rows = [(f"{number}.jpg", ("Cat", "cat", "dog")[number % 3]) for number in range(12)]
    assert load_dataset(table(rows, "path,label")).remarks == (
        "classes that differ in case, spaces or invisible signs alone: 'Cat' and 'cat'",
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("name", ["set", "Usage", "phase"])
@pytest.mark.parametrize("cell", ["", "tset", "holdback"])
def test_p2_an_odd_cell_in_a_column_of_parts_is_refused(
    table: Callable[..., Path], suffix: str, name: str, cell: str
) -> None:
    rows = [(*row, cell if number == 2 else ("train", "test")[number % 2]) for number, row in enumerate(TABLE)]
    message = (
        rf"column '{name}' of .*labels\{suffix} names parts, but has '{cell}' in row 3: write train, validation or "
        rf"test, or remove the column if it tells no parts"
    )
    with pytest.raises(ValueError, match=message):
        load_dataset(table(rows, f"path,label,{name}", suffix))
    rows[2] = (*TABLE[2], "train")
    assert keys(load_dataset(table(rows, f"path,label,{name}", suffix)))[2] == ["cat/1", "cat/3", "dog/1", "dog/3"]


def test_p2_training_images_alone_beside_a_part_of_no_usual_name_are_questioned(table: Callable[..., Path]) -> None:
    rows = [(*row, "secret" if number % 4 == 3 else "train") for number, row in enumerate(TABLE)]
    with pytest.raises(ValueError, match=r"column 'set' of .* names parts, but has 'secret' in row 4"):
        load_dataset(table(rows, "path,label,set"))


@pytest.mark.parametrize("cells", [("train", "bus"), ("test", "blurred", "dark", ""), ("train",), ("",)])
def test_p2_a_column_of_which_few_cells_name_parts_tells_none(
    table: Callable[..., Path], cells: tuple[str, ...]
) -> None:
    rows = [(*row, cells[number % len(cells)]) for number, row in enumerate(TABLE)]
    dataset = load_dataset(table(rows, "path,label,notes"))
    assert keys(dataset) == keys(load_dataset(table(TABLE, "path,label")))
    assert dataset.remarks == ()


def test_p2_of_two_columns_of_parts_the_one_without_odd_cells_is_taken(table: Callable[..., Path]) -> None:
    rows = [(*row, "" if number == 0 else "train", ("train", "test")[number % 2]) for number, row in enumerate(TABLE)]
    dataset = load_dataset(table(rows, "path,label,old,new"))
    assert [len(split) for split in keys(dataset)] == [4, 0, 4]
    assert dataset.remarks == ("column 'new' of labels.csv tells the parts",)


@pytest.mark.parametrize("header", ["path,label,Usage", "path,label,split"])
def test_p2_the_parts_of_a_contest_are_known(table: Callable[..., Path], header: str) -> None:
    names = ("Training", "Training", "PublicTest", "PrivateTest")
    dataset = load_dataset(table([(*row, names[number % 4]) for number, row in enumerate(TABLE)], header))
    assert keys(dataset) == [["cat/0", "cat/1", "dog/0", "dog/1"], ["cat/2", "dog/2"], ["cat/3", "dog/3"]]


def test_whole_numbers_below_zero_are_in_their_order(table: Callable[..., Path]) -> None:
    rows = [(f"{number}.jpg", (10, -1, 2, -10)[number % 4]) for number in range(16)]
    assert load_dataset(table(rows, "path,label")).class_names == ("-10", "-1", "2", "10")


def test_p15_names_in_another_case_are_taken_and_counted(table: Callable[..., Path]) -> None:
    path = table(TABLE, "path,label")
    plain = load_dataset(path)
    assert plain.remarks == ()
    lines = [*(f"Cat/{number}.JPG,cat" for number in range(3)), "cat/3.jpg,cat"]
    path.write_text("\n".join(["path,label", *lines, *(f"DOG\\{number}.Jpg,dog" for number in range(4))]))
    dataset = load_dataset(path)
    assert keys(dataset) == keys(plain)
    assert dataset.remarks == (
        "7 rows of labels.csv name an image in another case of letters, Cat/0.JPG for cat/0.jpg: it is taken",
    )


def test_p15_of_two_names_in_another_case_none_is_taken(table: Callable[..., Path], photo: Photo) -> None:
    path = table(TABLE, "path,label")
    for number, name in enumerate(("new.jpg", "New.jpg", "link.jpg")):
        photo(path.parent / "cat" / name, 90 + number)
    (path.parent / "cat" / "link.jpg").unlink()
    (path.parent / "cat" / "link.jpg").symlink_to("gone.jpg")
    path.write_text(path.read_text() + "cat/NEW.jpg,cat\ncat/link.jpg,cat\nNo/such/0.jpg,cat\n")
    message = r"3 of 11 files cannot be read: cat/NEW\.jpg \(No such .*\), cat/link\.jpg \(No .*\), No/such/0\.jpg \("
    with pytest.raises(ValueError, match=message):
        load_dataset(path)
    assert load_dataset(path, skip_broken=True).remarks == ()


@pytest.mark.parametrize("file", ["/9j/4AAQ" * 9000, "x" * 256, "é" * 200])
def test_a_column_that_holds_the_pictures_is_one_sentence(tmp_path: Path, file: str) -> None:
    (tmp_path / "labels.csv").write_text(f"image,label\n{file},cat\n{file},cat\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"is too long for a path: name files|none of the 1 images of") as error:
        load_dataset(tmp_path / "labels.csv")
    assert len(str(error.value)) < 1000


def test_only_images_that_are_asked_for_must_be_there(table: Callable[..., Path]) -> None:
    path = table(TABLE, "path,label")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *(f"ant/{number}.jpg,ant" for number in range(200)), *lines[1:]]))
    assert counted(load_dataset(path, classes=["cat", "dog"])) == 8
    with pytest.raises(ValueError, match=r"none of the 200 images of .* is there, .*ant/0.jpg for one"):
        load_dataset(path, classes=["ant"])
