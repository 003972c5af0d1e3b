"""One training run: from a recipe and a data set to a run directory.

A run directory holds ``config.yaml`` (resolved), ``metrics.jsonl``, ``model.safetensors`` and ``model.json`` (the best
model, with class names and preprocessing), ``test.json`` (the final report), ``tensorboard/`` and ``checkpoints/``
(full state, for resuming).
"""

import copy
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3

import ceit
from ceit.data.dataset import ImageDataset, Split, cut_validation, load_dataset
from ceit.data.loader import Loader, make_loader
from ceit.data.sources import SETS
from ceit.inference.device import autocast_dtype
from ceit.model import CeiT, config_of
from ceit.train.checkpoint import checkpoints_in, load_state
from ceit.train.config import TrainConfig
from ceit.train.directory import (
    checkpoints_to_resume,
    cut_back,
    lines_of,
    owned,
    require_same,
    saved_config,
    write_text,
)
from ceit.train.loop import Interrupted, Session, fit, train_step, validate
from ceit.train.metrics import Evaluation, evaluate
from ceit.train.optimizer import make_optimizer, make_schedule
from ceit.weights import load_checkpoint, save_checkpoint

SMALLEST_SIDE = 16  # pixels; smaller images are enlarged, so that there are tokens to attend to
EVALUATION_BATCH = 250
Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What a finished run found: the best model on the test split, and where it lies."""

    output: Path
    model: CeiT
    dataset: ImageDataset
    test: Evaluation
    best: dict[str, Any]
    train_seconds: float


def train(
    config: TrainConfig,
    data: str,
    output: Path,
    *,
    resume: str | None = None,
    time_budget_seconds: float | None = None,
    say: Say = lambda message: None,
    show: Callable[[dict[str, Any]], None] = lambda state: None,
) -> Result:
    """Train ``config.model`` on ``data`` (a name or a folder) into ``output``, and report on the test split.

    ``resume`` is ``auto`` (the newest checkpoint in ``output``, or a fresh start if there is none) or a checkpoint's
    path; the resolved configuration of the run then has to be the same. ``say`` gets messages, ``show`` the state after
    every step.

    Raises: ValueError for bad options or data, an output directory that is not empty without ``resume``, or one that
    another run is writing; Interrupted (a KeyboardInterrupt) after saving.
    """
    accelerator = Accelerator(log_with="tensorboard", project_dir=output)
    if accelerator.num_processes > 1:
        raise ValueError(f"training runs in one process, not {accelerator.num_processes}: start it without a launcher")
    with owned(output, resume is not None):
        checkpoints = checkpoints_to_resume(output, resume)
        saved = saved_config(output) if checkpoints else {}
        if checkpoints and config.precision == "auto":
            config = replace(config, precision=saved["precision"])  # a busy machine may measure otherwise today
        if checkpoints and time_budget_seconds is not None:
            time_budget_seconds = None
            say(f"the time budget chose {saved['epochs']} epochs when this run was started; they stay")
        dataset, config = _dataset(config, data, say)
        set_seed(config.seed)
        session = _session(config, dataset, output, accelerator, show, say)
        if time_budget_seconds is not None:
            session.epochs = _epochs_within(time_budget_seconds, session, say)
        elif checkpoints and config.epochs is None:
            session.epochs = saved["epochs"]
        session.config = replace(session.config, epochs=session.epochs)
        session.schedule = make_schedule(session.optimizer, config, len(session.train_loader), session.epochs)
        description = _describe(session, data, dataset)
        if checkpoints:
            require_same(saved, description)
            _take_up(session, checkpoints, output, say)
        else:
            write_text(output / "config.yaml", yaml.safe_dump(description, sort_keys=False))
            write_text(output / "metrics.jsonl", "")
        say(
            f"{config.model} on {dataset.name}: {len(dataset.class_names)} classes, "
            f"{session.train_loader.images} training images an epoch, "
            f"{session.validation_loader.images} for validation, "
            f"{session.epochs} epochs of {len(session.train_loader)} steps, "
            f"{description['precision']}, {accelerator.device}"
        )
        accelerator.init_trackers("tensorboard")
        try:
            fit(session)
            return _report(session, dataset, output)
        except Interrupted as stop:
            raise Interrupted(
                f"{stop}; go on with: ceit train --output {output} --resume auto", stop.terminated
            ) from None
        finally:
            accelerator.end_training()


def _dataset(config: TrainConfig, data: str, say: Say) -> tuple[ImageDataset, TrainConfig]:
    """The data at the size that the model takes it, and the configuration without what does not suit it."""
    asked_size = {} if config.img_size is None else {"img_size": config.img_size}
    config_of(config.model, **{**config.geometry, **asked_size})  # a wrong model is told before the data is read
    options = {"in_chans": config.in_chans, "seed": config.seed, "skip_broken": config.skip_broken}
    dataset = load_dataset(data, img_size=_hw(config.img_size), **options)
    if config.img_size is None and (size := _suitable_size(config, dataset.img_size)) != dataset.img_size:
        dataset = load_dataset(data, img_size=size, **options)
    for line in dataset.skipped:
        say(f"skipped {line}")
    if config.augmentation.flip and not dataset.mirror_safe:
        config = replace(config, augmentation=replace(config.augmentation, flip=False))
        say(f"mirrored images of {dataset.name} are other classes or none: augmentation.flip is off")
    return dataset, config


def _take_up(session: Session, checkpoints: list[Path], output: Path, say: Say) -> None:
    """Go on from the first checkpoint that can be read; what lies behind it is dropped, the run writes it again."""
    for checkpoint in checkpoints:
        try:
            session.progress = load_state(
                checkpoint, session.model, session.ema.module if session.ema else None, session.optimizer
            )
        except ValueError as error:
            if checkpoint == checkpoints[-1]:
                raise
            say(f"{error}; taking the one before")
            continue
        for later in checkpoints_in(output / "checkpoints"):
            if later.name > checkpoint.name:
                later.unlink()
        cut_back(output / "metrics.jsonl", session.progress.step)
        say(f"resumed after step {session.progress.step} of {session.total_steps} from {checkpoint}")
        return


def _session(
    config: TrainConfig,
    dataset: ImageDataset,
    output: Path,
    accelerator: Accelerator,
    show: Callable[[dict[str, Any]], None],
    say: Say,
) -> Session:
    height, width = dataset.img_size
    geometry = {"img_size": (height, width), "in_chans": dataset.in_chans, "num_classes": len(dataset.class_names)}
    model_config = config_of(config.model, **{**config.geometry, **geometry})
    train_split, validation = _splits(config, dataset)
    processes = accelerator.num_processes
    if len(train_split) < config.global_batch_size:
        batch_size = max(2, len(train_split) // 8 * 2)  # a few steps an epoch even for a handful; even, for Mixup
        say(f"{len(train_split)} training images: global_batch_size is {batch_size}, not {config.global_batch_size}")
        config = replace(config, global_batch_size=batch_size)
    loaders = [
        make_loader(
            split,
            batch_size=size,
            img_size=dataset.img_size,
            preprocessing=dataset.preprocessing,
            augmentation=augmentation,
            seed=config.seed,
            shuffle=augmentation is not None,
            drop_last=augmentation is not None,
            workers=config.workers,
            shard=(accelerator.process_index, processes),
        )
        for split, size, augmentation in (
            (train_split, config.global_batch_size, config.augmentation),
            (validation, EVALUATION_BATCH, None),
        )
    ]
    model = CeiT(model_config).to(accelerator.device)
    ema = (
        ModelEmaV3(model, config.ema.decay, use_warmup=config.ema.warmup, exclude_buffers=True)
        if config.ema.decay
        else None
    )
    optimizer = make_optimizer(model, config)
    trained, optimizer = accelerator.prepare(model, optimizer)
    epochs = config.epochs_for(len(train_split))

    def save_best(best: CeiT, training: dict[str, Any]) -> None:
        if accelerator.is_main_process:
            save_checkpoint(
                output / "model.safetensors",
                best,
                class_names=dataset.class_names,
                preprocessing=dataset.preprocessing,
                training={
                    "data": dataset.name,
                    "seed": config.seed,
                    "validation_percent": config.validation_percent,
                    **training,
                },
            )

    def record(line: dict[str, Any]) -> None:
        if accelerator.is_main_process:
            with (output / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        accelerator.log(_scalars(line), step=line["step"])
        show(line)

    return Session(
        config=config,
        epochs=epochs,
        class_names=dataset.class_names,
        accelerator=accelerator,
        autocast_dtype=autocast_dtype(config.precision, accelerator.device),
        model=model,
        trained=trained,
        optimizer=optimizer,
        schedule=make_schedule(optimizer, config, len(loaders[0]), epochs),
        ema=ema,
        train_loader=loaders[0],
        validation_loader=loaders[1],
        checkpoints=output / "checkpoints",
        save_best=save_best,
        record=record,
        show=show,
    )


def _splits(config: TrainConfig, dataset: ImageDataset) -> tuple[Split, Split]:
    """Training and validation images: the data set's own validation split, else one cut from the training images."""
    if dataset.validation is not None:
        return dataset.train, dataset.validation
    return cut_validation(dataset.train, float(config.validation_percent), config.seed)


