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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from ceit.inference.device import autocast_dtype
from ceit.model import CeiT, config_of
from ceit.train.checkpoint import checkpoints_in, load_state
from ceit.train.config import TrainConfig
from ceit.train.loop import Interrupted, Session, fit, train_step, validate
from ceit.train.metrics import Evaluation, evaluate
from ceit.train.optimizer import make_optimizer, make_schedule
from ceit.weights import load_checkpoint, save_checkpoint
from ceit.weights.atomic import replace_files

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None

LOCK = ".lock"
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
    with _owned(output, resume is not None):
        accelerator = Accelerator(log_with="tensorboard", project_dir=output)
        checkpoint = _checkpoint_to_resume(output, resume)
        asked_size = {} if config.img_size is None else {"img_size": config.img_size}
        config_of(config.model, **{**config.geometry, **asked_size})  # a wrong model is told before the data is read
        set_seed(config.seed)
        dataset = load_dataset(
            data,
            img_size=_hw(config.img_size),
            in_chans=config.in_chans,
            seed=config.seed,
            skip_broken=config.skip_broken,
        )
        if config.img_size is None and (size := _suitable_size(config, dataset.img_size)) != dataset.img_size:
            dataset = load_dataset(
                data, img_size=size, in_chans=config.in_chans, seed=config.seed, skip_broken=config.skip_broken
            )
        for line in dataset.skipped:
            say(f"skipped {line}")
        if config.augmentation.flip and not dataset.mirror_safe:
            config = replace(config, augmentation=replace(config.augmentation, flip=False))
            say(f"mirrored images of {dataset.name} are other classes or none: augmentation.flip is off")
        session = _session(config, dataset, output, accelerator, show)
        resolved: dict[str, Any] = {}
        if checkpoint is not None:
            resolved = yaml.safe_load((output / "config.yaml").read_text(encoding="utf-8"))
            session.epochs = resolved["epochs"]
        elif time_budget_seconds is not None:
            session.epochs = _epochs_within(time_budget_seconds, session, say)
        session.config = replace(config, epochs=session.epochs)
        session.schedule = make_schedule(session.optimizer, config, len(session.train_loader), session.epochs)
        description = _describe(session, data, dataset)
        if checkpoint is None:
            _write_text(output / "config.yaml", yaml.safe_dump(description, sort_keys=False))
            (output / "metrics.jsonl").write_text("", encoding="utf-8")
        else:
            _require_same(resolved, description)
            session.progress = load_state(
                checkpoint, session.model, session.ema.module if session.ema else None, session.optimizer
            )
            _cut_back(output / "metrics.jsonl", session.progress.step)
            say(f"resumed after step {session.progress.step} of {session.total_steps} from {checkpoint}")
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
        except Interrupted as stop:
            raise Interrupted(
                f"{stop}; go on with: ceit train --output {output} --resume auto", stop.terminated
            ) from None
        finally:
            accelerator.end_training()
        return _report(session, dataset, output)


