"""What reads files and requests of others, each as a function of a folder with the files of one input."""

import asyncio
import contextlib
import importlib
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock
from urllib.parse import quote

import ceit_cli
from ceit.cli.compare import read_run
from ceit.data.batches.loader import make_loader
from ceit.data.image import read_header, read_image
from ceit.data.labelled import as_dataset
from ceit.data.preprocessing import IMAGENET, Preprocessing
from ceit.data.record import ImageRecord
from ceit.data.sources.choose import load_images
from ceit.data.sources.download import SourceError, _arrays_from
from ceit.data.sources.known_sets import SETS
from ceit.inference.exported import ExportedDescription, load_exported
from ceit.inference.prediction_file import unanswered
from ceit.inference.predictor import Predictor
from ceit.model import CeiT
from ceit.report.contents import contents_of
from ceit.report.page import page
from ceit.study.cells import read_cell, read_record, same_elsewhere, unpack
from ceit.study.plan import Study, load_study, scales
from ceit.study.report import records_of, tables
from ceit.study.sweep import Sweep
from ceit.train.checkpoint import checkpoints_in, load_state
from ceit.train.config import config_from
from ceit.train.model_card import FinishedRun
from ceit.train.recipe import nested, read_recipe
from ceit.train.run_directory import RunDirectory, saved_config
from ceit.web.answers import Shown, shown
from ceit.web.api import api
from ceit.web.guard import MOST_A_MINUTE, Guard
from ceit.weights import load_checkpoint
from tests.fuzz import mutate, seeds
from tests.fuzz.mutate import Mutator
from tests.fuzz.seeds import Files


@dataclass(frozen=True)
class Target:
    """One reader, or several of the same files.

    ``mutators`` are by file name, as a pattern; files of no pattern stay as they are. ``decoder`` are the functions,
    ``module:name``, one of which is called once an input is valid enough. Of 100,000 inputs it gets ``share``.
    ``most_mib`` is what its resident memory may grow by at the peak. ``mend`` puts checksums right after a mutation.
    """

    name: str
    seeds: Callable[[], list[Files]]
    mutators: dict[str, Mutator]
    run: Callable[[Path], object]
    decoder: tuple[str, ...]
    share: int
    most_mib: int = 128
    mend: Callable[[Random, Files], Files] = field(default=lambda random, files: files)

    def input(self, seed: int, number: int) -> Files:
        """The files of an input: a function of seed and number alone."""
        random = Random(f"{self.name} {seed} {number}")
        files = dict(random.choice(self.seeds()))
        able = [name for name in files if self._mutator(name) is not None]
        for _ in range(random.choice((1, 1, 1, 1, 2))):
            name = random.choice(able)
            mutator, kind = self._mutator(name), random.random()
            assert mutator is not None
            if kind < 0.02 and len(able) > 1:
                files.pop(name, None)
            elif kind < 0.03:
                files[name] = b""
            elif kind > 0.05:  # else it stays as it is
                files[name] = self._mutated(random, mutator, files.get(name, b""))
        return self.mend(random, files)

    def _mutator(self, name: str) -> Mutator | None:
        return next((mutator for pattern, mutator in self.mutators.items() if fnmatch(name, pattern)), None)

    @staticmethod
    def _mutated(random: Random, mutator: Mutator, data: bytes) -> bytes:
        """What structure the mutator needs may be gone after an earlier one, or too strange to be written."""
        with contextlib.suppress(Exception):
            return mutator(random, data)
        return mutate.bytes_of(random, data)

    @contextmanager
    def watched(self) -> Iterator[list[bool]]:
        """The list is empty until a function of ``decoder`` has been called; whoever reads it clears it."""
        reached: list[bool] = []
        with ExitStack() as stack:
            for place in self.decoder:
                module, _, path = place.partition(":")
                *owners, name = path.split(".")
                owner = importlib.import_module(module)
                for part in owners:
                    owner = getattr(owner, part)
                stack.enter_context(mock.patch.object(owner, name, _noting(getattr(owner, name), reached)))
            yield reached


