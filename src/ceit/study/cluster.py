"""What a study takes on machines that are not here: hours by formula, disk, and the commands, ready to be run."""

import json
import shlex
from collections.abc import Sequence

from ceit.data.cache import cache_dir
from ceit.data.sources.known_sets import SETS
from ceit.data.sources.published import PUBLISHED
from ceit.model.complexity import complexity
from ceit.study.cells import Cell, Places, path_of, with_models
from ceit.study.cost import BYTES_OF_A_JPEG, GPU_FLOPS, GPUS_OF_A_NODE, geometry_on, training_flops_on
from ceit.study.plan import TUNING, Study
from ceit.train.recipe import flat_keys, read_recipe

_COPIES_IN_A_CHECKPOINT = 4  # the weights, their average, and AdamW's two moments, in float32
_BYTES = 4


def gpu_hours(cell: Cell) -> float:
    """``3 * 2 * MACs * images`` over what one GPU is assumed to sustain, ``GPU_FLOPS``."""
    return training_flops_on(cell.config(), cell.data) / GPU_FLOPS / 3600


def data_bytes(data: str) -> int:
    """A set known by name on the disk: images in memory to the byte, files at an assumed size each."""
    if data in SETS:
        height, width, channels = SETS[data].image_shape
        return (SETS[data].train_images + SETS[data].test_images) * height * width * channels
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
    if cell.recipe:
        words += ["--recipe", cell.recipe]
    words += ["--data", cell.data, "--output", str(places.run_of(cell))]
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