def _session(
    config: TrainConfig,
    dataset: ImageDataset,
    output: Path,
    accelerator: Accelerator,
    show: Callable[[dict[str, Any]], None],
) -> Session:
    height, width = dataset.img_size
    geometry = {"img_size": (height, width), "in_chans": dataset.in_chans, "num_classes": len(dataset.class_names)}
    model_config = config_of(config.model, **{**config.geometry, **geometry})
    train_split, validation = _splits(config, dataset)
    processes = accelerator.num_processes
    if len(train_split) < config.global_batch_size:
        batch_size = max(processes, len(train_split) // 4)  # a few steps an epoch even for a handful of images
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
    return cut_validation(dataset.train, config.validation_percent, config.seed)


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
        _write_text(output / "test.json", json.dumps(report, indent=1) + "\n")
        _cut_back(output / "metrics.jsonl", progress.step, drop="test")
        short = {key: value for key, value in test.as_dict().items() if key != "confusion"}
        session.record({"event": "test", "step": progress.step, **short})
    return Result(output, model, dataset, test, progress.best, progress.elapsed_seconds)


def machine(device: torch.device) -> dict[str, Any]:
    """The machine that a figure was measured on."""
    names = [line.split(":", 1)[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ceit": ceit.__version__,
    }


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _describe(session: Session, data: str, dataset: ImageDataset) -> dict[str, Any]:
    """The resolved configuration: every option with the value that this run uses."""
    height, width = dataset.img_size
    return {
        "data": data,
        **session.config.as_dict(),
        "img_size": [height, width],
        "in_chans": dataset.in_chans,
        "precision": "float32" if session.autocast_dtype is None else "bf16",
    }


def _require_same(saved: dict[str, Any], asked: dict[str, Any]) -> None:
    for key, value in saved.items():
        if key != "precision" and asked.get(key) != value:
            raise ValueError(
                f"this run was started with {key} {value}, not {asked.get(key)}: a resumed run keeps its options"
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


def _epochs_within(budget_seconds: float, session: Session, say: Say) -> int:
    """Epochs that fit, by the measured time of a few steps and of one validation; the weights are put back."""
    before = copy.deepcopy(session.model.state_dict())
    optimizer_before = copy.deepcopy(session.optimizer.state_dict())
    generator = torch.get_rng_state()
    batches = session.train_loader.epoch(0)
    times = []
    session.trained.train()
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
    torch.set_rng_state(generator)
    step_seconds = sorted(times)[len(times) // 2]
    epoch_seconds = step_seconds * len(session.train_loader) + validation_seconds
    epochs = max(1, int(0.95 * budget_seconds / epoch_seconds))
    say(f"a step takes {step_seconds:.2f} s, an epoch {epoch_seconds:.0f} s: {epochs} epochs in {budget_seconds:.0f} s")
    if epoch_seconds > budget_seconds:
        say(f"one epoch takes longer than the time budget of {budget_seconds:.0f} s; it is run all the same")
    return epochs


@contextmanager
def _owned(output: Path, resuming: bool) -> Iterator[None]:
    """The output directory, for this run alone; a run that fails before it has written anything leaves nothing behind.

    Raises: ValueError if the directory holds something or another run is writing it.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {output} is a file; name a directory")
    lock_file = output / LOCK
    is_new = not output.is_dir()
    if not resuming and not is_new and any(path != lock_file for path in output.iterdir()):
        raise ValueError(f"output directory {output} is not empty; name another, or go on with --resume auto")
    output.mkdir(parents=True, exist_ok=True)
    owned = False
    try:
        with lock_file.open("w") as lock:
            try:
                if fcntl is not None:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(f"output directory {output} is in use by another run; name another") from error
            owned = True
            yield
    finally:
        if owned:
            lock_file.unlink()
            if is_new and not any(output.iterdir()):
                output.rmdir()


def _checkpoint_to_resume(output: Path, resume: str | None) -> Path | None:
    if resume is None:
        return None
    if resume != "auto":
        if not Path(resume).is_file():
            raise ValueError(
                f"checkpoint {resume} does not exist; --resume auto takes the newest of {output / 'checkpoints'}"
            )
        return Path(resume)
    found = checkpoints_in(output / "checkpoints")
    return found[-1] if found else None


def _cut_back(metrics: Path, step: int, drop: str | None = None) -> None:
    """Drop the lines behind ``step``, which the resumed run writes again."""
    lines = [json.loads(line) for line in _lines(metrics)]
    kept = [line for line in lines if line["step"] <= step and line["event"] != drop]
    _write_text(metrics, "".join(json.dumps(line) + "\n" for line in kept))


def _scalars(line: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            flat |= _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "step":
            flat[f"{prefix}{key}"] = value
    return flat


def _write_text(path: Path, text: str) -> None:
    replace_files({path: text.encode()})
