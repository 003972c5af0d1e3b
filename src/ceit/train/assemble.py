"""From options and data to a session: the data at its size, splits, loaders, network, optimizer."""

import json
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import nn
from torch.amp import GradScaler

from ceit.data.batches.augment import Augmentation
from ceit.data.batches.loader import Loader, make_loader
from ceit.data.cut import SHARE_STREAM
from ceit.data.labelled import LabelledSet, as_dataset, copies_in_test, cut_by_place, without_copies
from ceit.data.preprocessing import Preprocessing
from ceit.data.random_bits import shuffled
from ceit.data.record import COPY, FIXED, TEST, TRAIN, UNUSED, VALIDATION, ImageRecord
from ceit.data.record import FILE as IMAGES_FILE
from ceit.data.sources.choose import load_images
from ceit.data.sources.class_names import class_name
from ceit.data.splits import ImageDataset, Split, cut_validation
from ceit.inference.device import autocast_dtype
from ceit.model import CeiT, config_of
from ceit.train.batch_norm import StatisticsBackup, small_batch_warning
from ceit.train.config import Mixing, TrainConfig
from ceit.train.distributed import from_main, meanwhile, shared_gradients
from ceit.train.objective import Objective, balanced_weights
from ceit.train.optimizer import make_optimizer
from ceit.train.session import Session
from ceit.train.teacher import make_teacher
from ceit.weights import create_model, save_checkpoint

SMALLEST_SIDE = 16  # pixels; smaller images are enlarged, so that there are tokens to attend to
EVALUATION_BATCH = 250
_OVERFIT_ORDER = -2  # no epoch of training has this number, nor has the cut of the validation images

Say = Callable[[str], None]
Show = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class RunImages:
    """The images of a run: ``dataset`` with the final train, validation and test splits, and the record of them all.

    A set known by name is fixed and needs no record; a run of an earlier version that goes on has none.
    """

    dataset: ImageDataset
    record: ImageRecord | None
    is_fixed: bool = False

    @property
    def told(self) -> dict[str, str]:
        """What the model's file tells of them."""
        if self.record is not None:
            return {"images": IMAGES_FILE, "images_digest": self.record.identity}
        return {"images": FIXED} if self.is_fixed else {}


def build(
    config: TrainConfig,
    data: str,
    output: Path,
    accelerator: Accelerator,
    say: Say,
    show: Show,
    resuming: bool = False,
    typed: Collection[str] = (),
) -> tuple[Session, RunImages]:
    """Everything a run consists of, at its start, and its images; the session's configuration is what suits them.

    A run that is ``resuming`` gets the images that its record in ``output`` names, whatever has come since. An option
    that was ``typed`` must have an effect.

    Raises: ValueError for an unknown model or data set, data that cannot be read, options that do not suit the data or
    each other, or a checkpoint that does not suit the model.
    """
    resumed = output if resuming else None
    images, config = meanwhile(lambda: prepare_data(config, data, say, resumed, typed), accelerator)
    set_seed(config.seed)
    model = starting_model(config, images.dataset, say)
    images = replace(images, dataset=normalised_as(model, images.dataset))
    return assemble(config, images, model, output, accelerator, say, show), images


def prepare_data(
    config: TrainConfig, data: str, say: Say, resumed: Path | None = None, typed: Collection[str] = ()
) -> tuple[RunImages, TrainConfig]:
    """The images at the size that the model takes them, and the configuration without what does not suit them.

    ``resumed`` is the directory of the run that goes on. Raises: as ``build``.
    """
    asked_size = {} if config.img_size is None else {"img_size": config.img_size}
    config_of(config.model, **{**config.geometry, **asked_size})  # a wrong model is told before the data is read
    found = load_images(
        data,
        img_size=_hw(config.img_size) or partial(_suitable_size, config),
        in_chans=config.in_chans,
        skip_broken=config.skip_broken,
        classes=None if config.classes is None else [class_name(str(name)) for name in config.classes],
    )
    for line in found.skipped:
        say(f"skipped {line}")
    images = _shared_out(config, found, say, resumed, typed)
    for line in images.dataset.remarks:
        say(line)
    if config.augmentation.flip and not found.mirror_safe:
        config = replace(config, augmentation=replace(config.augmentation, flip=False))
        say(f"mirrored images of {found.name} are other classes or none: augmentation.flip is off")
    return images, config if config.overfit_batches is None else _without_variation(config, say)