def _noting(function: Callable[..., Any], reached: list[bool]) -> Callable[..., Any]:
    def noting(*args: Any, **kwargs: Any) -> Any:
        reached.append(True)
        return function(*args, **kwargs)

    return noting


def _image(folder: Path) -> None:
    path = folder / "picture.bin"
    data = path.read_bytes()
    size, _ = read_header(path)
    image = read_image(data, 3 if len(data) % 2 else 1, (8, 8) if len(data) % 3 == 0 else None, name=str(path))
    assert image.mode == ("RGB" if len(data) % 2 else "L")
    assert min(*image.size, *size) >= 1


@cache
def _a_picture() -> bytes:
    file = io.BytesIO()
    seeds.picture().save(file, "PNG")
    return file.getvalue()


def _predicting(folder: Path) -> None:
    predictor = Predictor.from_checkpoint(folder / "model.safetensors", device="cpu", precision="float32")
    said = predictor.predict(_a_picture())[0]
    assert said.error is None, said.error
    assert said.predictions
    assert abs(sum(score.probability for score in said.predictions)) < 1.001
    if isinstance(predictor.model, CeiT) and predictor.model.familiarity is not None:
        Predictor.from_model(predictor.model, device="cpu", unknown_below=0.05).predict(_a_picture())
    json.dumps(said.as_dict())


def _torch_file(folder: Path) -> None:
    load_checkpoint(folder / "model.pth", num_heads=2, stem_stride=1, stem_pool=True)


def _description_of_run() -> dict[str, Any]:
    import yaml

    return yaml.safe_load(seeds.finished_run()["config.yaml"])


def _run_files(folder: Path) -> None:
    read_run(folder)
    saved_config(folder)


def _report(folder: Path) -> None:
    FinishedRun.read(folder)
    with mock.patch("ceit.report.contents._costs", return_value=iter(())):
        page(contents_of(folder, str(folder / "no-data")))


def _go_on(folder: Path) -> None:
    directory = RunDirectory(folder)
    saved = directory.saved("auto")
    if saved is not None:
        directory.go_on(saved, _description_of_run())
        directory.keeps_model_of({"epoch": 1, "weights": "raw"}, is_over=False)


def _state(folder: Path) -> None:
    parts = seeds.parts_of_run()
    for path in checkpoints_in(folder / "checkpoints"):
        progress, _ = load_state(path, parts)
        RunDirectory(folder).cut_back(progress, lambda message: None)
        assert progress.mean_loss is not None


def _mend_state(random: Random, files: Files) -> Files:
    """The digest of the tensors is mostly that of what they are now."""
    from safetensors.torch import load

    from ceit.train.checkpoint import _digest

    for name, data in files.items():
        with contextlib.suppress(Exception):
            length = int.from_bytes(data[:8], "little")
            head = json.loads(data[8 : 8 + length])
            said = json.loads(head["__metadata__"]["state"])
            if random.random() < 0.8:
                said["sha256"] = _digest(load(data))
            head["__metadata__"]["state"] = json.dumps(said)
            text = json.dumps(head).encode()
            files[name] = len(text).to_bytes(8, "little") + text + data[8 + length :]
    return files


@cache
def _photos() -> Any:
    return load_images(str(seeds.photos()))


def _record(folder: Path) -> None:
    record = ImageRecord.read(folder)
    if record is not None:
        record.parts_in(_photos())
        record.restored(_photos())
        assert record.identity


def _recipe(folder: Path) -> None:
    for name in ("recipe.yaml", "study.yaml", "sweep.yaml"):
        path = folder / name
        if path.is_file():
            match name:
                case "recipe.yaml":
                    config_from(nested(read_recipe(str(path)))).as_dict()
                case "study.yaml":
                    study = load_study(str(path))
                    study.cells(scales()[study.scales[0]], {"CeiT": 1e-3, "DeiT": 1e-3})
                case _:
                    assert Sweep.read(str(path)).cells


def _table(folder: Path) -> None:
    for path in (*folder.glob("labels.*"),):
        found = load_images(str(path), in_chans=3)
        as_dataset(found, 0)


