"""Closed-form parameters and multiply-accumulates (MACs) of a CeiT, module by module; nothing is built or run.

A MAC is one multiplication with its addition in a convolution, a linear layer or a matrix product. Nothing else counts:
no norm, activation, softmax, pooling, bias or residual. Every figure is for one image, under two pairs of conventions:
with or without attention products (``QK^T`` and ``AV``), full or live. Full is what the release computes always and
training by default; live is what ``forward`` computes in eval mode, without the last block's dead patch rows.

Letters: ``H W`` token grid, ``N = H * W`` patches, ``T = N + 1`` tokens, ``D`` embed dim, ``E`` expanded dim,
``L`` encoder blocks, ``P`` patch side in pixels, ``S`` the stem's total stride, ``C`` stem channels, ``I`` image
channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ceit.model.config import CeiTConfig

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ModuleComplexity:
    """Parameters and MACs of one module for one image.

    ``name`` is the module's or parameter's name in the network. ``attn.products`` is none of them: it holds the MACs of
    ``QK^T`` and ``AV``, and ``attention_product`` marks it. Shapes are those of the full pass, without the batch.
    """

    name: str
    shape_in: Shape
    shape_out: Shape
    parameters: int
    macs: int  # full
    live_macs: int
    attention_product: bool = False


@dataclass(frozen=True)
class Complexity:
    """The modules of a network, or of a part of it, in the order in which an image meets them, and their sums."""

    modules: tuple[ModuleComplexity, ...]

    @property
    def parameters(self) -> int:
        """Trainable parameters."""
        return sum(module.parameters for module in self.modules)

    @property
    def macs(self) -> int:
        """Full, with attention products."""
        return sum(module.macs for module in self.modules)

    @property
    def macs_without_attention_products(self) -> int:
        """Full, without attention products: the convention of the printed FLOPs."""
        return sum(module.macs for module in self.modules if not module.attention_product)

    @property
    def live_macs(self) -> int:
        """Live, with attention products."""
        return sum(module.live_macs for module in self.modules)

    @property
    def live_macs_without_attention_products(self) -> int:
        """Live, without attention products."""
        return sum(module.live_macs for module in self.modules if not module.attention_product)

    @property
    def dead_macs(self) -> int:
        """What the full pass computes and no logit depends on."""
        return self.macs - self.live_macs

    def part(self, *prefixes: str) -> "Complexity":
        """The modules whose names begin with one of the prefixes."""
        return Complexity(tuple(module for module in self.modules if module.name.startswith(prefixes)))


def complexity(config: CeiTConfig) -> Complexity:
    """Parameters and MACs of ``CeiT(config)``, equal to the last MAC to a counted forward pass."""
    return Complexity(tuple(_modules(config)))


def deit_twin(config: CeiTConfig) -> CeiTConfig:
    """The same geometry without the paper's three parts and ours: raw patches, an MLP, the last block's class token."""
    return replace(config, stem="patch", feed_forward="mlp", lca=False, global_pool="token")


def _modules(config: CeiTConfig) -> Iterator[ModuleComplexity]:
    dim, patches = config.embed_dim, config.grid[0] * config.grid[1]
    tokens = patches + 1
    yield from _i2t(config) if config.stem == "i2t" else [_patch_embedding(config)]
    yield _free("cls_token", (patches, dim), (tokens, dim), parameters=dim)
    yield _free("pos_embed", (tokens, dim), parameters=tokens * dim)
    for block in range(config.depth):
        yield from _encoder_block(f"blocks.{block}", config, dead=config.has_dead_rows and block == config.depth - 1)
    if config.lca:
        yield from _lca(config)
    yield _layer_norm("norm", tokens, dim)
    if config.num_classes:
        yield _linear("head", 1, dim, config.num_classes)


def _i2t(config: CeiTConfig) -> Iterator[ModuleComplexity]:
    channels, stride, side = config.stem_channels, config.stem_stride, config.patch_size // config.total_stem_stride
    image = (config.in_chans, *config.image_hw)
    conv = _convolution("patch_embed.conv", image, channels, config.stem_kernel_size, stride=stride, bias=False)
    feature_map = conv.shape_out
    yield conv
    if config.stem_norm == "batch":
        yield _free("patch_embed.norm", feature_map, parameters=2 * channels)
    if config.stem_pool:
        pooled = (channels, *_strided(feature_map[1:], 2))
        yield _free("patch_embed.pool", feature_map, pooled)
        feature_map = pooled
    yield _convolution("patch_embed.proj", feature_map, config.embed_dim, side, stride=side)


def _patch_embedding(config: CeiTConfig) -> ModuleComplexity:
    image, side = (config.in_chans, *config.image_hw), config.patch_size
    return _convolution("patch_embed.proj", image, config.embed_dim, side, stride=side)


def _encoder_block(name: str, config: CeiTConfig, *, dead: bool) -> Iterator[ModuleComplexity]:
    """In a ``dead`` block no logit depends on the patch rows: the class token is the one live query and MLP row."""
    dim, tokens = config.embed_dim, config.grid[0] * config.grid[1] + 1
    yield _layer_norm(f"{name}.norm1", tokens, dim)
    yield from _attention(f"{name}.attn", config, tokens, queries=tokens, live_queries=1 if dead else tokens)
    yield _layer_norm(f"{name}.norm2", tokens, dim)
    if config.feed_forward == "leff":
        yield from _leff(f"{name}.mlp", config, live=not dead)
    else:
        yield from _mlp(f"{name}.mlp", config, tokens, live_rows=1 if dead else tokens)


def _attention(
    name: str, config: CeiTConfig, tokens: int, *, queries: int, live_queries: int
) -> Iterator[ModuleComplexity]:
    dim = config.embed_dim
    # where not every token asks, only the rows of q, k and v that are used
    projected = (tokens, 3 * dim) if queries == tokens else (queries + 2 * tokens, dim)
    yield ModuleComplexity(
        name=f"{name}.qkv",
        shape_in=(tokens, dim),
        shape_out=projected,
        parameters=3 * dim**2 + (3 * dim if config.qkv_bias else 0),
        macs=(queries + 2 * tokens) * dim**2,
        live_macs=(live_queries + 2 * tokens) * dim**2,
    )
    yield ModuleComplexity(
        name=f"{name}.products",
        shape_in=projected,
        shape_out=(queries, dim),
        parameters=0,
        macs=2 * queries * tokens * dim,
        live_macs=2 * live_queries * tokens * dim,
        attention_product=True,
    )
    yield _linear(f"{name}.proj", queries, dim, dim, live_rows=live_queries)


def _leff(name: str, config: CeiTConfig, *, live: bool) -> Iterator[ModuleComplexity]:
    """On patches alone; the class token skips all of it."""
    dim, expanded, grid = config.embed_dim, config.expanded_dim, config.grid
    patches, batch_norm = grid[0] * grid[1], config.leff_norm == "batch"
    live_rows = patches if live else 0
    feature_map = (expanded, *grid)
    yield _linear(f"{name}.expand", patches, dim, expanded, live_rows=live_rows)
    if batch_norm:
        yield _free(f"{name}.expand_norm", feature_map, parameters=2 * expanded)
    depthwise = _convolution(f"{name}.depthwise", feature_map, expanded, config.leff_kernel_size, groups=expanded)
    yield depthwise if live else replace(depthwise, live_macs=0)
    if batch_norm:
        yield _free(f"{name}.depthwise_norm", feature_map, parameters=2 * expanded)
    yield _linear(f"{name}.project", patches, expanded, dim, live_rows=live_rows)
    if batch_norm:
        yield _free(f"{name}.project_norm", (dim, *grid), parameters=2 * dim)


def _mlp(name: str, config: CeiTConfig, rows: int, *, live_rows: int) -> Iterator[ModuleComplexity]:
    yield _linear(f"{name}.fc1", rows, config.embed_dim, config.expanded_dim, live_rows=live_rows)
    yield _linear(f"{name}.fc2", rows, config.expanded_dim, config.embed_dim, live_rows=live_rows)


def _lca(config: CeiTConfig) -> Iterator[ModuleComplexity]:
    dim, depth = config.embed_dim, config.depth
    if config.lca_pos_embed:
        yield _free("lca.pos_embed", (depth, dim), parameters=depth * dim)
    yield _layer_norm("lca.norm1", depth, dim)
    yield from _attention("lca.attn", config, depth, queries=1, live_queries=1)
    yield _layer_norm("lca.norm2", 1, dim)
    yield from _mlp("lca.mlp", config, 1, live_rows=1)


def _convolution(
    name: str, shape_in: Shape, channels: int, kernel: int, *, stride: int = 1, groups: int = 1, bias: bool = True
) -> ModuleComplexity:
    """With the padding that makes the output ``ceil(input / stride)``, or whose kernel is the stride."""
    inputs, *size = shape_in
    height, width = _strided(tuple(size), stride)
    weights = kernel**2 * inputs // groups * channels
    macs = weights * height * width
    return ModuleComplexity(name, shape_in, (channels, height, width), weights + channels * bias, macs, macs)


def _linear(name: str, rows: int, inputs: int, outputs: int, *, live_rows: int | None = None) -> ModuleComplexity:
    weights = inputs * outputs
    live_macs = weights * (rows if live_rows is None else live_rows)
    return ModuleComplexity(name, (rows, inputs), (rows, outputs), weights + outputs, weights * rows, live_macs)


def _layer_norm(name: str, rows: int, dim: int) -> ModuleComplexity:
    return _free(name, (rows, dim), parameters=2 * dim)


def _free(name: str, shape_in: Shape, shape_out: Shape | None = None, *, parameters: int = 0) -> ModuleComplexity:
    """What has no MACs, by the rule that norms, pooling and sums do not count."""
    return ModuleComplexity(name, shape_in, shape_out or shape_in, parameters, 0, 0)


def _strided(size: Shape, stride: int) -> Shape:
    return tuple(-(-side // stride) for side in size)


@dataclass(frozen=True)
class Cost:
    """One row of the paper's complexity analysis: full MACs, attention products included, and their closed form.

    ``ratio`` is to the first row of the same ``part``. The letters of ``formula`` are those of this file, ``M`` for the
    output positions of I2T's convolution, ``s`` for its kernel, ``k`` for LeFF's; the ResNet-50 stem's fits no line.
    """

    part: str
    name: str
    formula: str
    macs: int
    ratio: float


def analysis(config: CeiTConfig) -> tuple[Cost, ...]:
    """What each of the paper's parts costs against what it replaces; nothing for a part that is switched off.

    Source: arXiv 2103.11816, the complexity analysis.
    """
    dim, expanded, depth, patches = config.embed_dim, config.expanded_dim, config.depth, config.grid[0] * config.grid[1]
    stem = [("ViT patch embedding", "N*P^2*I*D", _patch_embedding(config).macs)]
    if config.stem == "i2t":
        stem.append(("I2T", "M*s^2*I*C + N*(P/S)^2*C*D", Complexity(tuple(_i2t(config))).macs))
    if (hybrid := resnet50_stem(config)) is not None:
        stem.append(("hybrid ResNet-50 stem", "", hybrid.macs))
    parts = {"stem": stem}
    mlp = 2 * dim * expanded  # of one token
    if config.feed_forward == "leff":
        depthwise = config.leff_kernel_size**2 * expanded
        parts["LeFF, per patch and block"] = [
            ("expand and project", "2*D*E", mlp),
            ("depth-wise conv adds", "k^2*E", depthwise),
        ]
        parts["LeFF, all blocks"] = [
            ("MLP in its place", "L*T*2*D*E", depth * (patches + 1) * mlp),
            ("LeFF", "L*N*(2*D*E + k^2*E)", depth * patches * (mlp + depthwise)),
            ("depth-wise conv adds", "L*N*k^2*E", depth * patches * depthwise),
            ("class token skips, saves", "L*2*D*E", depth * mlp),
        ]
    if config.lca:
        products = 2 * depth**2 * dim
        parts["LCA, the layer"] = [
            ("all L tokens ask", "4*L*D^2 + 2*L^2*D + 2*L*D*E", 4 * depth * dim**2 + products + depth * mlp),
            ("only the last asks", "2*(L+1)*D^2 + 2*L*D + 2*D*E", Complexity(tuple(_lca(config))).macs),
        ]
        parts["LCA, attention products"] = [
            ("all L tokens ask, O(L^2)", "2*L^2*D", products),
            ("only the last asks, O(L)", "2*L*D", products // depth),
        ]
    return tuple(Cost(part, *row, ratio=row[2] / rows[0][2]) for part, rows in parts.items() for row in rows)


def letters(config: CeiTConfig) -> dict[str, int]:
    """The value of every letter that the formulas of ``analysis`` use."""
    height, width = config.grid
    map_height, map_width = _strided(config.image_hw, config.stem_stride)
    return {
        "N": height * width,
        "T": height * width + 1,
        "D": config.embed_dim,
        "E": config.expanded_dim,
        "L": config.depth,
        "P": config.patch_size,
        "I": config.in_chans,
        "S": config.total_stem_stride,
        "C": config.stem_channels,
        "M": map_height * map_width,
        "s": config.stem_kernel_size,
        "k": config.leff_kernel_size,
    }


def resnet50_stages(config: CeiTConfig) -> int:
    """The stages of ResNet-50 in a hybrid stem: up to the last whose stride (4, 8, 16, 32) divides the patch side."""
    return max((stage for stage in range(1, 5) if config.patch_size % 2 ** (stage + 1) == 0), default=0)


def resnet50_stem(config: CeiTConfig) -> Complexity | None:
    """A hybrid stem with as many patch tokens: the first stages of a ResNet-50 and a convolution to D.

    Included: conv 7x7, its max-pool, the bottlenecks of the stages (3, 4, 6, 3; stride in the 3x3 convolution; a 1x1
    shortcut in each stage's first), the batch norms' parameters, and the projection with bias. For 16 px patches:
    stages 1 to 3, which end in 1024 channels at stride 16, and a 1x1 convolution. Left out: later stages, classifier.
    None if no stage's stride divides the patch side.

    Source: arXiv 1512.03385, with the stride where torchvision and timm have it.
    """
    stages = resnet50_stages(config)
    if not stages:
        return None
    modules = [*_normed("conv1", (config.in_chans, *config.image_hw), 64, 7, stride=2)]
    feature_map: Shape = (64, *_strided(modules[-1].shape_out[1:], 2))
    modules.append(_free("maxpool", modules[-1].shape_out, feature_map))
    for stage, bottlenecks in enumerate((3, 4, 6, 3)[:stages], start=1):
        width = 32 * 2**stage
        for i in range(bottlenecks):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            if i == 0:
                modules += _normed(f"{name}.downsample", feature_map, 4 * width, 1, stride=stride)
            modules += _normed(f"{name}.conv1", feature_map, width, 1)
            modules += _normed(f"{name}.conv2", modules[-1].shape_out, width, 3, stride=stride)
            modules += _normed(f"{name}.conv3", modules[-1].shape_out, 4 * width, 1)
            feature_map = modules[-1].shape_out
    side = config.patch_size // 2 ** (stages + 1)
    modules.append(_convolution("proj", feature_map, config.embed_dim, side, stride=side))
    return Complexity(tuple(modules))


def _normed(name: str, shape_in: Shape, channels: int, kernel: int, *, stride: int = 1) -> Iterator[ModuleComplexity]:
    convolution = _convolution(name, shape_in, channels, kernel, stride=stride, bias=False)
    yield convolution
    yield _free(f"{name}.norm", convolution.shape_out, parameters=2 * channels)
