"""No image that a run trained or chose on is ever measured as its test image, whatever becomes of the data."""

import csv
import io
import shutil
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ceit.data.cut import PARTS_STREAM, tenths_by_content
from ceit.data.held_out import to_measure
from ceit.data.labelled import UNSPLIT, LabelledSet, as_dataset, without_copies
from ceit.data.path_array import PathArray
from ceit.data.random_bits import random_bits
from ceit.data.record import FILE, NEW, TEST, TRAIN, VALIDATION, Changes, ImageRecord
from ceit.data.sources.choose import load_images
from ceit.data.sources.listing import LARGE_SIZE
from ceit.data.sources.shards.write import write_shards
from ceit.data.splits import FileSplit, Split

CLASSES = ("cat", "dog")
TRAINING = {"seed": 0, "images": FILE}


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "BMP")


def contents(split: Split | None) -> set[int]:
    assert split is None or split.digests is not None
    return set() if split is None or split.digests is None else set(split.digests.tolist())


def started(found: LabelledSet, seed: int) -> ImageRecord:
    dataset = without_copies(as_dataset(found, seed))
    parts = {TRAIN: dataset.train, VALIDATION: dataset.validation, TEST: dataset.test}
    return ImageRecord.of({name: part for name, part in parts.items() if part is not None}, found)


@dataclass
class Folder:
    """Class folders that somebody goes on working in; ``seen`` are all images that there ever were."""

    root: Path
    random: Random
    made: int = 0
    lines: list[str] = field(default_factory=list)

    def add(self, name: str | None = None) -> None:
        self.made += 1
        picture(self.root / (name or self.random.choice(CLASSES)) / f"{self.made}.bmp", self.made)

    def files(self) -> list[Path]:
        return sorted(self.root.rglob("*.bmp"))

    def change(self) -> None:
        kind, file = self.random.choice(["add", "remove", "rename", "edit", "copy", "swap", "relabel"]), self.some()
        match kind:
            case "add":
                self.add()
            case "remove" if len(self.files()) > 6:
                file.unlink()
            case "rename":
                file.rename(file.with_name(f"{self.random.randrange(10**9)}.bmp"))
            case "edit":  # turned and saved under its name
                Image.open(file).rotate(90).save(file, "BMP")
            case "copy":
                shutil.copy(file, self.root / self.random.choice(CLASSES) / f"copy{self.random.randrange(10**9)}.bmp")
            case "swap":
                other, kept = self.some(), file.read_bytes()
                file.write_bytes(other.read_bytes())
                other.write_bytes(kept)
            case _:
                file.rename(self.root / self.random.choice(CLASSES) / file.name)
        self.lines.append(f"{kind} {file.name}")

    def some(self) -> Path:
        return self.random.choice(self.files())


@pytest.fixture
def folders(tmp_path: Path) -> Callable[[int], Folder]:
    """Makes a folder of 7 to 24 images by a seed."""

    def make(seed: int) -> Folder:
        random = Random(seed)
        folder = Folder(tmp_path / f"{seed}", random)
        for name in CLASSES:
            for _ in range(random.randrange(3, 13)):
                folder.add(name)
        return folder

    return make


def as_folder(folder: Folder) -> Path:
    return folder.root


def as_csv(folder: Folder) -> Path:
    path = folder.root.with_suffix(".csv")
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label"))
        rows.writerows((image.relative_to(path.parent), image.parent.name) for image in folder.files())
    return path


