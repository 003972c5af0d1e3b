"""One training run: from a recipe and a data set to a run directory. ``resolve``, then train, then report."""

import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ceit.atomic import write_text
from ceit.data.splits import ImageDataset
from ceit.evaluation.metrics import Evaluation
from ceit.inference.cores import sharing_cores
from ceit.messages import Say
from ceit.model import CeiT
from ceit.paths import expanded
from ceit.train.batch_norm import warn_of_small_batches
from ceit.train.batch_size import batch_for_run
from ceit.train.config import TrainConfig
from ceit.train.distributed import from_main, make_accelerator, naming_lost_processes
from ceit.train.learner import MakeModel, part_size, starting_model
from ceit.train.log import Show
from ceit.train.model_card import FILE as MODEL_CARD
from ceit.train.model_card import FinishedRun, model_card
from ceit.train.probe import RangeTest, device_batch_that_fits, learning_rate_range_test, measured_budget
from ceit.train.profiling import StepProfile
from ceit.train.resolve import COMPILED_SECONDS, ResolvedRun, resolve
from ceit.train.run_directory import RANGE_TEST, RunDirectory, SavedRun
from ceit.train.trackers import start_trackers
from ceit.train.trainer import Trainer
from ceit.weights.stored import is_here


def _in_silence(message: object) -> None:
    """For who wants no messages, and for all processes but the main one."""


@dataclass(frozen=True)
class Result:
    """What a finished run found: the best model on the test split, where it lies, and how many images chose it."""

    output: Path
    model: CeiT
    dataset: ImageDataset
    test: Evaluation
    best: dict[str, Any]
    train_seconds: float
    validation_images: int


def train(
    config: TrainConfig,
    data: str,
    output: Path,
    *,
    resume: str | None = None,
    time_budget_seconds: float | None = None,
    typed: Collection[str] = (),
    say: Say = _in_silence,
    show: Show = _in_silence,
    observe_test: Callable[[Tensor, Tensor], object] | None = None,
    profile: bool = False,
    share_cores: bool = True,
) -> Result:
    """Train ``config.model`` on ``data`` (a name or a folder) into ``output``, and report on the test split.

    ``resume``, ``time_budget_seconds``, ``typed``, ``say``, ``show`` and ``share_cores`` are as in ``begun``.
    ``observe_test`` gets logits and labels of the test split, batch by batch. ``profile`` writes where the time of some
    steps goes, see ``StepProfile``.

    Raises: ValueError and OSError as ``begun``; Interrupted (a KeyboardInterrupt) after saving.
    """
    with begun(
        config,
        data,
        output,
        resume=resume,
        time_budget_seconds=time_budget_seconds,
        typed=typed,
        say=say,
        show=show,
        share_cores=share_cores,
    ) as trainer:
        with _profiled(trainer) if profile else nullcontext():
            trainer.fit()
        model, test = trainer.report(observe_test)
        if trainer.directory.writes:
            card = model_card(FinishedRun.read(trainer.directory.path, trainer.description()))
            write_text(trainer.directory.path / MODEL_CARD, card)
        progress, chosen_by = trainer.progress, trainer.validation_loader
        return Result(
            trainer.directory.path,
            model,
            trainer.dataset,
            test,
            progress.best,
            progress.elapsed_seconds,
            0 if chosen_by is None else chosen_by.images,
        )