def _shards(folder: Path) -> None:
    found = load_images(str(folder))
    for split in found.parts.values():
        for index in range(len(split)):
            split.read(index, 3)
    loader = make_loader(
        next(iter(found.parts.values())), batch_size=4, img_size=(8, 8), preprocessing=IMAGENET, workers=0
    )
    for _ in loader.epoch(0):
        pass


def _mend_shards(random: Random, files: Files) -> Files:
    """The index mostly tells of the table and the shards as they are now."""
    import hashlib

    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        index = json.loads(files["index.json"])
        if random.random() < 0.8:
            index["samples_sha256"] = hashlib.sha256(files["samples.safetensors"]).hexdigest()
            for shard in index["shards"]:
                shard["bytes"] = len(files.get(shard["name"], b""))
        files["index.json"] = json.dumps(index).encode(errors="replace")
    return files


def _unpacked(folder: Path) -> None:
    (place,) = folder.iterdir()
    found = load_images(f"{place.name}:{place}")
    assert found.parts


def _archive(folder: Path) -> None:
    (path,) = folder.iterdir()
    named = replace(SETS[path.name.partition(".")[0]], train_images=4, test_images=4, sha256={})
    source = replace(named.sources[0], urls=(path.resolve().as_uri(),), sha256=())
    downloads = folder.parent / "out" / "downloads"
    try:
        _arrays_from(source, named, downloads)
    except SourceError as error:  # the next source is tried, and the last one's sentence is part of the error
        raise ValueError(str(error)) from error


def _exported_file(folder: Path) -> None:
    path = next(path for path in (*folder.iterdir(), folder / "model.xml") if path.suffix in (".onnx", ".pt2", ".xml"))
    found = load_exported(path, threads=1)
    predictor = Predictor.from_checkpoint(path, device="cpu")
    assert predictor.predict(_a_picture())[0].predictions
    assert found.num_classes


def _exported_text(folder: Path) -> None:
    said = ExportedDescription.from_json((folder / "ceit.json").read_text(encoding="utf-8", errors="replace"))
    said.to_json()
    Preprocessing.from_dict(said.network.preprocessing) if said.network.preprocessing is not None else None


def _answers(folder: Path) -> None:
    paths = [f"{number}.png" for number in range(5)]
    for name in ("answers.csv", "answers.jsonl"):
        if (folder / name).is_file():
            left = unanswered(folder / name, paths, 2, seeds.NAMES, seeds.origin(), lambda message: None)
            assert set(left) <= set(paths)


def _cell(folder: Path) -> None:
    cell = seeds.cell()
    path = folder / "own" / "digits" / f"{cell.name}.json"
    if not path.is_file():
        return
    unpack(read_record(path))
    read_cell(folder, cell)
    same_elsewhere(folder, replace(cell, study="another"))
    study = Study.from_dict("own", seeds.STUDY)
    tables(study, "digits", records_of(folder, study, "digits"))


def _mend_cell(random: Random, files: Files) -> Files:
    """Sealed anew, mostly: else only the digest would be looked at."""
    for name, data in files.items():
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            if random.random() < 0.85:
                files[name] = seeds.sealed(json.loads(data))
    return files


def _cache(folder: Path) -> None:
    """What is kept between runs: verdicts on images, what is known of shards, and what computes fastest."""
    import os

    from ceit.data.cache import recall
    from ceit.data.store import Copy, Fact, Store
    from ceit.inference.fastest import _remembered

    os.environ["CEIT_DATA"], before = str(folder), os.environ["CEIT_DATA"]
    try:
        if (folder / "images.sqlite").exists():
            store = Store(folder)
            facts = store.facts([f"state {number}" for number in range(4)])
            assert all(isinstance(fact.digest, int) for fact in facts.values())
            store.copies([fact.digest for fact in facts.values()], "form")
            store.fact_of(3)
            store.touch([1, 2], "form")
            import numpy as np

            store.add([("state 9", Fact(9, None))], [Copy(9, "form", np.zeros((2, 2, 3), np.uint8))])
            store.close()
        if recall("optimize/key.json") is not None:
            _remembered("key", lambda *args, **kwargs: lambda images: images)
    finally:
        os.environ["CEIT_DATA"] = before


