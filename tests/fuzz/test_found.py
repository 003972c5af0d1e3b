"""What fuzzing has found, each once: it was a traceback, a hang or the process's end, and is a sentence now."""

import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from safetensors.numpy import load, save

import ceit
import ceit_cli
from ceit.cli.compare import read_run
from ceit.data.cache import recall
from ceit.data.image import read_image
from ceit.data.preprocessing import Preprocessing
from ceit.data.record import ImageRecord
from ceit.data.sources.archives import open_unpacked
from ceit.data.sources.choose import load_images
from ceit.data.sources.download import SourceError
from ceit.data.sources.matlab import read_matlab
from ceit.inference.exported import ExportedDescription
from ceit.inference.familiarity import Familiarity
from ceit.inference.fastest import _remembered
from ceit.inference.prediction_file import Origin, unanswered
from ceit.study.cells import read_record
from ceit.study.plan import Study
from ceit.study.report import tables
from ceit.study.sweep import Sweep
from ceit.train.checkpoint import checkpoints_in, load_state
from ceit.train.run_directory import RunDirectory, lines_of, saved_config
from ceit.yaml_file import parse_yaml
from tests.fuzz import seeds
from tests.fuzz.run import lay
from tests.fuzz.targets import _mend_shards

DEEP = "[" * 100_000


def edited(data: bytes, change: Callable[[Any], object]) -> bytes:
    """A JSON document after a change."""
    body = json.loads(data)
    change(body)
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["ant", 3]}, "class name 3 must be a text"),
        ({"class_names": "no"}, "class_names 'no' must be a list of texts"),
        ({"temperature": 10**400}, "must be a number greater than 0, and at most 1e"),
        ({"training": []}, r"training \[\] must be an object"),
        ({"preprocessing": {"mean": [0.5], "std": [0.5]}}, "the preprocessing lacks crop"),
        ({"preprocessing": {"mean": [{}], "std": [1], "crop": 1, "interpolation": "a"}}, "must be lists of numbers"),
        ({"preprocessing": {"mean": [1], "std": [1], "crop": 1, "interpolation": []}}, "and an interpolation"),
        ({"config": {**seeds.SHAPE, "depth": 10**7}}, "tensors for a depth of 10,000,000"),
        ({"config": {**seeds.SHAPE, "stem_channels": 2**62}}, "its sizes are none"),
    ],
)
def test_a_side_file_with_a_strange_value(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    files = seeds.checkpoints()[0]
    lay(files | {"model.json": edited(files["model.json"], lambda body: body.update(change))}, tmp_path)
    with pytest.raises(ValueError, match=message):
        ceit.load_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_epochs": {"int": [0, 10**9]}}, r"1,000,000,001 trials are more than 10,000, the most of a sweep"),
        ({"freeze_epochs": {"int": [0, 2**70]}}, r"must be less than 2\*\*31 apart"),
    ],
)
def test_a_sweep_of_more_trials_than_can_be_planned(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(seeds.SWEEP | {"options": options}))
    with pytest.raises(ValueError, match=message):
        Sweep.read(str(file))


def test_a_sweep_with_a_date(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(seeds.SWEEP | {"data": "x"}) + "recipe: 2001-01-01\n")
    with pytest.raises(ValueError, match=r"sweep .*sweep\.yaml"):
        Sweep.read(str(tmp_path / "sweep.yaml"))


def test_a_study_of_more_seeds_than_can_be_planned() -> None:
    with pytest.raises(
        ValueError, match="seeds of digits 2147483648 must be a whole number, at least 1, at most 1,000"
    ):
        Study.from_dict("own", seeds.STUDY | {"seeds": {"digits": 2**31}})


def test_a_study_whose_scale_is_a_list(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"study own is not as ceit has written it .*must be names"):
        Study.from_dict("own", seeds.STUDY | {"scales": [["digits"]]})


def test_an_idx_file_of_three_bytes(tmp_path: Path) -> None:
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes(b"\0\0\x08")
    with pytest.raises(ValueError, match="not an IDX file of bytes"):
        load_images(f"mnist:{tmp_path}")


def test_a_grey_image_with_a_palette_is_grey() -> None:
    """Pillow calls such a TGA grey until its pixels are read: it came out as one of palette numbers."""
    file = io.BytesIO()
    seeds.picture(0, (12, 9), "P").save(file, "TGA")
    data = bytearray(file.getvalue())
    data[2] = 3  # its pixels are grey values, and the palette is still there
    assert read_image(bytes(data), 1).mode == "L"
    assert read_image(bytes(data), 3).mode == "RGB"


