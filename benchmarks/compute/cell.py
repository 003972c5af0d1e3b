"""One cell: a network trained for its share of compute, or gone on with, and measured with and without views."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import load_file
from torch import nn

from benchmarks.compute.networks import WhitenedConvNet
from benchmarks.compute.plan import network_of
from ceit.bench.arms import inference_macs
from ceit.data.batches.loader import make_loader
from ceit.evaluation.metrics import evaluate
from ceit.inference.device import machine
from ceit.inference.views import VIEWS, MeanOverViews
from ceit.messages import Say
from ceit.study.cells import Cell, Places, Record, write_cell
from ceit.train.config import config_from
from ceit.train.learner import starting_model
from ceit.train.resolve import ResolvedRun
from ceit.train.run import begun
from ceit.train.trainer import Trainer

WHITENED_IMAGES = 5_000  # of which a first layer is made


def run_cell(cell: Cell, places: Places, commit: str | None, say: Say, compile: bool = False) -> None:
    """Train a cell, or go on with it, and write its file; its checkpoints go, its weights stay.

    With ``compile`` the rest of it is trained compiled. A training that has failed is a result, too: its file says why.
    Raises: Interrupted (a KeyboardInterrupt) after saving; ValueError as ``trainer_of``.
    """
    folder = places.run_of(cell)
    with trainer_of(cell, folder, say, compile) as trainer:
        try:
            trainer.fit()
        except ValueError as error:  # of a loss that is not finite
            found: Record = {"failed": str(error)}
        else:
            found = measured(trainer)
    write_cell(places.results, cell, {**found, "compiled": compile, "commit": commit})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


@contextmanager
def trainer_of(cell: Cell, folder: Path, say: Say = lambda message: None, compile: bool = False) -> Iterator[Trainer]:
    """The trainer of a cell, which goes on with what its folder holds.

    Raises: ValueError as ``begun`` and ``require_macs``.
    """

    def make_model(run: ResolvedRun, say: Say) -> nn.Module:
        return new_network(cell.options, run) if "network" in cell.options else starting_model(run, say)

    with begun(
        config_from({**cell.options["training"], "compile": compile}),
        cell.data,
        folder,
        resume="auto",
        steps=cell.options["steps"],
        make_model=make_model,
        say=say,
        share_cores=False,
    ) as trainer:
        require_macs(trainer, cell)
        yield trainer


def require_macs(trainer: Trainer, cell: Cell) -> None:
    """Raises: ValueError if the network costs something else than its steps were computed from."""
    shape = trainer.dataset.in_chans, *trainer.dataset.img_size
    macs, planned = inference_macs(trainer.learner.model, shape), cell.options["macs"]
    if macs != planned:
        what = f"the network takes {macs:,} MACs for an image of {shape[1]} x {shape[2]} pixels, not {planned:,}"
        raise ValueError(f"{what}: set img_size in its options")


def new_network(options: Mapping[str, Any], run: ResolvedRun) -> nn.Module:
    """A network that is not of the package, as it begins."""
    dataset = run.dataset
    network = network_of(options, (dataset.in_chans, *dataset.img_size), len(dataset.class_names))
    if isinstance(network, WhitenedConvNet):
        size, preprocessing = dataset.img_size, dataset.preprocessing
        loader = make_loader(run.train, batch_size=WHITENED_IMAGES, img_size=size, preprocessing=preprocessing)
        network.begin_with(next(loader.epoch(0))[0])
    return network


def measured(trainer: Trainer) -> Record:
    """What a finished training gave: the best weights on validation and test, plain and beside it with views."""
    best, options = trainer.progress.best, trainer.run.config
    network = trainer.learner.candidates()[best["weights"]]
    network.load_state_dict(load_file(trainer.directory.path / "model.safetensors"))
    ways: dict[str, nn.Module] = {"plain": network}
    if trainer.dataset.mirror_safe:
        ways |= {views: MeanOverViews(network, views) for views in VIEWS}
    parts = {"validation": trainer.run.validation, "test": trainer.dataset.test}
    found = {
        part: {
            way: evaluate(
                asked,
                trainer.loader(split),
                class_names=trainer.dataset.class_names,
                device=trainer.accelerator.device,
                autocast_dtype=trainer.run.autocast_dtype,
            ).figures()
            for way, asked in ways.items()
        }
        for part, split in parts.items()
        if split is not None
    }
    steps = trainer.progress.step
    return {
        **found,
        "best": best,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "steps": steps,
        "images": steps * options.batch_size,
        "epochs": round(steps / trainer.run.steps_per_epoch, 2),
        "precision": options.precision,
        "seconds": round(trainer.progress.elapsed_seconds, 1),
        "machine": {**machine(trainer.accelerator.device), "timm": timm.__version__},
    }