@contextmanager
def begun(
    config: TrainConfig,
    data: str,
    output: Path,
    *,
    resume: str | None = None,
    time_budget_seconds: float | None = None,
    steps: int | None = None,
    typed: Collection[str] = (),
    make_model: MakeModel = starting_model,
    say: Say = _in_silence,
    show: Show = _in_silence,
    share_cores: bool = True,
) -> Iterator[Trainer]:
    """A run in its directory, new or resumed: its trainer, ready to ``fit``.

    ``resume`` is ``auto`` (the newest checkpoint in ``output``, or a fresh start if there is none) or a checkpoint's
    path, behind which the others are dropped; the resolved configuration of the run then has to be the same. A run that
    starts over takes the steps that it was to take, if its options are. With ``time_budget_seconds``, which begin now,
    the run takes as many steps as end in time, with validation and report, at least one; a resumed run keeps its steps.
    ``steps`` are to be taken instead of the options' epochs; the last epoch may be cut short.
    ``typed`` are the options that were typed for this run: ``validation_percent`` among them is refused for data that
    leave it no effect. ``make_model`` makes another network than ``config.model``: see ``Trainer``.
    ``say`` gets messages, ``show`` the state after every step. Started by a launcher, every process calls this, and
    the main one alone writes, says and shows. With ``share_cores`` the number of threads on a CPU follows what other
    programs leave free, unless the same bits are wanted (``deterministic``) or ``OMP_NUM_THREADS`` is set.

    Raises: ValueError for bad options or data, an output directory that is not empty without ``resume``, or one that
    another run is writing; OSError for a checkpoint that cannot be read.
    """
    ends = math.inf if time_budget_seconds is None else time.monotonic() + time_budget_seconds
    output = expanded(output)
    accelerator = make_accelerator(config)
    time_budget_seconds = from_main(time_budget_seconds)  # less each one's own age: all must choose alike
    directory = RunDirectory(output, writes=accelerator.is_main_process)
    if not directory.writes:
        say, show = _in_silence, _in_silence
    # another number of threads changes the order of sums, and what is compiled
    is_alone = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
    may_change_threads = is_alone and not config.deterministic and config.compile is not True
    with (
        directory.reserved(resume is not None, say),
        deterministic(config.deterministic),
        naming_lost_processes(accelerator),
        sharing_cores(share_cores and may_change_threads, say) as cores,
    ):
        saved = from_main(directory.saved(resume))
        resumed = saved if saved is not None and saved.checkpoints else None
        if resumed is not None and time_budget_seconds is not None:
            time_budget_seconds, config = None, replace(config, epochs=resumed.config["epochs"])
            say("a resumed run keeps its number of steps: the time budget changes nothing")
        if time_budget_seconds is not None and time_budget_seconds < COMPILED_SECONDS and config.compile == "auto":
            config = replace(config, compile=False)
        run = resolve(config, data, accelerator, saved=saved, typed=typed, say=say)
        run = run if steps is None else run.in_steps(steps)
        if resumed is not None and make_model is starting_model:
            make_model = partial(_as_begun, resumed)
        parts: dict[str, Any] = {"cores": cores, "say": say, "show": show, "make_model": make_model}
        trainer = Trainer(run, directory, accelerator, **parts)
        _measure(trainer, time_budget_seconds, ends)
        if time_budget_seconds is not None and (smaller := _in_more_steps(trainer)) is not None:
            trainer = Trainer(smaller, directory, accelerator, **parts)
            _measure(trainer, time_budget_seconds, ends)
        run = trainer.run  # from here on nothing changes an option
        if resumed is not None:
            for change in directory.go_on(resumed, trainer.description()):
                say(f"resumed with another option: {change}")
            trainer.resume(resumed)
        elif saved is not None:
            say(f"{output} holds no checkpoint yet: the run starts over, and takes {run.steps} steps")
        if resumed is None:
            directory.begin(trainer.description(), run.images.record)
        say(_summary(trainer))
        failure: BaseException | None = None
        try:
            if directory.writes:
                step = (
                    None if saved is None else trainer.progress.step
                )  # 0 where it starts over: it replaces the curves
                start_trackers(accelerator, run.config.tracker or (), output, trainer.description(), step)
            yield trainer
        except BaseException as error:
            failure = error
            raise
        finally:
            trainer.learner.stop_sharing()
            trainer.log.trackers.end(failure)


def find_learning_rate(
    config: TrainConfig, data: str, output: Path, *, typed: Collection[str] = (), say: Say = _in_silence
) -> RangeTest:
    """A learning rate range test of the run that ``train`` would make; ``output`` gets ``lr_range_test.json``.

    Raises: ValueError as ``train``.
    """
    output = expanded(output)
    if (output / RANGE_TEST).exists():
        raise ValueError(f"{output / RANGE_TEST} is there already: remove it, or name another --output")
    accelerator = make_accelerator(config)
    directory = RunDirectory(output, writes=accelerator.is_main_process)
    say = say if directory.writes else _in_silence
    with (
        directory.reserved(resuming=False, say=say),
        deterministic(config.deterministic),
        naming_lost_processes(accelerator),
    ):
        accelerator.wait_for_everyone()
        run = resolve(config, data, accelerator, typed=typed, say=say)
        trainer = Trainer(run, directory, accelerator, say=say)
        _measure(trainer)
        result = learning_rate_range_test(trainer)
        trainer.learner.stop_sharing()
        if directory.writes:
            write_text(output / RANGE_TEST, json.dumps(result._asdict(), indent=1) + "\n")
    return result


