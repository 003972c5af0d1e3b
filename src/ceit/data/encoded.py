"""Image files wherever they lie, on the disk, in shards or in a table: one of them to one picture."""

from abc import ABC, abstractmethod

import numpy as np
from PIL import Image
from torch import Tensor

from ceit.data.cut import digest_of
from ceit.data.image import read_header, read_image
from ceit.data.preprocessing import to_array, to_image
from ceit.data.reduced import Form, Size
from ceit.data.store import Copy, open_store


class EncodedSplit(ABC):
    """Labelled image files. A kind of files says where the bytes lie; all kinds are read in the same way."""

    labels: Tensor
    digests: np.ndarray | None
    """``digest_of`` each file, uint64 ``(n,)``; None while they are not known, and then no copy is kept."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def state(self, index: int) -> str:
        """A line that changes when the bytes do; empty where that cannot be told."""

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """The image file itself. Raises: OSError, or BrokenImageError, if it cannot be had."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What messages call it."""

    def header(self, index: int) -> tuple[tuple[int, int], str]:
        """Width and height, and Pillow's mode, without decoding. Raises: as ``read``."""
        return read_header(self.encoded(index), self.name(index))

    def read(self, index: int, in_chans: int, cover: Size | None = None) -> Image.Image:
        """One image as ``RGB`` or ``L``, reduced to ``cover``: its copy in the cache, or the file, decoded.

        A copy of what was decoded is kept where that saves time. Raises: as ``encoded`` and ``read_image``.
        """
        if cover is None or self.digests is None:
            return read_image(self.encoded(index), in_chans, cover, self.name(index))
        store, form = open_store(), Form(in_chans, cover)
        if (copy := store.copy(int(self.digests[index]), str(form))) is not None:
            return to_image(copy)
        data = self.encoded(index)
        image = read_image(data, in_chans, cover, self.name(index))
        if form.is_worth_keeping(data, image):
            store.add([], [Copy(digest_of(data), str(form), to_array(image))])
        return image
