"""Small valid files of every kind, made once a process: what mutation begins with."""

import gzip
import hashlib
import io
import itertools
import json
import struct
import tarfile
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch.amp import GradScaler

import ceit
from ceit.data import pillow
from ceit.data.preprocessing import Preprocessing
from ceit.data.sources.choose import load_images
from ceit.data.sources.shards.write import write_shards
from ceit.inference.example_images import synthetic
from ceit.inference.exported import SUFFIXES, ExportedDescription, Format
from ceit.inference.exporter import export
from ceit.inference.familiarity import Familiarity
from ceit.inference.prediction_file import Origin, write_answers
from ceit.inference.predictor import Predictor
from ceit.model import CeiT, CeiTConfig
from ceit.study.cells import Cell, pack, path_of, write_cell
from ceit.train.checkpoint import Parts, Progress, save_state
from ceit.train.run import train
from ceit.weights.description import Description
from tests.train.conftest import SMALL

Files = dict[str, bytes]

GEOMETRY: dict[str, Any] = {"embed_dim": 8, "depth": 2, "num_heads": 2, "stem_channels": 4, "stem_stride": 1}
SHAPE: dict[str, Any] = {**GEOMETRY, "img_size": 16, "num_classes": 2, "patch_size": 4}
NAMES = ("ant", "bee")
_KEPT = {"mean": [0.3] * 3, "std": [0.4] * 3, "crop": 0.9, "interpolation": "bilinear"}


@cache
def workshop() -> Path:
    """A folder for what is made; the process's own, and nobody else's."""
    return Path(mkdtemp(prefix="ceit-fuzz-"))


