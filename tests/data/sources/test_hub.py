"""Sets of the library datasets, saved by the test: columns by type, official splits, stable keys, worker processes."""

import io
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import ceit_cli
from ceit.data.image import BrokenImageError
from ceit.data.sources.choose import load_dataset
from ceit.data.sources.hub import HubSplit
from ceit.data.splits import ArraySplit, ImageDataset

NAMES = ["cat", "owl"]


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its cache is the test's, and it shows no bars."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()


def encoded(value: int, size: tuple[int, int], mode: str = "RGB") -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).convert(mode).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def table(
    count: int, size: tuple[int, int] = (70, 66), labels: list[Any] | None = None, mode: str = "RGB", **more: Any
) -> datasets.Dataset:
    """Rows whose image is as bright as their number; without labels cats and owls in turn."""
    label = datasets.ClassLabel(names=NAMES) if labels is None else None
    columns = {"image": [encoded(row, size, mode) for row in range(count)], **more}
    columns["label"] = [row % 2 for row in range(count)] if labels is None else labels
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    return rows if label is None else rows.cast_column("label", label)


def saved(root: Path, **splits: datasets.Dataset) -> str:
    together = datasets.DatasetDict()
    together.update(splits)
    together.save_to_disk(root / "photos")
    return f"hf:{root / 'photos'}"


def keys(dataset: ImageDataset) -> list[list[str]]:
    splits = (dataset.train, dataset.validation, dataset.test)
    return [[] if split is None else [split.key(index) for index in range(len(split))] for split in splits]


def brightness(image: Image.Image) -> float:
    return float(np.asarray(image).mean())


def test_official_splits(tmp_path: Path) -> None:
    dataset = load_dataset(saved(tmp_path, train=table(6), validation=table(2), test=table(3)))
    assert (dataset.name, dataset.class_names, dataset.img_size) == ("photos", ("cat", "owl"), (224, 224))
    assert keys(dataset) == [list("012345"), list("01"), list("012")]
    assert isinstance(dataset.train, HubSplit)
    assert dataset.train.labels.tolist() == [0, 1] * 3
    assert [brightness(dataset.train.read(index, 3)) for index in range(6)] == list(range(6))
    assert dataset.train.read(0, 3).mode == "RGB"
    assert dataset.train.read(0, 1).mode == "L"
    chosen = dataset.train.subset(torch.tensor([5, 2])).subset(torch.tensor([1]))
    assert (chosen.key(0), brightness(chosen.read(0, 3)), chosen.labels.tolist()) == ("2", 2, [0])


def test_without_test_the_validation_split_is_reported(tmp_path: Path) -> None:
    assert keys(load_dataset(saved(tmp_path, train=table(4), validation=table(2)))) == [list("0123"), [], list("01")]


def test_a_test_split_without_labels_is_passed_over(tmp_path: Path) -> None:
    unlabelled = table(2, labels=[-1, -1]).cast_column("label", datasets.ClassLabel(names=NAMES))
    dataset = load_dataset(saved(tmp_path, train=table(4), validation=table(3), test=unlabelled))
    assert [len(split) for split in keys(dataset)] == [4, 0, 3]


def test_training_images_alone_are_cut_by_the_seed(tmp_path: Path) -> None:
    table(40).save_to_disk(tmp_path / "photos")
    place = f"hf:{tmp_path / 'photos'}"
    dataset = load_dataset(place, seed=1)
    assert [len(split) for split in keys(dataset)] == [28, 6, 6]
    assert {key for split in keys(dataset) for key in split} == set(map(str, range(40)))
    assert keys(load_dataset(place, seed=1)) == keys(dataset)
    assert keys(load_dataset(place, seed=2)) != keys(dataset)
    for split in (dataset.train, dataset.test):
        assert [brightness(split.read(index, 3)) for index in range(4)] == [int(split.key(i)) for i in range(4)]