def test_a_torch_file_whose_members_have_no_names(tmp_path: Path) -> None:
    data = seeds.torch_files()[0]["model.pth"]
    (tmp_path / "model.pth").write_bytes(data.replace(b"data.pkl", b"data.p\xff\xff"))
    with pytest.raises(ValueError, match=r"model\.pth is damaged"):
        ceit.load_checkpoint(tmp_path / "model.pth")


def test_preprocessing_with_a_number_beyond_all() -> None:
    with pytest.raises(ValueError, match="must be numbers up to"):
        Preprocessing((10**400,), (1.0,))


def test_what_is_said_of_known_images_with_an_endless_number() -> None:
    with pytest.raises(ValueError, match="what is said of known images is damaged"):
        Familiarity.from_dict({"images": 1e999, "classes": 2, "features": 8, "data": ""})


@pytest.mark.parametrize("text", ["a: 2001-99-99", "? [a]\n: b", DEEP, "!!bool x", "!!timestamp x"])
def test_yaml_that_its_constructors_do_not_take(text: str) -> None:
    with pytest.raises(ValueError, match=r"recipe x (is not YAML: |has .* levels of YAML)"):
        parse_yaml("recipe x", text)


@pytest.mark.parametrize("as_written", [False, True])
@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "s:\n  a: {c: 1}\n  b: 2\n  a: {d: 1}"])
def test_yaml_with_a_key_twice(text: str, as_written: bool) -> None:
    with pytest.raises(ValueError, match=r"recipe x is not YAML: 'a' is there twice in .*, line [34], column [13]"):
        parse_yaml("recipe x", text, as_written=as_written)


def test_yaml_with_a_key_merged_from_elsewhere() -> None:
    text = "one: &one {a: 1, b: 2}\ntwo: {<<: *one, a: 3}"
    assert parse_yaml("recipe x", text)["two"] == {"a": 3, "b": 2}


@pytest.mark.parametrize("data", [b"data: \xff", b"data: 2001-99-99", DEEP.encode()])
def test_a_config_of_a_run_that_cannot_be_read(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(data)
    with pytest.raises(ValueError, match=r"config\.yaml cannot be read, without it"):
        saved_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("metrics.jsonl", b"\xff\n"),
        ("metrics.jsonl", b"[]\n{}\n"),
        ("metrics.jsonl", b'{"event": "epoch"}\n{"event": "test"}\n'),
        ("metrics.jsonl", b"3" * 5000 + b"\n{}\n"),
        ("test.json", b"[]"),
        ("test.json", DEEP.encode()),
        ("test.json", b'{"parameters": "a"}'),
    ],
)
def test_files_of_a_run_that_compare_reads(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{data: digits, epochs: 1, precision: float32}")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=str(tmp_path)):
        read_run(tmp_path)


def test_a_log_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"metrics\.jsonl is not text in UTF-8"):
        lines_of(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("data", [b"3", b'{"training": 3}', b"{", b"\xff"])
def test_a_model_file_of_a_resumed_run(data: bytes, tmp_path: Path) -> None:
    lay({"model.json": data, "model.safetensors": b""}, tmp_path)
    with pytest.raises(ValueError, match=r"model\.json is"):
        RunDirectory(tmp_path).keeps_model_of({"epoch": 1, "weights": "raw"}, is_over=False)


@pytest.mark.parametrize("is_sealed", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda said: said.pop("progress"),
        lambda said: said["progress"].pop("step"),
        lambda said: said["progress"].update(loss_sum={}),
        lambda said: said["progress"].update(best_score=3),
        lambda said: said["progress"].update(loss_sum=10**400),
        lambda said: said["optimizer"].update(groups=[]),
        lambda said: said["optimizer"].update(numbers={"x": 3}),
        lambda said: said.update(processes=None),
    ],
)
def test_a_state_with_another_header(change: Callable[[Any], object], is_sealed: bool, tmp_path: Path) -> None:
    """States of earlier versions have no seal."""

    def edit(said: Any) -> None:
        change(said)
        if not is_sealed:
            del said["seal"]

    ((name, data),) = seeds.states()[0].items()
    (length,) = struct.unpack_from("<Q", data)
    head = json.loads(data[8 : 8 + length])
    head["__metadata__"]["state"] = edited(head["__metadata__"]["state"], edit).decode()
    text = json.dumps(head).encode()
    lay({name: struct.pack("<Q", len(text)) + text + data[8 + length :]}, tmp_path)
    (path,) = checkpoints_in(tmp_path / "checkpoints")
    said = "its header is not the one that was saved" if is_sealed else r"step_00000004\.safetensors is not as ceit has"
    with pytest.raises(ValueError, match=said):
        load_state(path, seeds.parts_of_run())


