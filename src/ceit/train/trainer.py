"""The trainer: epochs of steps, validation after each, the best model kept, the state saved, a report at the end."""

import math
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from ceit.data.batches.loader import Loader, make_loader
from ceit.data.splits import Split
from ceit.evaluation.metrics import DivergedError, Evaluation, evaluate
from ceit.evaluation.temperature import KeptLogits, fit_temperature
from ceit.inference.backend import AsModule, prepare
from ceit.inference.cores import FreeCores
from ceit.inference.device import machine
from ceit.inference.familiarity import KeptFeatures, fit_familiarity, with_features
from ceit.messages import Say, as_typed
from ceit.model import CeiT
from ceit.train.checkpoint import DamagedError, Progress, checkpoint_name, checkpoints_in, load_state
from ceit.train.distributed import from_all, from_main, total_of
from ceit.train.interruption import STOPS, Interrupted, stop_signals
from ceit.train.learner import Learner, MakeModel, normalised_as, starting_model
from ceit.train.log import RunLog, Show
from ceit.train.profiling import StepProfile
from ceit.train.resolve import ResolvedRun
from ceit.train.run_directory import RunDirectory, SavedRun
from ceit.train.step import StepResult, bring_to_host, train_step
from ceit.train.time_budget import TimeBudget
from ceit.train.trackers import Telling
from ceit.weights import load_checkpoint

EVALUATION_BATCH = 250
INTACT = "; the last checkpoint is intact"
UNREAD_STEPS = 20  # on a GPU at most: several processes answer a signal when they read


