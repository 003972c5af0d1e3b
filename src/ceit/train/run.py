"""One training run: from a recipe and a data set to a run directory.

A run directory holds ``config.yaml`` (resolved), ``metrics.jsonl``, ``model.safetensors`` and ``model.json`` (the best
model, with class names and preprocessing), ``test.json`` (the final report), ``tensorboard/`` and ``checkpoints/``
(full state, for resuming).
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor, nn

from ceit.data.record import FILE as IMAGES_FILE
from ceit.data.sources.choose import absolute
from ceit.data.splits import ImageDataset
from ceit.inference.backend import AsModule, prepare
from ceit.inference.cores import sharing_cores
from ceit.inference.device import machine
from ceit.model import CeiT
from ceit.paths import expanded
from ceit.train.assemble import Say, Show, build, evaluation_loader
from ceit.train.batch_norm import small_batch_warning
from ceit.train.checkpoint import DamagedError, Progress, checkpoints_in, load_state
from ceit.train.config import TrainConfig
from ceit.train.directory import (
    checkpoints_to_resume,
    cut_back,
    has_options_of,
    owned,
    require_same,
    saved_config,
    write_text,
)
from ceit.train.distributed import from_main, make_accelerator, together
from ceit.train.loop import Interrupted, fit
from ceit.train.metrics import Evaluation, evaluate
from ceit.train.probe import RangeTest, device_batch_that_fits, learning_rate_range_test, measured_budget
from ceit.train.session import Session
from ceit.weights import load_checkpoint


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
    typed: Collection[str] = (),
    say: Say = lambda message: None,
    show: Show = lambda state: None,
    observe_test: Callable[[Tensor, Tensor], object] | None = None,
    share_cores: bool = True,
) -> Result:
    """Train ``config.model`` on ``data`` (a name or a folder) into ``output``, and report on the test split.

    ``resume`` is ``auto`` (the newest checkpoint in ``output``, or a fresh start if there is none) or a checkpoint's
    path, behind which the others are dropped; the resolved configuration of the run then has to be the same. A run that
    starts over takes the steps that it was to take, if its options are. With ``time_budget_seconds``, which begin now,
    the run takes as many steps as end in time, with validation and report, at least one; a resumed run keeps its steps.
    ``typed`` are the options that somebody set for this run alone, and that are refused where the data leave them no
    effect. ``say`` gets messages, ``show`` the state after every step, ``observe_test`` logits and labels of the test
    split, batch by batch. Started by a launcher, every process calls this, and the main one alone writes, says and
    shows. With ``share_cores`` the number of threads on a CPU follows what other programs leave free, unless the same
    bits are wanted (``deterministic``) or ``OMP_NUM_THREADS`` is set.

    Raises: ValueError for bad options or data, an output directory that is not empty without ``resume``, or one that
    another run is writing; OSError for a checkpoint that cannot be read; Interrupted (a KeyboardInterrupt) after
    saving.
    """
    ends = math.inf if time_budget_seconds is None else time.monotonic() + time_budget_seconds
    config, output = _with_whole_paths(config), expanded(output)
    accelerator = make_accelerator(config, log_with="tensorboard", project_dir=output)
    if not accelerator.is_main_process:
        say, show = _ignore, _ignore
    own = owned(output, resume is not None, say) if accelerator.is_main_process else nullcontext()
    follows = share_cores and _may_change_threads(config, accelerator)
    with own, deterministic(config.deterministic), together(accelerator), sharing_cores(follows, say) as cores:
        checkpoints = from_main(checkpoints_to_resume(output, resume), accelerator)
        was_begun = from_main(resume is not None and (output / "config.yaml").is_file(), accelerator)
        saved = saved_config(output) if checkpoints or was_begun else {}
        if checkpoints:
            if saved.get("images") == IMAGES_FILE and not (output / IMAGES_FILE).is_file():
                raise ValueError(
                    f"{output / IMAGES_FILE} is missing, without it the run cannot be resumed: put it back"
                )
            config = _as_measured_before(config, saved)
            if time_budget_seconds is not None:
                time_budget_seconds, config = None, replace(config, epochs=saved["epochs"])
                say("a resumed run keeps its number of steps: the time budget changes nothing")
        session, images = build(config, data, output, accelerator, say, show, resuming=bool(checkpoints), typed=typed)
        session.cores = cores
        dataset = images.dataset
        _find_device_batch(session)
        config = session.config
        if time_budget_seconds is not None:
            _plan_within(time_budget_seconds, ends, session, len(dataset.test))
        elif (
            saved
            and config.epochs in (None, saved["epochs"])
            and (checkpoints or has_options_of(saved, describe(session, data, dataset)))
        ):
            session.plan(saved.get("steps", saved["epochs"] * len(session.train_loader)))
        if saved and not checkpoints:
            say(f"{output} holds no checkpoint yet: the run starts over, and takes {session.total_steps} steps")
        session.config = replace(config, epochs=session.epochs)
        description = describe(session, data, dataset) | ({} if images.record is None else {"images": IMAGES_FILE})
        if checkpoints:
            for change in require_same(saved, description):
                say(f"resumed with another option: {change}")
            if saved["data"] != description["data"] and accelerator.is_main_process:  # the next time it is found
                moved = {**saved, "data": description["data"]}
                write_text(output / "config.yaml", yaml.safe_dump(moved, sort_keys=False))
            _take_up(session, checkpoints, output)
        elif accelerator.is_main_process:
            if images.record is not None:
                images.record.write(output)
            write_text(output / "config.yaml", yaml.safe_dump(description, sort_keys=False))
            write_text(output / "metrics.jsonl", "")
        say(_summary(session, dataset, description["precision"]))
        tensorboard = {"purge_step": session.progress.step + 1} if checkpoints else {}
        accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": tensorboard})
        try:
            fit(session)
            return _report(session, dataset, output, observe_test)
        except Interrupted as stop:
            raise Interrupted(
                f"{stop}; go on with: ceit train --output {output} --resume auto", stop.terminated
            ) from None
        finally:
            accelerator.end_training()


def find_learning_rate(config: TrainConfig, data: str, output: Path, *, say: Say = lambda message: None) -> RangeTest:
    """A learning rate range test of the run that ``train`` would make; ``output`` gets ``lr_range_test.json``.

    Raises: ValueError as ``train``.
    """
    config, output = _with_whole_paths(config), expanded(output)
    accelerator = make_accelerator(config, project_dir=output)
    is_main = accelerator.is_main_process
    own = owned(output, resuming=False, say=say) if is_main else nullcontext()
    with own, deterministic(config.deterministic), together(accelerator):
        accelerator.wait_for_everyone()
        session, _ = build(config, data, output, accelerator, say if is_main else _ignore, _ignore)
        _find_device_batch(session)
        result = learning_rate_range_test(session)
        if is_main:
            write_text(output / "lr_range_test.json", json.dumps(result._asdict(), indent=1) + "\n")
    return result


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Kernels that give the same bits every time, process-wide; an operation that has none raises RuntimeError."""
    before = torch.are_deterministic_algorithms_enabled()
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it is first used
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def describe(session: Session, data: str, dataset: ImageDataset) -> dict[str, Any]:
    """The resolved configuration: every option with the value that this run uses."""
    height, width = dataset.img_size
    precision = session.config.precision
    if precision == "auto":
        precision = "float32" if session.autocast_dtype is None else "bf16"
    return {
        "data": absolute(data),
        "found": _found(dataset),
        **session.config.as_dict(),
        "img_size": [height, width],
        "in_chans": dataset.in_chans,
        "precision": precision,
        "steps": session.total_steps,
    }


