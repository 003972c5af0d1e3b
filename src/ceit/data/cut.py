"""How the images of a set are shared out among train, validation and test: by the seed, class by class.

Two rules. Images that people bring are cut *by content*: a number drawn from the image's bytes and the seed says where
it goes, so what else lies in the folder does not matter, nor do names, and copies stay together. The sets known by name
never change: they are cut *by place*, in exact shares. See docs/decisions/splits.md.

Letters: n images.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from ceit.data.random_bits import random_bits, shuffled

VALIDATION_PERCENT = 5.0  # of the training images, where nobody says otherwise
PARTS_STREAM, VALIDATION_STREAM, SHARE_STREAM = 0, 1, 2  # independent draws of one image, for cuts after one another
_EPOCH = -1  # no epoch of training has this number
TRAINING_SHARE = 0.8  # about, of a set that comes unsplit
_NEEDS_THREE = "a set that is not split yet needs 3 of each"


def digest_of(encoded: bytes) -> int:
    """What an image is known by, whatever its name: the first 64 bits of the BLAKE2b hash of its file."""
    return int.from_bytes(blake2b(encoded, digest_size=8).digest())


def by_content(
    digests: np.ndarray, labels: np.ndarray, shares: Sequence[float], seed: int, stream: int, least: int = 0
) -> list[np.ndarray]:
    """The sorted indices of ``len(shares) + 1`` parts: the shares of every class, and the rest.

    ``digests`` uint64 ``(n,)`` are the images' contents. A content's draw in 0..1 is compared with the shares, so each
    image is placed alone. Only where a class is too small for that are places forced, lowest draws first: a part whose
    share rounds to one image or more gets one, each gets ``least``, and the rest keeps one if there are so many.
    """
    draws = random_bits(seed, _EPOCH, digests, stream)
    ends = np.cumsum(shares)
    chosen: list[list[np.ndarray]] = [[] for _ in range(len(shares) + 1)]
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        contents, content_of = np.unique(draws[members], return_inverse=True)  # copies are one content
        bounds = [int(np.searchsorted(contents / 2.0**64, end)) for end in ends]
        start = 0
        for number, share in enumerate(shares):
            wanted = max(least, int(np.rint(len(members) * share) >= 1))
            room = max(least, len(contents) - least * (len(shares) - 1 - number) - 1)
            bounds[number] = max(start, min(max(bounds[number], start + wanted), room))
            start = bounds[number]
        part_of = np.searchsorted(bounds, content_of, side="right")
        for number, part in enumerate(chosen):
            part.append(members[part_of == number])
    return [np.sort(np.concatenate(part)) if part else np.empty(0, np.int64) for part in chosen]


def nearest(digests: np.ndarray, labels: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """The image of the lowest draw, and its copies, among the classes that keep another; none if there is no such."""
    draws = random_bits(seed, _EPOCH, digests, stream)
    contents = {label: len(np.unique(digests[labels == label])) for label in np.unique(labels).tolist()}
    able = np.array([contents[label] > 1 for label in labels.tolist()])
    return np.flatnonzero(able & (draws == draws[able].min())) if able.any() else np.empty(0, np.int64)


def tenths_by_content(
    digests: np.ndarray, labels: np.ndarray, class_names: Sequence[str], seed: int
) -> dict[str, np.ndarray]:
    """Which images of a set that comes unsplit train, validate and test: about 80/10/10 of every class.

    Every part has at least one image of each class. Raises: ValueError for a class of fewer than three contents.
    """
    for label, name in enumerate(class_names):
        members = labels == label
        if (contents := len(np.unique(digests[members]))) < 3:
            copies = "" if contents == members.sum() else f" ({members.sum()} files, the others are copies)"
            raise ValueError(f"class {name!r} has {contents} images{copies}: {_NEEDS_THREE}")
    test, validation, train = by_content(digests, labels, (0.1, 0.1), seed, PARTS_STREAM, least=1)
    return {"train": train, "validation": validation, "test": test}


def tenths_by_place(labels: np.ndarray, class_names: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """As ``tenths_by_content`` in exact shares, which depend on all images and their order: as runs once were cut."""
    sizes = np.bincount(labels, minlength=len(class_names))
    if sizes.min() < 3:
        smallest = class_names[int(sizes.argmin())]
        raise ValueError(f"class {smallest!r} has {sizes.min()} images: {_NEEDS_THREE}")
    tenths = np.maximum(1, np.rint(sizes / 10).astype(np.int64))
    test = stratified(labels, tenths, seed)
    rest = np.setdiff1d(np.arange(len(labels)), test)
    validation = rest[stratified(labels[rest], tenths, seed)]
    return {"train": np.setdiff1d(rest, validation), "validation": validation, "test": test}


def stratified(labels: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """The sorted indices of ``counts[c]`` images of every class ``c``: a function of labels, counts and seed alone."""
    order = shuffled(len(labels), seed, _EPOCH)
    return np.sort(np.concatenate([order[labels[order] == c][:count] for c, count in enumerate(counts.tolist())]))


def shares_of_classes(sizes: np.ndarray, count: int) -> np.ndarray:
    """``count`` shared out in proportion to ``sizes``, largest remainders first; no class gives its last image."""
    exact = sizes * count / sizes.sum()
    counts = np.minimum(exact.astype(np.int64), np.maximum(sizes - 1, 0))
    while missing := count - counts.sum():
        room = np.flatnonzero(counts < sizes - 1)
        counts[room[np.argsort(counts[room] - exact[room], kind="stable")[:missing]]] += 1
    return counts
