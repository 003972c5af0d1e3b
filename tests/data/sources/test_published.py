"""The published sets, each on a small one of the same layout: official splits, names, labels, pictures, errors."""

import io
import json
import sys
import tarfile
from collections.abc import Callable, Sequence
from hashlib import md5
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import torch
import torchvision
from scipy.io import savemat
from torchvision.datasets.utils import extract_archive

from ceit.cli import data as command
from ceit.data.image import BrokenImageError
from ceit.data.preprocessing import IMAGENET
from ceit.data.sources.choose import absolute, describe, load_dataset
from ceit.data.sources.published import PUBLISHED
from ceit.data.splits import FileSplit, ImageDataset

Photo = Callable[[Path, int], Path]


def brightness(number: int) -> int:
    """Of the ``number``-th photograph of a split."""
    return 40 + 20 * number


def imagenet(root: Path, photo: Photo) -> Path:
    for split, names in (("train", ("n02", "n01", "n02")), ("val", ("n01", "n02"))):
        for number, wnid in enumerate(sorted(names)):
            photo(root / split / wnid / f"{wnid}_{number}.JPEG", brightness(number))
    return root


def inaturalist(root: Path, photo: Photo, year: int) -> Path:
    categories = [{"id": 7, "name": "Parus"}, {"id": 3, "name": "Rana"}]
    for split, numbers in (("train", (7, 3, 3)), ("val", (3, 7))):
        files = [f"train_val{year}/Some/{number}/{split}{row}.jpg" for row, number in enumerate(numbers)]
        for row, file in enumerate(files):
            photo(root / file, brightness(row))
        document = {
            "categories": categories,
            "images": [{"id": 100 + row, "file_name": file} for row, file in enumerate(files)][::-1],
            "annotations": [{"image_id": 100 + row, "category_id": number} for row, number in enumerate(numbers)],
        }
        (root / f"{split}{year}.json").write_text(json.dumps(document))
    return root


def cars(root: Path, photo: Photo) -> Path:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(["AM General Hummer", "BMW M3"], object)})
    for split, place in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(number % 2 + 1, f"{number + 1:05d}.jpg") for number in range(3 if split == "train" else 2)]
        savemat(folder / place, {"annotations": np.array(rows, [("class", "O"), ("fname", "O")])})
        for number, (_, file) in enumerate(rows):
            photo(folder / f"cars_{split}" / file, brightness(number))
    return root


def flowers102(root: Path, photo: Photo) -> Path:
    folder = root / "flowers-102"
    for image in range(1, 8):
        photo(folder / "jpg" / f"image_{image:05d}.jpg", brightness(image))
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 1, 1, 77, 77, 77, 102]])})
    ids = {"trnid": np.array([[4, 1]]), "valid": np.array([[2, 5]]), "tstid": np.array([[7, 6, 3]])}
    savemat(folder / "setid.mat", ids)
    return root


def pets(root: Path, photo: Photo) -> Path:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    lists = {
        "trainval": ["Abyssinian_1 1 1 1", "basset_hound_2 2 2 1", "Abyssinian_3 1 1 1"],
        "test": ["basset_hound_1 2 2 1", "Abyssinian_2 1 1 1"],
    }
    for name, lines in lists.items():
        (folder / "annotations" / f"{name}.txt").write_text("\n".join(lines) + "\n")
        for number, line in enumerate(lines):
            photo(folder / "images" / f"{line.split()[0]}.jpg", brightness(number))
    return root