@cache
def _caches() -> list[Files]:
    import numpy as np

    from ceit.data import store as stores

    folder = seeds.workshop() / "cache"
    store = stores.Store(folder)
    copies = [stores.Copy(number, "form", np.zeros((2, 2, 3), np.uint8)) for number in range(4)]
    store.add([(f"state {number}", stores.Fact(number, None)) for number in range(4)], copies)
    store.close()
    chosen = {"backend": "eager", "precision": "float32", "images_per_second": 1.0, "agreement": None, "error": None}
    kept = {"optimize/key.json": json.dumps({"chosen": chosen, "judged_on": ""}).encode()}
    return [{"images.sqlite": (folder / stores.FILE_NAME).read_bytes()}, kept]


WORDS = (
    *("train", "evaluate", "predict", "explain", "embed", "web", "report", "list", "info", "export", "benchmark"),
    *("sweep", "reproduce", "compare", "convert", "data", "demo", "fetch", "check", "shard", "weights", "models"),
    *("--help", "--version", "--debug", "--data", "--output", "--checkpoint", "--json", "--top-k", "--model", "--seed"),
    *("--img-size", "--epochs", "--recipe", "--peak-lr", "--resume", "auto", "--precision", "--device", "--backend"),
    *("--batch-size", "--split", "all", "--time-budget", "1h", "--print-config", "--print-schema", "--geometry.depth"),
    *("--augmentation.flip", "--workers", "--classes", "--unknown-below", "--format", "onnx", "--seconds", "--rounds"),
    *(
        "--measures",
        "--csv",
        "--predictions",
        "--tta",
        "--about",
        "--raw",
        "--probe",
        "--near",
        "--num-heads",
        "--plot",
    ),
    *("digits", "ceit_pico_patch4_32", "ceit_tiny", "cpu", "cuda", "cuda:99", "float32", "int8", "-1", "0", "1", "3.5"),
    *(
        "1e-3",
        "nan",
        "inf",
        "photos.csv",
        "no-such-folder",
        "-",
        "--",
        "@file",
        "~/x",
        "~nobody/x",
        "",
        " ",
        "a\nb",
        "\0",
    ),
    *(
        "é",
        "\udcff",
        "9" * 400,
        "1" * 5000,
        "x" * 5000,
        "/",
        "[",
        "{}",
        "null",
        "hf:",
        "hf:a/b",
        "digits:x",
        "=",
        "a=b",
    ),
    *("--dry-run", "--list", "--scale", "--seeds", "study.yaml", "a.safetensors", "b.pth", "c.png", "--skip-broken"),
)

_LONG = (  # what would take minutes, fetch something or start processes: it is reached, and there the input ends
    "ceit.train.run:train",
    "ceit.cli.train:train",
    "ceit.cli.demo:train",
    "ceit.cli.demo:fetch",
    "ceit.cli.data:fetch",
    "ceit.cli.benchmark:measure",
    "ceit.cli.export:export",
    "ceit.cli.sweep:run_sweep",
    "ceit.cli.sweep:print_plan",
    "ceit.cli.reproduce:print_plan",
    "ceit.cli.reproduce:reproduce",
)


def _command_of(random: Random, data: bytes) -> bytes:
    """A command line with words changed, doubled, left out and added."""
    words: list[str] = json.loads(data)
    for _ in range(random.choice((1, 1, 2, 3, 5))):
        at, kind = random.randrange(len(words) + 1), random.randrange(5)
        if kind < 2:
            words.insert(at, random.choice(WORDS))
        elif kind == 2 and words:
            del words[min(at, len(words) - 1)]
        elif kind == 3 and words:
            words[min(at, len(words) - 1)] = random.choice(WORDS)
        elif words:
            word = words[at := min(at, len(words) - 1)]
            place = random.randrange(len(word) + 1)
            words[at] = word[:place] + random.choice(("", "=", "x", "-", "\n", "é", "0", ".")) + word[place + 1 :]
    return json.dumps(words).encode()