def as_parquet(folder: Folder) -> Path:
    path = folder.root.with_suffix(".parquet")
    files = folder.files()
    folder.random.shuffle(files)
    columns = {"path": [str(file.relative_to(path.parent)) for file in files], "label": [f.parent.name for f in files]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def as_shards(folder: Folder) -> Path:
    """Shards that say nothing of a split, with samples numbered as they lie."""
    root = folder.root.with_name(f"{folder.root.name}-shards")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    with tarfile.open(root / "00.tar", "w") as archive:
        for number, file in enumerate(folder.files()):
            for suffix, data in ((".bmp", file.read_bytes()), (".cls", file.parent.name.encode())):
                member = tarfile.TarInfo(f"{number:06}{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return root


def a_history(folder: Folder, place: Callable[[Folder], Path]) -> None:
    """A run is started, the folder changes, and the run is measured, several times over."""
    seed = folder.random.randrange(5)
    found = load_images(place(folder))
    record = started(found, seed)
    used = {row.content: row.part for row in record.rows if row.part != TEST}
    for name in (TRAIN, VALIDATION, TEST):  # every class keeps an image in each part
        assert {row.class_name for row in record.rows if row.part == name} == set(CLASSES)
    for _ in range(3):
        for _ in range(folder.random.randrange(1, 5)):
            folder.change()
        now = load_images(place(folder))
        _, changes = record.parts_in(now)
        assert min(changes.came, changes.went, changes.changed, changes.renamed) >= 0, folder.lines
        assert changes.came - changes.went == sum(map(len, now.parts.values())) - len(record.rows), folder.lines
        here = set().union(*(contents(part) for part in now.parts.values()))
        allowed = here - used.keys()
        if not allowed:
            with pytest.raises(ValueError, match="--split all measures all, also those that it was trained on"):
                to_measure(now, record, TRAINING, None)
            continue
        try:
            measured = to_measure(now, record, TRAINING, None).split
        except ValueError:  # all that is left are images edited under the names of those that were trained on
            assert not {row.content for row in record.rows if row.part == TEST} & allowed, folder.lines
            continue
        assert not contents(measured) & used.keys(), folder.lines
        kept = {row.content for row in record.rows if row.part == TEST} & here
        assert kept - used.keys() <= contents(measured), folder.lines
        if place in (as_folder, as_csv, as_parquet):  # what was edited under its name is not taken for a new image
            known = {row.content for row in record.rows}
            for index, content in enumerate(measured.digests.tolist() if measured.digests is not None else []):
                used_as = [row.part for row in record.rows if row.name == measured.key(index)]
                assert content in known or set(used_as) <= {TEST}, folder.lines
        if kept:
            assert contents(to_measure(now, record, TRAINING, "test").split) <= contents(measured)


@pytest.mark.parametrize("tens", range(20))
def test_p1_two_hundred_histories_of_a_folder(folders: Callable[[int], Folder], tens: int) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        a_history(folders(seed), as_folder)


@pytest.mark.parametrize("place", [as_csv, as_parquet, as_shards])
def test_p1_histories_of_other_sources(folders: Callable[[int], Folder], place: Callable[[Folder], Path]) -> None:
    for seed in range(1000, 1025):
        a_history(folders(seed), place)


@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(3, 60), min_size=2, max_size=4))
@settings(max_examples=100)
def test_p1_a_part_is_a_property_of_the_image(seed: int, sizes: list[int]) -> None:
    """Each image is placed by its own draw; only a class that would lack a part lends it its nearest image."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    digests = np.random.default_rng(seed).integers(0, 2**64, len(labels), dtype=np.uint64)
    parts = tenths_by_content(digests, labels, [str(number) for number in range(len(sizes))], seed)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(labels)))
    draws = random_bits(seed, -1, digests, PARTS_STREAM) / 2.0**64
    own = np.select([draws < 0.1, draws < 0.2], ["test", "validation"], "train")
    for number in range(len(sizes)):
        placed = {name: set(part[labels[part] == number].tolist()) for name, part in parts.items()}
        assert min(map(len, placed.values())) >= 1
        if len(np.unique(own[labels == number])) == 3:
            assert placed == {name: set(np.flatnonzero((own == name) & (labels == number)).tolist()) for name in parts}


def test_copies_stay_together_and_too_few_are_told(tmp_path: Path) -> None:
    for number in range(30):
        picture(tmp_path / "set" / CLASSES[number % 2] / f"{number}.bmp", number)
        shutil.copy(
            tmp_path / "set" / CLASSES[number % 2] / f"{number}.bmp",
            tmp_path / f"set/{CLASSES[number % 2]}/{number}b.bmp",
        )
    dataset = as_dataset(load_images(tmp_path / "set"), seed=3)
    parts = [contents(part) for part in (dataset.train, dataset.validation, dataset.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 30
    for number in range(4):
        picture(tmp_path / "few" / "cat" / f"{number}.bmp", number)
        picture(tmp_path / "few" / "dog" / f"{number}.bmp", 100 + number % 2)
    with pytest.raises(
        ValueError, match=r"class 'dog' has 2 images \(4 files, the others are copies\).*needs 3 of each"
    ):
        as_dataset(load_images(tmp_path / "few"), seed=0)


def test_copies_across_given_parts_are_not_measured_and_said(tmp_path: Path) -> None:
    for number in range(12):
        part = "train" if number < 8 else "test"
        picture(tmp_path / "set" / part / CLASSES[number % 2] / f"{number}.bmp", number)
    shutil.copy(tmp_path / "set/train/cat/0.bmp", tmp_path / "set/test/cat/again.bmp")
    dataset = without_copies(as_dataset(load_images(tmp_path / "set"), seed=0))
    assert len(dataset.test) == 4
    assert (
        "1 of 5 test images of set are copies of training or validation images: they are not measured"
        in dataset.remarks[0]
    )
    for file in (tmp_path / "set/test").rglob("*.bmp"):
        file.unlink()
    shutil.copy(tmp_path / "set/train/cat/0.bmp", tmp_path / "set/test/cat/again.bmp")
    with pytest.raises(ValueError, match="every test image of set is a copy of a training or validation image"):
        without_copies(as_dataset(load_images(tmp_path / "set"), seed=0))


def test_validation_images_that_are_training_images_are_said(tmp_path: Path) -> None:
    for number in range(16):
        part = "train" if number < 8 else "val" if number < 12 else "test"
        picture(tmp_path / "set" / part / CLASSES[number % 2] / f"{number}.bmp", number)
    assert without_copies(as_dataset(load_images(tmp_path / "set"), seed=0)).remarks == ()
    shutil.copy(tmp_path / "set/train/cat/0.bmp", tmp_path / "set/val/cat/again.bmp")
    dataset = without_copies(as_dataset(load_images(tmp_path / "set"), seed=0))
    assert dataset.remarks[0].startswith("1 of 5 validation images of set are copies of training images: they choose")


def test_an_image_moved_from_train_to_test_is_not_measured(tmp_path: Path) -> None:
    for number in range(16):
        part = "train" if number < 10 else "test"
        picture(tmp_path / "set" / part / CLASSES[number % 2] / f"{number}.bmp", number)
    record = started(load_images(tmp_path / "set"), seed=0)
    shutil.move(tmp_path / "set/train/cat/0.bmp", tmp_path / "set/test/cat/0.bmp")
    picture(tmp_path / "set/test/cat/new.bmp", 99)
    measured = to_measure(load_images(tmp_path / "set"), record, TRAINING, None)
    assert len(measured.split) == 7
    assert "1 came" in measured.remarks[0]
    assert "1 images of the test part were trained on or chosen by, or are copies: left out" in measured.remarks[1]


def test_a_record_comes_back_and_a_damaged_one_is_told(tmp_path: Path, folders: Callable[[int], Folder]) -> None:
    folder = folders(1)
    odd = folder.root / "cat" / 'a,"b"\n\udcff \u202f.bmp'
    picture(odd, 77)
    record = started(load_images(folder.root), seed=0)
    record.write(tmp_path)
    assert ImageRecord.read(tmp_path) == record
    assert ImageRecord.read(folder.root) is None
    (tmp_path / FILE).write_text("part,source\n1,2\n")
    with pytest.raises(
        ValueError, match=r"images\.csv is no record of a run's images \(its columns are part, source\)"
    ):
        ImageRecord.read(tmp_path)


def test_a_resumed_run_gets_its_images_in_their_order(folders: Callable[[int], Folder]) -> None:
    folder = folders(2)
    found = load_images(folder.root)
    record, before = started(found, seed=0), as_dataset(found, seed=0)
    for number in range(3):
        picture(folder.root / "cat" / f"0{number}.bmp", 500 + number)
    some = folder.files()[5]
    some.rename(some.with_name("another name.bmp"))
    now, changes = record.restored(load_images(folder.root))
    assert (changes.came, changes.went, changes.changed, changes.renamed) == (3, 0, 0, 1)
    for was, is_now in ((before.train, now.train), (before.validation, now.validation), (before.test, now.test)):
        assert was is not None
        assert is_now is not None
        assert was.digests is not None
        assert is_now.digests is not None
        assert was.digests.tolist() == is_now.digests.tolist()
        assert torch.equal(was.labels, is_now.labels)
    folder.files()[0].unlink()  # one that came
    record.restored(load_images(folder.root))
    some.with_name("another name.bmp").unlink()
    with pytest.raises(ValueError, match=r"1 of the \d+ images that this run was started with are gone, changed or of"):
        record.restored(load_images(folder.root))


def test_shards_keep_what_images_are_known_by(tmp_path: Path, folders: Callable[[int], Folder]) -> None:
    folder = folders(3)
    found = load_images(folder.root)
    record = started(found, seed=0)
    write_shards(as_dataset(load_images(folder.root, img_size=LARGE_SIZE), seed=0), tmp_path / "shards")
    packed = load_images(tmp_path / "shards")
    assert set().union(*map(contents, packed.parts.values())) == contents(found.unsplit)
    measured = to_measure(packed, record, TRAINING, None)
    assert contents(measured.split) == {row.content for row in record.rows if row.part == TEST}


def save_anew(root: Path) -> None:
    picture(root / "train/cat/0.dib", 99)
    (root / "train/cat/0.bmp").unlink()


def rename_and_replace(root: Path) -> None:
    (root / "train/cat/0.bmp").rename(root / "train/cat/zero.bmp")
    picture(root / "train/cat/0.bmp", 99)


def remove_and_add(root: Path) -> None:
    (root / "train/cat/0.bmp").unlink()
    picture(root / "train/cat/new.bmp", 99)


HAPPENED: dict[str, tuple[Callable[[Path], object], tuple[int, int, int, int]]] = {
    "a copy in another part": (
        lambda root: shutil.copy(root / "train/cat/0.bmp", root / "test/cat/0.bmp"),
        (1, 0, 0, 0),
    ),
    "a copy of another suffix": (
        lambda root: shutil.copy(root / "train/cat/0.bmp", root / "train/cat/0.dib"),
        (1, 0, 0, 0),
    ),
    "a new image of a known name": (lambda root: picture(root / "train/cat/0.dib", 99), (1, 0, 0, 0)),
    "an image saved anew": (save_anew, (0, 0, 1, 0)),
    "an image edited in its place": (lambda root: picture(root / "test/cat/10.bmp", 99), (0, 0, 1, 0)),
    "an image renamed": (lambda root: (root / "train/cat/0.bmp").rename(root / "train/cat/zero.bmp"), (0, 0, 0, 1)),
    "an image renamed and its name taken": (rename_and_replace, (1, 0, 0, 1)),
    "one went and one came": (remove_and_add, (1, 1, 0, 0)),
}


@pytest.mark.parametrize("name", HAPPENED)
def test_p1_each_image_is_counted_once(tmp_path: Path, name: str) -> None:
    for number in range(16):
        part = "train" if number < 10 else "test"
        picture(tmp_path / "set" / part / CLASSES[number % 2] / f"{number}.bmp", number)
    record = started(load_images(tmp_path / "set"), seed=0)
    change, counts = HAPPENED[name]
    change(tmp_path / "set")
    _, changes = record.parts_in(load_images(tmp_path / "set"))
    assert (changes.came, changes.went, changes.changed, changes.renamed) == counts


def test_p1_two_images_of_one_name_are_two(tmp_path: Path) -> None:
    """Whichever changes is found, both are taken up as they were, and a third may be one of them saved anew."""
    for number in range(12):
        for suffix, content in (("bmp", number), ("dib", 100 + number)):
            picture(tmp_path / "set" / CLASSES[number % 2] / f"{number}.{suffix}", content)
    found = load_images(tmp_path / "set")
    record = started(found, seed=0)
    picture(tmp_path / "set/cat/0.pcx", 200)
    now = load_images(tmp_path / "set")
    parts, changes = record.parts_in(now)
    assert (changes.came, changes.went, changes.changed, changes.renamed) == (1, 0, 0, 0)
    assert "new" not in parts["all"]
    dataset, _ = record.restored(now)
    was = [as_dataset(found, seed=0).train, as_dataset(found, seed=0).test]
    for before, after in zip(was, (dataset.train, dataset.test), strict=True):
        assert contents(before) == contents(after)
    (tmp_path / "set/cat/0.pcx").unlink()
    picture(tmp_path / "set/cat/0.dib", 300)
    _, changes = record.parts_in(load_images(tmp_path / "set"))
    assert (changes.came, changes.went, changes.changed, changes.renamed) == (0, 0, 1, 0)


def test_new_classes_are_told_with_counts() -> None:
    changes = Changes(came=60, changed=1, new_classes={"emu": 3, "jay": 4, "kea": 5, "owl": 48})
    assert str(changes) == (
        "images since this run was started: 60 came, 1 changed, 60 of new classes (emu, jay, kea and owl)"
    )


def test_m5_a_record_of_many_images_is_compared_in_seconds() -> None:
    """A time that grows with the square of the images would be minutes."""
    many = 50_000
    paths = tuple(Path(f"/photos/{CLASSES[number % 2]}/{number}.jpg") for number in range(many))
    digests = np.random.default_rng(0).integers(0, 2**64, many, dtype=np.uint64)
    split = FileSplit(PathArray.of(paths), torch.arange(many) % 2, Path("/photos"), digests)
    grey = (0.5,) * 3
    found = LabelledSet(
        name="photos",
        place="folder photos",
        class_names=CLASSES,
        parts={UNSPLIT: split},
        statistics=(grey, grey),
        img_size=(224, 224),
    )
    record = started(replace(found, parts={UNSPLIT: split.subset(torch.arange(many - 1))}), seed=0)
    began = time.perf_counter()
    parts, changes = record.parts_in(found)
    dataset, _ = record.restored(found)
    assert time.perf_counter() - began < 20
    assert str(changes) == "images since this run was started: 1 came"
    assert [name for name in parts[UNSPLIT].tolist() if name == NEW] == [NEW]
    assert contents(dataset.train) == {row.content for row in record.rows if row.part == TRAIN}