def test_a_state_of_other_shapes(tmp_path: Path) -> None:
    ((name, data),) = seeds.states()[0].items()
    (length,) = struct.unpack_from("<Q", data)
    head = json.loads(data[8 : 8 + length])
    head["optimizer.0.exp_avg"]["shape"].reverse()
    text = json.dumps(head).encode()
    lay({name: struct.pack("<Q", len(text)) + text + data[8 + length :]}, tmp_path)
    (path,) = checkpoints_in(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="its header is not the one that was saved"):
        load_state(path, seeds.parts_of_run())


def test_a_record_without_test_images(tmp_path: Path) -> None:
    lines = seeds.finished_run()["images.csv"].splitlines(keepends=True)
    (tmp_path / "images.csv").write_bytes(b"".join(line for line in lines if not line.startswith(b'"test"')))
    record = ImageRecord.read(tmp_path)
    assert record is not None
    with pytest.raises(ValueError, match=r"images\.csv of this run has no test image of these data"):
        record.restored(load_images(str(seeds.photos())))


def test_damage_in_a_parquet_file_is_one_line_with_its_name(tmp_path: Path) -> None:
    files = next(files for files in seeds.tables() if "labels.parquet" in files)
    data = bytearray(files["labels.parquet"])
    data[4:40] = bytes(36)
    lay(files | {"labels.parquet": bytes(data)}, tmp_path)
    with pytest.raises(ValueError, match=r"labels\.parquet is no Parquet file \([^\n]*\)$"):
        load_images(str(tmp_path / "labels.parquet"))


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(img_size=["a", 3]),
        lambda index: index.update(mean=[0.1]),
        lambda index: index.update(img_size=[0, 8]),
        lambda index: index.update(class_names=["ant"]),
        lambda index: index["shards"][0].update(samples="x"),
        lambda index: index["shards"][0].update(bytes=2**70),
        lambda index: index["splits"].update(train=10**12),
    ],
)
def test_an_index_of_shards_with_a_strange_value(change: Callable[[Any], object], tmp_path: Path) -> None:
    files = dict(seeds.shards()[0])
    files["index.json"] = edited(files["index.json"], change)
    lay(files, tmp_path)
    with pytest.raises(ValueError, match=r"is no index of shards|samples\.safetensors is damaged"):
        load_images(str(tmp_path))