def _find_device_batch(session: Session) -> None:
    """Of ``device_batch_size`` auto, the number; said if it is small for BatchNorm."""
    if session.config.device_batch_size == "auto":
        size = device_batch_that_fits(session)
        session.config = replace(session.config, device_batch_size=size)
        if size is not None and (warning := small_batch_warning(session.model, size, session.config.batch_norm)):
            session.say(warning)


def _plan_within(seconds: float, ends: float, session: Session, test_images: int) -> None:
    """As many steps as end in time; what they are chosen by is measured, and said."""
    budget = measured_budget(seconds, ends, session, test_images)
    steps = from_main(budget.steps_that_fit(0), session.accelerator)
    session.plan(steps)
    session.budget = budget
    session.say(
        f"{max(0.0, ends - time.monotonic()):.0f} s are left: a step takes {budget.step_seconds:.3g} s, the end of an "
        f"epoch {budget.epoch_end_seconds:.3g} s, the report {budget.report_seconds:.3g} s; so {steps} steps, "
        f"{steps / len(session.train_loader):.3g} epochs"
    )


def _may_change_threads(config: TrainConfig, accelerator: Accelerator) -> bool:
    """Whether the number of threads may follow the free cores: it changes the order of sums, and what is compiled."""
    alone = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
    return alone and not config.deterministic and not config.compile


def _with_whole_paths(config: TrainConfig) -> TrainConfig:
    """Files named so that they are found from any directory, when the run is resumed."""
    if config.initial_checkpoint is not None:
        config = replace(config, initial_checkpoint=_whole_path(config.initial_checkpoint))
    if config.distillation.checkpoint is not None:
        taught = replace(config.distillation, checkpoint=_whole_path(config.distillation.checkpoint))
        config = replace(config, distillation=taught)
    return config


def _whole_path(name: str) -> str:
    return str(expanded(name).resolve())


def _as_measured_before(config: TrainConfig, saved: dict[str, Any]) -> TrainConfig:
    """What the run's start has measured or seen in its images; a busy machine, and more images, may give another."""
    if config.precision == "auto":
        config = replace(config, precision=saved["precision"])
    if config.device_batch_size == "auto":
        config = replace(config, device_batch_size=saved["device_batch_size"])
    if config.img_size is None:
        config = replace(config, img_size=tuple(saved["img_size"]))
    if config.in_chans is None:
        config = replace(config, in_chans=saved["in_chans"])
    return config