_COMMANDS = (
    ["train", "--data", "digits", "--output", "OUT", "--epochs", "1", "--model", "ceit_pico_patch4_32"],
    ["train", "--data", "PHOTOS", "--output", "OUT", "--recipe", "demo", "--peak-lr", "1e-3", "--print-config"],
    ["train", "--print-schema"],
    ["evaluate", "--checkpoint", "MODEL", "--data", "PHOTOS", "--split", "all", "--json"],
    ["predict", "--checkpoint", "MODEL", "PICTURE", "--top-k", "1", "--json"],
    ["predict", "--checkpoint", "MODEL", "PHOTOS", "--output", "OUT/answers.csv"],
    ["explain", "--checkpoint", "MODEL", "PICTURE", "--output", "OUT"],
    ["embed", "--checkpoint", "MODEL", "PICTURE", "--near", "PICTURE"],
    ["report", "RUN", "--output", "OUT/report.html"],
    ["list", "models"],
    ["info", "ceit_tiny", "--json", "--img-size", "64"],
    ["info", "MODEL"],
    ["export", "--checkpoint", "MODEL", "--format", "onnx", "--output", "OUT/model.onnx"],
    ["benchmark", "ceit_pico_patch4_32", "--seconds", "1", "--rounds", "1", "--output", "OUT/b.json"],
    ["sweep", "SWEEP", "--dry-run"],
    ["reproduce", "lca", "--scale", "digits", "--dry-run"],
    ["compare", "RUN", "--json"],
    ["convert", "MODEL", "OUT/out.safetensors"],
    ["data", "check", "PHOTOS", "--json"],
    ["data", "shard", "PHOTOS", "--output", "OUT/shards"],
    ["data", "fetch", "digits"],
    ["demo", "--data", "digits", "--output", "OUT"],
    ["--version"],
)


@cache
def _places() -> dict[str, str]:
    """What the words in capitals stand for."""
    folder = seeds.workshop() / "command"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(seeds.checkpoints()[1]["model.safetensors"])
    (folder / "sweep.yaml").write_text(json.dumps(seeds.SWEEP))
    (folder / "picture.png").write_bytes(_a_picture())
    seeds.finished_run()
    return {
        "MODEL": str(folder / "model.safetensors"),
        "SWEEP": str(folder / "sweep.yaml"),
        "PICTURE": str(folder / "picture.png"),
        "RUN": str(seeds.workshop() / "run"),
        "PHOTOS": str(seeds.write_folder(seeds.workshop() / "little")),
    }


class _StopHereError(ValueError):
    pass


def _stop(*_args: object, **_kwargs: object) -> None:
    raise _StopHereError("this would take long")


def _command(folder: Path) -> None:
    path = folder / "words.json"
    words: list[str] = []
    with contextlib.suppress(OSError, ValueError):  # else there is nothing that a shell could pass on
        words = json.loads(path.read_bytes())
    importlib.import_module("matplotlib.pyplot")  # makes a folder of its own when it is first imported
    places = _places() | {"OUT": str(folder.parent / "out")}
    words = [re.sub("|".join(places), lambda match: places[match[0]], word) for word in words]
    out, err = io.StringIO(), io.StringIO()
    with ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        for place in _LONG:
            module, _, name = place.partition(":")
            owner = importlib.import_module(module)
            if hasattr(owner, name):
                stack.enter_context(mock.patch.object(owner, name, _stop))
        stack.enter_context(mock.patch("ceit.study.run.seconds_needed", return_value=1.0))
        code = ceit_cli.main(words)
    said = err.getvalue()
    if "--debug" not in words:
        assert "Traceback" not in said, said[-600:]
    assert "(unexpected:" not in said, said[-600:]
    assert code in (0, 1, 2), code
    last = said.rstrip("\n").rpartition("\n")[2]
    assert code == 0 or last.strip(), (code, said)
    if code == 1 and "error: " in said:
        assert last.startswith("error: "), f"not one sentence: {said[-600:]!r}"


@cache
def _app() -> tuple[list[Shown], Any]:
    folder = seeds.workshop() / "web"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(seeds.checkpoints()[0]["model.safetensors"])
    models = [shown(str(folder / "model.safetensors"), "cpu", calibrated=True, unknown_below=0.05)]
    return models, api(models)


