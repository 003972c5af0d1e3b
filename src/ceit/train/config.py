"""What a training run is told: typed options, each with its limits."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_type_hints

from ceit.data.batches.augment import Augmentation
from ceit.messages import unknown
from ceit.model.config import CeiTConfig
from ceit.train.option_types import require_types


@dataclass(frozen=True)
class Mixing:
    """Mixup and CutMix, as timm computes them; both off at 0.

    Attributes:
        mixup_alpha: of the Beta distribution that Mixup draws its share from.
        cutmix_alpha: of the Beta distribution that CutMix draws its area from.
        probability: that a batch is mixed at all.
        switch_probability: that a mixed batch takes CutMix where both are on.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    probability: float = 1.0
    switch_probability: float = 0.5

    @property
    def on(self) -> bool:
        """Whether labels are mixed."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0


@dataclass(frozen=True)
class WeightAverage:
    """Exponential moving average (EMA) of the weights, evaluated beside the raw ones.

    Attributes:
        decay: share of the average that a step keeps; 0 turns it off.
        warmup: start with a short average that grows with the steps.
        batch_norm: the statistics that the averaged weights are evaluated with: averaged as the weights are, or copied
            from the raw model.
    """

    decay: float = 0.0
    warmup: bool = True
    batch_norm: Literal["average", "copy"] = "average"


@dataclass(frozen=True)
class Distillation:
    """Knowledge distillation from a trained classifier of the same classes, which sees the same augmented images.

    Attributes:
        teacher: any model that timm knows, this project's own among them; null turns distillation off.
        checkpoint: its weights, a file or a run directory; null takes timm's pre-trained ones.
        kind: soft compares the distributions at a temperature, hard takes the teacher's decision as a second label.
        weight: share of the loss that is the teacher's.
        temperature: of the soft distributions.
    """

    teacher: str | None = None
    checkpoint: str | None = None
    kind: Literal["soft", "hard"] = "hard"
    weight: float = 0.5
    temperature: float = 3.0


@dataclass(frozen=True)
class TrainConfig:
    """Every option of a training run; a recipe and the command line override these defaults.

    Attributes:
        model: registered name, such as ceit_nano_patch4_32.
        geometry: fields of CeiTConfig that replace the model's, such as drop_path_rate.
        initial_checkpoint: weights to start from, a file or a run directory; another number of classes gets a new head,
            another image size resized position embeddings.
        img_size: side or [height, width] in pixels; null takes the data's own, but at least 16 and at most twice the
            model's, rounded up to a multiple of its patch.
        in_chans: 1 (grey) or 3 (RGB); null takes the data's own.
        classes: names of the classes to keep, in this order; null keeps all. Of a folder or a table no others are read.
        epochs: passes over the training images; null chooses them from samples.
        samples: training images to show in all where epochs is null.
        max_epochs: the most epochs that samples may choose.
        global_batch_size: images per optimizer step, over all processes.
        device_batch_size: the most images that a process computes at once, the gradients of the rest of its share are
            accumulated; null computes the whole share, auto finds what fits into memory.
        optimizer: any of timm's, by name.
        optimizer_args: further keywords of that optimizer.
        peak_lr: learning rate after the warm-up.
        lr_base_size: the global batch that peak_lr is meant for, another one scales it linearly; null takes peak_lr as
            it stands.
        schedule: how the learning rate falls after the warm-up.
        warmup_epochs: epochs of linear warm-up from warmup_lr; a fraction is allowed.
        warmup_lr: learning rate of the first step.
        final_lr: learning rate that the fall leads to, one step behind the last.
        layer_decay: factor from each block's learning rate to that of the block below; 1 treats all alike.
        weight_decay: spares biases, 1-D tensors, class token and position embedding.
        clip_norm: largest norm of the gradient; 0 turns clipping off.
        label_smoothing: share of the label's mass spread over all classes.
        sampling: shuffle shows every image once an epoch, balanced every class equally often.
        class_weights: balanced weighs each image's loss by the inverse of its class's size.
        shard_window: shards that an epoch mixes at a time, for slow storage; 0 mixes all images.
        augmentation: how images are varied.
        mixing: Mixup and CutMix.
        ema: moving average of the weights.
        distillation: a teacher's opinion as a second label.
        batch_norm: statistics of each process (local) or of all together (sync) in training; frozen trains with the
            running statistics and leaves them as they are.
        validation_percent: share of the training images cut off to choose the best model, at least one image, where the
            data has a test part but no validation part; 0 is for select last alone. Data that come unsplit are cut
            80/10/10 whatever it is.
        train_percent: share of the other training images that is trained on, of every class alike and at least one.
        select: best keeps the weights of the best validation accuracy, last those of the last epoch.
        early_stopping_epochs: stop after so many epochs without a higher validation accuracy, whatever the loss does;
            null never does.
        precision: bf16 or fp16 autocast, float32 or float64; auto takes bf16 where the machine computes it natively.
        compile: let torch.compile fuse the forward and backward pass; the first step then takes a minute or two.
        grad_checkpointing: compute each block's activations again in the backward pass: less memory, more time.
        deterministic: the same bits in every run on the same machine, with slower kernels where need be.
        max_skipped_steps: steps in a row that may be skipped for a loss or gradient that is not finite.
        workers: processes that read images; null chooses.
        skip_broken: leave unreadable files out instead of stopping.
        seed: of initialisation, split, order, augmentation and drop path.
        log_every_steps: steps between two lines of metrics.jsonl.
        checkpoint_every_steps: steps between two checkpoints within an epoch; null saves at the end of each epoch only.
        keep_checkpoints: newest checkpoints that stay.
        limit_batches: the most batches that an epoch trains and evaluates on, to try a recipe out.
        overfit_batches: train and validate on the first so many batches alone, unvaried; null is off.
    """

    model: str = "ceit_nano_patch4_32"
    geometry: dict[str, Any] = field(default_factory=dict)
    initial_checkpoint: str | None = None
    img_size: int | tuple[int, int] | None = None
    in_chans: int | None = None
    classes: tuple[str | int, ...] | None = None
    epochs: int | None = None
    samples: int = 200_000
    max_epochs: int = 300
    global_batch_size: int = 256
    device_batch_size: int | Literal["auto"] | None = None
    optimizer: str = "adamw"
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    peak_lr: float = 1e-3
    lr_base_size: int | None = None
    schedule: Literal["cosine", "linear"] = "cosine"
    warmup_epochs: float = 0.5
    warmup_lr: float = 1e-6
    final_lr: float = 1e-5
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    clip_norm: float = 0.0
    label_smoothing: float = 0.1
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    class_weights: Literal["none", "balanced"] = "none"
    shard_window: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixing: Mixing = field(default_factory=Mixing)
    ema: WeightAverage = field(default_factory=WeightAverage)
    distillation: Distillation = field(default_factory=Distillation)
    batch_norm: Literal["local", "sync", "frozen"] = "local"
    validation_percent: float = 5.0
    train_percent: float = 100.0
    select: Literal["best", "last"] = "best"
    early_stopping_epochs: int | None = None
    precision: Literal["auto", "bf16", "fp16", "float32", "float64"] = "auto"
    compile: bool = False
    grad_checkpointing: bool = False
    deterministic: bool = False
    max_skipped_steps: int = 10
    workers: int | None = None
    skip_broken: bool = False
    seed: int = 0
    log_every_steps: int = 20
    checkpoint_every_steps: int | None = None
    keep_checkpoints: int = 2
    limit_batches: int | None = None
    overfit_batches: int | None = None

    def __post_init__(self) -> None:
        require_types(TrainConfig, {f.name: getattr(self, f.name) for f in fields(self)})
        self._check_numbers()
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(map(str, self.classes)))  # YAML gives a list, perhaps of numbers
        if self.mixing.on:
            _require(
                self.global_batch_size % 2 == 0, "global_batch_size", self.global_batch_size, "must be even to be mixed"
            )
            _require(
                self.class_weights == "none", "class_weights", self.class_weights, "need labels that are not mixed"
            )
        if self.class_weights != "none":
            limit = "would correct rare classes twice: set class_weights or sampling, not both"
            _require(self.sampling == "shuffle", "sampling", self.sampling, limit)
        if self.distillation.checkpoint is not None and self.distillation.teacher is None:
            raise ValueError(f"distillation.checkpoint {self.distillation.checkpoint} needs a distillation.teacher")
        if self.batch_norm == "sync":
            _require(
                self.device_batch_size != "auto",
                "device_batch_size",
                "auto",
                "needs local BatchNorm: set a number",
            )
        if self.select == "best":
            _require(
                self.validation_percent > 0,
                "validation_percent",
                self.validation_percent,
                "leaves nothing to select the best by: set select last",
            )
        if self.early_stopping_epochs is not None:
            _require(self.select == "best", "early_stopping_epochs", self.early_stopping_epochs, "needs select best")
        if self.compile and self.grad_checkpointing:
            raise ValueError("compile true does not go with grad_checkpointing true: choose speed or memory")
        for key in ("img_size", "in_chans", "num_classes"):
            if key in self.geometry:
                raise ValueError(
                    f"geometry.{key} {self.geometry[key]} follows from the data; set img_size or in_chans instead"
                )
        geometry_fields = {f.name for f in fields(CeiTConfig)}
        for key in self.geometry:
            if key not in geometry_fields:
                raise ValueError(
                    unknown("recipe key", f"geometry.{key}", [f"geometry.{name}" for name in geometry_fields])
                )

    def _check_numbers(self) -> None:
        for key in ("global_batch_size", "samples", "max_epochs", "log_every_steps", "max_skipped_steps"):
            _require(getattr(self, key) >= 1, key, getattr(self, key), "must be at least 1")
        _require(self.keep_checkpoints >= 1, "keep_checkpoints", self.keep_checkpoints, "must be at least 1")
        optional = ("epochs", "lr_base_size", "early_stopping_epochs", "checkpoint_every_steps")
        for key in (*optional, "limit_batches", "overfit_batches"):
            value = getattr(self, key)
            _require(value is None or value >= 1, key, value, "must be at least 1")
        if isinstance(self.device_batch_size, int):
            _require(self.device_batch_size >= 1, "device_batch_size", self.device_batch_size, "must be at least 1")
        _require(0 < self.peak_lr < math.inf, "peak_lr", self.peak_lr, "must be positive")
        for key in ("warmup_epochs", "warmup_lr", "final_lr", "weight_decay", "clip_norm", "shard_window"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), "must not be negative")
        _require(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "must be in (0, 1]")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "must be in [0, 1)")
        _require(
            0 <= self.validation_percent <= 50, "validation_percent", self.validation_percent, "must be in [0, 50]"
        )
        _require(0 <= self.ema.decay < 1, "ema.decay", self.ema.decay, "must be in [0, 1)")
        for key in ("mixup_alpha", "cutmix_alpha"):
            _require(getattr(self.mixing, key) >= 0, f"mixing.{key}", getattr(self.mixing, key), "must not be negative")
        for key in ("probability", "switch_probability"):
            value = getattr(self.mixing, key)
            _require(0 <= value <= 1, f"mixing.{key}", value, "must be in [0, 1]")
        _require(0 < self.train_percent <= 100, "train_percent", self.train_percent, "must be in (0, 100]")
        _require(self.workers is None or self.workers >= 0, "workers", self.workers, "must not be negative")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "must be in [0, 2^32)")
        teaching = self.distillation
        _require(0 <= teaching.weight <= 1, "distillation.weight", teaching.weight, "must be in [0, 1]")
        _require(teaching.temperature > 0, "distillation.temperature", teaching.temperature, "must be positive")

    @property
    def scaled_lr(self) -> float:
        """``peak_lr * global_batch_size / lr_base_size``: the rate that the warm-up leads to."""
        return self.peak_lr * (self.global_batch_size / self.lr_base_size if self.lr_base_size else 1.0)

    def epochs_for(self, train_images: int) -> int:
        """Epochs over ``train_images``: ``epochs``, else as many as show about ``samples``, 1 to ``max_epochs``."""
        return self.epochs or max(1, min(self.max_epochs, round(self.samples / train_images)))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for YAML."""
        return _plain(asdict(self))


SECTIONS = {"augmentation": Augmentation, "mixing": Mixing, "ema": WeightAverage, "distillation": Distillation}


def config_from(values: dict[str, Any]) -> TrainConfig:
    """A configuration from plain values, sections as dictionaries. Raises ValueError for values of other types."""
    for key, section in SECTIONS.items():
        if not isinstance(values.get(key, {}), dict):
            raise ValueError(f"{key} {values[key]!r} is a section and must hold keys")
        require_types(section, values.get(key, {}), f"{key}.")
    return TrainConfig(**{key: SECTIONS[key](**value) if key in SECTIONS else value for key, value in values.items()})


def known_keys(of: type = TrainConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of all options, sections included."""
    for name, hint in get_type_hints(of).items():
        yield prefix + name
        if is_dataclass(hint) and isinstance(hint, type):
            yield from known_keys(hint, f"{prefix}{name}.")


def _require(holds: bool, name: str, value: Any, limit: str) -> None:
    if not holds:
        raise ValueError(f"{name} {value} {limit}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