def files_in(folder: Path) -> Files:
    """All files below a folder, by their path in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


@cache
def network() -> CeiT:
    """A network of two classes with all that a file can say of one."""
    torch.manual_seed(0)
    made = CeiT(CeiTConfig(**SHAPE)).eval()
    numbers = torch.rand(8, 8).tril() + torch.eye(8)
    made.class_names, made.preprocessing, made.temperature = list(NAMES), dict(_KEPT), 1.5
    made.familiarity = Familiarity(torch.rand(2, 8), numbers, torch.rand(20).sort().values, 20).as_dict()
    return made


def picture(number: int = 0, side: tuple[int, int] = (12, 9), mode: str = "RGB") -> Image.Image:
    """Soft colours with some noise."""
    random = np.random.default_rng(number)
    pixels = np.linspace(0, 200, side[0] * side[1] * 3).reshape(side[1], side[0], 3) + random.integers(0, 50, 3)
    image = Image.fromarray(pixels.astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert("RGB").quantize(16) if mode == "P" else image.convert(mode)


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


_IN_WAYS: dict[str, list[dict[str, Any]]] = {
    "TIFF": [{"compression": c} for c in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4", "zstd")]
    + [{"save_all": True, "append_images": [picture(1)]}, {"big_tiff": True}],
    "JPEG": [{"progressive": True}, {"subsampling": 0, "restart_marker_blocks": 1}],
    "PNG": [{"interlace": 1}, {"save_all": True, "append_images": [picture(1)]}],
    "GIF": [{"save_all": True, "append_images": [picture(1)]}],
    "WEBP": [{"lossless": True}, {"save_all": True, "append_images": [picture(1)]}],
    "TGA": [{"compression": "tga_rle"}],
    "SGI": [{"bpc": 2}],
    "JPEG2000": [{"irreversible": True}, {"no_jp2": True}],
    "DDS": [{"pixel_format": name} for name in ("DXT1", "DXT5", "BC5")],
}


# What these compressions take. Pillow 12.3 ends the process where a newer one refuses another mode.
_TIFF_MODES = {"group4": ("1",), "jpeg": ("RGB", "RGBA", "L", "LA", "CMYK")}


@cache
def images() -> list[Files]:
    """An image in every format that is read and that Pillow can write, in each of its modes."""
    pillow.formats()
    exif = Image.Exif()
    exif[274], exif[270] = 6, "a picture"
    made: list[Files] = []
    for form in sorted(set(pillow.formats()) & Image.SAVE.keys()):
        for mode in ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16", "F"):
            for options in [{}, {"exif": exif}, *_IN_WAYS.get(form, [])]:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    made += [{"picture.bin": data} for data in _tried(form, mode, options)]
    return [dict(files) for files in {next(iter(one.values())): one for one in made}.values()]


def _tried(form: str, mode: str, options: dict[str, Any]) -> Iterator[bytes]:
    if mode not in _TIFF_MODES.get(options.get("compression", ""), (mode,)):
        return
    side = (32, 32) if form in ("ICNS", "ICO") else (12, 9)
    # Pillow's errors for what it cannot write, among them a mistake of Pillow 12.3 with a palette
    cannot = (OSError, ValueError, KeyError, TypeError, RuntimeError, SystemError, AttributeError, UnboundLocalError)
    with suppress(*cannot):
        yield _saved(picture(0, side, mode), form, **options)


@cache
def checkpoints() -> list[Files]:
    """Our file with its side file, alone, and without what training adds."""
    folder = workshop() / "checkpoint"
    folder.mkdir()
    ceit.save_checkpoint(folder / "model.safetensors", network(), training={"seed": 0, "images": "images.csv"})
    both = files_in(folder)
    bare = CeiT(CeiTConfig(**SHAPE, leff_norm="none", lca=False))
    ceit.save_checkpoint(folder / "model.safetensors", bare)
    return [both, {"model.safetensors": both["model.safetensors"]}, files_in(folder)]


class _Touch:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("unpickled",)


@cache
def torch_files() -> list[Files]:
    """What ``torch.save`` writes, zip and legacy, with what trainers add, and some that would execute something."""
    state = network().state_dict()
    contents = [
        state,
        {"model": state, "epoch": 3, "args": Namespace(lr=1)},
        {"state_dict": {f"module.{key}": value.half() for key, value in state.items()}},
        {"model": {"cls_token": state["cls_token"], "hook": _Touch()}},
    ]
    made: list[Files] = []
    for content, zipped in itertools.product(contents, (True, False)):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        made.append({"model.pth": file.getvalue()})
    return made


def write_folder(folder: Path, number: int = 6) -> Path:
    """A folder for each class with so many images."""
    for index, name in itertools.product(range(number), NAMES):
        place = folder / name / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        picture(index + len(name) * (name == "ant") * 9, (16, 16)).save(place)
    return folder


@cache
def photos() -> Path:
    """Few images of two classes, on the disk."""
    folder = workshop() / "photos"
    for index, name in itertools.product(range(20), NAMES):
        place = folder / name / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng([index, name == "ant"]).integers(0, 255, (16, 16, 3), np.uint8)).save(
            place
        )
    return folder


@cache
def finished_run() -> Files:
    """A run directory, after two epochs of a network of a few numbers."""
    output = workshop() / "run"
    geometry = {"embed_dim": 8, "depth": 1, "num_heads": 2, "stem_channels": 8}
    config = replace(SMALL, geometry=geometry, img_size=(16, 16), global_batch_size=8, keep_checkpoints=1)
    train(replace(config, log_every_steps=1), str(photos()), output)
    return files_in(output)


def parts_of_run() -> Parts:
    """Networks and an optimizer with a state."""
    torch.manual_seed(1)
    made = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.1)
    made(torch.ones(3)).sum().backward()
    optimizer.step()
    return Parts({"model": made}, optimizer, GradScaler("cpu", enabled=False))


@cache
def states() -> list[Files]:
    """A training checkpoint."""
    folder = workshop() / "states"
    progress = Progress(step=4, steps=9, epoch=1, batch=2, best={"epoch": 1, "weights": "raw"})
    save_state(folder, progress, parts_of_run(), 1, 3)
    return [{f"checkpoints/{name}": data for name, data in files_in(folder).items()}]


SWEEP = {
    "data": "digits",
    "output": "out",
    "search": "grid",
    "seeds": [0],
    "budget": {"epochs": 1},
    "options": {"model": "ceit_pico_patch4_32", "peak_lr": [0.001, 0.01], "augmentation.translate": {"int": [0, 2]}},
}
STUDY = {
    "title": "A study",
    "question": "Does it help?",
    "paper": "nothing",
    "scales": ["digits"],
    "seeds": {"digits": 2},
    "arms": {
        "with": {"tuned_as": None, "options": {"peak_lr": 0.01, "epochs": 2, "geometry": {"lca": True}}},
        "without": {"tuned_as": None, "options": {"peak_lr": 0.01, "geometry": {"lca": False}}, "times": 2},
    },
    "compare": [["with", "without"]],
}


def recipes() -> list[Files]:
    """All recipes that come with the package, a sweep and a study."""
    from ceit.yaml_file import packaged_yaml

    whole = yaml.safe_dump({key: value for key, value in SMALL.as_dict().items() if value is not None})
    texts = [*packaged_yaml("recipes").values(), whole, "classes: [yes, 007, null]\n", "distributed: ddp\n"]
    made = [{"recipe.yaml": text.encode()} for text in texts]
    made += [{"study.yaml": text.encode()} for name, text in packaged_yaml("studies").items() if name != "scales"]
    return made + 4 * [{"sweep.yaml": yaml.safe_dump(SWEEP).encode()}, {"study.yaml": yaml.safe_dump(STUDY).encode()}]


@cache
def tables() -> list[Files]:
    """Tables of labels as CSV and Parquet, with the images that they name."""
    import pyarrow
    import pyarrow.parquet

    pictures = {f"{number}.png": _saved(picture(number), "PNG") for number in range(4)}
    columns = {
        "path": [*pictures],
        "label": ["ant", "bee", "ant", "bee"],
        "split": ["train", "train", "test", "test"],
        "width": [12, 12, 12, 12],
    }
    rows = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    text = "\n".join([",".join(columns), *rows]) + "\n"
    numbers = "filename;target\n" + "".join(f"{name};{number % 2}\n" for number, name in enumerate(pictures))
    # twice, since a damaged Parquet file seldom reaches the reader of columns
    made = 2 * [pictures | {"labels.csv": text.encode()}, pictures | {"labels.csv": numbers.encode()}]
    for compression, is_short in (("snappy", True), ("none", True), ("none", False)):
        file = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), file, compression=compression, use_dictionary=is_short)
        made.append(pictures | {"labels.parquet": file.getvalue()})
    return made


@cache
def shards() -> list[Files]:
    """Shards of ours."""
    folder = workshop() / "shards"
    found = load_images(str(write_folder(workshop() / "few")))
    from ceit.data.labelled import as_dataset

    write_shards(as_dataset(found, 0), folder)
    return [files_in(folder)]


@cache
def foreign_shards() -> list[Files]:
    """Shards as others write them: classes by number and by name, in ``.cls``, ``.json`` and ``.txt``."""
    kinds: list[dict[str, bytes]] = [
        {".cls": b"1"},
        {".cls": b"bee"},
        {".json": json.dumps({"label": 1, "class_name": "bee", "more": [1, 2]}).encode()},
        {".txt": b"bee\n"},
    ]
    made: list[Files] = []
    for told in kinds:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            for number in range(3):
                for suffix, content in {".png": _saved(picture(number), "PNG"), **told}.items():
                    entry = tarfile.TarInfo(f"{number:03}{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
        made.append({"train-0.tar": file.getvalue(), "val-0.tar": file.getvalue()})
    return [*made, {**made[0], "classnames.txt": b"ant\nbee\n"}]


def _idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


@cache
def unpacked_sets() -> list[Files]:
    """The files of owners' archives: of MNIST gzipped, of CIFAR-10, and annotations of others."""
    pixels, labels = np.zeros((4, 28, 28), np.uint8), np.array([0, 1, 2, 3], np.uint8)
    mnist = {
        f"{part}-{kind}": gzip.compress(_idx(array), mtime=0)
        for part in ("train", "t10k")
        for kind, array in (("images-idx3-ubyte.gz", pixels), ("labels-idx1-ubyte.gz", labels))
    }
    batches = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    cifar = {name: bytes(2 * 3073) for name in batches}
    pets = b"Abyssinian_1 1 1 1\nbeagle_2 2 2 1\n"
    picture_of = _saved(picture(), "JPEG")
    oxford = {
        **{f"oxford-iiit-pet/annotations/{part}.txt": pets for part in ("trainval", "test")},
        **{f"oxford-iiit-pet/images/{name}.jpg": picture_of for name in ("Abyssinian_1", "beagle_2")},
    }
    document = {
        "categories": [{"id": 0, "name": "ant"}, {"id": 5, "name": "bee"}],
        "images": [{"id": 1, "file_name": "train_val2018/1.jpg"}, {"id": 2, "file_name": "train_val2018/2.jpg"}],
        "annotations": [{"image_id": 1, "category_id": 0}, {"image_id": 2, "category_id": 5}],
    }
    naturalist = {
        **{f"{part}2018.json": json.dumps(document).encode() for part in ("train", "val")},
        **{f"train_val2018/{number}.jpg": picture_of for number in (1, 2)},
    }
    return [
        *({f"{name}/{file}": data for file, data in mnist.items()} for name in ("mnist", "fashion_mnist")),
        {f"cifar10/{file}": data for file, data in cifar.items()},
        {f"pets/{file}": data for file, data in oxford.items()},
        {f"inat2018/{file}": data for file, data in naturalist.items()},
        *({f"{name}/{file}": data for file, data in _matlab(name).items()} for name in ("flowers102", "cars")),
    ]


