"""From an image to the tensor a network sees: resize, centre crop, scale to 0..1, normalise."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from numbers import Real
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ceit.messages import unknown

INTERPOLATIONS = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}
_MOST = 1e6  # of a mean or a deviation
_THIN = 16  # the most that is made of an image for each part that is kept


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the network: stored beside its weights, the same in evaluation and prediction.

    ``mean`` and ``std`` are per channel, of pixel values in 0..1. ``crop`` is the share of the resized image's side
    that the centre crop keeps. Raises: ValueError for a value out of range.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if not all(isinstance(value, Real) and abs(value) <= _MOST for value in (*self.mean, *self.std, self.crop)):
            raise ValueError(f"mean {self.mean}, std {self.std} and crop {self.crop} must be numbers up to {_MOST:g}")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean {self.mean} and std {self.std} must have one value for each channel")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be positive")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop {self.crop} must be above 0 and at most 1")
        if self.interpolation not in [*INTERPOLATIONS]:  # a list, as what cannot be a key may be asked for
            raise ValueError(unknown("interpolation", str(self.interpolation), INTERPOLATIONS))

    @property
    def in_chans(self) -> int:
        return len(self.mean)

    @property
    def takes_whole(self) -> bool:
        """Whether an image in the network's size is seen as it is, and others come to that size in the usual way."""
        return self.crop == 1 and self.interpolation == Preprocessing.interpolation

    def apply(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        """``normalise(fit(image))`` as float32 ``(C, H, W)``, of an image that ``read_image`` gave ``C`` channels."""
        return self.normalise(to_array(self.fit(image, size))).permute(2, 0, 1).contiguous()

    def fit(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """``fit`` of this module with this crop and interpolation."""
        return fit(image, size, self.crop, self.interpolation)

    def normalise(self, pixels_hwc: np.ndarray | Tensor) -> Tensor:
        """``(pixels / 255 - mean) / std`` of uint8 ``(..., W, C)``, float32 of the same shape, where the pixels lie."""
        width, channels = pixels_hwc.shape[-2:]
        if channels != self.in_chans:
            what = f"the image has {channels} channels, the preprocessing {self.in_chans}"
            raise ValueError(f"{what}: read it with in_chans")
        values = torch.as_tensor(pixels_hwc).float()
        white, mean, std = _constants(self.mean, self.std, width, values.device)
        values.view(-1, width * channels).div_(white).sub_(mean).div_(std)
        return values

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``as_dict``. Raises: ValueError for a key that is missing or unknown."""
        try:
            return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"preprocessing {values} must hold mean, std, crop and interpolation ({error})") from error


IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop=0.875)


@lru_cache(maxsize=8)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """255, and mean and std of a whole row: broadcasting over an innermost dimension of three is four times slower.

    Tensors on the device: by a number CUDA might not divide, but multiply by the inverse, which is rounded.
    """
    white, mean_c, std_c = (torch.tensor(part, device=device) for part in (255.0, mean, std))
    return white, mean_c.repeat(width), std_c.repeat(width)


def fit(image: Image.Image, size: tuple[int, int], crop: float = 1.0, interpolation: str = "bicubic") -> Image.Image:
    """Resizes the image in proportion to cover ``size / crop``, then cuts ``size = (H, W)`` out of its centre.

    For a square ``size`` this is the evaluation transform of the released code: the shorter side becomes
    ``int(side / crop)``. Of a thin image only what is cut out is resized, as all of it may not fit into memory.
    """
    height, width = size
    least_height, least_width = cover_height, cover_width = int(height / crop), int(width / crop)
    if image.width * cover_height <= image.height * cover_width:
        cover_height = max(cover_height, cover_width * image.height // image.width)
    else:
        cover_width = max(cover_width, cover_height * image.width // image.height)
    left, top = round((cover_width - width) / 2), round((cover_height - height) / 2)
    box = (left, top, left + width, top + height)
    method = INTERPOLATIONS[interpolation]
    if cover_width * cover_height > _THIN * least_width * least_height:
        across, down = image.width / cover_width, image.height / cover_height
        in_image = (box[0] * across, box[1] * down, min(box[2] * across, image.width), min(box[3] * down, image.height))
        return image.resize((width, height), method, in_image)
    if image.size != (cover_width, cover_height):
        image = image.resize((cover_width, cover_height), method)
    return image if image.size == (width, height) else image.crop(box)


def to_array(image: Image.Image) -> np.ndarray:
    """The pixels as uint8 ``(H, W, C)``, a copy."""
    array = np.array(image)
    return array if array.ndim == 3 else array[:, :, None]


def to_image(pixels_hwc: np.ndarray) -> Image.Image:
    """The inverse of ``to_array``."""
    return Image.fromarray(pixels_hwc[:, :, 0] if pixels_hwc.shape[2] == 1 else pixels_hwc)
