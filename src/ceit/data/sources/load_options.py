"""How the images of a data set are asked for, whichever source has them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ceit.data.encoded import EncodedSplit
from ceit.data.image import image_mode
from ceit.data.reduced import Form, Size
from ceit.data.survey import Survey, form_for, survey
from ceit.messages import plain

SizeChoice = Size | Callable[[Size], Size] | None
"""The size ``(H, W)`` that images are asked for: one, or one that follows from their own, or their own."""

_NAMED_IMAGES = 3  # of the broken ones, in an error


@dataclass(frozen=True)
class LoadOptions:
    """As ``choose.load_images`` takes them. Raises: ValueError for a size or channels that no image can have.

    ``crops`` tells that parts of images will be cut out, ``only_headers`` that no pixels are needed.
    """

    img_size: SizeChoice = None
    in_chans: int | None = None
    skip_broken: bool = False
    classes: Sequence[str] | None = None
    crops: bool = False
    only_headers: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.img_size, tuple) and min(self.img_size) < 1:
            raise ValueError(f"image size {self.img_size} must be positive")
        if self.in_chans is not None:
            image_mode(self.in_chans)

    def size_for(self, own: Size) -> Size:
        """The size that images of this size of their own are brought to."""
        return self.img_size(own) if callable(self.img_size) else self.img_size or own

    def form_for(self, images: int, size: Size, own: Size, in_chans: int) -> Form:
        """As ``survey.form_for``, but images larger than ``size`` are not held at it if parts are cut out of them."""
        form = form_for(images, size, in_chans)
        return Form(in_chans, form.cover) if self.crops and max(own) > max(size) else form

    def survey(self, images: EncodedSplit, form: Form) -> Survey:
        """As ``survey.survey``; nothing is known of images whose headers alone are wanted."""
        if self.only_headers:
            return Survey(np.zeros(len(images), np.uint64), {}, None)
        return survey(images, form)

    def require_whole(self, lines: Sequence[str], count: int) -> None:
        """``lines`` name the broken ones of ``count`` images. Raises: ValueError for any that are not to be skipped."""
        if lines and not self.skip_broken:
            named = ", ".join(map(plain, lines[:_NAMED_IMAGES])) + (", ..." if len(lines) > _NAMED_IMAGES else "")
            fix = "ceit data check --json names all, --skip-broken leaves them out"
            raise ValueError(f"{len(lines)} of {count} files cannot be read: {named}; {fix}")