def _found(dataset: ImageDataset) -> str:
    """What the data were when the run was started."""
    sizes = [0 if part is None else len(part) for part in (dataset.train, dataset.validation, dataset.test)]
    names = hashlib.sha256("\n".join(dataset.class_names).encode()).hexdigest()[:8]
    return "{} training, {} validation and {} test images of {} classes ({})".format(
        *sizes, len(dataset.class_names), names
    )


def _summary(session: Session, dataset: ImageDataset, precision: str) -> str:
    config, accelerator = session.config, session.accelerator
    validation = 0 if session.validation_loader is None else session.validation_loader.images
    shared = f" in {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    return (
        f"{config.model} on {dataset.name}: {len(dataset.class_names)} classes, "
        f"{session.train_loader.images} training images an epoch, {validation} for validation, "
        f"{session.epochs} epochs of {len(session.train_loader)} steps of {config.global_batch_size} images{shared}, "
        f"learning rate up to {config.scaled_lr:g}, {precision}, {accelerator.device}"
    )


def _take_up(session: Session, checkpoints: list[Path], output: Path) -> None:
    """Go on from the first checkpoint that can be read; what lies behind it is dropped, the run writes it again."""
    planned = session.total_steps
    for checkpoint in checkpoints:
        try:
            session.progress, processes = load_state(checkpoint, session.parts())
        except DamagedError as error:
            if checkpoint == checkpoints[-1]:
                raise
            session.say(f"{error}; taking the one before")
            continue
        session.plan(session.progress.steps or planned)
        is_another = from_main(_kept_model_is_another(session, output), session.accelerator)
        session.accelerator.wait_for_everyone()
        if session.accelerator.is_main_process:
            later = [path for path in checkpoints_in(output / "checkpoints") if path.name > checkpoint.name]
            if later:
                names = ", ".join(path.name for path in later)
                session.say(f"later checkpoints are dropped, the run writes them again: {len(later)} ({names})")
            for path in later:
                path.unlink()
            cut_back(output / "metrics.jsonl", session.progress.step, session.progress.epoch)
        if is_another:
            session.progress.best_score, session.progress.best = Progress().best_score, {}
        session.say(f"resumed after step {session.progress.step} of {session.total_steps} from {checkpoint}")
        if processes != session.accelerator.num_processes:
            session.say(
                f"the run had {processes} processes, now {session.accelerator.num_processes}: the images of "
                "each step stay the same, what is drawn in a process (mixing, drop path) and the images that share "
                "BatchNorm's statistics change from here on"
            )
        return


def _kept_model_is_another(session: Session, output: Path) -> bool:
    """Whether the run was stopped between keeping a model and saving its state: then the next one is kept anew.

    Raises: ValueError if the model is gone, or if the run has ended, so that no other would be kept.
    """
    best, side = session.progress.best, output / "model.json"
    if best and (missing := [name for name in ("model.safetensors", side.name) if not (output / name).is_file()]):
        raise ValueError(
            f"{output} lacks {' and '.join(missing)} of epoch {best['epoch']}, the best so far: put back what was "
            "moved, or name another --output for a new run"
        )
    kept = json.loads(side.read_text(encoding="utf-8"))["training"] if side.is_file() else {}
    is_another = any(kept.get(key) != best.get(key) for key in ("epoch", "weights"))
    if best and is_another and session.progress.epoch >= session.epochs:
        raise ValueError(
            f"{side} is not of the model that the finished run has kept, of epoch {best['epoch']}: put that one "
            "back, or name another --output for a new run"
        )
    return is_another


def _report(
    session: Session,
    dataset: ImageDataset,
    output: Path,
    observe: Callable[[Tensor, Tensor], object] | None,
) -> Result:
    """The best model, as it was saved, on the test split: looked at once, after every choice was made."""
    session.accelerator.wait_for_everyone()
    device = session.accelerator.device
    model = load_checkpoint(output / "model.safetensors").to(device, session.dtype)
    test = evaluate(
        _deployed(model, session),
        evaluation_loader(dataset.test, session.config, dataset, session.accelerator),
        class_names=dataset.class_names,
        device=device,
        dtype=session.dtype,
        observe=observe,
        cores=session.cores,
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
        "machine": machine(device),
        **test.as_dict(),
    }
    if session.accelerator.is_main_process:
        write_text(output / "test.json", json.dumps(report, indent=1) + "\n")
        cut_back(output / "metrics.jsonl", progress.step, progress.epoch, drop="test")
        short = {key: value for key, value in test.as_dict().items() if key != "confusion"}
        session.record({"event": "test", "step": progress.step, **short})
    return Result(output, model, dataset, test, progress.best, progress.elapsed_seconds)


def _deployed(model: CeiT, session: Session) -> nn.Module:
    """The network as prediction computes it, in float32 where the run's precision is one of training only.

    In float64 it is the model itself: nothing but training computes in that.
    """
    if session.dtype == torch.float64:
        return model
    precision = "bf16" if session.autocast_dtype == torch.bfloat16 else "float32"
    return AsModule(prepare(model, "eager", precision, image_shape=(model.config.in_chans, *model.config.image_hw)))


def _ignore(_: object) -> None:
    """What the other processes of a run say and show."""
