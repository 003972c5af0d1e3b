"""Image-to-Tokens: what turns pixels into patch tokens.

Shapes: ``B`` batch, ``C`` stem channels, ``H W`` token grid, ``N = H * W``, ``D`` embed dim, ``P`` patch side in
pixels, ``S`` the stem's total stride.
"""

import torch
from torch import Tensor, nn

from ceit.model.config import CeiTConfig


class ImageToTokens(nn.Module):
    """Patch tokens cut from low-level features instead of raw pixels (I2T).

    Paper: arXiv 2103.11816, the Image-to-Tokens section.
        x' = MaxPool(BN(Conv(x)));  patches of side P/S of x' are embedded by a convolution with that stride.
    The token count stays that of a ViT with patches of side P, since x' is S times smaller than the image.

    Shape: images ``(B, in_chans, H*P, W*P)`` to patch tokens ``(B, N, D)``, row by row.
    Raises: ValueError for an image of another size than the configuration's.
    Differs: 64 stem channels as in the released weights (ports use 32); no activation, as in the release.
    """

    def __init__(self, config: CeiTConfig) -> None:
        super().__init__()
        channels, kernel, stride = config.stem_channels, config.stem_kernel_size, config.stem_stride
        side = config.patch_size // config.total_stem_stride
        self.image_hw = config.image_hw
        self.conv = nn.Conv2d(config.in_chans, channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels) if config.stem_norm == "batch" else nn.Identity()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if config.stem_pool else nn.Identity()
        self.proj = nn.Conv2d(channels, config.embed_dim, side, stride=side)

    def forward(self, images: Tensor) -> Tensor:
        require_size(images, self.image_hw)
        # channels last, as LeFF's maps are: max-pooling is ten times slower on the other layout on CPU
        if torch.compiler.is_compiling():  # where a change of axes would stay in the graph
            images = images.contiguous(memory_format=torch.channels_last)
        else:  # the same memory, by what torch.func.vmap can do
            images = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        map_bchw = self.pool(self.norm(self.conv(images)))
        return self.proj(map_bchw).flatten(2).transpose(1, 2)


class PatchEmbedding(nn.Module):
    """DeiT's linear embedding of raw patches, which I2T replaces: ``token = W patch + b``.

    Shape: images ``(B, in_chans, H*P, W*P)`` to patch tokens ``(B, N, D)``, row by row.
    Raises: ValueError for an image of another size than the configuration's.
    """

    def __init__(self, config: CeiTConfig) -> None:
        super().__init__()
        self.image_hw = config.image_hw
        self.proj = nn.Conv2d(config.in_chans, config.embed_dim, config.patch_size, stride=config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        require_size(images, self.image_hw)
        return self.proj(images).flatten(2).transpose(1, 2)


def require_size(images: Tensor, image_hw: tuple[int, int]) -> None:
    """Refuse images whose last two sides are not ``image_hw``, with the way to change the network's size."""
    height, width = images.shape[-2:]
    if height != image_hw[0] or width != image_hw[1]:
        raise ValueError(
            f"images are {height} x {width} px but the network takes {image_hw[0]} x {image_hw[1]}; "
            "resize them or call set_input_size"
        )