_REQUEST = {
    "method": "POST",
    "path": "/api/predict",
    "query": "top_k=2",
    "headers": {"host": "127.0.0.1:7860", "content-type": "application/octet-stream", "content-length": "100"},
}
_JOIN = {
    "method": "POST",
    "path": "/gradio_api/queue/join",
    "query": "",
    "headers": {"host": "localhost:7860", "origin": "http://localhost:7860", "content-type": "application/json"},
}
_QUESTION = {"data": [{"path": "/uploads/a/b.png", "meta": {}}], "session_hash": "abc", "fn_index": 0, "trigger_id": 3}


def _requests() -> list[Files]:
    listing = {**_REQUEST, "method": "GET", "path": "/api/models"}
    pictures = [files["picture.bin"] for files in seeds.images()[::9]]
    return [
        *({"request.json": json.dumps(_REQUEST).encode(), "body": data} for data in pictures),
        {"request.json": json.dumps(listing).encode(), "body": b""},
        {"request.json": json.dumps(_JOIN).encode(), "body.json": json.dumps(_QUESTION).encode()},
    ]


def _request(folder: Path) -> None:
    _app()
    path = folder / "request.json"
    try:
        said = json.loads(path.read_bytes())
        named = {str(name): str(value) for name, value in said["headers"].items()}
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in named.items()]
        target, query, method = str(said["path"]), str(said["query"]), str(said["method"])
        raw, asked = quote(target).encode(), quote(query, safe="=&%").encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # no server would pass that on
    body = b"".join(part.read_bytes() for part in folder.glob("body*"))
    guard = Guard(_app()[1], Path("/uploads"), clock=lambda: 0.0)
    assert MOST_A_MINUTE > 1
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": target,
        "raw_path": raw,
        "query_string": asked,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 7860),
    }
    coming: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    status = sent[0]["status"]
    content = b"".join(message.get("body", b"") for message in sent[1:])
    assert status in (200, 400, 401, 403, 404, 405, 408, 413, 414, 422, 429), status
    if status not in (200, 404, 405) or content.startswith(b"{"):
        said = json.loads(content)
        assert status == 200 or (said["error"].strip() and "\n" not in said["error"]), said


_SAFE = mutate.safetensors_of