def _shared_out(
    config: TrainConfig, found: LabelledSet, say: Say, resumed: Path | None, typed: Collection[str]
) -> RunImages:
    """What trains, what chooses and what tests: by the seed, and for a run that goes on as it was."""
    record = None if resumed is None else ImageRecord.read(resumed)
    if record is not None and not found.is_fixed:
        dataset, changes = record.restored(found)
        if str(changes):
            say(f"{changes}; the run goes on with the images that it was started with")
        return RunImages(without_copies(dataset), record)
    if found.is_fixed:
        return RunImages(split(config, as_dataset(found, config.seed))[0], None, is_fixed=True)
    if resumed is not None:  # a run of an earlier version
        return RunImages(split(config, as_dataset(cut_by_place(found), config.seed))[0], None)
    if found.unsplit is not None:
        shares = f"{found.name} comes unsplit: about 80 % of its images train, 10 % choose the best model, 10 % test it"
        if "validation_percent" in typed:
            raise ValueError(
                f"{shares}, so --validation-percent has no effect: leave it out, or put the images into folders train "
                "and test"
            )
        say(shares)
    whole, unused = split(config, as_dataset(found, config.seed))
    dataset, copies = without_copies(whole), copies_in_test(whole)
    parts = {TRAIN: dataset.train, VALIDATION: dataset.validation, TEST: dataset.test, UNUSED: unused, COPY: copies}
    present = {part: images for part, images in parts.items() if images is not None}
    return RunImages(dataset, ImageRecord.of(present, found))


