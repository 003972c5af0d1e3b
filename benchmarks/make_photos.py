"""Photos that anybody can make again: ``python -m benchmarks.make_photos --output FOLDER``.

Each picture is a scene of 320 to 640 pixels a side: an object out of CIFAR-10, enlarged, rotated and lit in another
way, somewhere before a background and clutter made of parts of other images. JPEGs of varied shape and quality, a
quarter of them turned by their EXIF tag, in ``train/CLASS`` and ``test/CLASS``. The objects and the backgrounds of
``test`` are from CIFAR-10's test images, those of ``train`` from its training images. The same seed gives the same
bytes with the same version of Pillow.

Letters: H height, W width.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ceit.atomic import write_text
from ceit.data.cache import cache_dir
from ceit.data.sources.known_sets import SETS
from ceit.machine import usable_cores

CLASSES = ("airplane", "automobile", "cat", "frog", "horse", "ship")
SIZES = (
    (320, 240),
    (400, 400),
    (480, 320),
    (512, 384),
    (640, 360),
    (640, 480),
    (360, 480),
    (426, 640),
)  # width, height
OBJECT_SHARE = (0.3, 0.75)  # of the shorter side, that an object takes; small ones are as likely as large ones
TURNED = {
    3: 180,
    6: 90,
    8: 270,
}  # EXIF orientation to the degrees, counter-clockwise, that the stored picture is turned
DESCRIPTION = "set.json"


@dataclass(frozen=True)
class Scene:
    """One picture to be made: its part, its class, its number in the class, and what all are seeded with."""

    part: str
    class_name: str
    number: int
    seed: int

    @property
    def path(self) -> Path:
        """Below the folder of the set, named as cameras do."""
        return Path(self.part, self.class_name, f"IMG_{self.number:04}.JPG")


def main() -> None:
    """Make the set, and say what it is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.make_photos", description="Makes a set of photos.")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="must be new")
    parser.add_argument("--train", type=int, default=2400, help="pictures to train on; default: %(default)s")
    parser.add_argument("--test", type=int, default=600, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    asked = parser.parse_args()
    if min(asked.train, asked.test) < len(CLASSES):
        parser.error(
            f"--train {asked.train} and --test {asked.test} must be at least {len(CLASSES)}, one of each class"
        )
    if asked.output.exists():
        parser.error(f"--output {asked.output} is there already: name another, or remove it")
    if not (cache_dir() / "cifar10").is_dir():
        parser.error("CIFAR-10 is not in the cache: get it with `ceit data fetch cifar10`")
    make_photos(asked.output, {"train": asked.train, "test": asked.test}, asked.seed)
    print(f"{asked.train} pictures to train on and {asked.test} to test, of {len(CLASSES)} classes, in {asked.output}")


def make_photos(folder: Path, counts: dict[str, int], seed: int) -> Path:
    """So many pictures of each part, shared out evenly over the classes; ``set.json`` says how they were made."""
    scenes = [
        Scene(part, CLASSES[number % len(CLASSES)], number // len(CLASSES), seed)
        for part, count in counts.items()
        for number in range(count)
    ]
    for place in sorted({folder / scene.path.parent for scene in scenes}):
        place.mkdir(parents=True)
    with ProcessPoolExecutor(usable_cores(), get_context("spawn")) as pool:
        list(pool.map(partial(_write, folder), scenes, chunksize=16))
    write_text(folder / DESCRIPTION, json.dumps({"counts": counts, "seed": seed, "classes": CLASSES}, indent=1) + "\n")
    return folder


def _write(folder: Path, scene: Scene) -> None:
    random = np.random.default_rng([scene.seed, scene.part == "test", CLASSES.index(scene.class_name), scene.number])
    picture = _developed(_composed(scene, random), random)
    exif, orientation = Image.Exif(), 1
    if random.random() < 0.25:
        orientation = int(random.choice([*TURNED]))
        picture = picture.rotate(TURNED[orientation], expand=True)
    exif[0x0112], exif[0x010F] = orientation, "A camera that is none"
    picture.save(folder / scene.path, "JPEG", quality=int(random.integers(60, 96)), exif=exif)


@cache
def _images(part: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """CIFAR-10's images of a part, not read before they are used, and the numbers of those of each class."""
    folder, names = cache_dir() / "cifar10", SETS["cifar10"].class_names
    labels = np.load(folder / f"{part}_labels.npy")
    numbers = {name: np.flatnonzero(labels == names.index(name)) for name in CLASSES}
    return np.load(folder / f"{part}_images.npy", mmap_mode="r"), numbers


def _composed(scene: Scene, random: np.random.Generator) -> Image.Image:
    """Background, clutter, the object, and perhaps something that covers a corner of it."""
    images, numbers = _images(scene.part)
    width, height = SIZES[random.integers(len(SIZES))]
    picture = _background(images, width, height, random)
    shorter = min(width, height)
    for _ in range(random.integers(2, 6)):
        _paste(picture, _part_of(images, random), int(shorter * random.uniform(0.1, 0.35)), random, soft=False)
    own = numbers[scene.class_name]
    thing = Image.fromarray(images[own[scene.number % len(own)]])
    if random.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    low, high = np.log(OBJECT_SHARE)
    side = int(shorter * np.exp(random.uniform(low, high)))
    room = int(0.92 * shorter) - side  # in the middle, as people take photos: what fits a crop of it shows the object
    corner = ((size - room - side) // 2 + int(random.integers(0, room + 1)) for size in (width, height))
    left, top = _paste(picture, thing, side, random, soft=True, at=(next(corner), next(corner)))
    if random.random() < 0.3:
        covering = _part_of(images, random)
        place = int(left + side * random.uniform(-0.1, 0.9)), int(top + side * random.uniform(-0.1, 0.9))
        _paste(picture, covering, int(side * random.uniform(0.2, 0.35)), random, soft=False, at=place)
    return picture


def _background(images: np.ndarray, width: int, height: int, random: np.random.Generator) -> Image.Image:
    """A soft surface of a few colours under the texture of another image, mirrored and repeated."""
    surface = _part_of(images, random, 4).resize((width, height), Image.Resampling.BICUBIC)
    tile_hwc = np.asarray(_part_of(images, random, 12))
    mirrored_hwc = np.concatenate([tile_hwc, tile_hwc[:, ::-1]], 1)
    mirrored_hwc = np.concatenate([mirrored_hwc, mirrored_hwc[::-1]], 0)
    times = int(random.integers(2, 7))
    enlarged = Image.fromarray(mirrored_hwc).resize((24 * times, 24 * times), Image.Resampling.BICUBIC)
    repeats = -(-height // enlarged.height), -(-width // enlarged.width), 1
    texture = Image.fromarray(np.tile(np.asarray(enlarged), repeats)[:height, :width])
    return Image.blend(surface, texture, random.uniform(0.2, 0.6))


def _part_of(images: np.ndarray, random: np.random.Generator, side: int = 10) -> Image.Image:
    """A square cut out of any image, too small to show what it is of."""
    top, left = random.integers(0, 32 - side, 2)
    return Image.fromarray(images[random.integers(len(images)), top : top + side, left : left + side])


def _paste(
    picture: Image.Image,
    thing: Image.Image,
    side: int,
    random: np.random.Generator,
    *,
    soft: bool,
    at: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Puts a thing into the picture, turned, ``at`` a place or anywhere; returns where its corner is.

    A soft one fades into what lies behind it, so that no square tells where the object is.
    """
    side = max(side, 8)
    angle = random.uniform(-25, 25)
    mask = Image.new("L", (side, side))
    rounded = side * (random.uniform(0.3, 0.5) if soft else random.uniform(0, 0.5))
    margin = side // 16 if soft else 0
    ImageDraw.Draw(mask).rounded_rectangle((margin, margin, side - 1 - margin, side - 1 - margin), rounded, 255)
    if soft:
        mask = mask.filter(ImageFilter.GaussianBlur(side / 24))
    large = thing.resize((side, side), Image.Resampling.BICUBIC)
    if at is None:
        at = int(random.integers(0, picture.width - side + 1)), int(random.integers(0, picture.height - side + 1))
    content, shape = (image.rotate(angle, Image.Resampling.BICUBIC) for image in (large, mask))
    picture.paste(content, at, shape)
    return at


def _developed(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """What light and camera do: brightness, gamma, a cast of colour, a slight blur, noise."""
    if random.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.5, 1.5)))
    values_hwc = np.asarray(picture, np.float32) / 255
    values_hwc = values_hwc ** np.float32(random.uniform(0.7, 1.4))
    values_hwc *= (random.uniform(0.75, 1.2) * random.uniform(0.88, 1.12, 3)).astype(np.float32)
    noise_hwc = random.standard_normal(values_hwc.shape, np.float32) * np.float32(random.uniform(2, 12) / 255)
    return Image.fromarray(((values_hwc + noise_hwc) * 255).clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
