"""Which images an epoch draws, in which order: a function of (seed, epoch), a million images in about a second.

A draw is one int64: the image's index, and above ``COPY`` the number of its copy, for an epoch may show an image more
than once. Copies differ, because an image is varied by the random bits of its draw.
"""

from dataclasses import dataclass

import numpy as np

from ceit.data.random_bits import ORDER_STREAM, random_bits, shuffled

COPY = 2**40  # a draw is ``copy * COPY + index``; the first copy is the index itself

_CLASS_STREAM, _SHARD_STREAM = -1, -2


@dataclass(frozen=True)
class Order:
    """The draws of every epoch, ``(length,)``; each image comes ``repeats`` times in a row, but for the cut at the end.

    Without a seed the images come in turn. ``labels`` balances the classes, ``shard_of`` with a window keeps together
    what lies together; neither takes all images as one.
    """

    images: int
    length: int
    seed: int | None = None
    repeats: int = 1
    labels: np.ndarray | None = None
    shard_of: np.ndarray | None = None
    shard_window: int = 0

    def draws(self, epoch: int) -> np.ndarray:
        """The draws of one epoch, int64."""
        count = -(-self.length // self.repeats)
        if self.seed is None:
            once = np.arange(self.images)
        elif self.labels is not None:
            once = balanced(self.labels, count, self.seed, epoch)
        elif self.shard_of is not None and self.shard_window > 0:
            once = windowed(self.shard_of, self.shard_window, self.seed, epoch)
        else:
            once = shuffled(self.images, self.seed, epoch)
        once = once[:count]
        if self.repeats > 1:
            first_copies = once // COPY * self.repeats * COPY + once % COPY
            once = (first_copies[:, None] + np.arange(self.repeats) * COPY).reshape(-1)
        return once[: self.length]


def balanced(labels: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """``count`` draws in rounds that show every class once, the classes of each round in an order of its own.

    Within a class the images come in a random order, again and again: no image is shown twice more than another.
    """
    order = shuffled(len(labels), seed, epoch)
    by_class = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    classes = np.flatnonzero(sizes)
    rounds = np.arange(-(-count // len(classes)))[:, None]
    keys = random_bits(seed, epoch, rounds * len(classes) + np.arange(len(classes)), _CLASS_STREAM)
    class_of = classes[np.argsort(keys, axis=1, kind="stable")]
    draws = by_class[starts[class_of] + rounds % sizes[class_of]] + rounds // sizes[class_of] * COPY
    return draws.reshape(-1)[:count]


def windowed(shard_of: np.ndarray, window: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation that goes over the shards in random order and mixes the images of ``window`` shards at a time.

    A window of all shards gives the permutation of ``shuffled``.
    """
    shards, shard = np.unique(shard_of, return_inverse=True)
    window_of = np.empty(len(shards), np.int64)
    window_of[shuffled(len(shards), seed, epoch, _SHARD_STREAM)] = np.arange(len(shards)) // window
    return np.lexsort((random_bits(seed, epoch, np.arange(len(shard_of)), ORDER_STREAM), window_of[shard]))
