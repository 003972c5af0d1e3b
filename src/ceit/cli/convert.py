"""``ceit convert``: foreign weights to safetensors, executing nothing in them."""

import argparse
from pathlib import Path

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
    options = _parser().parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ceit convert",
        description="Converts released weights, or a plain state dict of this network or of timm's DeiT, to "
        "safetensors. Nothing in the file is executed.",
    )
    parser.add_argument("released", metavar="RELEASED.pth", type=expanded, help="the file to read")
    parser.add_argument(
        "output", metavar="OUT.safetensors", type=expanded, help="the file to write, with OUT.json beside it"
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.add_argument(
        "--entry", help="which state dict of a training script's file (default: model or state_dict; say model_ema)"
    )
    parser.add_argument("--model", metavar="NAME", help="the model it is, where the tensors' shapes do not tell")
    parser.add_argument(
        "--num-heads", type=int, metavar="K", help="attention heads, where the tensors' shapes do not tell"
    )
    return parser