def assemble(
    config: TrainConfig,
    images: RunImages,
    model: CeiT,
    output: Path,
    accelerator: Accelerator,
    say: Say,
    show: Show,
) -> Session:
    """The session of a network with its initial weights on data at its size."""
    device, dataset = accelerator.device, images.dataset
    train_split, validation = dataset.train, dataset.validation
    config = _with_batch_that_fits(config, len(train_split), accelerator.num_processes, say)
    if config.overfit_batches is not None:
        train_split = validation = _few(train_split, config.overfit_batches * config.global_batch_size, config.seed)
    train_loader, validation_loader = (
        None if part is None else _loader(part, config, dataset, accelerator, is_training)
        for part, is_training in ((train_split, True), (validation, False))
    )
    assert train_loader is not None
    dtype = torch.float64 if config.precision == "float64" else torch.float32
    model = model.to(device, dtype).train()
    if config.batch_norm == "sync" and accelerator.num_processes > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, but for a model that is one itself
    share = config.global_batch_size // accelerator.num_processes
    device_batch_size = config.device_batch_size if isinstance(config.device_batch_size, int) else None
    if warning := small_batch_warning(model, min(share, device_batch_size or share), config.batch_norm):
        say(warning)
    ema = (
        ModelEmaV3(
            model, config.ema.decay, use_warmup=config.ema.warmup, exclude_buffers=config.ema.batch_norm == "copy"
        )
        if config.ema.decay
        else None
    )
    model.set_grad_checkpointing(config.grad_checkpointing)
    trained = shared_gradients(model, accelerator)
    if config.compile:
        trained = cast("nn.Module", torch.compile(trained, dynamic=False))
    optimizer = make_optimizer(model, config)
    weights = balanced_weights(train_split.labels, len(dataset.class_names)) if config.class_weights != "none" else None

    told = images.told

    def save_best(best: CeiT, training: dict[str, Any]) -> None:
        if accelerator.is_main_process:
            options: dict[str, Any] = {
                "data": dataset.name,
                "seed": config.seed,
                "validation_percent": config.validation_percent,
                **told,
            }
            if config.classes is not None:
                options["classes"] = list(dataset.class_names)
            save_checkpoint(
                output / "model.safetensors",
                best,
                class_names=dataset.class_names,
                preprocessing=dataset.preprocessing,
                training=options | training,
            )

    def record(line: dict[str, Any]) -> None:
        if accelerator.is_main_process:
            with (output / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        accelerator.log(_scalars(line), step=line["step"])
        show(line)

    session = Session(
        config=config,
        class_names=dataset.class_names,
        accelerator=accelerator,
        autocast_dtype=_autocast_dtype(config, accelerator),
        model=model,
        trained=trained,
        optimizer=optimizer,
        scaler=GradScaler(device.type, enabled=config.precision == "fp16"),
        ema=ema,
        objective=Objective(
            config,
            len(dataset.class_names),
            None if weights is None else weights.to(device),
            make_teacher(config.distillation, dataset.class_names, dataset.preprocessing, device, dtype),
        ),
        backup=StatisticsBackup(model),
        train_loader=train_loader,
        validation_loader=validation_loader,
        checkpoints=output / "checkpoints",
        save_best=save_best,
        record=record,
        say=say,
        show=show,
    )
    session.plan(config.epochs_for(len(train_split)) * len(train_loader))
    return session


def starting_model(config: TrainConfig, dataset: ImageDataset, say: Say) -> CeiT:
    """The network with its initial weights: new ones, or a checkpoint's with a new head where the classes differ."""
    height, width = dataset.img_size
    geometry = {"img_size": (height, width), "in_chans": dataset.in_chans, "num_classes": len(dataset.class_names)}
    if config.initial_checkpoint is None:
        return CeiT(config_of(config.model, **{**config.geometry, **geometry}))
    model = create_model(config.model, checkpoint=config.initial_checkpoint, **geometry, **config.geometry)
    if model.class_names is not None and tuple(model.class_names) != dataset.class_names:
        model.reset_classifier(len(dataset.class_names))
    say(f"starting from the weights of {config.initial_checkpoint}, at {height} x {width} pixels")
    return model


def normalised_as(model: CeiT, dataset: ImageDataset) -> ImageDataset:
    """The data normalised as the model's images were, if it was trained before: what it has learnt expects that."""
    if model.preprocessing is None:
        return dataset
    known = Preprocessing.from_dict(model.preprocessing)
    return replace(dataset, mean=known.mean, std=known.std) if len(known.mean) == dataset.in_chans else dataset


def split(config: TrainConfig, dataset: ImageDataset) -> tuple[ImageDataset, Split | None]:
    """The set with training and validation images as this run takes them, and those that it leaves unused.

    Without a validation split of its own one is cut from the training images; of those that are left as many train as
    asked for, of each class at least one.
    """
    train, validation, unused = dataset.train, dataset.validation, None
    if validation is None and config.validation_percent > 0:
        try:
            train, validation = cut_validation(train, float(config.validation_percent), config.seed)
        except ValueError as error:
            raise ValueError(
                f"validation_percent {config.validation_percent:g}: {error}; add images or a validation part, or set "
                "validation_percent 0 and select last"
            ) from error
    if config.train_percent < 100:
        count = round(len(train) * config.train_percent / 100)
        try:
            unused, train = cut_validation(train, count, config.seed, SHARE_STREAM, least=1)
        except ValueError as error:
            raise ValueError(
                f"train_percent {config.train_percent} leaves {count} of {len(train)} images: it must leave at least "
                "one, and leave out one of each class; 100 takes all"
            ) from error
    return replace(dataset, train=train, validation=validation), unused


def evaluation_loader(part: Split, config: TrainConfig, dataset: ImageDataset, accelerator: Accelerator) -> Loader:
    """Images as prediction sees them, this process's share of them."""
    return _loader(part, config, dataset, accelerator, is_training=False)


def _loader(
    part: Split, config: TrainConfig, dataset: ImageDataset, accelerator: Accelerator, is_training: bool
) -> Loader:
    varied = is_training and config.overfit_batches is None
    return make_loader(
        part,
        batch_size=config.global_batch_size if is_training else EVALUATION_BATCH,
        img_size=dataset.img_size,
        preprocessing=dataset.preprocessing,
        augmentation=config.augmentation if varied else None,
        seed=config.seed,
        shuffle=varied,
        sampling=config.sampling if varied else "shuffle",
        shard_window=config.shard_window if varied else 0,
        drop_last=is_training,
        workers=config.workers,
        pin_memory=accelerator.device.type == "cuda",
        shard=(accelerator.process_index, accelerator.num_processes),
        limit_batches=config.limit_batches,
    )


def _autocast_dtype(config: TrainConfig, accelerator: Accelerator) -> torch.dtype | None:
    if config.precision == "float64":
        return None
    return from_main(autocast_dtype(config.precision, accelerator.device), accelerator)


def _with_batch_that_fits(config: TrainConfig, images: int, processes: int, say: Say) -> TrainConfig:
    """A few steps an epoch even for a handful of images; even shares, for Mixup."""
    if images >= config.global_batch_size:
        return config
    unit = 2 * processes
    batch_size = max(unit, images // 4 // unit * unit)
    say(f"{images} training images: global_batch_size is {batch_size}, not {config.global_batch_size}")
    return replace(config, global_batch_size=batch_size)


def _few(part: Split, images: int, seed: int) -> Split:
    chosen = shuffled(len(part), seed, _OVERFIT_ORDER)[:images]
    return part.subset(torch.from_numpy(chosen.astype("int64")))


def _without_variation(config: TrainConfig, say: Say) -> TrainConfig:
    say(
        f"overfitting at most {config.overfit_batches} batches: no augmentation, mixing, drop path or label smoothing, "
        "and validation on the same images"
    )
    return replace(
        config,
        augmentation=Augmentation(flip=False),
        mixing=Mixing(),
        label_smoothing=0.0,
        geometry=config.geometry | {"drop_path_rate": 0.0},
    )


def _suitable_size(config: TrainConfig, native: tuple[int, int]) -> tuple[int, int]:
    """The data's size, at least ``SMALLEST_SIDE`` and at most twice the model's own, as a multiple of its patch."""
    model = config_of(config.model, **config.geometry)
    height, width = (
        math.ceil(min(max(SMALLEST_SIDE, side), 2 * own) / model.patch_size) * model.patch_size
        for side, own in zip(native, model.image_hw, strict=True)
    )
    return height, width


def _hw(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def _scalars(line: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            flat |= _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "step":
            flat[f"{prefix}{key}"] = value
    return flat