def _matlab(name: str) -> Files:
    from scipy.io import savemat

    def saved(**values: Any) -> bytes:
        file = io.BytesIO()
        savemat(file, values)
        return file.getvalue()

    picture_of = _saved(picture(), "JPEG")
    if name == "flowers102":
        numbers = {key: np.array([[number]]) for number, key in enumerate(("trnid", "valid", "tstid"), 1)}
        return {
            "flowers-102/imagelabels.mat": saved(labels=np.array([[1, 2, 3]])),
            "flowers-102/setid.mat": saved(**numbers),
            **{f"flowers-102/jpg/image_{number:05}.jpg": picture_of for number in (1, 2, 3)},
        }
    annotations = np.array([("1.jpg", 1), ("2.jpg", 2)], dtype=[("fname", object), ("class", object)])
    names = np.array(["ant", "bee"], dtype=object)
    folder = "stanford_cars"
    return {
        f"{folder}/devkit/cars_meta.mat": saved(class_names=names),
        f"{folder}/devkit/cars_train_annos.mat": saved(annotations=annotations),
        f"{folder}/cars_test_annos_withlabels.mat": saved(annotations=annotations),
        **{f"{folder}/cars_{part}/{n}.jpg": picture_of for part in ("train", "test") for n in (1, 2)},
    }