def test_small_images_are_held_in_memory(tmp_path: Path) -> None:
    dataset = load_dataset(saved(tmp_path, train=table(6, (9, 7), mode="L"), test=table(2, (9, 7), mode="L")))
    assert isinstance(dataset.train, ArraySplit)
    assert (dataset.train.images.shape, dataset.in_chans) == ((6, 1, 8, 8), 1)
    assert keys(dataset) == [list("012345"), [], list("01")]
    assert dataset.train.images[:, 0, 0, 0].tolist() == list(range(6))
    assert dataset.mean == (round(2.5 / 255, 5),)


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["owl", "cat", "owl"], ("cat", "owl"), [1, 0, 1]),
        ([10, 9, 10], ("9", "10"), [1, 0, 1]),
        (["e\u0301 ", "a", " \u00e9"], ("a", "\u00e9"), [1, 0, 1]),
    ],
)
def test_labels_of_text_and_of_numbers(
    tmp_path: Path, labels: list[Any], names: tuple[str, ...], numbers: list[int]
) -> None:
    dataset = load_dataset(saved(tmp_path, train=table(3, labels=labels), test=table(3, labels=labels)))
    assert dataset.class_names == names
    assert dataset.train.labels.tolist() == numbers


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    table(4).to_parquet(str(tmp_path / "photos" / "train-0.parquet"))
    table(2).to_parquet(str(tmp_path / "photos" / "test-0.parquet"))
    dataset = load_dataset(f"hf:{tmp_path / 'photos'}")
    assert keys(dataset) == [list("0123"), [], list("01")]
    assert brightness(dataset.train.read(3, 3)) == 3


def test_licence_and_citation_are_its_own(tmp_path: Path) -> None:
    rows = table(4)
    rows.info.license, rows.info.citation = "CC0", "@book{a,\n  title = {B}}\n"
    dataset = load_dataset(saved(tmp_path, train=rows, test=table(2)))
    assert (dataset.licence, dataset.citation) == ("CC0", "@book{a, title = {B}}")
    silent = load_dataset(saved(tmp_path / "other", train=table(4), test=table(2)))
    assert silent.licence == "none stated; see where it came from"


