"""From options, data and machine to a run with every choice made.

Some values show only when the network computes, ``device_batch_size auto`` and the steps of a time budget, which may
ask for smaller ones: ``run.train`` measures them and completes the ``ResolvedRun``. Then it is written, and nothing
changes an option again.
"""

import hashlib
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator

from ceit.data.batches.augment import Augmentation
from ceit.data.random_bits import shuffled
from ceit.data.record import FILE as IMAGES_FILE
from ceit.data.sources.choose import absolute
from ceit.data.splits import ImageDataset, Split
from ceit.inference.device import autocast_dtype
from ceit.messages import Say
from ceit.model import config_of
from ceit.paths import expanded
from ceit.train.batch_size import batch_for_set
from ceit.train.config import LOCAL_TEACHER, USUAL_BATCH, Mixing, SmallImages, TrainConfig
from ceit.train.distributed import from_all, from_main, require_even_shares, with_heartbeat
from ceit.train.images import RunImages, load_run_images
from ceit.train.run_directory import SavedRun, has_options_of
from ceit.train.trackers import BY_ITSELF, chosen_trackers
from ceit.weights.stored import is_shipped_name

COMPILED_STEPS = 1000  # of a run, from which on compiling pays by estimate
COMPILED_SECONDS = 900.0  # of a time budget
_OVERFIT_ORDER = -2  # no epoch of training has this number, nor has the cut of the validation images


