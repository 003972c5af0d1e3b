"""A large image made small once, before it is cropped, varied or fitted: the same pixels wherever it is read.

What ``Form.read`` gives is a function of the encoded bytes and the form alone. Copies in the cache only spare the work.
Letters: H height, W width.
"""

import math
from dataclasses import dataclass

from PIL import Image

from ceit.data.image import read_header, read_image
from ceit.data.preprocessing import IMAGENET, fit

Size = tuple[int, int]
"""Height and width in pixels."""

IN_MEMORY_SIDE = 64  # up to this many pixels a side, all images are decoded once and stay in memory as uint8
KEPT_SHARE = 0.75  # of the pixels in the file: what is reduced less is hardly worth its place in the cache
_NARROWEST_CROP = 3 / 4  # width to height; timm's random resized crops are between this and its inverse


@dataclass(frozen=True)
class Form:
    """An image of ``in_chans`` channels that was reduced to ``cover`` (H, W) and, where a size is given, fitted to it.

    To be reduced is to be made smaller, in proportion, until it just covers ``cover``; smaller images stay as they are.
    """

    in_chans: int
    cover: Size
    size: Size | None = None

    def __str__(self) -> str:
        fitted = "" if self.size is None else " {}x{}".format(*self.size)
        return "{}x{}x{}".format(self.in_chans, *self.cover) + fitted

    def read(self, source: bytes | Image.Image) -> Image.Image:
        """The image in this form. Raises: as ``read_image``."""
        image = read_image(source, self.in_chans, self.cover)
        return image if self.size is None else fit(image, self.size)

    def is_worth_keeping(self, data: bytes, image: Image.Image) -> bool:
        """Whether a copy of what was read from ``data`` saves time."""
        if self.size is not None:
            return True
        (width, height), _ = read_header(data)
        return image.width * image.height <= KEPT_SHARE * width * height


def usual_crop(size: Size) -> float:
    """The share of the side that is seen: all of small images, of larger ones what the released code crops."""
    return 1.0 if max(size) <= IN_MEMORY_SIDE else IMAGENET.crop


def evaluation_cover(size: Size, crop: float = 1.0) -> Size:
    """What images are reduced to before ``fit(size, crop)``: twice the size that it resizes to."""
    height, width = size
    return 2 * int(height / crop), 2 * int(width / crop)


def training_cover(size: Size, crop: float = 1.0, crop_scale: tuple[float, float] | None = None) -> Size:
    """As ``evaluation_cover``, and so large that a random crop of the smallest area still has ``size`` pixels."""
    height, width = evaluation_cover(size, crop)
    if crop_scale is None:
        return height, width
    enlarged = 1 / math.sqrt(_NARROWEST_CROP * crop_scale[0])
    return max(height, math.ceil(enlarged * size[0])), max(width, math.ceil(enlarged * size[1]))
