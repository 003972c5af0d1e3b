"""Copies among images: the same pixels, or the same picture encoded or resized anew. See docs/decisions/duplicates.md.

Three sieves, each exact enough to leave the next one little to do: bits that survive re-encoding find candidates, a
coarse picture kept in memory refutes most of them, and what is left is read again and compared at 32 x 32 pixels.

Letters: n images, p pairs.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from ceit.data.preprocessing import to_array
from ceit.data.threads import read_all

SIDE = 32  # of the small pictures that are compared
COARSE_SIDE = 8  # of what is kept of each image
BLANK_CONTRAST = 1.0  # standard deviation of the luminance, in levels of 256, below which an image shows nothing
FLAT_CONTRAST = 4.0  # below which it has too little to be recognised by
MOST_BITS = 8  # of 64 that may differ in a candidate
COARSE_LEVELS = 3.0  # root mean square difference of coarse luminance, in levels of 256, that encoding may cause
FINE_SHARE = 0.35  # the same at 32 x 32 in colour, as a share of the flatter image's standard deviation
CROWDING = 4  # times as many images at twice the distance make a pair a look-alike and no copy
_BAND_BITS = 16
_REACH = 128  # neighbours that an image is compared with, at most, among those that share a band
_ONES = np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16).sum(1).astype(np.uint8)
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
_COSINES = np.cos(np.pi * np.arange(12)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE)).astype(np.float32)
_FREQUENCIES = np.array(
    sorted(((u, v) for u in range(12) for v in range(12) if u + v), key=lambda pair: (sum(pair), pair))[:64]
)


class Prints(NamedTuple):
    """What is kept of images: 108 bytes each, whatever their size.

    ``digest`` ``(n, 16)`` is a hash of the pixels, ``bits`` uint64 ``(n,)`` the signs of the 64 lowest frequencies,
    ``coarse`` uint8 ``(n, 64)`` the luminance of 8 x 8 cells, ``contrast`` its standard deviation at 32 x 32.
    """

    digest: np.ndarray
    bits: np.ndarray
    coarse: np.ndarray
    contrast: np.ndarray


def small_picture(image: Image.Image) -> np.ndarray:
    """The whole image as uint8 ``(32, 32, 3)``, stretched."""
    return to_array(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0).convert("RGB"))


def pixel_digest(image: Image.Image) -> bytes:
    """16 bytes that tell images of different size or pixels apart."""
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).digest()[:16]


def prints_of(pictures: Sequence[np.ndarray], digests: Sequence[bytes]) -> Prints:
    """The prints of images, given as ``small_picture`` and ``pixel_digest`` do."""
    luminance = np.array(pictures, np.float32).reshape(-1, SIDE, SIDE, 3) @ _LUMINANCE
    spectrum = np.einsum("uh,nhw,vw->nuv", _COSINES, luminance, _COSINES, optimize=True)
    signs = spectrum[:, _FREQUENCIES[:, 0], _FREQUENCIES[:, 1]] > 0
    cells = luminance.reshape(-1, COARSE_SIDE, SIDE // COARSE_SIDE, COARSE_SIDE, SIDE // COARSE_SIDE).mean((2, 4))
    return Prints(
        np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16),
        np.packbits(signs, axis=1).copy().view(np.uint64)[:, 0],
        np.rint(cells).astype(np.uint8).reshape(-1, COARSE_SIDE**2),
        luminance.std((1, 2)),
    )


def find_copies(prints: Prints, picture: Callable[[int], np.ndarray]) -> list[list[int]]:
    """Groups of images that are copies of each other, each sorted; ``picture(i)`` reads a ``small_picture`` again.

    Blank images are in no group: they would all be copies of each other, and say nothing.
    """
    shows = np.flatnonzero(prints.contrast >= BLANK_CONTRAST)
    _, first, same = np.unique(prints.digest[shows], axis=0, return_index=True, return_inverse=True)
    leader = np.arange(len(prints.bits))
    leader[shows] = shows[first[same.reshape(-1)]]
    distinct = np.flatnonzero((leader == np.arange(len(leader))) & (prints.contrast >= FLAT_CONTRAST))
    for i, j in _same_picture(_candidates(prints, distinct), picture):
        a, b = _root(leader, i), _root(leader, j)
        leader[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for index in range(len(leader)):
        groups.setdefault(_root(leader, index), []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _candidates(prints: Prints, among: np.ndarray) -> np.ndarray:
    """Pairs ``(p, 2)`` whose bits and coarse pictures are near each other, and nearer than look-alikes of them are."""
    pairs, distances = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    for i, j in _sharing_a_band(prints.bits[among]):
        i, j = among[i], among[j]
        near = _ONES[(prints.bits[i] ^ prints.bits[j]).view(np.uint16).reshape(-1, 4)].sum(1) <= MOST_BITS
        i, j = i[near], j[near]
        distance = np.sqrt(((prints.coarse[i].astype(np.float32) - prints.coarse[j]) ** 2).mean(1))
        alike = distance <= 2 * COARSE_LEVELS
        pairs.append(np.sort(np.stack([i[alike], j[alike]], 1), axis=1))
        distances.append(distance[alike])
    unique, first = np.unique(np.concatenate(pairs), axis=0, return_index=True)
    distance = np.concatenate(distances)[first]
    return unique[(distance <= COARSE_LEVELS) & _stands_out(unique, distance)]


def _stands_out(pairs: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Whether around a pair there is little at up to twice its distance, bool ``(p,)``.

    Copies are few among many others far away. Things that are merely alike, as a stroke that is a one, lie so densely
    that four times as many come within twice the distance.
    """
    image = np.concatenate([pairs[:, 0], pairs[:, 1]])
    length = 4 * COARSE_LEVELS  # longer than any distance: one image's distances lie apart from the next one's
    place = np.sort(image * length + np.tile(distance, 2))

    def within(reach: np.ndarray) -> np.ndarray:
        ends = np.searchsorted(place, pairs * length + reach[:, None], "right")
        return (ends - np.searchsorted(place, pairs * length, "left")).sum(1)

    return within(np.minimum(2 * distance, 2 * COARSE_LEVELS) + 1e-3) <= CROWDING * within(distance + 1e-3)