MAKERS: dict[str, Callable[[Path, Photo], Path]] = {
    "imagenet": imagenet,
    "inat2018": lambda root, photo: inaturalist(root, photo, 2018),
    "inat2019": lambda root, photo: inaturalist(root, photo, 2019),
    "cars": cars,
    "flowers102": flowers102,
    "pets": pets,
}
EXPECTED: dict[str, tuple[Sequence[str], dict[str, list[tuple[str, str]]]]] = {
    "imagenet": (
        ("n01", "n02"),
        {
            "train": [("n01/n01_0", "n01"), ("n02/n02_1", "n02"), ("n02/n02_2", "n02")],
            "test": [("n01/n01_0", "n01"), ("n02/n02_1", "n02")],
        },
    ),
    "inat2018": (
        ("Rana", "Parus"),
        {
            "train": [
                ("train_val2018/Some/7/train0", "Parus"),
                ("train_val2018/Some/3/train1", "Rana"),
                ("train_val2018/Some/3/train2", "Rana"),
            ],
            "test": [("train_val2018/Some/3/val0", "Rana"), ("train_val2018/Some/7/val1", "Parus")],
        },
    ),
    "cars": (
        ("AM General Hummer", "BMW M3"),
        {
            "train": [("00001", "AM General Hummer"), ("00002", "BMW M3"), ("00003", "AM General Hummer")],
            "test": [("00001", "AM General Hummer"), ("00002", "BMW M3")],
        },
    ),
    "flowers102": (
        tuple(torchvision.datasets.Flowers102.classes),
        {
            "train": [("image_00004", "passion flower"), ("image_00001", "pink primrose")],
            "validation": [("image_00002", "pink primrose"), ("image_00005", "passion flower")],
            "test": [
                ("image_00007", "blackberry lily"),
                ("image_00006", "passion flower"),
                ("image_00003", "pink primrose"),
            ],
        },
    ),
    "pets": (
        ("Abyssinian", "Basset Hound"),
        {
            "train": [
                ("Abyssinian_1", "Abyssinian"),
                ("basset_hound_2", "Basset Hound"),
                ("Abyssinian_3", "Abyssinian"),
            ],
            "test": [("basset_hound_1", "Basset Hound"), ("Abyssinian_2", "Abyssinian")],
        },
    ),
}


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def splits_of(dataset: ImageDataset) -> dict[str, FileSplit]:
    found = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    splits = {}
    for name, split in found.items():
        if split is not None:
            assert isinstance(split, FileSplit)
            splits[name] = split
    return splits


@pytest.mark.parametrize("name", EXPECTED)
def test_official_splits_names_and_labels(name: str, tmp_path: Path, photo: Photo) -> None:
    dataset = load_dataset(f"{name}:{MAKERS[name](tmp_path / 'set', photo)}")
    class_names, expected = EXPECTED[name]
    assert dataset.name == name
    assert dataset.class_names == tuple(class_names)
    splits = splits_of(dataset)
    assert list(splits) == list(expected)
    for split_name, split in splits.items():
        found = [(split.key(i), class_names[label]) for i, label in enumerate(split.labels.tolist())]
        assert found == expected[split_name]
        assert split.labels.dtype == torch.int64
    assert (dataset.img_size, dataset.preprocessing) == ((224, 224), IMAGENET)
    assert (dataset.licence, dataset.citation) == (PUBLISHED[name].licence, PUBLISHED[name].citation)


@pytest.mark.parametrize("name", PUBLISHED)
def test_pictures_are_read_back(name: str, cache: Path, photo: Photo) -> None:
    MAKERS[name](cache / name, photo)
    dataset = load_dataset(name)
    image = dataset.train.read(1, 3)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    number = 1  # the second of its split, but for the flowers, which are numbered through
    assert np.asarray(image).mean() == pytest.approx(brightness(number), abs=3)
    grey = load_dataset(name, img_size=(96, 64), in_chans=1)
    assert (grey.img_size, grey.in_chans) == ((96, 64), 1)
    assert grey.test.read(0, 1).mode == "L"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_set_that_is_not_there_says_what_must_lie_where(name: str, cache: Path) -> None:
    with pytest.raises(ValueError, match="is missing") as raised:
        load_dataset(name)
    sentence = str(raised.value)
    assert sentence.startswith(f"{name} is not in {cache / name}, where {PUBLISHED[name].layout[0]} is missing: ")
    assert sentence.endswith(
        f" and {PUBLISHED[name].layout[-1]}{PUBLISHED[name].form}, or name its place as {name}:DIR"
    )
    can_be_fetched = name in ("flowers102", "pets")
    assert (f"get it with `ceit data fetch {name}`" in sentence) == can_be_fetched
    assert (f"its owner offers it at {PUBLISHED[name].owner} ({PUBLISHED[name].licence})" in sentence) != can_be_fetched


