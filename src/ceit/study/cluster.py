"""What training takes on machines that are not here: hours by formula, disk, and a study's commands, ready to run."""

import json
import math
import shlex
from collections.abc import Sequence
from typing import Any

from ceit.data.cache import cache_dir
from ceit.data.sources.known_sets import SETS
from ceit.data.sources.published import PUBLISHED
from ceit.model.complexity import complexity
from ceit.model.config import CeiTConfig
from ceit.model.variants import config_of
from ceit.study.cells import Cell, Places, path_of, with_models
from ceit.study.plan import TUNING, Study
from ceit.train.config import TrainConfig
from ceit.train.cost import mean_macs
from ceit.train.recipe import NO_RECIPE, flat_keys, read_recipe

GPU_FLOPS = 50e12
"""Operations a second that one GPU is assumed to sustain: an assumption for the estimates, not a measurement."""
GPUS_OF_A_NODE = 8
BYTES_OF_A_JPEG = 110_000
"""An ImageNet training image on average, an assumption."""
_COPIES_IN_A_CHECKPOINT = 4  # the weights, their average, and AdamW's two moments, in float32
_BYTES = 4


def geometry_on(config: TrainConfig, data: str) -> CeiTConfig:
    """The network that a configuration trains on a set known by name."""
    own: dict[str, Any] = {"num_classes": len(SETS[data].class_names) if data in SETS else PUBLISHED[data].classes}
    if data in SETS:
        height, width, own["in_chans"] = SETS[data].image_shape
        own["img_size"] = height, width
    if config.img_size is not None:
        own["img_size"] = config.img_size
    return config_of(config.model, **{**config.geometry, **own})


def images_shown_on(config: TrainConfig, data: str) -> int:
    """Images that a configuration trains on in all its epochs, repeats counted, those cut off for validation not."""
    images = (SETS.get(data) or PUBLISHED[data]).train_images
    if data in SETS or not PUBLISHED[data].validation_images:
        images -= round(images * config.validation_percent / 100)
    images = round(images * config.train_percent / 100)
    return config.epochs_for(images) * images


def training_flops_on(config: TrainConfig, data: str) -> int:
    """``3 * 2 * MACs * images``: forward and twice as much backward, two operations a MAC. Evaluation is left out."""
    return round(3 * 2 * mean_macs(config, geometry_on(config, data)) * images_shown_on(config, data))


def gpu_hours(cell: Cell) -> float:
    """``3 * 2 * MACs * images`` over what one GPU is assumed to sustain, ``GPU_FLOPS``."""
    return training_flops_on(cell.config(), cell.data) / GPU_FLOPS / 3600


def data_bytes(data: str) -> int:
    """A set known by name on the disk: images in memory to the byte, files at an assumed size each."""
    if data in SETS:
        return (SETS[data].train_images + SETS[data].test_images) * math.prod(SETS[data].image_shape)
    named = PUBLISHED[data]
    return (named.train_images + named.validation_images + named.test_images) * BYTES_OF_A_JPEG


def run_bytes(cell: Cell) -> int:
    """A run directory at its largest: checkpoints of full state, one of them being written, and the best model."""
    config = cell.config()
    weights = complexity(geometry_on(config, cell.data)).parameters * _BYTES
    return weights * (_COPIES_IN_A_CHECKPOINT * (config.keep_checkpoints + 1) + 1)


def command_of(cell: Cell, places: Places) -> str:
    """The run of a cell on one node of eight GPUs, for a shell."""
    known = read_recipe(cell.recipe) if cell.recipe else {}
    words = ["torchrun", "--nproc-per-node", str(GPUS_OF_A_NODE), "-m", "ceit", "train", "--resume", "auto"]
    words += ["--recipe", cell.recipe or NO_RECIPE, "--data", cell.data, "--output", str(places.run_of(cell))]
    for name, value in flat_keys(with_models(cell.options, places.models_for(cell))).items():
        if name not in known or known[name] != value:
            words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(words)


def plan_text(study: Study, cells: Sequence[Cell], places: Places, rates_are_chosen: bool, command: str) -> str:
    """Everything of a study at a scale as comments and commands: a shell script that can be run as it is.

    Its last line is ``command``, which makes the cells of what was trained. Finished cells are not trained again.
    """
    cells = [cell for cell in cells if not path_of(places.results, cell).is_file()]
    expected = {arm.name: arm.expected for arm in study.arms}
    total = sum(map(gpu_hours, cells))
    sets = sorted({cell.data for cell in cells})
    disk = sum(map(data_bytes, sets)) + sum(map(run_bytes, cells))
    lines = [
        f"# {study.title}: {study.question}",
        f"# Hours by formula: 6 x MACs x images at {GPU_FLOPS / 1e12:.0f} TFLOP/s for a GPU, an assumption: "
        f"{total:,.0f} GPU-hours, {total / GPUS_OF_A_NODE:,.0f} hours on {GPUS_OF_A_NODE} GPUs.",
        f"# Disk: {disk / 1e9:,.0f} GB, of it {sum(map(data_bytes, sets)) / 1e9:,.0f} GB for "
        f"{', '.join(sets)}, at {BYTES_OF_A_JPEG // 1000} kB for an image file, an assumption.",
        f"# Sets are read from the cache; for one that lies elsewhere: ln -s DIR {cache_dir()}/NAME",
    ]
    if study.tuned and not rates_are_chosen:
        lines.append(f"# The learning rates are not chosen yet: run the study {TUNING} first, then print this again.")
    for cell in cells:
        lines += [
            "",
            f"# {cell.arm}, seed {cell.seed}: {gpu_hours(cell):,.1f} GPU-hours; expected: "
            f"{expected.get(cell.arm) or 'no figure of the paper or the release is at hand'}",
            command_of(cell, places),
        ]
    lines += ["", "# every model on its test split, the cells' files, tables and figures:"]
    return "\n".join([*lines, command])
