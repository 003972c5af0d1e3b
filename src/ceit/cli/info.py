"""Print how large a model is and what one image costs it: parameters and multiply-accumulates, module by module,
beside a DeiT of the same size.

usage: ceit info MODEL|CHECKPOINT [options]

examples:
  ceit info ceit_tiny_patch16_224
  ceit info runs/photos --img-size 128
  ceit info ceit_mini_patch4_32 --geometry lca=false global_pool=avg
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ceit.cli._parser import JSON, WEIGHTS, Parser, adding_to
from ceit.cli._terminal import figures, print_whole
from ceit.messages import unknown
from ceit.model import MODELS, CeiTConfig, config_of
from ceit.model.complexity import Complexity, analysis, complexity, deit_twin, letters, resnet50_stages
from ceit.paths import expanded
from ceit.yaml_file import parse_yaml

TOTALS = {
    "parameters": "parameters",
    "macs": "MACs, full, with attention products",
    "macs_without_attention_products": "MACs, full, without attention products",
    "live_macs": "MACs, live, with attention products",
    "live_macs_without_attention_products": "MACs, live, without attention products",
}
CONVENTIONS = {
    "MACs": "of convolutions, linears and matrix products for one image, nothing else",
    "attention products": "QK^T and AV of the encoder and of LCA",
    "full": "what the release computes always, and training by default",
    "live": "what eval mode computes: in the last block only what can reach the logits",
}


def main(arguments: list[str]) -> None:
    """Print what a model costs, as tables or as one JSON document.

    Raises ValueError for an unknown model, a geometry that no model has, or a checkpoint that cannot be read.
    """
    options = _parsed(arguments)
    config = _config(options)
    own, twin = complexity(config), complexity(deit_twin(config))
    if options.json:
        document = {"model": options.model, "config": asdict(config), "conventions": CONVENTIONS, **_totals(own)}
        document["modules"] = [asdict(module) for module in own.modules]
        document |= {"twin": _totals(twin), "analysis": [asdict(cost) for cost in analysis(config)]}
        print(json.dumps(document, indent=2))
        return
    console = Console(highlight=False)
    for shown in _report(options.model, config, own, twin):
        print_whole(console, shown)


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(__doc__, notes="\n  ".join(["models:", *MODELS]))
    add = adding_to(parser)
    add("model", f"name (see below), {WEIGHTS}", metavar="MODEL|CHECKPOINT")
    add("--json", JSON, action="store_true")
    add = adding_to(parser.add_argument_group("to see what another geometry costs"))
    add("--img-size", "side of the images, or height and width", type=int, nargs="+", metavar="PX")
    add("--num-classes", "classes that the head tells apart", type=int, metavar="N")
    add("--in-chans", "channels of the images", type=int, metavar="C")
    text = "any field of CeiTConfig, as a recipe sets it"
    add("--geometry", text, nargs="+", action="extend", default=[], metavar="FIELD=VALUE")
    return parser.parse_args(arguments)


def _config(options: argparse.Namespace) -> CeiTConfig:
    """Of a named model, else of a checkpoint, with the geometry that is asked for.

    What exists is a checkpoint, as everywhere. A word that does not, nor looks like a path, is a name, or a misspelt
    one.
    """
    size, classes = options.img_size, options.num_classes
    if size is not None and len(size) > 2:
        raise ValueError(f"--img-size takes one side, or height and width, not {len(size)} numbers")
    if classes is not None and classes < 1:
        raise ValueError(f"--num-classes {classes} must be at least 1: a classifier needs a class")
    img_size = size and (tuple(size) if len(size) == 2 else size[0])
    asked = {"img_size": img_size, "num_classes": classes, "in_chans": options.in_chans}
    geometry = geometry_of(options.geometry)
    geometry |= {name: value for name, value in asked.items() if value is not None}
    path = expanded(options.model)
    if not (path.exists() or path.suffix or len(path.parts) > 1):
        return config_of(options.model, **geometry)
    from ceit.weights import load_checkpoint  # a name needs no weights

    return replace(load_checkpoint(path).config, **geometry)


def geometry_of(words: Iterable[str]) -> dict[str, Any]:
    """Fields of ``CeiTConfig`` from ``FIELD=VALUE``. Raises: ValueError for another form or field."""
    geometry, known = dict[str, Any](), [field.name for field in fields(CeiTConfig)]
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--geometry {word} must be FIELD=VALUE, such as embed_dim=96")
        if name not in known:
            raise ValueError(unknown("model field", name, known))
        geometry[name] = parse_yaml(word, value)
    return geometry


def _totals(cost: Complexity) -> dict[str, int]:
    return {name: getattr(cost, name) for name in (*TOTALS, "dead_macs")}


def _report(model: str, config: CeiTConfig, own: Complexity, twin: Complexity) -> Iterator[Table | Text]:
    image, patches = _shape((config.in_chans, *config.image_hw)), _shape(config.grid)
    heading = f"  image {image}, {patches} patches, {config.num_classes:,} classes"
    yield Text.assemble("\n", (model, "bold"), heading)
    yield _module_table(config, own)
    yield _total_table(own, twin)
    conventions = [f"{word}: {meaning}" for word, meaning in CONVENTIONS.items()]
    yield Text("\n".join([*conventions, f"live leaves out {own.dead_macs:,} MACs here"]), style="dim")
    yield _part_table(config, own, twin)
    yield _analysis_table(config)
    yield Text(_analysis_notes(config), style="dim")


def _module_table(config: CeiTConfig, own: Complexity) -> Table:
    title = "Modules (MACs full, with attention products)"
    table = figures(["module", "shape in", "shape out"], ["parameters", "MACs", "share"], title)

    def add(name: str, part: Complexity, style: str | None = None, *, keeps_shape: bool = False) -> None:
        shape_in = part.modules[0].shape_in
        shape_out = shape_in if keeps_shape else part.modules[-1].shape_out
        share = "100%" if part is own else f"{100 * part.macs / own.macs:.2f}%" if part.macs else "-"
        sizes = (_count(part.parameters), _count(part.macs), share)
        table.add_row(name, _shape(shape_in), _shape(shape_out), *sizes, style=style)

    for name in ("patch_embed", "cls_token", "pos_embed", "blocks", "lca", "norm", "head"):
        part, prefix, indent = own.part(name), f"{name}.", " "
        if name == "blocks":
            several = f"blocks 1-{config.depth}" if config.depth > 1 else "block 1"
            add(several, part, "bold", keeps_shape=True)
            prefix, indent = "blocks.0.", "  "
            add(" each block", own.part(prefix), keeps_shape=True)
        elif part.modules:
            add(name, part, "bold")
        for module in own.part(prefix).modules:
            add(indent + module.name.removeprefix(prefix), Complexity((module,)))
    table.add_section()
    add("total", own, "bold")
    return table


def _total_table(own: Complexity, twin: Complexity) -> Table:
    numbers = ["this model", "DeiT twin", "ratio"]
    table = figures([""], numbers, "Beside the DeiT twin (patch embedding, MLP, no LCA)")
    for field, name in TOTALS.items():
        mine, other = getattr(own, field), getattr(twin, field)
        table.add_row(name, _count(mine), _count(other), f"{mine / other:.3f}")
    return table


def _part_table(config: CeiTConfig, own: Complexity, twin: Complexity) -> Table:
    blocks = [f"blocks.{i}." for i in range(config.depth)]
    parts = {
        "stem": ["patch_embed."],
        "class token, positions": ["cls_token", "pos_embed"],
        "attention": [f"{block}attn." for block in blocks],
        "feed-forward": [f"{block}mlp." for block in blocks],
        "layer norms": ["norm", *(f"{block}norm" for block in blocks)],
        "LCA": ["lca."],
        "head": ["head"],
    }
    numbers = ["parameters", "DeiT twin", "MACs", "DeiT twin"]
    table = figures([""], numbers, "Part by part (MACs full, with attention products)")
    for name, prefixes in parts.items():
        mine, other = own.part(*prefixes), twin.part(*prefixes)
        if mine.modules:
            table.add_row(name, *map(_count, (mine.parameters, other.parameters, mine.macs, other.macs)))
    table.add_section()
    table.add_row("total", *map(_count, (own.parameters, twin.parameters, own.macs, twin.macs)), style="bold")
    return table


def _analysis_table(config: CeiTConfig) -> Table:
    title = "Complexity analysis (MACs full, with attention products)"
    table = figures(["", "closed form"], ["MACs", "ratio"], title)
    part = ""
    for cost in analysis(config):
        if cost.part != part:
            part = cost.part
            table.add_row(part, style="bold")
        ratio = f"{cost.ratio:,.0f}" if cost.ratio >= 1000 else f"{cost.ratio:.4g}"
        table.add_row(f" {cost.name}", cost.formula, _count(cost.macs), ratio)
    return table


def _analysis_notes(config: CeiTConfig) -> str:
    used = {letter for cost in analysis(config) for letter in re.findall("[A-Za-z]", cost.formula)}
    values = " ".join(f"{letter}={value}" for letter, value in letters(config).items() if letter in used)
    notes = [values, "ratio: to the part's first row"]
    if config.feed_forward == "leff":
        notes[-1] += "; per patch, that of the depth-wise conv is k^2/(2*D)"
    if stages := resnet50_stages(config):
        included = "stage 1" if stages == 1 else f"stages 1 to {stages}"
        side, channels = config.patch_size // 2 ** (stages + 1), 128 * 2**stages
        notes.append(
            f"hybrid ResNet-50 stem: its 7x7 convolution, {included} with the shortcuts, and a {side}x{side} "
            f"convolution of their {channels} channels to D; no later stage, no classifier"
        )
    return "\n".join(notes)


def _shape(sides: Iterable[int]) -> str:
    return "x".join(map(str, sides))


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"