@pytest.mark.parametrize(
    ("name", "gone"),
    [("inat2018", "val2018.json"), ("pets", "oxford-iiit-pet/annotations/test.txt"), ("imagenet", "val")],
)
def test_a_missing_part_is_named(name: str, gone: str, tmp_path: Path, photo: Photo) -> None:
    root = MAKERS[name](tmp_path / "set", photo)
    (root / gone).rename(tmp_path / "gone")
    with pytest.raises(ValueError, match=f"{name} is not in .*set, where {gone} is missing"):
        load_dataset(f"{name}:{root}")


@pytest.mark.parametrize("name", ["cars", "flowers102", "pets"])
def test_the_folder_that_the_archive_makes_may_be_named(name: str, tmp_path: Path, photo: Photo) -> None:
    root = MAKERS[name](tmp_path / "set", photo)
    (inner,) = root.iterdir()
    assert load_dataset(f"{name}:{inner}").train.labels.tolist() == load_dataset(f"{name}:{root}").train.labels.tolist()


def test_a_missing_picture_is_named_when_it_is_read(tmp_path: Path, photo: Photo) -> None:
    root = pets(tmp_path / "set", photo)
    gone = root / "oxford-iiit-pet" / "images" / "basset_hound_2.jpg"
    gone.unlink()
    (gone.parent / "Abyssinian_2.jpg").write_text("no image")
    dataset = load_dataset(f"pets:{root}")
    assert len(dataset.train) == 3
    with pytest.raises(FileNotFoundError, match=r"basset_hound_2\.jpg"):
        dataset.train.read(1, 3)
    with pytest.raises(BrokenImageError, match=r"Abyssinian_2\.jpg cannot be read as an image \(not an image\)"):
        dataset.test.read(1, 3)


def test_broken_and_missing_pictures_are_skipped_on_request(
    cache: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pets(cache / "pets", photo) / "oxford-iiit-pet" / "images"
    (images / "basset_hound_2.jpg").unlink()
    (images / "Abyssinian_2.jpg").write_text("no image")
    expected = (
        "oxford-iiit-pet/images/basset_hound_2.jpg (No such file or directory)",
        "oxford-iiit-pet/images/Abyssinian_2.jpg (not an image)",
    )
    dataset = load_dataset("pets", skip_broken=True)
    assert dataset.skipped == expected
    assert [dataset.train.key(0), dataset.train.key(1), dataset.test.key(0)] == [
        "Abyssinian_1",
        "Abyssinian_3",
        "basset_hound_1",
    ]
    monkeypatch.setattr("ceit.data.reduced.read_image", None)  # the second time the verdict is in the cache
    assert load_dataset("pets", skip_broken=True).skipped == expected


def test_a_set_that_is_not_whole_is_used_and_said(tmp_path: Path, photo: Photo, capsys: pytest.CaptureFixture) -> None:
    load_dataset(f"imagenet:{imagenet(tmp_path / 'set', photo)}")
    captured = capsys.readouterr()
    differences = "2 classes of 1,000, 3 training of 1,281,167, 2 test of 50,000"
    assert captured.err == f"imagenet in {tmp_path / 'set'} is not the whole published set: {differences}\n"
    assert captured.out == ""


def test_classes_may_be_chosen(tmp_path: Path, photo: Photo) -> None:
    place = f"flowers102:{flowers102(tmp_path / 'set', photo)}"
    dataset = load_dataset(place, classes=("passion flower", "pink primrose"))
    assert dataset.train.labels.tolist() == [0, 1]
    assert [dataset.test.key(i) for i in range(len(dataset.test))] == ["image_00006", "image_00003"]
    with pytest.raises(ValueError, match="unknown class 'rosé'; did you mean 'rose'"):
        load_dataset(place, classes=("rosé", "pink primrose"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "list indices must be"),
        ("{", "Expecting property name"),
        ("{}", r"no 'categories'"),
        ('{"categories": [], "images": [], "annotations": [{"image_id": 1, "category_id": 1}]}', "no 1"),
    ],
)
def test_a_damaged_annotation_file(tmp_path: Path, photo: Photo, text: str, message: str) -> None:
    root = MAKERS["inat2018"](tmp_path / "set", photo)
    (root / "train2018.json").write_text(text)
    with pytest.raises(ValueError, match=rf"train2018\.json is no annotation file of iNaturalist \({message}"):
        load_dataset(f"inat2018:{root}")


