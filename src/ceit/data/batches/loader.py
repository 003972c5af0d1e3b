"""Batches of a split: an epoch is a function of (seed, epoch), whatever the batch size or number of workers.

Letters: B batch, C channels, H height, W width. A batch is images float32 ``(B, C, H, W)``, channels-last in memory,
and labels int64 ``(B,)``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ceit.data.batches.augment import Augmentation
from ceit.data.batches.batch import Batch, Batches, Request, Varied
from ceit.data.batches.order import COPY, Order
from ceit.data.batches.workers import Workers, usual_workers
from ceit.data.preprocessing import Preprocessing
from ceit.data.reduced import IN_MEMORY_SIDE
from ceit.data.splits import ArraySplit, Split, resized
from ceit.messages import unknown

Sampling = Literal["shuffle", "balanced"]


def make_loader(
    split: Split,
    *,
    batch_size: int,
    img_size: tuple[int, int],
    preprocessing: Preprocessing,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    shuffle: bool = False,
    sampling: Sampling = "shuffle",
    shard_window: int = 0,
    drop_last: bool = False,
    limit_batches: int | None = None,
    workers: int | None = None,
    device: torch.device | None = None,
    shard: tuple[int, int] = (0, 1),
) -> "Loader":
    """A loader of ``split`` at ``img_size = (H, W)``; without an augmentation images come as prediction sees them.

    Without ``shuffle`` the images come in turn. With it, ``sampling`` is ``shuffle``, every image once, or
    ``balanced``, every class equally often; ``shard_window`` mixes the images of so many shards at a time, 0 all. The
    augmentation's ``repeats`` shows each image several times in a row. None of these changes the length of an epoch,
    which only ``drop_last`` (whole batches alone) and ``limit_batches`` (at most so many) do.

    ``workers`` are processes; None chooses: none for images in memory and on macOS and Windows, else one per core, as
    far as shared memory goes. Batches come on ``device``, by default the CPU: bytes are copied there, on CUDA while it
    computes, and normalised there.

    ``shard = (rank, processes)``: of every batch of ``batch_size`` images this process gets every ``processes``-th,
    from ``rank`` on, so the copies of an image go to different processes. In the last batch one process may get an
    image more than another, or none. Copies that are in the same batch of the same process are decoded once; each of
    several processes decodes its own.

    Raises: ValueError for an empty split, a batch size out of range, images of another number of channels than the
    preprocessing, a translation larger than the image, or an order that the split cannot have.
    """
    if len(split) == 0:
        raise ValueError("the split has no images")
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size} must be at least 1")
    if drop_last and len(split) < batch_size:
        raise ValueError(f"batch size {batch_size} is larger than the split of {len(split)} images: lower it")
    if limit_batches is not None and limit_batches < 1:
        raise ValueError(f"limit_batches {limit_batches} must be at least 1, or None for all")
    if isinstance(split, ArraySplit) and split.images.shape[1] != preprocessing.in_chans:
        found, expected = split.images.shape[1], preprocessing.in_chans
        raise ValueError(f"the images have {found} channels, the preprocessing {expected}: load the set with in_chans")
    if augmentation is not None:
        augmentation.check_size(img_size)
    image_by_image = augmentation is not None and augmentation.image_by_image
    pixels_nhwc, share = None, -(-batch_size // shard[1])
    usual = usual_workers(share * math.prod(img_size) * preprocessing.in_chans)
    comes_whole = preprocessing.crop == 1 and max(img_size) <= IN_MEMORY_SIDE
    if isinstance(split, ArraySplit) and comes_whole and not image_by_image:
        pixels_nhwc, usual = resized(split.pixels(), img_size, preprocessing.interpolation), 0
    batches = Batches(split, img_size, preprocessing, augmentation, seed, pixels_nhwc)
    images = len(split) // batch_size * batch_size if drop_last else len(split)
    _check_order(split, sampling, shard_window)
    order = Order(
        images=len(split),
        length=images if limit_batches is None else min(images, limit_batches * batch_size),
        seed=seed if shuffle else None,
        repeats=1 if augmentation is None else augmentation.repeats,
        labels=split.labels.numpy() if sampling == "balanced" else None,
        shard_of=getattr(split, "shard_of", None) if shard_window else None,
        shard_window=shard_window,
    )
    workers = usual if workers is None else workers
    device = device or torch.device("cpu")
    processes = Workers(batches, workers, pin_memory=device.type == "cuda") if workers > 0 else None
    return Loader(batches, order, batch_size, shard, processes, device)


@dataclass(frozen=True)
class Loader:
    """The batches of a split, epoch by epoch; ``len()`` is the number of batches. Made by ``make_loader``.

    Where processes make the batches, one epoch is gone through at a time: to begin another ends the one before.
    """

    batches: Batches
    order: Order
    batch_size: int
    shard: tuple[int, int]
    workers: Workers | None
    device: torch.device

    @property
    def images(self) -> int:
        """Images an epoch, over all processes; copies count."""
        return self.order.length

    def __len__(self) -> int:
        return -(-self.images // self.batch_size)

    def keys(self, epoch: int) -> list[str]:
        """The names of the images of an epoch, in the order in which they are shown, over all processes."""
        return [self.batches.split.key(index) for index in (self.order.draws(epoch) % COPY).tolist()]

    def epoch(self, epoch: int, start_batch: int = 0, end_batch: int | None = None) -> Iterator[Batch]:
        """The batches of an epoch from ``start_batch`` on, to resume, and up to ``end_batch``: none behind is read."""
        draws = self.order.draws(epoch)
        end = self.images if end_batch is None else min(self.images, end_batch * self.batch_size)
        starts = range(start_batch * self.batch_size, end, self.batch_size)
        rank, processes = self.shard
        requests = [(epoch, draws[start : start + self.batch_size][rank::processes]) for start in starts]
        answers = map(self.batches.read, requests) if self.workers is None else self.workers.answer(requests)
        return self._finished(requests, answers)

    def _finished(self, requests: list[Request], answers: Iterator[Varied]) -> Iterator[Batch]:
        """The batches on the device. On CUDA a stream of their own makes them while the steps before still compute."""
        if self.device.type != "cuda":
            for varied, request in zip(answers, requests, strict=True):
                yield self.batches.finish(request, varied.to(self.device))
            return
        own, computing = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        for varied, request in zip(answers, requests, strict=True):
            pinned = varied if self.workers is not None else varied.pinned()
            with torch.cuda.stream(own):
                batch = self.batches.finish(request, pinned.to(self.device))
            computing.wait_stream(own)
            for tensor in batch:
                tensor.record_stream(computing)  # else its memory might be written anew while a step still reads it
            yield batch


def _check_order(split: Split, sampling: Sampling, shard_window: int) -> None:
    if sampling not in get_args(Sampling):
        raise ValueError(unknown("sampling", sampling, get_args(Sampling)))
    if shard_window < 0:
        raise ValueError(f"shard_window {shard_window} must not be negative (shards; 0 mixes all)")
    if shard_window and sampling == "balanced":
        what = f"balanced sampling draws from all images, not from {shard_window} shards"
        raise ValueError(f"{what}: set shard_window to 0")
    if shard_window and getattr(split, "shard_of", None) is None:
        raise ValueError(f"shard_window {shard_window} needs images in shards, which these are not: set it to 0")