def _report(session: Session, dataset: ImageDataset, output: Path) -> Result:
    """The best model, as it was saved, on the test split: looked at once, after every choice was made."""
    model = load_checkpoint(output / "model.safetensors").to(session.accelerator.device)
    loader: Loader = make_loader(
        dataset.test,
        batch_size=EVALUATION_BATCH,
        img_size=dataset.img_size,
        preprocessing=dataset.preprocessing,
        workers=session.config.workers,
        shard=(session.accelerator.process_index, session.accelerator.num_processes),
    )
    test = evaluate(
        model,
        loader,
        class_names=dataset.class_names,
        device=session.accelerator.device,
        autocast_dtype=session.autocast_dtype,
    )
    progress = session.progress
    report = {
        "data": dataset.name,
        "model": session.config.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": session.config.seed,
        "epochs": session.epochs,
        "best": progress.best,
        "train_seconds": round(progress.elapsed_seconds, 1),
        "machine": machine(session.accelerator.device),
        **test.as_dict(),
    }
    if session.accelerator.is_main_process:
        write_text(output / "test.json", json.dumps(report, indent=1) + "\n")
        cut_back(output / "metrics.jsonl", progress.step, drop="test")
        short = {key: value for key, value in test.as_dict().items() if key != "confusion"}
        session.record({"event": "test", "step": progress.step, **short})
    return Result(output, model, dataset, test, progress.best, progress.elapsed_seconds)