class Items(Dataset[tuple[str, float]]):
    """Key and brightness of every sample of a split."""

    def __init__(self, split: HubSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[str, float]:
        return self.split.key(index), brightness(self.split.read(index, 3))


def test_worker_processes_read_the_same(tmp_path: Path) -> None:
    split = load_dataset(saved(tmp_path, train=table(12), test=table(2))).train
    assert isinstance(split, HubSplit)
    here = Items(split)
    expected = [here[index] for index in range(len(here))]  # the table is open before the processes start
    loader = DataLoader(here, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert [tuple(item) for item in loader] == expected
    sent = Items(pickle.loads(pickle.dumps(split)))  # as it is where processes are not forked
    assert [sent[index] for index in range(len(sent))] == expected


def damaged(count: int, size: tuple[int, int]) -> datasets.Dataset:
    rows = [encoded(row, size) for row in range(count)]
    rows[1] = {"bytes": b"no image", "path": None}
    rows[2] = {"bytes": rows[2]["bytes"][:-30], "path": None}
    columns = {"image": rows, "label": [NAMES[row % 2] for row in range(count)]}
    return (
        datasets.Dataset.from_dict(columns)
        .cast_column("image", datasets.Image(decode=False))
        .cast_column("image", datasets.Image())
    )


def test_broken_small_images_are_named_or_skipped(tmp_path: Path) -> None:
    place = saved(tmp_path, train=damaged(6, (8, 8)), test=table(2, (8, 8), labels=NAMES))
    with pytest.raises(ValueError, match=r"2 of 8 files cannot be read: train 1 \(not an image\), train 2 \("):
        load_dataset(place)
    dataset = load_dataset(place, skip_broken=True)
    assert keys(dataset) == [list("0345"), [], list("01")]
    assert dataset.train.labels.tolist() == [0, 1, 0, 1]
    assert [line.split(" (")[0] for line in dataset.skipped] == ["train 1", "train 2"]


def test_m5_large_images_are_read_once_and_broken_ones_named_or_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    place = saved(tmp_path, train=damaged(6, (70, 70)), test=table(2, labels=NAMES))
    with pytest.raises(ValueError, match=r"2 of 8 files cannot be read: train 1 \(not an image\), train 2 \("):
        load_dataset(place)
    monkeypatch.setattr("ceit.data.reduced.read_image", None)  # from now on all is known
    dataset = load_dataset(place, skip_broken=True)
    assert keys(dataset)[0] == list("0345")
    assert brightness(dataset.train.read(1, 3)) == 3


def test_an_image_that_broke_since_is_named(tmp_path: Path) -> None:
    rows = damaged(3, (8, 8)).cast_column("image", datasets.Image(decode=False))
    split = HubSplit("photos train", rows, "image", torch.arange(3), torch.zeros(3))
    with pytest.raises(BrokenImageError, match=r"row 1 of photos train cannot be read as an image \(not an image\)"):
        split.read(1, 3)


def test_classes_may_be_chosen(tmp_path: Path) -> None:
    labels = ["a", "b", "c"]
    place = saved(tmp_path, train=table(3, labels=labels), test=table(3, labels=labels))
    dataset = load_dataset(place, classes=["c", "a"])
    assert dataset.class_names == ("c", "a")
    assert (keys(dataset), dataset.train.labels.tolist()) == ([["0", "2"], [], ["0", "2"]], [1, 0])
    assert isinstance(dataset.train, HubSplit)


def test_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hf: names no data set"):
        load_dataset("hf:")
    with pytest.raises(ValueError, match="hf:owner/nothing-here cannot be loaded by the library datasets: "):
        load_dataset("hf:owner/nothing-here")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty cannot be loaded by the library datasets: "):
        load_dataset(f"hf:{tmp_path / 'empty'}")


def test_what_cannot_serve(tmp_path: Path) -> None:
    def refused(name: str, message: str, **splits: datasets.Dataset) -> None:
        with pytest.raises(ValueError, match=message):
            load_dataset(saved(tmp_path / name, **splits))

    refused("a", "photos has no training images, only test: add a part named train", test=table(2))
    columns = r"one column of type Image and .* its columns are"
    refused("b", rf"{columns} label \(ClassLabel\)", train=table(2).remove_columns("image"))
    refused("c", rf"{columns} image \(Image\)", train=table(2).remove_columns("label"))
    refused("d", rf"{columns} image \(Image\), label \(float64\)", train=table(2, labels=[0.5, 1.5]))
    refused("e", r"1 of 2 images of hf:.*photos train have no label", train=table(2, labels=["a", None]))
    refused("i", r"1 of 2 images of hf:.*photos train have no label", train=table(2, labels=["a", " "]))
    both, other = table(2, labels=["a", "b"]), table(1, labels=["c"])
    refused("f", r"class 'c' of hf:.*photos is in test but not in train", train=both, test=other)
    refused("g", "has only the class 'a': a classifier needs at least two", train=table(2, labels=["a", "a"]))
    refused("h", "class 'cat' has 2 images: a set that is not split yet needs 3 of each", train=table(4))


def test_p2_splits_of_the_hub_in_other_spellings(tmp_path: Path) -> None:
    dataset = load_dataset(saved(tmp_path, training=table(6), Dev=table(2), eval=table(3)))
    assert keys(dataset) == [list("012345"), list("01"), list("012")]


def test_p2_two_splits_of_the_hub_for_one_part_are_refused(tmp_path: Path) -> None:
    name = saved(tmp_path, train=table(6), validation=table(2), dev=table(3))
    with pytest.raises(ValueError, match=r"hf:.*photos has 2 splits for validation: validation, dev; save it with one"):
        load_dataset(name)


def test_it_is_said_which_column_is_the_class(tmp_path: Path) -> None:
    kinds = datasets.ClassLabel(names=["pet", "bird"])
    rows = table(6, kind=[0, 0, 1] * 2).cast_column("kind", kinds)
    name = saved(tmp_path, train=rows, test=rows)
    dataset = load_dataset(name)
    assert dataset.class_names == ("pet", "bird")
    assert dataset.remarks == (f"column 'kind' of {name} is the class, not 'label'",)
    assert load_dataset(saved(tmp_path / "plain", train=table(6), test=table(2))).remarks == ()


def test_class_folders_of_which_the_library_drops_files_are_refused(tmp_path: Path) -> None:
    for number in range(12):
        name = f"train_{number}.png" if number < 4 else f"{number}.png"
        (folder := tmp_path / "photos" / NAMES[number % 2]).mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(number, (32, 32))["bytes"])
    told = (
        r"has 12 images, of which the library datasets takes 4, by their names: say .*photos, without hf:, to take all"
    )
    with pytest.raises(ValueError, match=told):
        load_dataset(f"hf:{tmp_path / 'photos'}")
    for file in (tmp_path / "photos").rglob("train_*.png"):
        file.rename(file.with_name(file.name.removeprefix("train_")))
    assert sum(map(len, keys(load_dataset(f"hf:{tmp_path / 'photos'}")))) == 12


def test_of_several_configurations_all_are_named(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for part in ("large", "small"):
        table(4).to_parquet(tmp_path / "set" / f"{part}.parquet")
    listed = "".join(f"- config_name: {part}\n  data_files: {part}.parquet\n" for part in ("large", "small"))
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    with pytest.raises(
        ValueError, match=r"Config name is missing.*'large', 'small'.* save it by save_to_disk, and say"
    ):
        load_dataset(f"hf:{tmp_path / 'set'}")


def test_labels_that_look_alike_are_said(tmp_path: Path) -> None:
    rows = table(6, labels=["cat", "cat\u200b", "owl"] * 2)
    line = r"classes that differ in case, spaces or invisible signs alone: 'cat' and 'cat\u200b'"
    assert load_dataset(saved(tmp_path, train=rows, test=rows)).remarks == (line,)


def test_names_of_numbered_classes_have_one_form_of_accents(tmp_path: Path) -> None:
    rows = with_names(6, ["cafe\u0301", "tea"])
    assert load_dataset(saved(tmp_path, train=rows, test=rows)).class_names == ("caf\u00e9", "tea")


def test_shards_beside_its_own_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = saved(tmp_path, train=table(6), test=table(2))
    assert ceit_cli.main(["data", "shard", data, str(tmp_path / "photos/shards")]) == 1
    assert "would be taken for a part of it: name a folder beside it" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_shards_take_what_a_raised_limit_lets_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(tmp_path, train=table(6), test=table(2))
    monkeypatch.setenv("CEIT_MAX_MEGAPIXELS", "500")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert ceit_cli.main(["data", "shard", data, str(tmp_path / "shards")]) == 0


def test_a_class_without_images_is_left_out_of_an_unsplit_set(tmp_path: Path) -> None:
    table(20).cast_column("label", datasets.ClassLabel(names=[*NAMES, "yak"])).save_to_disk(tmp_path / "photos")
    dataset = load_dataset(f"hf:{tmp_path / 'photos'}")
    assert (dataset.class_names, dataset.remarks) == (("cat", "owl"), ("no images in 'yak': left out of the classes",))


def test_splits_that_are_left_out_are_said(tmp_path: Path) -> None:
    unlabelled = table(2, labels=[-1, -1]).cast_column("label", datasets.ClassLabel(names=NAMES))
    dataset = load_dataset(saved(tmp_path, train=table(4), validation=table(3), test=unlabelled, extra=table(5)))
    assert [len(split) for split in keys(dataset)] == [4, 0, 3]
    assert dataset.remarks == (
        "left out: extra, 5 images: it is not called train, validation or test",
        "left out: test, 2 images without labels",
    )


def with_names(count: int, names: list[str]) -> datasets.Dataset:
    return table(count).cast_column("label", datasets.ClassLabel(names=names))


@pytest.mark.parametrize("names", [["owl", "cat"], ["cat", "owl", "yak"], ["cat", "yak"]])
@pytest.mark.parametrize("as_parquet", [False, True])
def test_a_split_whose_numbers_mean_other_classes_is_refused(
    tmp_path: Path, names: list[str], as_parquet: bool
) -> None:
    parts = {"train": table(6), "test": with_names(4, names)}
    data = f"hf:{tmp_path / 'photos'}"
    if as_parquet:
        (tmp_path / "photos").mkdir()
        for split, part in parts.items():
            part.to_parquet(tmp_path / "photos" / f"{split}.parquet")
    else:
        saved(tmp_path, **parts)
    with pytest.raises(
        ValueError, match=r"photos (test|train.parquet) has other classes than the other parts, or in another order"
    ):
        load_dataset(data)


def test_parts_of_other_columns_are_left_out_or_named(tmp_path: Path) -> None:
    dataset = load_dataset(saved(tmp_path / "a", train=table(40), test=table(4).remove_columns("label")))
    assert "left out: test, 4 images without labels" in dataset.remarks
    for number, (test, words) in enumerate(
        [
            (table(4, labels=["cat", "owl"] * 2), "has other classes than"),
            (table(4).rename_column("image", "picture"), "test has no column 'image': save all splits with the same"),
        ]
    ):
        with pytest.raises(ValueError, match=words):
            load_dataset(saved(tmp_path / str(number), train=table(40), test=test))