TARGETS = (
    Target("images", seeds.images, {"*": mutate.image_of}, _image, ("ceit.data.image:to_eight_bits",), 60_000, 160),
    Target(
        "checkpoint",
        seeds.checkpoints,
        {"*.safetensors": _SAFE},
        _predicting,
        ("ceit.weights.stored:is_released",),
        2_500,
    ),
    Target(
        "side file",
        lambda: seeds.checkpoints()[:1],
        {"*.json": mutate.json_of},
        _predicting,
        ("ceit.weights.stored:Description.from_json",),
        2_500,
    ),
    Target(
        "torch file",
        seeds.torch_files,
        {"*.pth": lambda random, data: (mutate.zip_of if data[:2] == b"PK" else mutate.bytes_of)(random, data)},
        _torch_file,
        ("ceit.weights.reading:_state_dict", "ceit.weights.reading:_refused_global"),
        3_000,
    ),
    Target(
        "run: compare",
        lambda: [seeds.finished_run()],
        {"config.yaml": mutate.yaml_of, "metrics.jsonl": mutate.lines_of_json, "test.json": mutate.json_of},
        _run_files,
        ("ceit.cli.compare:saved_config",),
        2_500,
    ),
    Target(
        "run: report",
        lambda: [seeds.finished_run()],
        {"metrics.jsonl": mutate.lines_of_json, "test.json": mutate.json_of, "model.json": mutate.json_of}
        | {"config.yaml": mutate.yaml_of},
        _report,
        ("ceit.train.model_card:saved_config",),
        200,
    ),
    Target(
        "run: resume",
        lambda: [seeds.finished_run()],
        {"config.yaml": mutate.yaml_of, "model.json": mutate.json_of},
        _go_on,
        ("ceit.train.run_directory:_as_of_now",),
        1_500,
    ),
    Target(
        "run: state",
        seeds.states,
        {"*": _SAFE},
        _state,
        ("ceit.train.checkpoint:_digest",),
        3_000,
        mend=_mend_state,
    ),
    Target(
        "run: images.csv",
        lambda: [{"images.csv": seeds.finished_run()["images.csv"]}],
        {"*": mutate.cells_of},
        _record,
        ("ceit.data.record:Row",),
        2_500,
    ),
    Target(
        "recipes",
        seeds.recipes,
        {"*": mutate.yaml_of},
        _recipe,
        ("ceit.train.recipe:flat_keys", "ceit.study.plan:as_fields", "ceit.study.sweep:as_fields"),
        6_500,
    ),
    Target(
        "label tables",
        seeds.tables,
        {"*.csv": mutate.cells_of, "*.parquet": mutate.bytes_of},
        _table,
        ("ceit.data.sources.table:_column",),
        2_000,
    ),
    Target(
        "our shards",
        seeds.shards,
        {"index.json": mutate.json_of, "samples.safetensors": _SAFE, "*.tar": mutate.tar_of},
        _shards,
        ("ceit.data.sources.shards.load:shard_set",),
        1_800,
        mend=_mend_shards,
    ),
    Target(
        "foreign shards",
        seeds.foreign_shards,
        {"*.tar": mutate.tar_of, "*.txt": mutate.bytes_of},
        _shards,
        ("ceit.data.sources.shards.foreign:_sample",),
        1_800,
    ),
    Target(
        "unpacked sets",
        seeds.unpacked_sets,
        {"*.gz": mutate.gzip_of(mutate.header_of), "*.json": mutate.json_of, "*.txt": mutate.bytes_of}
        | {"*.bin": mutate.header_of, "*.mat": mutate.bytes_of},
        _unpacked,
        ("ceit.data.sources.archives:_idx_array", "ceit.data.sources.published:Listing"),
        2_500,
    ),
    Target(
        "archives",
        seeds.archives,
        {"*.tar.gz": mutate.gzip_of(mutate.tar_of), "*.deb": mutate.bytes_of},
        _archive,
        ("ceit.data.sources.archives:_members",),
        1_000,
    ),
    Target(
        "exported text",
        seeds.exported_texts,
        {"*": mutate.json_of},
        _exported_text,
        ("ceit.inference.exported:Description.from_json",),
        2_000,
    ),
    Target(
        "exported ONNX",
        lambda: seeds.exported("onnx"),
        {"*.onnx": mutate.bytes_of},
        _exported_file,
        ("ceit.inference.exported:OnnxRuntime",),
        400,
        400,
    ),
    Target(
        "exported torch",
        lambda: seeds.exported("torch"),
        {"*.pt2": mutate.zip_of},
        _exported_file,
        ("ceit.inference.program_file:_strange",),
        60,
        400,
    ),
    Target(
        "exported OpenVINO",
        lambda: seeds.exported("openvino"),
        {"*.xml": mutate.bytes_of, "*.bin": mutate.bytes_of},
        _exported_file,
        ("ceit.inference.exported:rt_info",),
        240,
        400,
    ),
    Target(
        "predictions",
        seeds.predictions,
        {"*.csv": mutate.cells_of, "*.jsonl": mutate.lines_of_json, "*.model.json": mutate.json_of},
        _answers,
        ("ceit.inference.prediction_file:_images_in",),
        2_500,
    ),
    Target(
        "study cells",
        seeds.cells,
        {"*": mutate.json_of},
        _cell,
        ("ceit.study.cells:_digest",),
        2_000,
        mend=_mend_cell,
    ),
    Target(
        "caches",
        _caches,
        {"*.json": mutate.json_of, "*": mutate.bytes_of},
        _cache,
        ("ceit.data.store:Store.facts", "ceit.inference.fastest:Candidate"),
        1_000,
    ),
    Target(
        "command lines",
        lambda: [{"words.json": json.dumps(words).encode()} for words in _COMMANDS],
        {"*": _command_of},
        _command,
        ("ceit_cli:importlib.import_module",),
        1_500,
        256,
    ),
    Target(
        "web requests",
        _requests,
        {"request.json": mutate.json_of, "body": mutate.image_of, "body.json": mutate.json_of},
        _request,
        ("ceit.web.guard:_require_size", "ceit.web.api:answer"),
        3_000,
        256,
    ),
)