def _sharing_a_band(bits: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of positions whose bits agree in one of the four bands of 16: all that differ in up to three bits do.

    Sorted by a band and then by the bits that follow it, those that agree lie next to each other. Work is proportional
    to the pairs; the reach bounds it where very many images are alike.
    """
    for band in range(0, 64, _BAND_BITS):
        turned = (bits << np.uint64(band)) | (bits >> np.uint64((64 - band) % 64)) if band else bits
        order = np.argsort(turned, kind="stable")
        key = turned[order] >> np.uint64(64 - _BAND_BITS)
        start = np.arange(len(order))
        for distance in range(1, _REACH + 1):
            start = start[start + distance < len(order)]
            start = start[key[start] == key[start + distance]]
            if len(start) == 0:
                break
            yield order[start], order[start + distance]


def _same_picture(pairs: np.ndarray, picture: Callable[[int], np.ndarray]) -> Iterator[tuple[int, int]]:
    """The pairs that differ no more than an encoding makes them differ."""
    needed = np.unique(pairs).tolist()
    pictures = {i: read for i, read in read_all(picture, needed, "comparing images") if not isinstance(read, str)}
    for i, j in pairs.tolist():
        if i in pictures and j in pictures:
            a, b = pictures[i].astype(np.float32), pictures[j].astype(np.float32)
            if np.sqrt(((a - b) ** 2).mean()) <= FINE_SHARE * min(a.std(), b.std()):
                yield i, j


def _root(leader: np.ndarray, index: int) -> int:
    while leader[index] != index:
        index = int(leader[index])
    return index
