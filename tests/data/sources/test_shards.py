"""Shards: the same epochs as from the folder, the layout that WebDataset reads, and nothing that is silently short."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ceit_cli
from ceit.data.audit.check import check
from ceit.data.batches.augment import Augmentation
from ceit.data.batches.loader import Loader, make_loader
from ceit.data.image import BrokenImageError
from ceit.data.preprocessing import to_array
from ceit.data.sources.choose import load_dataset
from ceit.data.sources.shards import foreign as foreign_shards
from ceit.data.sources.shards.index import INDEX, SAMPLES, read_index
from ceit.data.sources.shards.split import ShardSplit
from ceit.data.sources.shards.write import write_shards
from ceit.data.splits import ArraySplit, FileSplit, ImageDataset, Split

ImageFolder = Callable[..., Path]
SPLIT = {"train/cat": 9, "train/dog": 8, "val/cat": 2, "val/dog": 3, "test/cat": 3, "test/dog": 2}
LARGE = (70, 66)


@pytest.fixture
def folder(image_folder: ImageFolder) -> ImageDataset:
    """Images above 64 px, one a JPEG, one whose name would mean something to a reader of tar files."""
    root = image_folder(SPLIT, size=LARGE)
    with Image.open(root / "train" / "cat" / "0.png") as image:
        image.save(root / "train" / "cat" / "a.b c.JPG")
    return load_dataset(root)


@pytest.fixture
def shards(folder: ImageDataset, tmp_path: Path) -> Path:
    write_shards(folder, tmp_path / "shards", shard_bytes=100_000)
    return tmp_path / "shards"


def splits(dataset: ImageDataset) -> dict[str, Split]:
    found = {"train": dataset.train, "val": dataset.validation, "test": dataset.test}
    return {name: split for name, split in found.items() if split is not None}


def keys(split: Split) -> list[str]:
    return [split.key(index) for index in range(len(split))]


def loader(dataset: ImageDataset, workers: int) -> Loader:
    augmentation = Augmentation(flip=True, crop_scale=(0.3, 1.0), rand_augment="rand-m9-mstd0.5-inc1")
    preprocessing = dataset.preprocessing
    return make_loader(
        dataset.train,
        batch_size=5,
        img_size=(32, 32),
        preprocessing=preprocessing,
        augmentation=augmentation,
        seed=3,
        shuffle=True,
        workers=workers,
    )


def epoch_hash(dataset: ImageDataset, workers: int, epoch: int, start_batch: int = 0) -> str:
    """Of every pixel and label of an epoch, in order."""
    digest = hashlib.sha256()
    for images, labels in loader(dataset, workers).epoch(epoch, start_batch):
        digest.update(images.contiguous().numpy().tobytes() + labels.numpy().tobytes())
    return digest.hexdigest()


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def png(seed: int, size: tuple[int, int] = LARGE) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def foreign(root: Path, counts: dict[str, int], label: Callable[[int], dict[str, bytes]]) -> Path:
    """Shards as others write them: ``counts`` samples in each, labelled by number."""
    number = 0
    for name, count in counts.items():
        members: dict[str, bytes] = {}
        for _ in range(count):
            members[f"sample{number:03}.png"] = png(number)
            members |= {f"sample{number:03}{suffix}": content for suffix, content in label(number).items()}
            number += 1
        write_tar(root / name, members)
    return root


def test_they_are_the_folder(folder: ImageDataset, shards: Path) -> None:
    loaded = load_dataset(shards)
    assert isinstance(loaded.train, ShardSplit)
    assert replace(loaded, train=folder.train, validation=folder.validation, test=folder.test) == folder
    for name, split in splits(folder).items():
        other = splits(loaded)[name]
        assert keys(other) == keys(split)
        assert torch.equal(other.labels, split.labels)
        assert all(np.array_equal(to_array(other.read(i, 3)), to_array(split.read(i, 3))) for i in range(len(split)))
    assert "cat/a.b c" in keys(loaded.train)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_that_of_the_folder(folder: ImageDataset, shards: Path, workers: int) -> None:
    loaded = load_dataset(shards)
    hashes = [epoch_hash(dataset, workers, epoch) for epoch in (0, 1) for dataset in (folder, loaded)]
    assert hashes[0] == hashes[1] != hashes[2] == hashes[3]
    assert epoch_hash(loaded, workers, 1, start_batch=2) == epoch_hash(folder, 0, 1, start_batch=2)


def test_a_subset_keeps_keys_and_shards(shards: Path) -> None:
    train = load_dataset(shards).train
    assert isinstance(train, ShardSplit)
    part = train.subset(torch.tensor([5, 2]))
    assert keys(part) == [train.key(5), train.key(2)]
    assert part.shard_of.tolist() == train.shard_of[[5, 2]].tolist()
    assert np.array_equal(to_array(part.read(1, 1)), to_array(train.read(2, 1)))


def test_small_images_are_held_in_memory_as_from_the_folder(image_folder: ImageFolder, tmp_path: Path) -> None:
    folder = image_folder({"cat": 6, "dog": 6})
    assert ceit_cli.main(["data", "shard", str(folder), str(tmp_path / "out")]) == 0
    one, other = load_dataset(folder), load_dataset(tmp_path / "out")
    assert (one.mean, one.std, one.img_size) == (other.mean, other.std, other.img_size)
    for name, split in splits(one).items():
        shard = splits(other)[name]
        assert isinstance(split, ArraySplit)
        assert isinstance(shard, ArraySplit)
        assert torch.equal(split.images, shard.images)
        assert keys(split) == keys(shard)
    larger = load_dataset(tmp_path / "out", img_size=(16, 16))  # from the files themselves, not from what was shown
    assert torch.equal(larger.train.subset(torch.arange(3)).labels, one.train.labels[:3])
    assert isinstance(larger.train, ArraySplit)
    again = load_dataset(folder, img_size=(16, 16)).train
    assert isinstance(again, ArraySplit)
    assert torch.equal(larger.train.images, again.images)


def test_a_named_set_becomes_png(tmp_path: Path) -> None:
    digits = load_dataset("digits")
    write_shards(digits, tmp_path / "out")
    loaded = load_dataset(tmp_path / "out")
    assert isinstance(loaded.test, ArraySplit)
    assert isinstance(digits.test, ArraySplit)
    assert torch.equal(loaded.test.images, digits.test.images)
    assert keys(loaded.test) == keys(digits.test)
    for name in ("licence", "citation", "mirror_safe", "class_names", "mean", "std", "name"):
        assert getattr(loaded, name) == getattr(digits, name)


def test_the_layout_is_webdatasets(folder: ImageDataset, shards: Path) -> None:
    assert isinstance(folder.train, FileSplit)
    seen = []
    for path in sorted(shards.glob("train-*.tar")):
        with tarfile.open(path, "r:") as archive:
            members = archive.getmembers()
            contents = [archive.extractfile(member) for member in members]
            files = {m.name: f.read() for m, f in zip(members, contents, strict=True) if f is not None}
        assert all(member.isreg() and member.mtime == 0 and member.uid == 0 for member in members)
        stems = [name.split(".")[0] for name in files]
        assert stems == [stem for stem in dict.fromkeys(stems) for _ in range(3)]  # of one sample next to each other
        for stem in dict.fromkeys(stems):
            record = json.loads(files[f"{stem}.json"])
            number = record["number"]
            path = folder.train.paths[number]
            assert files[stem + path.suffix.lower()] == path.read_bytes()
            assert int(files[f"{stem}.cls"]) == record["label"] == folder.train.labels[number]
            assert (record["key"], record["class_name"]) == (folder.train.key(number), path.parent.name)
            seen.append(number)
    assert sorted(seen) == list(range(len(folder.train)))
    assert seen != sorted(seen)  # any few shards hold all classes


def test_p3_an_image_without_a_suffix_has_one_in_its_shard(image_folder: ImageFolder, tmp_path: Path) -> None:
    root = image_folder(SPLIT, size=LARGE)
    for name in ("IMG_1", "x.jpg_large"):
        (root / "train" / "cat" / name).write_bytes(png(len(name)))
    write_shards(load_dataset(root), tmp_path / "shards")
    with tarfile.open(tmp_path / "shards" / "train-000000.tar") as archive:
        suffixes = {member.name.partition(".")[2] for member in archive}
    assert suffixes == {"png", "cls", "json"}


def test_sizes_hashes_and_counts_are_in_the_index(folder: ImageDataset, shards: Path) -> None:
    index, _ = read_index(shards)
    assert len(index.shards) > 3
    for shard in index.shards:
        data = (shards / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
        assert shard.samples == 1 or len(data) <= 100_000 + 2 * tarfile.RECORDSIZE
    assert sum(shard.samples for shard in index.shards) == sum(len(split) for split in splits(folder).values())


def test_the_bytes_depend_on_nothing_else(folder: ImageDataset, shards: Path, tmp_path: Path) -> None:
    write_shards(folder, tmp_path / "again", shard_bytes=100_000)
    for path in shards.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_stopped_write_leaves_nothing(folder: ImageDataset, tmp_path: Path) -> None:
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(folder, tmp_path / "out", shard_bytes=100_000, say=stop)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    killed = tmp_path / ".out.partial"
    killed.mkdir()
    (killed / "train-000000.tar").write_bytes(b"half")
    write_shards(folder, tmp_path / "out")
    assert not killed.exists()
    assert len(load_dataset(tmp_path / "out").train) == len(folder.train)


def test_what_is_there_is_not_written_over(folder: ImageDataset, shards: Path) -> None:
    with pytest.raises(ValueError, match=r"shards is not empty: name a new folder"):
        write_shards(folder, shards)
    with pytest.raises(ValueError, match=r"index.json is a file: name a new folder"):
        write_shards(folder, shards / INDEX)


def test_shards_of_shards(shards: Path, tmp_path: Path) -> None:
    first = load_dataset(shards)
    write_shards(first, tmp_path / "again", shard_bytes=100_000)
    names = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in sorted(shards.glob("*.tar"))]
    found = sorted((tmp_path / "again").glob("*.tar"))
    assert [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in found] == names


def test_damage_is_named(shards: Path) -> None:
    shard = shards / "train-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    sizes = rf"{len(whole) - 512:,} bytes, index.json says {len(whole):,}"
    with pytest.raises(ValueError, match=rf"shard .*train-000001.tar has {sizes}: copy it anew"):
        load_dataset(shards)
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard .*train-000001.tar is missing"):
        load_dataset(shards)
    shard.write_bytes(whole)
    (shards / "train-000099.tar").write_bytes(whole)
    with pytest.raises(ValueError, match=r"shard .*train-000099.tar is not in index.json"):
        load_dataset(shards)
    (shards / "train-000099.tar").unlink()
    (shards / SAMPLES).write_bytes((shards / SAMPLES).read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"samples.safetensors is not the one that index.json tells of"):
        load_dataset(shards)
    (shards / INDEX).write_text("{")
    with pytest.raises(ValueError, match=r"index.json is no index of shards"):
        load_dataset(shards)


def test_a_shard_cut_while_it_is_used_names_the_sample(shards: Path) -> None:
    train = load_dataset(shards).train
    assert isinstance(train, ShardSplit)
    last = int(np.argmax(train.table.offset[train.rows] * (train.shard_of == 0)))
    path = shards / "train-000000.tar"
    path.write_bytes(path.read_bytes()[: int(train.table.offset[train.rows[last]]) + 10])
    with pytest.raises(BrokenImageError, match=rf"sample {train.key(last)} of .*train-000000.tar .*only 10 of"):
        train.read(last, 3)


CLASSES = ("ant", "bee")


@pytest.mark.parametrize(
    ("label", "names"),
    [
        (lambda number: {".cls": b"%d" % (number % 2)}, ("0", "1")),
        (lambda number: {".txt": CLASSES[number % 2].encode()}, CLASSES),
        (lambda number: {".json": json.dumps({"label": CLASSES[number % 2]}).encode()}, CLASSES),
        (lambda number: {".json": json.dumps({"label": number % 2, "class_name": "xy"[number % 2]}).encode()}, "xy"),
        (lambda number: {".cls": b"%d\n" % (number % 2), ".txt": b"a photo"}, ("0", "1")),
    ],
)
def test_shards_of_others(tmp_path: Path, label: Callable[[int], dict[str, bytes]], names: tuple[str, ...]) -> None:
    root = foreign(tmp_path / "wds", {"a-train-00.tar": 6, "a-train-01.tar": 4, "a-val-00.tar": 4}, label)
    dataset = load_dataset(root)
    assert dataset.class_names == tuple(names)
    assert dataset.train.labels.tolist() == [0, 1] * 5
    assert (len(dataset.test), dataset.validation, dataset.img_size) == (4, None, (224, 224))
    assert keys(dataset.train)[:2] == ["sample000", "sample001"]
    with Image.open(io.BytesIO(png(3))) as image:
        assert np.array_equal(to_array(dataset.train.read(3, 3)), to_array(image))


@pytest.mark.parametrize(
    "label",
    [
        lambda name, number: {".cls": name.encode()},
        lambda name, number: {".json": json.dumps({"label": number, "class_name": name}).encode()},
    ],
)
def test_classes_of_others_have_one_form_of_accents(
    tmp_path: Path, label: Callable[[str, int], dict[str, bytes]]
) -> None:
    names = ("cafe\u0301", "Tea", "tea")
    root = foreign(tmp_path / "wds", {"train-0.tar": 6, "test-0.tar": 3}, lambda n: label(names[n % 3], n % 3))
    dataset = load_dataset(root)
    assert sorted(dataset.class_names) == ["Tea", "caf\u00e9", "tea"]
    assert dataset.remarks == ("classes that differ in case, spaces or invisible signs alone: 'Tea' and 'tea'",)


def test_samples_are_scanned_anew_where_more_kinds_of_images_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    root = tmp_path / "wds"
    write_tar(root / "train-0.tar", {"a.png": png(0), "a.cls": b"0", "b.png": png(1), "b.cls": b"1"})
    before = foreign_shards.scanned_folder(root)
    monkeypatch.setattr(foreign_shards, "image_suffixes", lambda: {".png", ".raw3"})
    assert foreign_shards.scanned_folder(root) != before


def test_unsplit_shards_of_others_are_cut(tmp_path: Path) -> None:
    root = foreign(tmp_path / "wds", {"00.tar": 11, "01.tar": 9}, lambda number: {".cls": b"%d" % (number % 2)})
    (root / "classnames.txt").write_text("ant\nbee\n", encoding="utf-8-sig")  # as PowerShell writes it
    dataset = load_dataset(root, seed=1)
    assert dataset.class_names == CLASSES
    assert dataset.validation is not None
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (13, 4, 3)
    assert keys(load_dataset(root, seed=1).test) == keys(dataset.test) != keys(load_dataset(root, seed=2).test)


def test_splits_in_folders(tmp_path: Path) -> None:
    counts = {"train/0.tar": 6, "validation/0.tar": 2, "test/0.tar": 2}
    dataset = load_dataset(foreign(tmp_path / "wds", counts, lambda number: {".cls": b"%d" % (number % 2)}))
    assert [len(split) for split in splits(dataset).values()] == [6, 2, 2]


def test_headers_are_scanned_once_until_a_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    scans, scan = [], foreign_shards._samples_of
    monkeypatch.setattr(foreign_shards, "_samples_of", lambda *given: scans.append(given[0].name) or scan(*given))
    root = foreign(tmp_path / "wds", {"train-0.tar": 6, "test-0.tar": 2}, lambda n: {".cls": b"%d" % (n % 2)})
    first = load_dataset(root)
    assert keys(load_dataset(root).train) == keys(first.train)
    assert len(scans) == 2
    for kept in (tmp_path / "cache" / "shards").rglob(SAMPLES):
        kept.write_bytes(b"damaged")
    load_dataset(root)
    assert len(scans) == 4
    foreign(root, {"train-0.tar": 8}, lambda number: {".cls": b"%d" % (number % 2)})
    assert len(load_dataset(root).train) == 8
    assert len(scans) == 6


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"", "a.jpg": b"", "a.cls": b"0"}, "sample a of shard .* has 2 images: it must have one"),
        ({"a.cls": b"0"}, r"sample a of shard .* has no image of a known kind, only \.cls: it must have one$"),
        ({"a.raw3": b"", "a.json": b'{"label": 1}'}, r"has no image of a known kind, only \.raw3, \.json: it must"),
        ({"a.txt": b"a licence", "b.json": b"{}"}, r"shard .*train-0\.tar has no samples"),
        ({"x/a.png": b""}, "sample x/a of shard .* tells no class: add it as x/a.cls"),
        ({"a.png": b"", "a.json": b"[]"}, "tells no class"),
        ({"a.png": b"", "a.json": b'{"label": 0.5}'}, "tells no class"),
        ({"a.JPG": b"", "a.cls": b"0", "a.jpg": b""}, "two files of one kind for sample a: give each sample a name"),
        (
            {"a.png": b"", "b.png": b"", "a.cls": b"0", "b.cls": b"1"},
            r"sample a .* tells no class: add it as a\.cls; files of one sample must follow each other: pack",
        ),
        ({"a.cls": b"", "b.cls": b"", "a.png": b"0", "b.png": b"1"}, r"no image .* files of one sample must follow"),
        ({"a.png": b"", "a.json": b'{"label": [0, 1]}'}, "tells no class"),
        ({"a.png": b"", "a.json": b'{"label": {"id": 1}}'}, "tells no class"),
        ({"README.md": b""}, r"shard .*train-0\.tar has no samples"),
        ({"IMG_1.b.jpg": b"", "IMG_1.b.cls": b"0"}, r"IMG_1\.b\.jpg of shard .* has a dot in its name, .*: rename it"),
        ({"a.b.cls": b"0"}, r"a\.b\.cls of shard .* has a dot in its name"),
        (
            {"a.jpg": b"", "a.cls": b"0", "a.b.jpg": b"", "a.b.json": b"{}"},
            r"a\.b\.jpg of shard .* has a dot in its name",
        ),
        ({"a.png": b"", "a.cls": b"0", "b.png": b"", "b.cls": b"bee"}, "by number and, 'bee', by name: use one"),
    ],
)
def test_shards_that_cannot_be_read(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    write_tar(tmp_path / "wds" / "train-0.tar", members)
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path / "wds")


def test_numbers_as_pandas_writes_them_are_classes(tmp_path: Path) -> None:
    def label(number: int) -> dict[str, bytes]:
        return {".json": json.dumps({"label": float(number % 2)}).encode()}

    dataset = load_dataset(foreign(tmp_path / "wds", {"train-0.tar": 6, "test-0.tar": 2}, label))
    assert dataset.class_names == ("0", "1")


def test_the_last_word_of_a_shards_name_tells_its_part(tmp_path: Path) -> None:
    counts = {"test-tubes-train-000.tar": 6, "test-tubes-val-000.tar": 4, "test-tubes-test-000.tar": 2}
    dataset = load_dataset(foreign(tmp_path / "wds", counts, lambda n: {".cls": b"%d" % (n % 2)}))
    assert [len(part) for part in splits(dataset).values()] == [6, 4, 2]


def test_foreign_shards_that_were_cut(tmp_path: Path) -> None:
    root = foreign(tmp_path / "wds", {"train-0.tar": 6, "test-0.tar": 2}, lambda n: {".cls": b"%d" % (n % 2)})
    shard = root / "train-0.tar"
    whole = shard.read_bytes()
    with tarfile.open(shard) as archive:
        ends = [member.offset_data + -(-member.size // 512) * 512 for member in archive]
    for size in (ends[-1], ends[3], ends[3] - 600, 700, 100):  # at and between members, in an image, in a header
        shard.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"shard .*train-0.tar (has no end|is no whole tar file)"):
            load_dataset(root)
    shard.write_bytes(whole + whole)
    with pytest.raises(ValueError, match=r"shard .*train-0.tar goes on behind its end at byte [0-9,]+: copy it anew"):
        load_dataset(root)
    (root / "more.tar").write_bytes(whole)
    with pytest.raises(ValueError, match=r"shard more.tar of .* belongs to no split, others do"):
        load_dataset(root)


def test_other_files_of_a_sample_are_passed_over(tmp_path: Path) -> None:
    def label(number: int) -> dict[str, bytes]:
        return {".cls": b"%d" % (number % 2), ".mask.png": png(0), ".coarse.cls": b"0"}

    root = foreign(tmp_path / "wds", {"train-0.tar": 6, "test-0.tar": 2}, label)
    assert keys(load_dataset(root).train) == [f"sample{number:03}" for number in range(6)]


def test_hidden_files_are_no_shards(shards: Path, tmp_path: Path) -> None:
    root = foreign(tmp_path / "wds", {"train/0.tar": 6, "test-0.tar": 2}, lambda n: {".cls": b"%d" % (n % 2)})
    for place in (root / "._test-0.tar", root / "train" / "._0.tar", shards / "._train-000000.tar"):
        place.write_bytes(b"of a Mac")
    (root / ".test").mkdir()
    (root / ".test" / "0.tar").write_bytes(b"")
    assert (len(load_dataset(root).train), len(load_dataset(shards).train)) == (6, 18)


def test_unsplit_shards_leave_out_numbers_without_images(tmp_path: Path) -> None:
    root = foreign(tmp_path / "wds", {"00.tar": 20}, lambda number: {".cls": b"%d" % (1 + number % 2)})
    dataset = load_dataset(root)
    assert (dataset.class_names, dataset.remarks) == (("1", "2"), ("no images in '0': left out of the classes",))
    assert dataset.train.labels.unique().tolist() == [0, 1]
    assert check(root).remarks == dataset.remarks
    with pytest.raises(ValueError, match="unknown class '0'"):
        load_dataset(root, classes=["0", "1"])


def test_broken_samples_of_others(tmp_path: Path) -> None:
    root = foreign(tmp_path / "wds", {"train-0.tar": 6, "test-0.tar": 2}, lambda n: {".cls": b"%d" % (n % 2)})
    write_tar(root / "train-1.tar", {"bad.jpg": b"no image", "bad.cls": b"1", "README.md": b"hello"})
    with pytest.raises(ValueError, match=r"1 of 9 .* cannot be read: bad of train-1.tar \(not an image\)"):
        load_dataset(root)
    dataset = load_dataset(root, skip_broken=True)
    assert (len(dataset.train), dataset.skipped) == (6, ("bad of train-1.tar (not an image)",))


def test_p2_shards_are_of_a_part_in_any_usual_spelling(tmp_path: Path) -> None:
    root = foreign(
        tmp_path / "set",
        {"Training/0.tar": 6, "set_VAL2017_0.tar": 2, "Test-Images/0.tar": 2},
        lambda number: {".cls": str(number % 2).encode()},
    )
    dataset = load_dataset(root)
    assert dataset.validation is not None
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [6, 2, 2]


def test_p15_shards_stay_shards_beside_a_folder_of_previews(tmp_path: Path) -> None:
    root = foreign(tmp_path / "set", {"train-0.tar": 6, "test-0.tar": 2}, lambda n: {".cls": str(n % 2).encode()})
    (root / "previews").mkdir()
    (root / "previews" / "0.png").write_bytes(png(0))
    assert isinstance(load_dataset(root).train, ShardSplit)


def test_p8_names_that_are_no_utf8_go_into_shards_and_come_back(image_folder: ImageFolder, tmp_path: Path) -> None:
    root = image_folder(SPLIT, size=LARGE)
    odd = os.fsdecode(b"caf\xe9")
    (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / f"{odd}.png")
    assert ceit_cli.main(["data", "shard", str(root), str(tmp_path / "out")]) == 0
    train = load_dataset(tmp_path / "out").train
    assert keys(train) == keys(load_dataset(root).train)
    row = keys(train).index(f"cat/{odd}")
    with Image.open(root / "train" / "cat" / f"{odd}.png") as image:
        assert np.array_equal(to_array(train.read(row, 3)), to_array(image))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_p8_shards_of_others_with_names_that_are_no_utf8(tmp_path: Path, form: int) -> None:
    root = foreign(tmp_path / "wds", {"test-0.tar": 2}, lambda n: {".cls": b"%d" % (n % 2)})
    with tarfile.open(root / "train-0.tar", "w", format=form) as archive:
        for number in range(6):
            for suffix, content in ((".png", png(number)), (".cls", b"%d" % (number % 2))):
                entry = tarfile.TarInfo(os.fsdecode(b"caf\xe9%d" % number) + suffix)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    for _ in range(2):  # the second time out of the cache
        assert keys(load_dataset(root).train) == [os.fsdecode(b"caf\xe9%d" % number) for number in range(6)]


def test_labels_of_others_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "wds" / "train-0.tar", {"a.png": png(0), "a.cls": b"caf\xe9"})
    with pytest.raises(ValueError, match=r"a\.cls of .*train-0\.tar is not UTF-8 \(.*\): write it anew"):
        load_dataset(tmp_path / "wds")
    write_tar(tmp_path / "wds" / "train-0.tar", {"a.png": png(0), "a.cls": b"0", "LICENSE.txt": b"\xa9"})
    (tmp_path / "wds" / "classnames.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"classnames\.txt is not UTF-8 \(.*\): write it anew"):
        load_dataset(tmp_path / "wds")


@pytest.mark.parametrize("text", ['{"wids_version": 1, "shardlist": []}', "[]", "no JSON"])
def test_p15_shards_of_others_may_have_an_index_of_their_own(tmp_path: Path, text: str) -> None:
    root = foreign(tmp_path / "wds", {"train-0.tar": 6, "test-0.tar": 2}, lambda n: {".cls": b"%d" % (n % 2)})
    (root / INDEX).write_text(text)
    assert keys(load_dataset(root).test) == ["sample006", "sample007"]


def test_an_index_without_its_table_is_refused(shards: Path) -> None:
    (shards / SAMPLES).unlink()
    with pytest.raises(ValueError, match=r"samples\.safetensors is missing: copy the folder anew"):
        load_dataset(shards)


def test_a_folder_that_cannot_get_another_in_its_place_is_refused_before_the_work(
    folder: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("os.path.ismount", lambda path: path == tmp_path / "out")
        with pytest.raises(ValueError, match="out is a drive: name a folder in it"):
            write_shards(folder, tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    with pytest.raises(ValueError, match="is where you are: name a folder in it"):
        write_shards(folder, Path())


def test_a_link_to_an_empty_folder_is_that_folder(folder: ImageDataset, tmp_path: Path) -> None:
    (tmp_path / "drive").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "drive")
    write_shards(folder, tmp_path / "link")
    assert (tmp_path / "drive" / "index.json").is_file()
    assert (tmp_path / "link").is_symlink()