def test_a_damaged_list_of_pets(tmp_path: Path, photo: Photo) -> None:
    root = pets(tmp_path / "set", photo)
    (root / "oxford-iiit-pet" / "annotations" / "test.txt").write_text("<html> moved")
    with pytest.raises(ValueError, match=r"test\.txt is no list of pets \(<html> moved\)"):
        load_dataset(f"pets:{root}")


def test_a_class_that_training_lacks(tmp_path: Path, photo: Photo) -> None:
    root = imagenet(tmp_path / "set", photo)
    photo(root / "val" / "n09" / "a.JPEG", 9)
    with pytest.raises(ValueError, match=r"class 'n09' of .*set is in val but not in train"):
        load_dataset(f"imagenet:{root}")


def test_imagenet_whose_validation_images_are_not_sorted_into_classes(tmp_path: Path, photo: Photo) -> None:
    root = imagenet(tmp_path / "set", photo)
    for folder in list((root / "val").iterdir()):
        for path in list(folder.iterdir()):
            path.rename(root / "val" / path.name)
        folder.rmdir()
    with pytest.raises(ValueError, match="val has no images: it must hold a folder of images for each class"):
        load_dataset(f"imagenet:{root}")


def test_names_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    assert absolute("pets") == "pets"
    assert absolute("pets:pets") == f"pets:{tmp_path / 'pets'}"
    assert absolute("./pets") == absolute(Path("pets").resolve()) == str(tmp_path / "pets")
    assert absolute("hf:pets") == f"hf:{tmp_path / 'pets'}"
    assert absolute("hf:owner/name") == "hf:owner/name"
    with pytest.raises(ValueError, match=r"pets: names no folder: say pets for the cache or pets:DIR"):
        load_dataset("pets:")
    with pytest.raises(ValueError, match="unknown data set 'imagnet'; did you mean 'imagenet'"):
        load_dataset("imagnet:/data")
    with pytest.raises(ValueError, match="unknown data set 'inat2020'; did you mean 'inat20"):
        load_dataset("inat2020")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_set_tells_its_terms_and_whom_to_cite(name: str) -> None:
    title, images, licence, citation = describe(name).splitlines()
    published = PUBLISHED[name]
    assert title == f"{published.title}: {published.classes:,} classes of photographs"
    assert f"{published.train_images:,} to train" in images
    assert f"{published.test_images:,} to test" in images
    assert ("to validate" in images) == (name == "flowers102")
    assert licence == f"licence    {published.licence}"
    assert citation == f"citation   {published.citation}"


