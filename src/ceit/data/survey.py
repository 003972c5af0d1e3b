"""Every image of a set read once: its digest, whether it can be decoded, and the small copy that training needs.

What is found is kept (see ``ceit.data.store``), so that an image is decoded once, ever, however often training starts
and however many processes of the machine take part. Letters: n images, H height, W width, C channels.
"""

import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ceit.data.cut import digest_of
from ceit.data.encoded import EncodedSplit
from ceit.data.image import BrokenImageError, UnreadableImageError
from ceit.data.preprocessing import to_array
from ceit.data.reduced import IN_MEMORY_SIDE, Form, Size, evaluation_cover, usual_crop
from ceit.data.store import SIZE_VARIABLE, Copy, Fact, Store, open_store
from ceit.data.threads import map_in_order
from ceit.machine import memory_bytes, usable_cores
from ceit.messages import plain
from ceit.terminal import stderr_console

MEMORY_SHARE = 0.25  # of the machine's memory, that a set may be held in
LONG_SECONDS = 10  # reading that takes longer is told where there is no terminal to show a bar
_NAMED_IMAGES = 10  # of the broken ones, as they are met; all are counted in the end
_LOOKED_UP, _LOOKED_UP_TOGETHER = 1024, 32  # images that the store is asked about at once, alone and among several
_WRITTEN_BYTES, _WRITTEN_SECONDS = 1 << 25, 1.0  # what is found is kept when it is so much, or so old


@dataclass
class Survey:
    """``digests`` uint64 ``(n,)`` of the encoded bytes, 0 where they could not be had; ``broken`` images and why.

    ``pixels`` are uint8 ``(n, H, W, C)``, zeros for broken images; None if the form has no size.
    """

    digests: np.ndarray
    broken: dict[int, str]
    pixels: np.ndarray | None


def survey(
    images: EncodedSplit, form: Form, description: str = "reading images", *, share: tuple[int, int] | None = None
) -> Survey:
    """Reads what is not known yet, in threads, with a progress bar on stderr; broken images are named when met.

    Images in a form with a size are held in memory. ``share = (rank, processes)``, by default this process's among
    those that a launcher has started on the machine: each begins with its own part and then goes over the others', from
    their ends, finding in the store what was done there. A verdict is kept if it is about the bytes: a file that cannot
    be opened, or only half read, is asked for again the next time.

    Raises: ValueError, before anything is read, for a CEIT_MAX_MEGAPIXELS that is no number.
    """
    rank, processes = local_share() if share is None else share
    block_images = _LOOKED_UP if processes == 1 else _LOOKED_UP_TOGETHER
    reading = _Reading(images, form, open_store())
    order = iter(_order(len(images), rank, processes))
    with _Report(description, len(images), is_shown=rank == 0) as report, ThreadPoolExecutor(usable_cores()) as pool:
        while block := list(islice(order, block_images)):
            unknown = reading.look_up(block)
            report.count(len(block) - len(unknown))
            for finding in map_in_order(pool, reading.read, unknown, 4 * usable_cores()):
                reading.take(finding)
                report.count(1)
                if finding.reason is not None:
                    report.name_broken(f"{images.name(finding.index)} cannot be read ({finding.reason})")
            if processes > 1:
                reading.write()  # for the others to find
        reading.write()
        report.tell_about(reading.store)
    return Survey(reading.digests, dict(sorted(reading.broken.items())), reading.pixels)


def form_for(images: int, size: Size, in_chans: int) -> Form:
    """How so many images are read for a set of this size: small ones are brought to it and held in memory.

    Unless they would take more than a quarter of the machine's memory, or of what its container or job may have.
    """
    cover = evaluation_cover(size, usual_crop(size))
    held = images * size[0] * size[1] * in_chans
    is_held = max(size) <= IN_MEMORY_SIDE and held * local_share()[1] <= MEMORY_SHARE * memory_bytes()
    return Form(in_chans, cover, size if is_held else None)


def local_share() -> tuple[int, int]:
    """This process's number among those that a launcher has started on this machine, and how many they are.

    Where the launcher says the first and not the second, as a cluster's script may, the process counts as alone.
    """
    rank, processes = int(os.environ.get("LOCAL_RANK") or 0), int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return (rank, processes) if rank < processes else (0, 1)


@dataclass(frozen=True)
class _Finding:
    """What is found out about one image; ``lasts`` tells whether it holds until the image's state changes."""

    index: int
    state: str
    digest: int = 0
    reason: str | None = None
    lasts: bool = True
    pixels_hwc: np.ndarray | None = None
    is_new: bool = False  # a copy that the store does not have


