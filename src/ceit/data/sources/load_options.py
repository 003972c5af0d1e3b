"""How the images of a data set are asked for, whichever source has them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ceit.data.image import image_mode
from ceit.data.reduced import Size

SizeChoice = Size | Callable[[Size], Size] | None
"""The size ``(H, W)`` that images are asked for: one, or one that follows from their own, or their own."""

_NAMED_IMAGES = 3  # of the broken ones, in an error


@dataclass(frozen=True)
class LoadOptions:
    """As ``choose.load_images`` takes them. Raises: ValueError for a size or channels that no image can have."""

    img_size: SizeChoice = None
    in_chans: int | None = None
    skip_broken: bool = False
    classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.img_size, tuple) and min(self.img_size) < 1:
            raise ValueError(f"image size {self.img_size} must be positive")
        if self.in_chans is not None:
            image_mode(self.in_chans)

    def size_for(self, own: Size) -> Size:
        """The size that images of this size of their own are brought to."""
        return self.img_size(own) if callable(self.img_size) else self.img_size or own

    def require_whole(self, lines: Sequence[str], count: int) -> None:
        """``lines`` name the broken ones of ``count`` images. Raises: ValueError for any that are not to be skipped."""
        if lines and not self.skip_broken:
            named = ", ".join(lines[:_NAMED_IMAGES]) + (", ..." if len(lines) > _NAMED_IMAGES else "")
            fix = "ceit data check --json names all, --skip-broken leaves them out"
            raise ValueError(f"{len(lines)} of {count} files cannot be read: {named}; {fix}")