def _as_begun(resumed: SavedRun, run: ResolvedRun, say: Say) -> nn.Module:
    """The network of a run that goes on: its weights come from its checkpoint, and those that it began with may be gone
    or others by now. All else its own model tells, once it has one.

    Raises: ValueError if they are gone, and it has none.
    """
    began_with = resumed.config.get("initial_checkpoint")
    if began_with is not None and resumed.model.is_file():
        run = replace(run, config=replace(run.config, initial_checkpoint=str(resumed.model)))
        return starting_model(run, _in_silence)
    if began_with is not None and not is_here(began_with):
        raise ValueError(f"the run began with the weights {began_with}, which are gone: put them back")
    return starting_model(run, say)


@contextmanager
def _profiled(trainer: Trainer) -> Iterator[None]:
    """Some steps of the main process are looked into."""
    left = trainer.progress.steps - trainer.progress.step
    if trainer.directory.writes and left:
        trainer.profile = StepProfile(trainer.directory.path, trainer.accelerator.device, left, trainer.say)
    try:
        yield
    finally:
        if trainer.profile is not None:
            trainer.profile.close()


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


def _measure(trainer: Trainer, time_budget_seconds: float | None = None, ends: float = math.inf) -> None:
    """Complete the run by what only its network can show: the batch that fits, and the steps that end in time."""
    config, say = trainer.run.config, trainer.say
    if config.device_batch_size == "auto":
        size = device_batch_that_fits(trainer)
        trainer.take(replace(trainer.run, config=replace(config, device_batch_size=size)))
        if size is not None:
            at_once = part_size(trainer.learner.share, size)
            warn_of_small_batches(trainer.learner.model, at_once, config.batch_norm, say)
    if time_budget_seconds is None:
        return
    trainer.budget = budget = measured_budget(time_budget_seconds, ends, trainer)
    steps = from_main(budget.steps_that_fit(0))
    trainer.take(trainer.run.in_steps(steps))
    say(
        f"{max(0.0, ends - time.monotonic()):.0f} s are left: a step takes {budget.step_seconds:.3g} s, the end of an "
        f"epoch {budget.epoch_end_seconds:.3g} s, the report {budget.report_seconds:.3g} s; so {steps} steps, "
        f"{steps / trainer.run.steps_per_epoch:.3g} epochs"
    )
    trainer.warn_of_frozen_steps()


def _in_more_steps(trainer: Trainer) -> ResolvedRun | None:
    """The run with smaller steps, where its time allows but few and its options leave the batch open; else None."""
    run, processes = trainer.run, trainer.accelerator.num_processes
    batch_size = batch_for_run(run.steps * run.config.batch_size, processes)
    if not run.batch_is_open or batch_size >= run.config.batch_size:
        return None
    smaller = run.with_batch(batch_size)
    few = f"{run.steps} steps of {run.config.batch_size} images are few to learn by"
    trainer.say(f"{few}: global_batch_size is {batch_size}, {smaller.config.rate_in_words}")
    return smaller


def _summary(trainer: Trainer) -> str:
    config, accelerator, dataset = trainer.run.config, trainer.accelerator, trainer.dataset
    validation = 0 if trainer.validation_loader is None else trainer.validation_loader.images
    shared = f" in {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    model = trainer.learner.model
    name = config.model if isinstance(model, CeiT) else type(model).__name__
    height, width = dataset.img_size
    return (
        f"{name} on {dataset.name}: {len(dataset.class_names)} classes, images of {height} x {width} pixels, "
        f"{trainer.train_loader.images} training images an epoch, {validation} for validation, "
        f"{trainer.epochs} epochs of {len(trainer.train_loader)} steps of {config.batch_size} images{shared}, "
        f"learning rate up to {config.scaled_lr:g}, {config.precision}, {accelerator.device}"
    )