class _Reading:
    """A survey under way: what is found, and what of it is still to be kept."""

    def __init__(self, images: EncodedSplit, form: Form, store: Store) -> None:
        self.images, self.form, self.store = images, form, store
        self.digests = np.zeros(len(images), np.uint64)
        self.broken: dict[int, str] = {}
        self.pixels = np.zeros((len(images), *form.size, form.in_chans), np.uint8) if form.size else None
        self._facts: list[tuple[str, Fact]] = []
        self._copies: list[Copy] = []
        self._waiting_bytes = 0
        self._written = time.monotonic()

    def look_up(self, block: Sequence[int]) -> list[tuple[int, str]]:
        """Takes what the store knows of these images; returns index and state of those that must be read."""
        states = {index: self.images.state(index) for index in block}
        facts = self.store.facts([state for state in states.values() if state])
        good = [fact.digest for fact in facts.values() if fact.reason is None]
        copies = {} if self.pixels is None else self.store.copies(good, str(self.form))
        self.store.touch(good, str(self.form))
        unknown = []
        for index, state in states.items():
            fact = facts.get(state)
            if fact is None or (self.pixels is not None and fact.reason is None and fact.digest not in copies):
                unknown.append((index, state))
            else:
                self.take(_Finding(index, "", fact.digest, fact.reason, pixels_hwc=copies.get(fact.digest)))
        return unknown

    def read(self, asked: tuple[int, str]) -> _Finding:
        """Reads one image; in any thread."""
        index, state = asked
        try:
            data = self.images.encoded(index)
        except (OSError, UnreadableImageError) as error:  # it is not all there, or no file to read
            reason = error.strerror or str(error) if isinstance(error, OSError) else error.reason
            return _Finding(index, state, reason=reason, lasts=False)
        digest = digest_of(data)
        fact = self.store.fact_of(digest)  # the same bytes may have lain elsewhere
        if fact is not None and (fact.reason is not None or self.pixels is None):
            return _Finding(index, state, digest, fact.reason)
        if fact is not None and (copy := self.store.copy(digest, str(self.form))) is not None:
            return _Finding(index, state, digest, pixels_hwc=copy)
        try:
            image = self.form.read(data)
        except UnreadableImageError as error:  # a refusal is by a setting, or for want of a package
            return _Finding(index, state, digest, error.reason, lasts=isinstance(error, BrokenImageError))
        except MemoryError:
            return _Finding(index, state, digest, "too little memory to decode it", lasts=False)
        is_new = self.form.is_worth_keeping(data, image)
        pixels_hwc = to_array(image) if is_new or self.pixels is not None else None
        return _Finding(index, state, digest, pixels_hwc=pixels_hwc, is_new=is_new)

    def take(self, finding: _Finding) -> None:
        """Notes what was found."""
        self.digests[finding.index] = finding.digest
        if finding.reason is not None:
            self.broken[finding.index] = finding.reason
        elif self.pixels is not None and finding.pixels_hwc is not None:
            self.pixels[finding.index] = finding.pixels_hwc
        if finding.state and finding.lasts:
            self._facts.append((finding.state, Fact(finding.digest, finding.reason)))
        if finding.is_new and finding.pixels_hwc is not None:
            self._copies.append(Copy(finding.digest, str(self.form), finding.pixels_hwc))
            self._waiting_bytes += finding.pixels_hwc.nbytes
        if self._waiting_bytes > _WRITTEN_BYTES or time.monotonic() - self._written > _WRITTEN_SECONDS:
            self.write()

    def write(self) -> None:
        """Keeps what was found since the last time."""
        self.store.add(self._facts, self._copies)
        self._facts, self._copies, self._waiting_bytes, self._written = [], [], 0, time.monotonic()


def _order(count: int, rank: int, processes: int) -> Iterable[int]:
    """The process's own part from its beginning, then all others from the end, so that two meet in the middle."""
    first, last = count * rank // processes, count * (rank + 1) // processes
    return chain(range(first, last), reversed(range(last, count)), reversed(range(first)))


class _ImagesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} images/s" if task.speed else "")


class _Report(Progress):
    """What is said on stderr while a survey goes on: a progress bar, or a sentence where that is no terminal."""

    def __init__(self, description: str, images: int, is_shown: bool) -> None:
        console = stderr_console(quiet=not is_shown)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _ImagesPerSecond()
        is_bar = console.is_terminal and is_shown
        super().__init__(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not is_bar)
        self.description, self.images, self.bar = description, images, self.add_task(description, total=images)
        self.began, self.read, self.named, self.is_long = time.monotonic(), 0, 0, False

    def count(self, images: int) -> None:
        """So many more are done."""
        self.read += images
        self.advance(self.bar, images)
        seconds = time.monotonic() - self.began
        if not self.is_long and seconds > LONG_SECONDS and not self.console.is_terminal:
            self.is_long = True
            rate = self.read / seconds
            self.say(f"{self.description}: {self.read} of {self.images} so far, {rate:.0f} a second; only this once")

    def name_broken(self, sentence: str) -> None:
        """Names an image now where reading takes long; the error or the list in the end names it in any case."""
        if (self.console.is_terminal or self.is_long) and self.named < _NAMED_IMAGES:
            self.named += 1
            self.say(sentence)

    def tell_about(self, store: Store) -> None:
        """One sentence where the cache could not do its part."""
        if store.trouble is not None:
            self.say(f"the cache is done without, so images are read anew at each start: {store.trouble}")
        elif store.refused_copies and store.limit_bytes:
            full = f"the cache is full ({store.limit_bytes / 1e9:.3g} GB, {SIZE_VARIABLE} says otherwise)"
            self.say(f"{store.refused_copies} small copies of images are not kept: {full}")
        store.trouble, store.refused_copies = None, 0

    def say(self, sentence: str) -> None:
        self.console.print(plain(sentence), markup=False, highlight=False, soft_wrap=True)
