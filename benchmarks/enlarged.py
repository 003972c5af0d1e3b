"""Does a model of small images know them in large files? ``python -m benchmarks.enlarged --checkpoint RUN|NAME``.

Writes test images of CIFAR-10 as they are, and enlarged in several ways to JPEGs of 512 px, and counts how many of them
``ceit predict`` names rightly, beside what ``ceit evaluate`` finds on the whole test split.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from ceit.data.sources.choose import load_images

SIDE = 512
WAYS = ("as they are", "NEAREST", "BILINEAR", "BICUBIC", "LANCZOS")  # the names of Pillow's resampling


def main() -> None:
    """Print the accuracies as JSON, in percent."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.enlarged", description="Small images in large files")
    parser.add_argument("--checkpoint", required=True, metavar="RUN|NAME")
    parser.add_argument("--images", type=int, default=200, help="the first so many; default: %(default)s")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ceit-") as made:
        figures = {way: named_rightly(write(Path(made, way), asked.images, way), asked.checkpoint) for way in WAYS}
    found = ceit("evaluate", "--checkpoint", asked.checkpoint, "--data", "cifar10", "--split", "test", "--json")
    print(
        json.dumps(
            {
                "checkpoint": asked.checkpoint,
                "images": asked.images,
                **figures,
                "evaluate, all": json.loads(found)["top1_percent"],
            }
        )
    )


def write(folder: Path, count: int, way: str) -> Path:
    """The first test images, each in a file that is named after its number and its class."""
    found = load_images("cifar10")
    test = found.parts["test"]
    folder.mkdir()
    for index in range(count):
        picture = test.read(index, in_chans=3)
        name = f"{index:04}_{found.class_names[int(test.labels[index])]}"
        if way in Image.Resampling.__members__:
            picture.resize((SIDE, SIDE), Image.Resampling[way]).save(folder / f"{name}.jpg", quality=90)
        else:
            picture.save(folder / f"{name}.png")
    return folder


def named_rightly(folder: Path, checkpoint: str) -> float:
    """Percent of the files whose name has the class that ``ceit predict`` finds most probable."""
    answers = json.loads(ceit("predict", "--checkpoint", checkpoint, "--json", str(folder)))
    right = [answer["predictions"][0]["label"] == Path(answer["path"]).stem.split("_", 1)[1] for answer in answers]
    return round(100 * sum(right) / len(right), 2)


def ceit(*arguments: str) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "ceit", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    main()
