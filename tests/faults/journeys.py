"""What people do with ``ceit`` that writes: the command, the one that goes on after a fault, and where it writes."""

import hashlib
import http.server
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

import ceit
from ceit.data.preprocessing import IMAGENET
from ceit.data.sources.archives import ARRAY_NAMES, Arrays, Members
from ceit.data.sources.known_sets import SETS, NamedSet, Source
from ceit.weights import save_checkpoint
from tests.faults.trials import Command

NETWORK: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "stem_channels": 4}
CLASSES = ("cat", "dog")
HELPED = "train, images read by a worker"
NAMES = ("train", HELPED, "predict", "reproduce", "fetch", "shard", "export", "convert", "embed")
SET = "tiny"
SHAPES = {
    "train_images": (600, 32, 32, 3),
    "train_labels": (600,),
    "test_images": (60, 32, 32, 3),
    "test_labels": (60,),
}


@dataclass(frozen=True)
class Journey:
    """``command`` makes what lies in ``out``; after a fault, ``again`` does; ``reads`` prints what depends on it."""

    name: str
    out: Path
    command: Command
    again: Command
    reads: Command


def journeys(root: Path) -> dict[str, Journey]:
    """All of them, with what they read made under ``root``; the set to fetch is served by ``serving``."""
    photos, checkpoint, study = _photos(root / "photos"), root / "model.safetensors", root / "own.yaml"
    torch.manual_seed(0)
    network = ceit.create_model("ceit_pico_patch4_32", num_classes=len(CLASSES), **NETWORK)
    save_checkpoint(checkpoint, network, class_names=CLASSES, preprocessing=IMAGENET)
    torch.save(network.state_dict(), root / "state.pth")
    study.write_text(yaml.safe_dump(_study(), sort_keys=False), encoding="utf-8")
    out = root / "out"
    train = ["train", "--recipe", "none", "--data", str(photos), "--output", str(out / "run"), "--epochs", "2"]
    train += ["--model", "ceit_pico_patch4_32", "--geometry.drop-path-rate", "0.1", "--ema.decay", "0.9"]
    train += [word for name, value in NETWORK.items() for word in (f"--geometry.{name.replace('_', '-')}", f"{value}")]
    train += ["--global-batch-size", "8", "--precision", "float32", "--workers", "0", "--log-every-steps", "1"]
    train += ["--checkpoint-every-steps", "2", "--peak-lr", "0.01", "--warmup-epochs", "0"]
    helped = [word if before != "--workers" else "1" for before, word in pairwise(["", *train])]
    fetch = ["data", "fetch", SET]
    shard = ["data", "shard", str(photos), str(out / "shards"), "--shard-megabytes", "1"]
    export = [
        "export",
        "--checkpoint",
        str(checkpoint),
        "--format",
        "torch",
        "--output",
        str(out / "model.pt2"),
        "--data",
        str(photos),
    ]
    answers = str(out / "answers.csv")
    predict = ["predict", "--checkpoint", str(checkpoint), str(photos), "--output", answers, "--batch-size", "4"]
    reproduce = ["reproduce", str(study), "--results", str(out / "results"), "--runs", str(out / "runs")]
    embed = ["embed", "--checkpoint", str(checkpoint), str(photos), "--output", str(out / "features.npz")]
    convert = ["convert", str(root / "state.pth"), str(out / "converted.safetensors"), "--num-heads", "2"]
    asked = ["predict", "--json", "--backend", "eager", str(photos), "--checkpoint"]
    measured = ["evaluate", "--json", "--backend", "eager", "--checkpoint", str(checkpoint), "--data"]
    found = [
        Journey("train", out, train, [*train, "--resume", "auto"], [*asked, str(out / "run")]),
        Journey(HELPED, out, helped, [*helped, "--resume", "auto"], [*asked, str(out / "run")]),
        Journey("predict", out, predict, [*predict, "--resume"], [*predict, "--resume"]),
        Journey("reproduce", out, reproduce, reproduce, reproduce),
        Journey("fetch", out, fetch, fetch, ["data", "check", SET, "--json"]),
        Journey("shard", out, shard, shard, [*measured, str(out / "shards")]),
        Journey("export", out, export, [*export, "--overwrite"], [*asked[:2], *asked[4:], str(out / "model.pt2")]),
        Journey("convert", out, convert, [*convert, "--force"], [*asked, str(out / "converted.safetensors")]),
        Journey("embed", out, embed, embed, embed),
    ]
    return {journey.name: journey for journey in found}


def _photos(folder: Path) -> Path:
    noise = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = noise.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.jpg", quality=60)
    return folder


def _study() -> dict[str, Any]:
    """Two cells, each of two epochs of three steps."""
    options = {"geometry": NETWORK, "epochs": 2, "limit_batches": 3, "log_every_steps": 1, "checkpoint_every_steps": 2}
    arm = {"tuned_as": None, "options": options}
    text = {"title": "Two networks", "question": "Which is better?", "paper": "none", "scales": ["digits"]}
    return text | {"arms": {"one": arm, "other": arm | {"options": options | {"peak_lr": 0.01}}}, "compare": []}


def _arrays() -> Arrays:
    random = np.random.default_rng(1)
    images = {name: random.integers(0, 256, SHAPES[name], dtype=np.uint8) for name in ARRAY_NAMES if "images" in name}
    labels = {name: np.arange(SHAPES[name][0], dtype=np.uint8) % 3 for name in ARRAY_NAMES if "labels" in name}
    return images | labels


def _decoded(members: Members) -> Arrays:
    """A format as simple as can be: the four arrays one after the other."""
    data, arrays, offset = np.frombuffer(members("set.bin"), np.uint8), Arrays(), 0
    for name in ARRAY_NAMES:
        size = int(np.prod(SHAPES[name]))
        arrays[name] = data[offset : offset + size].reshape(SHAPES[name])
        offset += size
    return arrays


@contextmanager
def serving() -> Iterator[None]:
    """A server of the set ``tiny``, which commands then know; it takes up downloads that were cut."""
    arrays = _arrays()
    content = b"".join(arrays[name].tobytes() for name in ARRAY_NAMES)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            first = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            self.wfile.write(content[first:])

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    process = os.fork()
    if not process:
        server.serve_forever()
    url = f"http://127.0.0.1:{server.server_port}/set.bin"
    SETS[SET] = NamedSet(
        title="Tiny",
        class_names=("a", "b", "c"),
        image_shape=(32, 32, 3),
        train_images=SHAPES["train_labels"][0],
        test_images=SHAPES["test_labels"][0],
        licence="CC0",
        citation="nobody, 2026",
        sources=(Source((url,), _decoded, (hashlib.sha256(content).hexdigest(),)),),
        sha256={name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()},
    )
    try:
        yield
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        server.server_close()
        del SETS[SET]