def test_shards_of_more_classes_than_there_can_be(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for name, content in (("a.png", b"x"), ("a.cls", b"999999999")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(ValueError, match="has 1,000,000,000 classes of a data set, above the limit of 100,000"):
        load_images(str(tmp_path))


def test_a_sample_outside_its_shard(tmp_path: Path) -> None:
    files = dict(seeds.shards()[0])
    table = load(files["samples.safetensors"])
    table["size"][0] = 2**40
    files["samples.safetensors"] = save(table)
    lay(_mend_shards(Random(1), files), tmp_path)
    with pytest.raises(ValueError, match="a sample lies outside its shard"):
        load_images(str(tmp_path))


def test_matlab_files_are_read_as_scipy_reads_them(tmp_path: Path) -> None:
    files = {**seeds._matlab("flowers102"), **seeds._matlab("cars")}
    lay(files, tmp_path)
    assert read_matlab(tmp_path / "flowers-102" / "imagelabels.mat")["labels"].tolist() == [[1, 2, 3]]
    cars = tmp_path / "stanford_cars"
    assert read_matlab(cars / "devkit" / "cars_meta.mat")["class_names"] == ["ant", "bee"]
    annotations = read_matlab(cars / "devkit" / "cars_train_annos.mat")["annotations"]
    assert annotations["fname"] == ["1.jpg", "2.jpg"]
    assert [number.item() for number in annotations["class"]] == [1, 2]


@pytest.mark.parametrize("at", [128, 132, 136, 144, 152, 168, 176])
def test_a_damaged_matlab_file_is_named(at: int, tmp_path: Path) -> None:
    """Scipy's reader ends the process on some of these: Bus error."""
    data = bytearray(seeds._matlab("flowers102")["flowers-102/imagelabels.mat"])
    data[at : at + 4] = b"\xff\xff\xff\x7f"
    (tmp_path / "labels.mat").write_bytes(data)
    with pytest.raises(ValueError, match=r"labels\.mat is damaged or no file of MATLAB 5"):
        read_matlab(tmp_path / "labels.mat")


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(b"\x1f\x8b\x08\0" + b"x" * 20)
    with pytest.raises(ValueError, match=r"a\.gz is damaged"):
        open_unpacked(tmp_path)("a")


@pytest.mark.parametrize("change", [{"id": "a"}, {"name": ["ant"]}, {"id": 7}])
def test_annotations_with_a_strange_category(change: dict[str, Any], tmp_path: Path) -> None:
    files = next(files for files in seeds.unpacked_sets() if "inat2018/val2018.json" in files)
    name = "inat2018/val2018.json"
    lay(files | {name: edited(files[name], lambda body: body["categories"][0].update(change))}, tmp_path)
    with pytest.raises(ValueError, match="unpack"):
        load_images(f"inat2018:{tmp_path / 'inat2018'}")


def test_why_a_source_failed_is_one_line() -> None:
    assert str(SourceError("file:///a", ValueError("no\n- method gz:\n"))) == "file:///a (no - method gz:)"


@pytest.mark.parametrize("data", [b"[]", b'{"checkpoint": 3, "sha256": ""}', DEEP.encode(), b'{"a": 1}'])
def test_what_lies_beside_a_file_of_answers(data: bytes, tmp_path: Path) -> None:
    files = seeds.predictions()[0]
    lay(files | {"answers.csv.model.json": data}, tmp_path)
    with pytest.raises(ValueError, match=r"answers\.csv\.model\.json is damaged: remove it"):
        unanswered(tmp_path / "answers.csv", ["0.png"], 2, seeds.NAMES, seeds.origin(), print)


def test_a_threshold_of_answers_that_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "a.model.json").write_text(json.dumps({"checkpoint": "", "sha256": "", "unknown_below": []}))
    with pytest.raises(ValueError, match="does not say whose answers"):
        Origin.read(tmp_path / "a.model.json")


def test_an_answer_whose_path_is_none(tmp_path: Path) -> None:
    files = seeds.predictions()[1]
    line, *others = files["answers.jsonl"].splitlines(keepends=True)
    strange = edited(line, lambda body: body.update(path=["0.png"])) + b"\n"
    lay(files | {"answers.jsonl": strange + b"".join(others)}, tmp_path)
    with pytest.raises(ValueError, match="holds other things than answers"):
        unanswered(tmp_path / "answers.jsonl", ["0.png"], 2, seeds.NAMES, seeds.origin(), print)


@pytest.mark.parametrize("change", [{"arm": 3}, {"seed": "a"}, {"options": []}, {"data": None}])
def test_a_sealed_cell_that_says_of_no_run_what_it_was(change: dict[str, Any], tmp_path: Path) -> None:
    ((_, data),) = seeds.cells()[0].items()
    (tmp_path / "cell.json").write_bytes(seeds.sealed(json.loads(data) | change))
    with pytest.raises(ValueError, match=r"cell\.json is not as it was written"):
        read_record(tmp_path / "cell.json")


@pytest.mark.parametrize("lacking", ["macs", "machine", "test", "code", "train_seconds"])
def test_a_table_of_cells_that_lack_something(lacking: str) -> None:
    ((_, data),) = seeds.cells()[0].items()
    record = json.loads(data)
    del record[lacking]
    with pytest.raises(ValueError, match="a cell of study own is not as ceit has written it"):
        tables(Study.from_dict("own", seeds.STUDY), "digits", {"with": [record]})


@pytest.mark.parametrize("data", [b"{}", b"[]", b"\xff", b'{"chosen": {"a": 1}, "judged_on": ""}', DEEP.encode()])
def test_a_damaged_choice_in_the_cache_is_made_anew(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path))
    lay({"optimize/key.json": data}, tmp_path)
    assert _remembered("key", lambda *args, **kwargs: lambda images: images) is None
    assert recall("optimize/key.json") is None or data != b"\xff"


@pytest.mark.parametrize("text", ["", DEEP, "1" * 5000, '{"export": 3}'])
def test_what_an_exported_file_says_of_itself(text: str) -> None:
    with pytest.raises(ValueError, match=r"the description|format version"):
        ExportedDescription.from_json(text)


def test_an_error_is_one_line_whatever_names_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(["info", "a\nb\u2028c\x85d"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_yaml_of_a_run_is_still_read_as_before(tmp_path: Path) -> None:
    values = {"data": "digits", "epochs": 2, "precision": "float32", "peak_lr": 1e-05, "name": "1e-3"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert saved_config(tmp_path) == values