@pytest.mark.parametrize("name", ["imagenet", "inat2018", "inat2019", "cars"])
def test_what_only_its_owner_gives_is_not_fetched(name: str, cache: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot be fetched: its owner offers it at https://") as raised:
        command.main(["fetch", name])
    assert "non-commercial research" in str(raised.value)
    assert f"so that {cache / name} holds {PUBLISHED[name].layout[0]}" in str(raised.value)
    assert not cache.exists()


def test_what_lies_there_is_not_fetched_again(cache: Path, photo: Photo, capsys: pytest.CaptureFixture[str]) -> None:
    imagenet(cache / "imagenet", photo)
    command.main(["fetch", "imagenet"])
    printed = capsys.readouterr().out
    assert "ImageNet-1k (ILSVRC 2012): 1,000 classes of photographs" in printed
    assert f"place      {cache / 'imagenet'}" in printed


def packed(*folders: Path) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for folder in folders:
            tar.add(folder, folder.name)
    return file.getvalue()


class Archives(Protocol):
    """The server of the fixture."""

    files: dict[str, bytes]
    requests: list[str]

    @property
    def url(self) -> str: ...


@pytest.fixture
def owner(
    request: pytest.FixtureRequest,
    cache: Path,
    tmp_path: Path,
    photo: Photo,
    archives: Archives,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Offers a small set where torchvision looks for the one of that name, and an empty cache; returns the name."""
    name = request.param
    monkeypatch.delenv("CEIT_DATA_MIRROR", raising=False)
    (folder,) = MAKERS[name](tmp_path / "set", photo).iterdir()
    if name == "pets":
        archives.files = {file: packed(folder / file.split(".")[0]) for file in PUBLISHED[name].archives}
        resources = [(f"{archives.url}/{file}", md5(data).hexdigest()) for file, data in archives.files.items()]
        monkeypatch.setattr(torchvision.datasets.OxfordIIITPet, "_RESOURCES", resources)
    else:
        archives.files = {"102flowers.tgz": packed(folder / "jpg")}
        archives.files |= {file: (folder / file).read_bytes() for file in PUBLISHED[name].archives[1:]}
        hashes = [(file, md5(data).hexdigest()) for file, data in archives.files.items()]
        monkeypatch.setattr(torchvision.datasets.Flowers102, "_download_url_prefix", f"{archives.url}/")
        files = dict(zip(("image", "label", "setid"), hashes, strict=True))
        monkeypatch.setattr(torchvision.datasets.Flowers102, "_file_dict", files)
    return name


@pytest.mark.parametrize("owner", ["flowers102", "pets"], indirect=True)
def test_fetching_takes_the_owners_archives(
    owner: str, cache: Path, archives: Archives, capsys: pytest.CaptureFixture[str]
) -> None:
    command.main(["fetch", owner])
    assert PUBLISHED[owner].title in capsys.readouterr().out
    assert len(load_dataset(owner).train) == len(EXPECTED[owner][1]["train"])
    assert [path.name for path in cache.iterdir()] == [owner]
    assert not list(cache.rglob("*gz"))
    asked = len(archives.requests)
    command.main(["fetch", owner])
    assert len(archives.requests) == asked


@pytest.mark.parametrize("owner", ["flowers102"], indirect=True)
def test_fetching_needs_no_scipy(owner: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's reader does, after it has got everything; this package reads the set by itself."""
    for module in ("scipy", "scipy.io"):
        monkeypatch.setitem(sys.modules, module, None)
    command.main(["fetch", owner])
    assert len(load_dataset(owner).train) == len(EXPECTED[owner][1]["train"])


@pytest.mark.parametrize("owner", ["flowers102", "pets"], indirect=True)
def test_fetching_prefers_the_mirror(
    owner: str, cache: Path, tmp_path: Path, archives: Archives, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mirror").mkdir()
    for file, data in archives.files.items():
        (tmp_path / "mirror" / file).write_bytes(data)
    monkeypatch.setenv("CEIT_DATA_MIRROR", str(tmp_path / "mirror"))
    command.main(["fetch", owner])
    assert len(load_dataset(owner).train) == len(EXPECTED[owner][1]["train"])
    assert archives.requests == []


@pytest.mark.parametrize("owner", ["flowers102", "pets"], indirect=True)
def test_a_fetch_that_fails_leaves_no_set_and_is_taken_up(
    owner: str, cache: Path, archives: Archives, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    last = PUBLISHED[owner].archives[-1]
    kept = archives.files.pop(last)
    monkeypatch.setenv("CEIT_DATA_MIRROR", str(tmp_path / "empty"))
    with pytest.raises(
        ConnectionError, match=rf"{owner} could not be fetched; tried file://.*/empty/.*; https://www"
    ) as raised:
        command.main(["fetch", owner])
    assert "(Not Found)" in str(raised.value)
    assert [path.name for path in cache.iterdir()] == [f"{owner}.downloads"]
    archives.files[last] = kept
    monkeypatch.delenv("CEIT_DATA_MIRROR")
    command.main(["fetch", owner])
    assert len(load_dataset(owner).train) == len(EXPECTED[owner][1]["train"])
    assert [path.name for path in cache.iterdir()] == [owner]


def test_an_archive_that_would_write_outside_its_folder_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(folder: Path, *, download: bool) -> None:
        assert download
        with tarfile.open(folder / "102flowers.tgz", "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("../../outside"), io.BytesIO())
        extract_archive(f"{folder / '102flowers.tgz'}", f"{folder}")

    monkeypatch.setattr(torchvision.datasets, "Flowers102", download)
    rule = vars(tarfile.TarFile)["extraction_filter"]
    with pytest.raises(
        ConnectionError, match=r"^flowers102 could not be fetched; tried .*'\.\./\.\./outside'.*outside the"
    ):
        command.main(["fetch", "flowers102"])
    assert [path.name for path in cache.iterdir()] == ["flowers102.downloads"]
    assert not (cache.parent / "outside").exists()
    assert vars(tarfile.TarFile)["extraction_filter"] is rule