class Trainer:
    """A resolved run, ready to begin: ``fit`` trains, with ``validate`` and ``save`` in it, ``report`` comes last.

    ``dataset`` is normalised as the model expects it; ``budget`` is the time to keep to, None without a limit;
    ``profile`` looks into some of the steps, None for none.
    ``make_model`` may make any other network than the options ``model`` and ``geometry`` name, which then have no
    effect; its best weights are kept as bare tensors, and ``report`` is not for it.
    """

    def __init__(
        self,
        run: ResolvedRun,
        directory: RunDirectory,
        accelerator: Accelerator,
        *,
        cores: FreeCores | None = None,
        say: Say = lambda message: None,
        show: Show = lambda state: None,
        make_model: MakeModel = starting_model,
    ) -> None:
        self.run, self.directory, self.accelerator = run, directory, accelerator
        self.cores, self.say = cores, say
        self.log = RunLog(directory, Telling(accelerator, say), show)
        set_seed(run.config.seed)
        model = make_model(run, say)
        self.dataset = normalised_as(model, run.dataset)
        self.train_loader = self.loader(run.train, is_training=True)
        self.validation_loader = None if run.validation is None else self.loader(run.validation)
        checkpoints = directory.path / "checkpoints"
        self.learner = Learner(run, model, self.dataset.preprocessing, accelerator, checkpoints, cores, say)
        self.progress = Progress(steps=run.steps)
        self.budget: TimeBudget | None = None
        self.profile: StepProfile | None = None
        self.unread: list[StepResult] = []
        # a CPU has computed a step when it returns; another device goes on while its results wait to be read
        self.read_every = 1 if accelerator.device.type == "cpu" else UNREAD_STEPS

    def description(self) -> dict[str, Any]:
        """The content of ``config.yaml``."""
        normalised_by = {"mean": list(self.dataset.mean), "std": list(self.dataset.std)}
        return self.run.description() | normalised_by

    def fit(self) -> None:
        """Train from ``progress`` to the last epoch, or to where the accuracy has stopped rising.

        Raises: Interrupted after saving, on one of STOPS; ValueError if too many steps in a row have no finite
        loss, or no epoch's validation has one.
        """
        with stop_signals() as received:
            self._introduce_the_teacher()
            if self.budget is not None:
                self.budget.begin(self.progress.steps)
            while self.progress.epoch < self.epochs and not self._has_stopped_improving():
                self._train_epoch(received)
                began = time.monotonic()
                if self.validation_loader is not None or not self.progress.best:
                    self.save()  # validation may take long, and be cut short; no model lies without a state
                validation_seconds = self._end_epoch()
                if self.budget is not None:
                    self.budget.epoch_ended(time.monotonic() - began, validation_seconds)
                self._stop_if_asked(received)
        if not self.progress.best:
            fix = f"lower peak_lr {self.run.config.peak_lr} or set clip_norm in a new run"
            raise ValueError(f"no epoch ended with weights whose validation loss is finite, so none are kept: {fix}")

    def _introduce_the_teacher(self) -> None:
        teacher = self.learner.objective.teacher
        if teacher is not None and self.validation_loader is not None and self.progress.step == 0:
            self.say(teacher.told(self.validate(teacher).top1_percent))

    def _train_epoch(self, received: list[int]) -> None:
        """The rest of the current epoch. The state that an interruption saves is that after the last whole step."""
        progress, every = self.progress, self.run.config.checkpoint_every_steps
        self.learner.start_training()
        began = time.perf_counter() - progress.elapsed_seconds
        self.log.begin_window()
        batches = self._rest_of_epoch()
        while progress.step < progress.steps:
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            waited = time.perf_counter() - asked
            result = train_step(self.learner, *batch, progress.step)
            if self.profile is not None:
                self.profile.step_ended(waited)
            self.unread.append(result)
            progress.step += 1
            progress.batch += 1
            is_logged = progress.step % self.run.config.log_every_steps == 0
            is_read = is_logged or len(self.unread) == self.read_every or progress.step == self.learner.small_steps
            if is_read:
                self._read_steps()
            progress.elapsed_seconds = time.perf_counter() - began
            self.log.step(progress, self.learner, result, waited)
            if is_read or self.accelerator.num_processes == 1:  # several agree on it, and wait for that
                self._stop_if_asked(received)
            self._keep_within_the_budget()
            is_last = progress.batch == len(self.train_loader) or progress.step == progress.steps
            if every and progress.step % every == 0 and not is_last:
                self.save()
        self._read_steps()

    def _end_epoch(self) -> float:
        """Validation of raw and averaged weights, the best of them kept, the state saved; the validation's seconds."""
        progress, began = self.progress, time.perf_counter()
        self.learner.average_statistics()
        candidates = self.learner.candidates()
        validation_began = time.perf_counter()
        found = {} if self.validation_loader is None else self._validated(candidates)
        validation_seconds = time.perf_counter() - validation_began
        progress.epoch += 1
        progress.batch = 0
        self._keep_the_best(candidates, found)
        progress.elapsed_seconds += time.perf_counter() - began
        self.log.epoch(progress, found, self.run.config.mixing.on)
        progress.loss_sum, progress.right, progress.images = 0.0, 0, 0
        self.save()
        return validation_seconds

    def validate(self, network: nn.Module) -> Evaluation:
        """A network on the validation split, in the number format of training."""
        assert self.validation_loader is not None
        return self._evaluate(network, self.validation_loader, autocast_dtype=self.run.autocast_dtype)

    def save(self) -> None:
        """The full state of the run, written by the main process."""
        self._read_steps()
        self.learner.average_statistics()
        processes, keep = self.accelerator.num_processes, self.run.config.keep_checkpoints
        self.directory.save_state(self.progress, self.learner.parts(), processes, keep)
        self.accelerator.wait_for_everyone()

    def resume(self, saved: SavedRun) -> None:
        """Go on from the first checkpoint that can be read; what lies behind it is dropped, the run writes it again."""
        for checkpoint in saved.checkpoints:
            try:
                self.progress, processes = load_state(checkpoint, self.learner.parts())
                break
            except DamagedError as error:
                if checkpoint == saved.checkpoints[-1]:
                    raise
                self.say(f"{error}; taking the one before")
        else:
            return  # there is none
        progress, now = self.progress, self.accelerator.num_processes
        self.plan(progress.steps or self.run.steps)
        is_over = progress.epoch >= self.epochs
        is_kept = from_main(self.directory.keeps_model_of(progress.best, is_over))
        self.accelerator.wait_for_everyone()
        self.directory.cut_back(progress, self.say)
        if not is_kept:
            if progress.best:
                gone = f"the model of epoch {progress.best['epoch']}, the best at that step, is gone"
                self.say(f"{gone}: a later one took its place; the best from here on is kept")
            progress.best_score, progress.best = Progress().best_score, {}
        self.say(f"resumed after step {progress.step} of {progress.steps} from {checkpoint}")
        if processes != now:
            self.say(
                f"the run had {processes} processes, now {now}: the images of each step stay the same, what is drawn "
                "in a process (mixing, drop path) and the images that share BatchNorm's statistics change from here on"
            )

    def report(self, observe: Callable[[Tensor, Tensor], object] | None = None) -> tuple[CeiT, Evaluation]:
        """The best model, as it was saved, on the test split: looked at once, after every choice was made.

        The last choice is its temperature: validation images make its probabilities as good as its answers, and tell
        what images of a kind that it knows are like. It computes as prediction does, in float32 where the run's
        precision is one of training only. Of a CeiT alone: for another network nothing here knows how it is to be made
        from its file.
        """
        self.accelerator.wait_for_everyone()
        device, progress = self.accelerator.device, self.progress
        model = load_checkpoint(self.directory.path / "model.safetensors").to(device, self.run.dtype)
        self._judge(model)
        self.directory.save_confidence(model.temperature, model.familiarity)
        loader = self.loader(self.dataset.test)
        test = self._evaluate(self._deployed(model), loader, temperature=model.temperature, observe=observe)
        report = {
            "data": self.dataset.name,
            "model": self.run.config.model,
            "parameters": sum(p.numel() for p in model.parameters()),
            "seed": self.run.config.seed,
            "epochs": progress.epoch,
            "steps": progress.step,
            "steps_per_epoch": len(self.train_loader),
            "best": progress.best,
            "train_seconds": round(progress.elapsed_seconds, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(device),
        }
        found = test.as_dict()
        self.directory.save_report(report | found, progress)
        del found["confusion"]
        self.log.record({"event": "test", "step": progress.step, **found})
        return model, test

    @property
    def epochs(self) -> int:
        """Of all steps; the last one may be cut short."""
        return -(-self.progress.steps // len(self.train_loader))

    def take(self, run: ResolvedRun) -> None:
        """Train this run, of which more is known by now: the images that fit at once, or the steps that end in time."""
        self.run = self.learner.run = run
        self.plan(run.steps)

    def plan(self, steps: int) -> None:
        """Take so many steps in all: behind the last one the learning rate would be at its end.

        ``progress.steps`` rules from here on. A time budget may plan anew while the run goes on; ``run`` and
        ``config.yaml`` keep the steps that it began with.
        """
        self._read_steps()  # as long as their images have the size that they had
        self.progress.steps = steps
        self.learner.plan(steps)

    def warn_of_frozen_steps(self) -> None:
        """If a time budget leaves the head no time to learn with the rest."""
        if 0 < self.progress.steps <= self.learner.head_only_steps:
            all_steps, frozen = self.progress.steps, self.run.config.freeze_epochs
            effect = "the head alone learns; lower that, or give more time"
            self.say(f"all {all_steps} steps fall into freeze_epochs {frozen:g}: {effect}")

    def loader(self, part: Split, is_training: bool = False) -> Loader:
        """This process's share of a split: shuffled and varied to train, else as prediction sees the images."""
        config, varied = self.run.config, {}
        if config.limit_batches is not None and not is_training:  # spread over the classes, which lie one after another
            most = config.limit_batches * EVALUATION_BATCH * self.accelerator.num_processes
            rows = torch.linspace(0, len(part) - 1, min(len(part), most), dtype=torch.float64)
            part = part.subset(rows.round().long())
        if is_training and config.overfit_batches is None:
            varied = {"augmentation": config.augmentation, "shuffle": True}
            varied |= {"sampling": config.sampling, "shard_window": config.shard_window}
        return make_loader(
            part,
            batch_size=config.batch_size if is_training else EVALUATION_BATCH,
            img_size=self.dataset.img_size,
            preprocessing=self.dataset.preprocessing,
            **varied,
            seed=config.seed,
            drop_last=is_training,
            workers=config.workers,
            device=self.accelerator.device,
            shard=(self.accelerator.process_index, self.accelerator.num_processes),
            limit_batches=config.limit_batches,
        )

    def _rest_of_epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches that are left of this epoch, no more than there are steps left; their number may grow."""
        loader, progress = self.train_loader, self.progress
        while (left := min(len(loader) - progress.batch, progress.steps - progress.step)) > 0:
            yield from loader.epoch(progress.epoch, progress.batch, progress.batch + left)

    def _keep_within_the_budget(self) -> None:
        """Every so often, choose the steps anew if the run would not end when the time is up."""
        budget, progress = self.budget, self.progress
        if budget is None or progress.step < budget.next_look:
            return
        steps = from_main(budget.look(progress.step, progress.steps))
        budget.look_again(progress.step, steps)
        if steps != progress.steps:
            fitting = f"{steps} steps in all fit into the time budget, not {progress.steps}"
            self.say(f"a step takes {budget.step_seconds:.3g} s by now: {fitting}")
            self.plan(steps)
            self.warn_of_frozen_steps()
            planned = {"steps": steps, "epochs": self.epochs}
            self.log.record({"event": "plan", "step": progress.step, **planned})

    def _read_steps(self) -> None:
        """Wait for the steps that have not been read yet, and count them in order."""
        unread, self.unread = self.unread, []
        bring_to_host(unread)
        for result in unread:
            self._count(result)

    def _count(self, result: StepResult) -> None:
        """Add a step to the epoch's sums, or note that it was skipped, and stop if that goes on."""
        progress, limit, step = self.progress, self.run.config.max_skipped_steps, result.step + 1
        if result.skipped is None:
            progress.skipped_in_row = 0
            progress.loss_sum += result.loss * result.images
            progress.right += result.right
            progress.images += result.images
            return
        epoch = progress.epoch + 1
        self.log.record({"event": "skipped", "step": step, "epoch": epoch, "not_finite": result.skipped})
        if not result.counts:
            return
        self.say(f"step {step} was skipped: {result.skipped} is not finite")
        progress.skipped_in_row += 1
        if progress.skipped_in_row >= limit:
            kept = INTACT if checkpoints_in(self.learner.checkpoints) else ""
            start = ", which may start from this one's weights with initial_checkpoint" if progress.best else ""
            raise ValueError(
                f"{limit} steps in a row up to step {step} had no finite loss or gradient, in the last "
                f"{result.skipped}: lower peak_lr {self.run.config.peak_lr} or set clip_norm in a new run{start}{kept}"
            )

    def _validated(self, candidates: dict[str, nn.Module]) -> dict[str, Evaluation]:
        """The validation of each network, but of those that have diverged: these are worse than any, and not kept."""
        found = {}
        for kind, network in candidates.items():
            try:
                found[kind] = self.validate(network)
            except DivergedError as error:  # which all processes get together
                self.say(f"epoch {self.progress.epoch + 1}: {kind} weights are not kept: {error}")
        return found

    def _keep_the_best(self, candidates: dict[str, nn.Module], found: dict[str, Evaluation]) -> None:
        """Save the epoch's best network if none was better, or the last is to be kept.

        Of equal accuracies the lower loss wins. Without validation there is nothing to compare: the average is kept
        where there is one, as it was asked for.
        """
        progress = self.progress
        scores = {kind: (result.top1_percent, -result.loss) for kind, result in found.items()}
        if self.validation_loader is None:
            scores = {"ema" if "ema" in candidates else "raw": progress.best_score}
        if not scores:
            return
        kind = max(scores, key=lambda kind: scores[kind])
        if scores[kind][0] > progress.highest_percent:
            progress.highest_percent, progress.last_rise = scores[kind][0], progress.epoch
        if self.run.config.select == "last" or scores[kind] > progress.best_score:
            progress.best_score = scores[kind]
            progress.best = {
                "epoch": progress.epoch,
                "weights": kind,
                "validation_top1_percent": round(found[kind].top1_percent, 4) if found else None,
                "validation_loss": round(found[kind].loss, 6) if found else None,
            }
            config, dataset = self.run.config, self.dataset
            training: dict[str, Any] = {"data": dataset.name, "seed": config.seed}
            if config.split_seed is not None:
                training["split_seed"] = config.split_seed
            shares = {"validation_percent": config.validation_percent, "train_percent": config.train_percent}
            training |= {**shares, **self.run.images.description}
            if config.classes is not None:
                training["classes"] = list(dataset.class_names)
            self.directory.save_model(candidates[kind], dataset, training | progress.best)

    def _has_stopped_improving(self) -> bool:
        patience, progress = self.run.config.early_stopping_epochs, self.progress
        all_learn = math.ceil(self.run.config.freeze_epochs)  # a head that learns alone may well level off
        since = max(progress.last_rise, all_learn if all_learn < self.epochs else 0)
        if patience is None or not progress.best or progress.epoch - since < patience:
            return False
        self.say(f"stopped after epoch {progress.epoch}: {patience} epochs without a better validation accuracy")
        return True

    def _stop_if_asked(self, received: list[int]) -> None:
        """Save and stop if any process got a signal."""
        interrupted, *others = total_of([float(received.count(number)) for number in STOPS], self.accelerator)
        if interrupted or any(others):
            self.save()
            name = next((stop.name for stop, count in zip(STOPS[1:], others, strict=True) if count), STOPS[0].name)
            step = self.progress.step
            said = f"{name}: saved {checkpoint_name(step)} after step {step}"
            go_on = as_typed(["ceit", "train", "--output", os.fspath(self.directory.path), "--resume", "auto"])
            raise Interrupted(f"{said}; go on with: {go_on}", any(others))

    def _deployed(self, model: CeiT) -> nn.Module:
        """The model as it will predict; in float64, in which nothing but training computes, as it is."""
        if self.run.dtype == torch.float64:
            return model
        precision = "bf16" if self.run.autocast_dtype == torch.bfloat16 else "float32"
        shape = (model.config.in_chans, *model.config.image_hw)
        return AsModule(prepare(model, "eager", precision, image_shape=shape))

    def _judge(self, model: CeiT) -> None:
        """Give a finished model its temperature and familiarity, in every process; none without validation images."""
        if self.validation_loader is None:
            return
        classes, seen = len(self.dataset.class_names), KeptLogits()
        network = KeptFeatures(self._deployed(with_features(model)), classes)
        self._evaluate(network, self.validation_loader, observe=seen)
        logits_nk, labels_n = seen.joined(classes)
        model.temperature = fit_temperature(logits_nk, labels_n, lambda values: total_of(values, self.accelerator))
        shares = from_all((network.joined(model.embed_dim), labels_n))
        features_nd, labels_n = map(torch.cat, zip(*shares, strict=True))
        familiarity = fit_familiarity(features_nd, labels_n, classes)
        model.familiarity = None if familiarity is None else familiarity.as_dict()

    def _evaluate(self, network: nn.Module, loader: Loader, **options: Any) -> Evaluation:
        names, device = self.dataset.class_names, self.accelerator.device
        always = {"class_names": names, "device": device, "dtype": self.run.dtype, "cores": self.cores}
        return evaluate(network, loader, **always, **options)