@dataclass(frozen=True)
class ResolvedRun:
    """Every choice of a run: each option of ``config`` has the value that the run uses.

    ``data`` is a name or a whole path. ``train`` and ``validation`` are splits of ``images``, or the same few of them
    if the run is to overfit. ``autocast_dtype`` is the number format of forward passes, None for that of the weights.
    ``batch_is_open`` tells whether the options left the batch size open, so that a time budget may lower it.
    """

    config: TrainConfig
    data: str
    images: RunImages
    train: Split
    validation: Split | None
    autocast_dtype: torch.dtype | None
    steps: int
    batch_is_open: bool

    @property
    def dataset(self) -> ImageDataset:
        """All splits, with their class names and size."""
        return self.images.dataset

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and images."""
        return torch.float64 if self.config.precision == "float64" else torch.float32

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of the training images, at most ``limit_batches``."""
        batches = len(self.train) // self.config.batch_size
        return min(batches, self.config.limit_batches or batches)

    @property
    def small_hw(self) -> tuple[int, int] | None:
        """Height and width of the images of the first steps, None if they are as large as the others."""
        if self.config.small_images.scale == 1:
            return None
        patch_size = config_of(self.config.model, **self.config.geometry, img_size=self.dataset.img_size).patch_size
        return self.config.small_images.size(self.dataset.img_size, patch_size)

    def in_steps(self, steps: int) -> "ResolvedRun":
        """The same run with so many steps, and as many epochs; the last one may be cut short."""
        epochs = -(-steps // self.steps_per_epoch)
        return replace(self, steps=steps, config=replace(self.config, epochs=epochs))

    def with_batch(self, batch_size: int) -> "ResolvedRun":
        """The same run with so many images a step, in as many epochs."""
        run = replace(self, config=replace(self.config, global_batch_size=batch_size))
        return replace(run, steps=run.config.epochs_for(len(run.train)) * run.steps_per_epoch)

    def description(self) -> dict[str, Any]:
        """The content of ``config.yaml``, but for what the images are normalised by."""
        record, found = self.images.record, {"data": self.data, "found": _found(self.dataset)}
        images: dict[str, Any] = {} if record is None else {"images": IMAGES_FILE}
        if record is not None and record.is_of_unsplit:
            images["unsplit"] = True
        return {**found, **self.config.as_dict(), "steps": self.steps, **images}


def resolve(
    config: TrainConfig,
    data: str,
    accelerator: Accelerator,
    *,
    saved: SavedRun | None = None,
    typed: Collection[str] = (),
    say: Say = lambda message: None,
) -> ResolvedRun:
    """Every choice, made once; what differs from the options is said.

    ``saved`` is the run that goes on or starts over: what its start measured or saw in the images stays. An option
    that was ``typed`` on the command line must have an effect.

    Raises: ValueError for an unknown model or data set, data that cannot be read, or options that do not suit the data.
    """
    config, batch_is_open = _with_rate_base(_with_whole_paths(config)), config.global_batch_size is None
    resumed = saved if saved is not None and saved.checkpoints else None
    if resumed is not None:  # a busy machine, and more images, may give another choice than the run's start
        was = resumed.config | {"img_size": tuple(resumed.config["img_size"])}
        left_open: dict[str, Any] = dict.fromkeys(("precision", "device_batch_size", "compile"), "auto")
        left_open |= dict.fromkeys(("img_size", "in_chans", "global_batch_size", "tracker"))
        open_now = {key for key, none in left_open.items() if key in was and getattr(config, key) == none}
        config = replace(config, **{key: was[key] for key in open_now})
        require_even_shares(config, accelerator.num_processes)
        if tuple(config.tracker or ()) == BY_ITSELF and "tracker" not in typed:
            config = replace(config, tracker=None)  # it may not be installed here
    config = replace(config, tracker=chosen_trackers(config.tracker, say))
    folder = None if resumed is None else resumed.path
    images = with_heartbeat(lambda: load_run_images(config, data, say, folder, typed), accelerator)
    if resumed is not None:
        images = _normalised_as_before(images, resumed)
    dataset = images.dataset
    _require_one_set(dataset)
    config = _suited(config, dataset, accelerator, say)
    dtype = None if config.precision == "float64" else autocast_dtype(config.precision, accelerator.device)
    dtype = from_main(dtype)
    if config.precision == "auto":
        config = replace(config, precision="float32" if dtype is None else "bf16")
    train, validation = dataset.train, dataset.validation
    if config.overfit_batches is not None:
        order = shuffled(len(train), config.seed, _OVERFIT_ORDER)
        few = order[: config.overfit_batches * config.batch_size]
        train = validation = train.subset(torch.from_numpy(few.astype("int64")))
    asked_epochs, epochs = config.epochs, config.epochs_for(len(train))
    config = replace(config, epochs=epochs, img_size=dataset.img_size, in_chans=dataset.in_chans)
    run = ResolvedRun(config, absolute(data), images, train, validation, dtype, 0, batch_is_open)
    run = replace(run, steps=epochs * run.steps_per_epoch)
    run = _with_kept_steps(run, saved, asked_epochs)
    if config.compile == "auto":
        compiled = from_main(compiles_by_itself(config, accelerator.device, run.steps))
        run = replace(run, config=replace(run.config, compile=compiled))
    if run.config.compile:
        say("the network is compiled in the first step, which takes a minute or two")
    return run


def _with_rate_base(config: TrainConfig) -> TrainConfig:
    """With the batch size that ``peak_lr`` is meant for, if any, and how another one scales it.

    Raises: ValueError if it is said how, but not from which size on.
    """
    base, scaling, batch_size = config.lr_base_size, config.lr_scaling, config.global_batch_size
    if base == "auto" and batch_size is not None and scaling != "auto":
        fix = "set lr_base_size, the batch that peak_lr is meant for, such as 256, or leave lr_scaling out"
        raise ValueError(f"lr_scaling {scaling} has no effect without an lr_base_size: {fix}")
    if scaling == "auto":
        scaling = "sqrt" if base == "auto" and batch_size is None else "linear"
    if base == "auto":
        base = USUAL_BATCH if batch_size is None else None
    return replace(config, lr_base_size=base, lr_scaling=scaling)


def _normalised_as_before(images: RunImages, saved: SavedRun) -> RunImages:
    """With the mean and deviation that the run began with: they are of the images that were in memory then."""
    known = saved.preprocessing()
    if known is None or len(known.mean) != images.dataset.in_chans:
        return images
    return replace(images, dataset=replace(images.dataset, mean=known.mean, std=known.std))


def _with_kept_steps(run: ResolvedRun, saved: SavedRun | None, asked_epochs: float | None) -> ResolvedRun:
    """The run in the steps that it was to take when it began, unless it is asked for other epochs now."""
    if saved is None or asked_epochs not in (None, saved.config["epochs"]):
        return run
    if saved.checkpoints or has_options_of(saved.config, run.description()):
        return run.in_steps(saved.config.get("steps", saved.config["epochs"] * run.steps_per_epoch))
    return run


def compiles_by_itself(config: TrainConfig, device: torch.device, steps: int) -> bool:
    """What ``compile auto`` means: on a GPU that torch's compiler knows, with what it needs installed, in a run that is
    long enough to win back the minutes of compiling. On two CPU cores compiled steps were not measurably faster."""
    if device.type != "cuda" or steps < COMPILED_STEPS or config.grad_checkpointing or config.deterministic:
        return False
    has_compilers = find_spec("triton") is not None and any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc")))
    return has_compilers and torch.cuda.get_device_capability(device) >= (7, 0)


def _with_whole_paths(config: TrainConfig) -> TrainConfig:
    """Files named so that they are found from any directory, when the run is resumed."""
    start, teacher = (
        name if name is None or is_shipped_name(name) else str(expanded(name).resolve())
        for name in (config.initial_checkpoint, config.distillation.checkpoint)
    )
    taught = replace(config.distillation, checkpoint=teacher)
    if taught.teacher is not None and taught.teacher.startswith(LOCAL_TEACHER):
        folder = expanded(taught.teacher.removeprefix(LOCAL_TEACHER)).resolve()
        taught = replace(taught, teacher=f"{LOCAL_TEACHER}{folder}")
    return replace(config, initial_checkpoint=start, distillation=taught)


def _suited(config: TrainConfig, dataset: ImageDataset, accelerator: Accelerator, say: Say) -> TrainConfig:
    """The options without what does not suit the images."""
    chosen: dict[str, Any] = {}
    asked_size = config.batch_size
    if config.augmentation.flip and not dataset.mirror_safe:
        chosen["augmentation"] = replace(config.augmentation, flip=False)
        say(f"mirrored images of {dataset.name} are other classes or none: augmentation.flip is off")
    augmentation, side = chosen.get("augmentation", config.augmentation), min(dataset.img_size)
    if 3 * augmentation.cutout > 2 * side:
        chosen["augmentation"] = replace(augmentation, cutout=side // 2)
        height, width = dataset.img_size
        small = f"a cut-out of {augmentation.cutout} pixels leaves too little of {height} x {width}"
        say(f"{small}: augmentation.cutout is {side // 2}, half of the side")
    if config.overfit_batches is not None:
        chosen |= {
            "augmentation": Augmentation(flip=False),
            "mixing": Mixing(),
            "small_images": SmallImages(),
            "label_smoothing": 0.0,
            "geometry": config.geometry | {"drop_path_rate": 0.0},
        }
        effect = "no augmentation, mixing, drop path or label smoothing, and validation on the same images"
        say(f"overfitting at most {config.overfit_batches} batches: {effect}")
    count, processes = len(dataset.train), accelerator.num_processes
    batch_size = config.global_batch_size or batch_for_set(count, processes)
    if count < batch_size:  # a few steps an epoch even for a handful of images; even shares, for Mixup
        unit = 2 * processes
        batch_size = max(unit, count // 4 // unit * unit)
    config = replace(config, **chosen, global_batch_size=batch_size)
    if batch_size != asked_size:
        sizes = f"global_batch_size is {batch_size}, not {asked_size}"
        say(f"{count} training images: {sizes}; an epoch has {count // batch_size} steps, {config.rate_in_words}")
    return config


def _require_one_set(dataset: ImageDataset) -> None:
    """Raises: ValueError, in every process, if one has other images or labels than the first: shares would overlap."""
    parts = [part for part in (dataset.train, dataset.validation, dataset.test) if part is not None]
    known = [part.labels.numpy() for part in parts] + [part.digests for part in parts if part.digests is not None]
    contents = hashlib.sha256(b"".join(array.tobytes() for array in known)).hexdigest()[:8]
    seen = from_all(f"{_found(dataset)}, contents {contents}")
    for number, one in enumerate(seen):
        if one != seen[0]:
            what = f"process {number} has other data than process 0: {one}, not {seen[0]}"
            raise ValueError(f"{what}: give all machines the same files")


def _found(dataset: ImageDataset) -> str:
    """What the data were when the run was started."""
    train, validation, test = (len(part or ()) for part in (dataset.train, dataset.validation, dataset.test))
    names = hashlib.sha256("\n".join(dataset.class_names).encode()).hexdigest()[:8]
    images = f"{train} training, {validation} validation and {test} test images"
    return f"{images} of {len(dataset.class_names)} classes ({names})"
