"""Write one tiny file of every format that this version writes: ``python -m tests.formats.make``, once for a release.

They lie in ``tests/formats/VERSION``, with what they must answer, and stay as they are. Made with the oldest
dependencies that this version allows, because a program of torch.export is read by the torch that wrote it or a newer
one: ``make check-floors`` leaves such an environment.
"""

import json
import os
import shutil
import signal
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

import ceit
import ceit_cli
from ceit.data.batches.augment import Augmentation
from ceit.data.preprocessing import Preprocessing
from ceit.data.sources.choose import load_dataset
from ceit.data.sources.shards.write import write_shards
from ceit.inference.example_images import ExampleImages
from ceit.inference.exported import SUFFIXES
from ceit.inference.exporter import export
from ceit.study.cells import Cell, pack, write_cell
from ceit.train.config import TrainConfig, WeightAverage
from ceit.train.interruption import Interrupted
from ceit.train.run import train

HERE = Path(__file__).parent
GEOMETRY: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "stem_channels": 8}
CONFIG = TrainConfig(
    model="ceit_pico_patch4_32",
    geometry=GEOMETRY,
    epochs=3,
    global_batch_size=16,
    peak_lr=1e-2,
    precision="float32",
    augmentation=Augmentation(flip=False, translate=1),
    ema=WeightAverage(decay=0.9),
    workers=0,
    keep_checkpoints=1,
    tracker=(),
)
CELL = Cell("formats", "digits", "with LCA", 0, "digits", {"epochs": 2, "geometry": {"depth": 2}})
PREDICT = ("predict", "--checkpoint", "checkpoint", "--backend", "eager", "--device", "cpu", "--output")


def unpacked(shards: Path, folder: Path) -> list[str]:
    """The training images of the shards as files in ``folder``: their names, as ``ceit predict`` is told them."""
    folder.mkdir()
    for shard in sorted(shards.glob("train-*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive.getmembers():
                if member.name.endswith(".png") and (content := archive.extractfile(member)):
                    (folder / member.name).write_bytes(content.read())
    return [f"{folder.name}/{path.name}" for path in sorted(folder.iterdir())]


def main() -> None:
    """Raises: FileExistsError if the files of this version are there."""
    folder = HERE / ceit.__version__
    folder.mkdir()
    os.chdir(folder)
    torch.manual_seed(0)
    _write_images()
    write_shards(load_dataset("images"), Path("shards"))
    shutil.rmtree("images")
    _write_run()
    model = _write_checkpoint()
    images = torch.rand(4, 1, 16, 16)
    save_file({"images": images, "logits": model(images).detach()}, "logits.safetensors")
    for suffix, kind in SUFFIXES.items():
        export(model, f"exported/network{suffix}", format=kind, check=ExampleImages(images, "noise", real=False))
    found = {"best": {"epoch": 2}, "test": {"images": 3, "top1_percent": 66.7, "right": pack([True, False, True])}}
    write_cell(Path("cells"), CELL, found)
    _write_answers()


def _write_images() -> None:
    digits = load_dataset("digits").train
    for label in range(3):
        Path("images", "train", str(label)).mkdir(parents=True)
        Path("images", "test", str(label)).mkdir(parents=True)
    for number in range(200):
        if (label := int(digits.labels[number])) < 3:
            part = "test" if number % 5 == 0 else "train"
            digits.read(number, 1).save(Path("images", part, str(label), f"{number:03}.png"))


def _write_run() -> None:
    """Interrupted in its third epoch; and a copy of it gone to the end, for what that reports."""

    def stop(state: dict[str, Any]) -> None:
        if state.get("total_steps") and state["step"] == 2 * state["total_steps"] // 3 + 1:
            os.kill(os.getpid(), signal.SIGINT)

    with suppress(Interrupted):
        train(CONFIG, "shards", Path("run"), show=stop)
    shutil.copytree("run", "whole")
    test = train(CONFIG, "shards", Path("whole"), resume="auto").test
    shutil.rmtree("whole")
    Path("run.json").write_text(json.dumps({"top1_percent": test.top1_percent, "loss": test.loss}) + "\n")
    config = Path("run/config.yaml")
    said = yaml.safe_load(config.read_text(encoding="utf-8"))
    config.write_text(yaml.safe_dump({**said, "data": "shards"}, sort_keys=False), encoding="utf-8")


def _write_checkpoint() -> ceit.CeiT:
    Path("checkpoint").mkdir()
    Path("exported").mkdir()
    geometry: dict[str, Any] = GEOMETRY | {
        "img_size": 16,
        "in_chans": 1,
        "num_classes": 3,
        "patch_size": 4,
        "stem_stride": 1,
    }
    model = ceit.CeiT(ceit.CeiTConfig(**geometry)).eval()
    model.temperature = 1.5
    told: dict[str, Any] = {"seed": 0}
    about = {"class_names": ("dog", "Größe", "猫"), "preprocessing": Preprocessing((0.3,), (0.4,)), "training": told}
    ceit.save_checkpoint("checkpoint/model.safetensors", model, **about)
    return ceit.load_checkpoint("checkpoint").eval()


def _write_answers() -> None:
    """Answers of all images, and a file that was stopped in the middle of a line."""
    Path("predictions").mkdir()
    paths = unpacked(Path("shards"), Path("images"))
    ceit_cli.main([*PREDICT, "predictions/whole.csv", *paths])
    ceit_cli.main([*PREDICT, "predictions/answers.csv", *paths])
    answers = Path("predictions/answers.csv")
    answers.write_bytes(answers.read_bytes()[: answers.stat().st_size // 2])
    Path("predictions/whole.csv.model.json").unlink()
    shutil.rmtree("images")


if __name__ == "__main__":
    main()
