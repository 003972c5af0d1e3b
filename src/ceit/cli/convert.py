"""``ceit convert``: foreign weights to safetensors, executing nothing in them."""

import argparse
from pathlib import Path

from ceit.cli._parser import Parser
from ceit.paths import expanded
from ceit.weights.checkpoint import network_of, save_checkpoint
from ceit.weights.geometry import name_of
from ceit.weights.stored import read_stored, side_file

LAYOUTS = {
    "released": "the authors' release",
    "plain": "a plain state dict",
    "ceit": "a checkpoint of ceit's",
}


def main(arguments: list[str]) -> None:
    """Convert one file and print what was recognised in it."""
    options = _parsed(arguments)
    output: Path = options.output
    existing = [path for path in (output, side_file(output)) if path.exists()]
    if existing and not options.force:
        raise ValueError(f"{existing[0]} exists; choose another name or overwrite it with --force")
    geometry = {} if options.num_heads is None else {"num_heads": options.num_heads}
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
    parser = Parser(
        "convert",
        "RELEASED.pth OUT.safetensors [options]",
        "Turn weights of the authors' release, or a plain state dict of this network or of timm's DeiT, into a file "
        "that every verb takes. Nothing in the file is executed.",
        examples=[
            "ceit convert ceit_tiny.pth ceit_tiny.safetensors",
            "ceit convert checkpoint.pth averaged.safetensors --entry model_ema",
        ],
    )
    add = parser.add_argument
    add("released", metavar="RELEASED.pth", type=expanded, help="the file to read")
    add("output", metavar="OUT.safetensors", type=expanded, help="the file to write, with OUT.json beside it")
    add("--force", action="store_true", help="replace OUT if it exists")
    text = "which state dict of a training script's file, such as model_ema (default: model or state_dict)"
    add("--entry", metavar="NAME", help=text)
    add("--model", metavar="NAME", help="which model it is, if the tensors' shapes do not tell")
    add("--num-heads", type=int, metavar="K", help="attention heads, if the tensors' shapes do not tell")
    return parser.parse_args(arguments)
