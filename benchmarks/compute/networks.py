"""The networks that this package's are compared with, for images of about 32 px. Each is written from its description.

Letters: ``B`` batch, ``C`` channels, ``H W`` pixels, ``T`` tokens, ``D`` dimensions, ``K`` classes.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

Shape = tuple[int, int, int]  # of an image: (C, H, W)


class CompactTransformer(nn.Module):
    """A Compact Convolutional Transformer (CCT): a convolutional tokenizer, pre-norm blocks, sequence pooling.

        map_bdhw = for each convolution: max-pool(ReLU(conv 3x3))
        pooled_bd = softmax_T(attend(tokens_btd)) . tokens_btd

    Source: Hassani et al., Escaping the Big Data Paradigm with Compact Transformers (arXiv 2104.05704); CCT-2/3x2 is
    2 blocks behind 2 convolutions of 3x3. Differs: no dropout, for runs of few epochs.
    """

    def __init__(self, shape: Shape, classes: int, *, dim: int, depth: int, heads: int, convolutions: int) -> None:
        super().__init__()
        channels, height, width = shape
        widths = [channels, *[64] * (convolutions - 1), dim]
        layers: list[nn.Module] = []
        for inside, outside in pairwise(widths):
            layers += [nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
            height, width = (height + 1) // 2, (width + 1) // 2
        self.tokenizer = nn.Sequential(*layers)
        self.pos_embed = nn.Parameter(torch.empty(1, height * width, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.2)
        self.blocks = nn.Sequential(*(Block(dim, heads, mlp_ratio=1, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.attend = nn.Linear(dim, 1)
        self.head = nn.Linear(dim, classes)

    def no_weight_decay(self) -> set[str]:
        """What weight decay spares beside 1-D tensors."""
        return {"pos_embed"}

    def forward(self, images_bchw: Tensor) -> Tensor:
        """Logits ``(B, K)``."""
        tokens_btd = self.tokenizer(images_bchw).flatten(2).transpose(1, 2) + self.pos_embed
        tokens_btd = self.norm(self.blocks(tokens_btd))
        weights_bt1 = self.attend(tokens_btd).softmax(1)
        return self.head((weights_bt1 * tokens_btd).sum(1))


class ResNet(nn.Sequential):
    """A residual network for small images: a 3x3 convolution, three stages of blocks, the mean, a head.

    With three blocks a stage and 16 channels it is ResNet-20. Source: He et al., Deep Residual Learning for Image
    Recognition (arXiv 1512.03385), its section on CIFAR-10. Differs: a 1x1 convolution where a shortcut changes shape.
    """

    def __init__(self, shape: Shape, classes: int, *, width: int, blocks: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        layers.append(nn.ReLU())
        inside = width
        for stage in range(3):
            outside = width * 2**stage
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                shortcut = None
                if stride > 1:
                    shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
                layers.append(BasicBlock(inside, outside, stride, shortcut))
                inside = outside
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes))


class WhitenedConvNet(nn.Module):
    """A convolutional network that learns CIFAR-10 in a few epochs, after airbench94.

    A frozen 2x2 convolution that whitens patches; three groups of conv, max-pool, norm, GELU, conv, norm, GELU; the
    maximum over what is left of the map; a head whose logits are divided by 9. BatchNorm learns its bias alone. Each
    3x3 convolution begins as the identity on as many channels as it takes.

    Source: Jordan, 94% on CIFAR-10 in 3.29 seconds on a single GPU (arXiv 2404.00498). Differs: BatchNorm's biases
    learn at the rate of everything else, and its statistics move at torch's default.
    """

    def __init__(self, shape: Shape, classes: int, *, widths: tuple[int, int, int]) -> None:
        super().__init__()
        channels = shape[0]
        filters = 2 * 4 * channels
        self.whiten = nn.Conv2d(channels, filters, 2)
        self.whiten.weight.requires_grad_(False)
        layers: list[nn.Module] = [nn.GELU()]
        for inside, outside in pairwise((filters, *widths)):
            layers += [_identity_conv(inside, outside), nn.MaxPool2d(2), _bias_norm(outside), nn.GELU()]
            layers += [_identity_conv(outside, outside), _bias_norm(outside), nn.GELU()]
        self.groups = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], classes, bias=False)

    @torch.no_grad()
    def begin_with(self, images_bchw: Tensor) -> None:
        """Set the first layer from training images, normalised: whitening filters of their patches, and the opposites.

        The filters are the eigenvectors of the covariance of all 2x2 patches, each over the square root of its
        eigenvalue.
        """
        patches_nd = F.unfold(images_bchw, 2).transpose(1, 2).flatten(0, 1).double()
        eigenvalues_d, vectors_dd = torch.linalg.eigh(patches_nd.T @ patches_nd / len(patches_nd))
        filters_dd = (vectors_dd / (eigenvalues_d + 5e-4).sqrt()).T
        self.whiten.weight.copy_(torch.cat([filters_dd, -filters_dd]).reshape_as(self.whiten.weight))

    def forward(self, images_bchw: Tensor) -> Tensor:
        """Logits ``(B, K)``."""
        return self.head(self.groups(self.whiten(images_bchw))) / 9


def _identity_conv(inside: int, outside: int) -> nn.Conv2d:
    convolution = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(convolution.weight[:inside])
    return convolution


def _bias_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    norm.weight.requires_grad_(False)
    return norm


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "cct": CompactTransformer,
    "resnet": ResNet,
    "airbench": WhitenedConvNet,
}
"""By the names in ``studies/compute/plan.yaml``; each takes ``(C, H, W)``, the number of classes, and its size."""