def archives() -> list[Files]:
    """The same as their owners pack them: tar.gz, and a Debian package."""
    mnist, _, cifar, *_ = unpacked_sets()
    made: list[Files] = []
    for name, contents in (("mnist", mnist), ("cifar10", cifar)):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
            for member, content in contents.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        data = file.getvalue()
        header = f"{'data.tar.gz':<16}{'0':<12}{'0':<6}{'0':<6}{'100644':<8}{len(data):<10}`\n".encode()
        made += [{f"{name}.tar.gz": data}, {f"{name}.deb": b"!<arch>\n" + header + data}]
    return made


@cache
def exported(form: Format) -> list[Files]:
    """A network in a format of export."""
    plain = CeiT(CeiTConfig(**SHAPE)).eval()
    plain.class_names, plain.preprocessing, plain.temperature = list(NAMES), dict(_KEPT), 1.5
    check = synthetic(8, image_hw=(16, 16), preprocessing=Preprocessing.from_dict(_KEPT))
    folder = workshop() / form
    folder.mkdir()
    export(plain, folder / f"model{SUFFIX_OF[form]}", format=form, check=check)
    return [files_in(folder)]


SUFFIX_OF: dict[Format, str] = {form: suffix for suffix, form in SUFFIXES.items()}


def exported_texts() -> list[Files]:
    """What an exported file says about itself."""
    said = Description(network().config, None, list(NAMES), dict(_KEPT), temperature=1.5)
    text = ExportedDescription(said, "onnx", "float32", False, "0.1.0", {"images": 8}).to_json()
    return [{"ceit.json": text.encode()}]


def origin() -> Origin:
    """Whose answers the files of predictions hold."""
    return Origin("model.safetensors", "0" * 64, "eager float32")


@cache
def predictions() -> list[Files]:
    """Files of answers, as CSV and in lines of JSON."""
    said = Predictor.from_model(network(), device="cpu").predict([picture(number) for number in range(3)], top_k=2)
    named = [replace(one, path=f"{number}.png") for number, one in enumerate(said)]
    broken = replace(named[0], path="3.png", predictions=(), error="it cannot be read")
    made: list[Files] = []
    for suffix in (".csv", ".jsonl"):
        folder = workshop() / f"answers{suffix}"
        folder.mkdir()
        write_answers(folder / f"answers{suffix}", [*named, broken], origin(), resume=False)
        made.append(files_in(folder))
    return made


def cell() -> Cell:
    """A cell of ``STUDY``."""
    from ceit.study.plan import Study, scales

    return Study.from_dict("own", STUDY).cells(scales()["digits"], {})[0]


@cache
def cells() -> list[Files]:
    """The file of a finished cell."""
    folder = workshop() / "cells"
    curve = [{"epoch": 1, "validation_top1_percent": 50.0, "train_loss": 1.0}]
    found = {
        "best": {"validation_top1_percent": 50.0, "epoch": 1},
        "test": {"images": 9, "right": pack([True] * 5 + [False] * 4), "top1_percent": 55.5, "loss": 1.0},
        "curve": curve,
        "epochs": 2,
        "parameters": 10,
        "macs": 10,
        "precision": "float32",
        "train_seconds": 3.0,
        "machine": {"processor": "x", "threads": 1, "accelerator": None, "torch": "2"},
    }
    write_cell(folder, cell(), found)
    return [{path_of(Path(), cell()).as_posix(): path_of(folder, cell()).read_bytes()}]


def sealed(record: dict[str, Any]) -> bytes:
    """A cell's file with the right digest, whatever it says."""
    record = {key: value for key, value in record.items() if key != "sha256"}
    text = json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return json.dumps(record | {"sha256": hashlib.sha256(text.encode(errors="replace")).hexdigest()}).encode()