def machine(device: torch.device) -> dict[str, Any]:
    """The machine that a figure was measured on."""
    names = [line.split(":", 1)[1].strip() for line in lines_of(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ceit": ceit.__version__,
    }


def _describe(session: Session, data: str, dataset: ImageDataset) -> dict[str, Any]:
    """The resolved configuration: every option with the value that this run uses."""
    height, width = dataset.img_size
    return {
        "data": data if data in SETS else str(Path(data).expanduser().resolve()),
        **session.config.as_dict(),
        "img_size": [height, width],
        "in_chans": dataset.in_chans,
        "precision": "float32" if session.autocast_dtype is None else "bf16",
    }


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


def _epochs_within(budget_seconds: float, session: Session, say: Say) -> int:
    """Epochs that fit, by the measured time of a few steps and of one validation; the weights are put back."""
    before = copy.deepcopy(session.model.state_dict())
    optimizer_before = copy.deepcopy(session.optimizer.state_dict())
    batches = session.train_loader.epoch(0)
    times = []
    session.trained.train()
    with torch.random.fork_rng():
        for step in range(min(8, len(session.train_loader))):
            began = time.perf_counter()
            train_step(session, *next(batches), step)
            times.append(time.perf_counter() - began)
    began = time.perf_counter()
    validate(session, session.model)
    validation_seconds = (time.perf_counter() - began) * (2 if session.ema else 1)
    session.model.load_state_dict(before)
    session.optimizer.load_state_dict(optimizer_before)
    if session.ema is not None:
        session.ema.set(session.model)
    step_seconds = sorted(times)[len(times) // 2]
    epoch_seconds = step_seconds * len(session.train_loader) + validation_seconds
    epochs = max(1, int(0.95 * budget_seconds / epoch_seconds))
    say(f"a step takes {step_seconds:.2f} s, an epoch {epoch_seconds:.0f} s: {epochs} epochs in {budget_seconds:.0f} s")
    if epoch_seconds > budget_seconds:
        say(f"one epoch takes longer than the time budget of {budget_seconds:.0f} s; it is run all the same")
    return epochs


def _scalars(line: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            flat |= _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "step":
            flat[f"{prefix}{key}"] = value
    return flat
