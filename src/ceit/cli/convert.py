"""Turn weights of the authors' release, or a plain state dict of this network or of timm's DeiT, into safetensors.

The other verbs take the new file. Nothing in the old one is executed.

usage: ceit convert RELEASED.pth OUT.safetensors [options]

examples:
  ceit convert ceit_tiny.pth ceit_tiny.safetensors
  ceit convert checkpoint.pth averaged.safetensors --entry model_ema
  ceit convert weights.pth weights.safetensors --geometry global_pool=avg
"""

import argparse
from pathlib import Path

from ceit.cli._parser import Parser, adding_to
from ceit.cli.info import geometry_of
from ceit.paths import expanded
from ceit.weights.checkpoint import network_of, save_checkpoint
from ceit.weights.geometry import name_of
from ceit.weights.stored import read_stored, side_file

LAYOUTS = {"released": "the authors' release", "plain": "a plain state dict", "ceit": "a checkpoint of ceit's"}


def main(arguments: list[str]) -> None:
    """Convert one file and print what was recognised in it."""
    options = _parsed(arguments)
    output: Path = options.output
    existing = [path for path in (output, side_file(output)) if path.exists()]
    if existing and not options.force:
        raise ValueError(f"{existing[0]} exists; choose another name or overwrite it with --force")
    geometry = geometry_of(options.geometry)
    geometry |= {} if options.num_heads is None else {"num_heads": options.num_heads}
    stored = read_stored(options.released, options.entry)
    network = network_of(stored, model_name=options.model, **geometry)
    save_checkpoint(output, network, training=stored.description and stored.description.training)

    config = network.config
    height, width = config.image_hw
    print(f"layout      {LAYOUTS[stored.layout]}")
    print(f"model       {name_of(config) or 'none of the registered ones'}")
    print(f"parameters  {sum(parameter.numel() for parameter in network.parameters()):,}")
    print(f"images      {height} x {width} px, {config.in_chans} channels, {config.num_classes} classes")
    print(f"written     {output} and {side_file(output)}")


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = adding_to(parser)
    add("released", "the file to read", type=expanded, metavar="RELEASED.pth")
    add("output", "the file to write, with OUT.json beside it", type=expanded, metavar="OUT.safetensors")
    add("--force", "replace OUT if it exists", action="store_true")
    add("--entry", "which state dict of several, such as model_ema (default: model or state_dict)", metavar="NAME")
    add("--model", "which model it is, if the tensors' shapes do not tell", metavar="NAME")
    add("--num-heads", "attention heads, if the tensors' shapes do not tell", type=int, metavar="K")
    text = "other fields of CeiTConfig that they do not tell"
    add("--geometry", text, nargs="+", action="extend", default=[], metavar="FIELD=VALUE")
    return parser.parse_args(arguments)
