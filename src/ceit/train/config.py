"""What a training run is told: typed options, each with its limits and its meaning.

The string below a field is its text in ``ceit train --help`` and in the JSON schema of recipes.
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

from ceit.data.batches.augment import Augmentation
from ceit.data.cut import VALIDATION_PERCENT
from ceit.messages import unknown
from ceit.model.config import CeiTConfig
from ceit.options import (
    ConflictError,
    Count,
    Limit,
    NaturalNumber,
    NotNegative,
    Positive,
    Share,
    ShareBelowOne,
    dotted_options,
    require_types,
)

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
_Epochs = Annotated[float, Limit("must be 0 or more, and finite", minimum=0, exclusiveMaximum=math.inf)]
_Seed = Annotated[int, Limit("must be in [0, 2^32)", minimum=0, exclusiveMaximum=2**32)]
_Rate = Annotated[float, Limit("must be positive", exclusiveMinimum=0, exclusiveMaximum=math.inf)]
USUAL_BATCH = 256
"""Images a step where neither the options nor the set ask for another number."""


@dataclass(frozen=True)
class Mixing:
    """Mixup and CutMix, as timm computes them. Both are off by default."""

    mixup_alpha: NotNegative = 0.0
    """Mixup: alpha of the Beta distribution from which the share of each image is drawn. 0: off."""
    cutmix_alpha: NotNegative = 0.0
    """CutMix: alpha of the Beta distribution from which the size of the replaced area is drawn. 0: off."""
    probability: Share = 1.0
    """Probability that a batch is mixed."""
    switch_probability: Share = 0.5
    """Probability that a mixed batch uses CutMix, if Mixup is on too."""

    @property
    def on(self) -> bool:
        """Whether labels are mixed."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0


@dataclass(frozen=True)
class SmallImages:
    """Smaller images at first, as a step over them takes less time. Off by default."""

    scale: Annotated[float, Limit("must be in (0, 1]", exclusiveMinimum=0, maximum=1)] = 1.0
    """Sides of the images of the first steps, as a share of img_size, rounded down to multiples of the model's patch.
    Whole batches are scaled down, and the position embedding with them. 1: off."""
    share: Share = 0.33
    """Share of the run's steps that take the smaller images."""

    def size(self, image_hw: tuple[int, int], patch: int) -> tuple[int, int] | None:
        """Height and width of the smaller images, at least a patch each; None if they are not smaller."""
        height, width = (max(patch, int(side * self.scale) // patch * patch) for side in image_hw)
        return None if (height, width) == tuple(image_hw) else (height, width)


@dataclass(frozen=True)
class WeightAverage:
    """Exponential moving average (EMA) of the weights, evaluated beside the raw ones."""

    decay: ShareBelowOne = 0.0
    """Share of the average that each step keeps, such as 0.9999. 0: off."""
    warmup: bool = True
    """Begin with a short average that grows longer with the steps."""
    batch_norm: Literal["average", "copy"] = "average"
    """BatchNorm statistics for the averaged weights. average: averaged as the weights are. copy: the raw model's."""


LOCAL_TEACHER = "local-dir:"
"""With a folder of timm's behind it, a teacher."""


@dataclass(frozen=True)
class Distillation:
    """Knowledge distillation: a trained model of the same classes teaches. It sees the same augmented images."""

    teacher: str | None = None
    """Name of the model that teaches: any model of timm or of this project, hf-hub:NAME. null: none."""
    checkpoint: str | None = None
    """Weights of the teacher: a file, a run directory or weights that ship. null: timm's pre-trained weights."""
    kind: Literal["soft", "hard"] = "hard"
    """hard: the teacher's decision is a second label. soft: learn the teacher's probabilities, at a temperature."""
    weight: Share = 0.5
    """Share of the loss that comes from the teacher."""
    temperature: Positive = 3.0
    """Temperature of the soft probabilities."""


@dataclass(frozen=True)
class TrainConfig:
    """Every option of a training run. A recipe replaces these defaults, and the command line replaces the recipe.

    Raises: ValueError for a value of another type, out of its limits, or unknown; ConflictError for one that does not
    go with another option.
    """

    model: str = "ceit_nano_patch4_32"
    """Name of the model, such as ceit_tiny_patch16_224."""
    geometry: dict[str, Any] = field(default_factory=dict)
    """Changes to the model: fields of CeiTConfig, such as depth or drop_path_rate."""
    initial_checkpoint: str | None = None
    """Trained weights to start from: a file, a run directory, or a name of ceit list weights. Another number of classes
    gets a new head, another image size gets resized position embeddings. null: random weights."""

    img_size: int | tuple[int, int] | None = None
    """Image size in pixels: one side, or [height, width]. null: as in the data, but at least 16 and at most twice the
    model's size, rounded up to a multiple of its patch."""
    in_chans: int | None = None
    """Colour channels: 3 (RGB) or 1 (grey). null: as in the data."""
    classes: tuple[str | int, ...] | None = None
    """Names of the classes to keep, in this order. Other classes of a folder or table are not even read. null: all."""
    validation_percent: Annotated[float, Limit("must be in [0, 50]", minimum=0, maximum=50)] = VALIDATION_PERCENT
    """Percent of the training images to set aside for choosing the best model, at least one image. Used only if the
    data has a test part but no validation part; data without parts is always cut 80/10/10. 0 works only with select
    last."""
    train_percent: Annotated[float, Limit("must be in (0, 100]", exclusiveMinimum=0, maximum=100)] = 100.0
    """Percent of the training images left after validation to train on. The same share of every class, at least one
    image of each."""
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """shuffle: an epoch shows every image once. balanced: it shows every class equally often."""
    class_weights: Literal["none", "balanced"] = "none"
    """none: every image counts alike in the loss. balanced: images of rare classes count more, as 1 / class size. An
    image that is mixed of two gets their weights mixed."""
    shard_window: NaturalNumber = 0
    """Shards that an epoch mixes at a time, for slow storage. 0: mix all images."""
    workers: NaturalNumber | None = None
    """Processes that read images. null: chosen automatically."""
    skip_broken: bool = False
    """Leave out files that cannot be read. Without it they stop the run."""

    epochs: Count | None = None
    """Passes over the training images. null: enough epochs to show about `samples` images in all."""
    samples: Count = 200_000
    """Training images to show in the whole run, if epochs is null."""
    max_epochs: Count = 300
    """The most epochs that samples may lead to."""
    global_batch_size: Count | None = None
    """Images per optimizer step, over all processes. null: 256, or fewer for a small set or a short time budget, so
    that there are steps enough."""

    peak_lr: _Rate = 1e-3
    """Learning rate at the end of the warm-up."""
    lr_base_size: Count | Literal["auto"] | None = "auto"
    """Global batch size that peak_lr is meant for. Another batch size scales the learning rate. null: use peak_lr as it
    is. auto: 256 if global_batch_size is null, else null."""
    lr_scaling: Literal["auto", "linear", "sqrt"] = "auto"
    """How another batch size than lr_base_size scales the learning rate. linear: in proportion. sqrt: with the square
    root. auto: sqrt if lr_base_size is auto, else linear."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls after the warm-up. cosine: along a cosine. linear: along a straight line."""
    warmup_epochs: _Epochs = 0.5
    """Epochs in which the learning rate rises from warmup_lr to its peak; 0.5 is half an epoch. It is never more than a
    quarter of the steps."""
    warmup_lr: NotNegative = 1e-6
    """Learning rate of the first step."""
    final_lr: NotNegative = 1e-5
    """Learning rate at the end of the schedule."""
    freeze_epochs: _Epochs = 0.0
    """Epochs at the start in which only the head learns, and all else stays as in initial_checkpoint. Then everything
    learns, and warm-up and schedule begin again. As many as epochs, or more: the head alone learns. 0: off."""
    layer_decay: Annotated[float, Limit("must be in (0, 1]", exclusiveMinimum=0, maximum=1)] = 1.0
    """Learning rate of a block, as a share of the rate of the block above it. 1: all blocks learn at the same rate."""
    head_lr_factor: _Rate = 1.0
    """Learning rate of the head, as a multiple of what it would be."""
    batch_norm_bias_lr_factor: _Rate = 1.0
    """Learning rate of BatchNorm's biases, as a multiple of what it would be."""
    optimizer: str = "adamw"
    """Name of an optimizer of timm; kron draws random numbers of its own, and is refused."""
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    """More arguments of the optimizer, such as {betas: [0.9, 0.99]}. Those of a recipe go if you type another
    optimizer."""
    weight_decay: NotNegative = 0.05
    """Weight decay of everything but biases, 1-D tensors, class token and position embedding."""
    clip_norm: NotNegative = 0.0
    """Scale gradients down to at most this norm. 0: off."""

    augmentation: Augmentation = field(default_factory=Augmentation)
    """How training images are varied."""
    small_images: SmallImages = field(default_factory=SmallImages)
    """Smaller images at first."""
    mixing: Mixing = field(default_factory=Mixing)
    """Mixup and CutMix."""

    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """What is minimised. cross_entropy: of the softmax. bce: binary cross-entropy of each class by itself, summed over
    the classes."""
    label_smoothing: ShareBelowOne = 0.1
    """Share of each label that is spread over all classes."""
    batch_norm: Literal["local", "sync", "frozen"] = "local"
    """BatchNorm statistics in training. local: of each process's images. sync: of the images of all processes. frozen:
    the running statistics, which then stay as they are."""
    ema: WeightAverage = field(default_factory=WeightAverage)
    """Moving average of the weights."""
    distillation: Distillation = field(default_factory=Distillation)
    """A trained model that teaches."""

    select: Literal["best", "last"] = "best"
    """best: keep the weights with the best validation accuracy. last: keep those of the last epoch."""
    early_stopping_epochs: Count | None = None
    """Stop after this many epochs without a higher validation accuracy; the learning rate is still high then. null:
    never stop early."""

    device: Literal["auto", "cpu"] = "auto"
    """Where the run computes. auto: on the GPU, if there is one. cpu: on the CPU, also beside a GPU."""
    precision: Literal["auto", "bf16", "fp16", "float32", "float64"] = "auto"
    """Number format: float32, float64, or mixed with bf16 or fp16. auto: bf16 if the machine has it, else float32."""
    device_batch_size: Count | Literal["auto"] | None = None
    """The most images that a process computes at once, to save memory. A larger batch is computed in pieces, and their
    gradients are added up. auto: as many as fit. null: the whole batch at once."""
    grad_checkpointing: bool = False
    """Save memory: compute each block's activations again in the backward pass. This takes more time."""
    compile: bool | Literal["auto"] = "auto"
    """Let torch.compile fuse the forward and backward pass. The first step then takes a minute or two. auto: on a GPU
    with a compiler, in runs of at least 1,000 steps."""
    deterministic: bool = False
    """Get the same bits in every run on the same machine. Some operations are then slower."""
    seed: _Seed = 0
    """Seed of all random choices: initial weights, split, order, augmentation and drop path."""
    split_seed: _Seed | None = None
    """Seed of the split alone, so that runs with other seeds train, choose and test on the same images. null: seed."""
    max_skipped_steps: Count = 10
    """Steps with a loss or gradient that is not finite are skipped. Stop after this many in a row."""

    log_every_steps: Count = 20
    """Steps between two lines of metrics.jsonl."""
    tracker: tuple[str, ...] | None = None
    """Who gets the lines of metrics.jsonl, too: any of tensorboard, wandb, mlflow and trackio, each with a package of
    its own. null: tensorboard, if it is installed. []: nobody."""
    checkpoint_every_steps: Count | None = None
    """Steps between two checkpoints within an epoch. null: save at the end of each epoch only."""
    keep_checkpoints: Count = 2
    """Keep this many of the newest checkpoints."""

    limit_batches: Count | None = None
    """Train and evaluate on at most this many batches per epoch. null: on all."""
    overfit_batches: Count | None = None
    """Train and validate on only this many batches, as they are. Their loss must go to nearly 0. null: off."""

    def __post_init__(self) -> None:
        require_types(TrainConfig, vars(self))
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(map(str, self.classes)))  # YAML gives a list, perhaps of numbers
        if self.tracker is not None:
            object.__setattr__(self, "tracker", tuple(self.tracker))
        if sentence := self._unknown_name():
            raise ValueError(sentence)
        if sentence := self._conflict():
            raise ConflictError(sentence)

    def _unknown_name(self) -> str | None:
        """What is wrong with the first name of a tracker or of a part of the geometry."""
        for name in self.tracker or ():
            if name not in TRACKERS:
                return unknown("tracker", name, TRACKERS)
        known = [f"geometry.{f.name}" for f in fields(CeiTConfig)]
        for key, value in self.geometry.items():
            if key in FROM_THE_DATA:
                return f"geometry.{key} {value} follows from the data; set img_size or in_chans instead"
            if f"geometry.{key}" not in known:
                return unknown("recipe key", f"geometry.{key}", known)
        return None

    def _conflict(self) -> str | None:
        """What is wrong with the first options that do not go together."""
        if self.mixing.on and self.batch_size % 2 == 1:
            return f"global_batch_size {self.global_batch_size} must be even to be mixed"
        if self.sampling != "shuffle" and self.class_weights != "none":
            return f"sampling {self.sampling} would correct rare classes twice: set class_weights or sampling, not both"
        if self.distillation.checkpoint is not None and self.distillation.teacher is None:
            return f"distillation.checkpoint {self.distillation.checkpoint} needs a distillation.teacher"
        if self.freeze_epochs > 0 and self.initial_checkpoint is None:
            return f"freeze_epochs {self.freeze_epochs} would keep random weights: set initial_checkpoint, or 0"
        if self.batch_norm == "sync" and self.device_batch_size == "auto":
            return "device_batch_size auto needs local BatchNorm: set a number"
        if self.select == "best" and self.validation_percent == 0:
            return f"validation_percent {self.validation_percent} leaves nothing to select the best by: set select last"
        if self.select != "best" and self.early_stopping_epochs is not None:
            return f"early_stopping_epochs {self.early_stopping_epochs} needs select best"
        if self.compile is True and self.grad_checkpointing:
            return "compile true does not go with grad_checkpointing true: choose speed or memory"
        return None

    @property
    def scaled_lr(self) -> float:
        """``peak_lr * global_batch_size / lr_base_size``, or times the root of that: the rate after the warm-up."""
        times = self.batch_size / self.lr_base_size if isinstance(self.lr_base_size, int) else 1.0
        return self.peak_lr * (math.sqrt(times) if self.lr_scaling == "sqrt" else times)

    @property
    def cut_seed(self) -> int:
        """The seed by which images are split."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def batch_size(self) -> int:
        """``global_batch_size``, which a resolved run has chosen."""
        return self.global_batch_size or USUAL_BATCH

    @property
    def rate_in_words(self) -> str:
        """The learning rate after the warm-up, and how it follows from the size of the batch."""
        ratio = f"{self.batch_size} / {self.lr_base_size}"
        times = f" * sqrt({ratio})" if self.lr_scaling == "sqrt" else f" * {ratio}"
        times = times if isinstance(self.lr_base_size, int) else ""
        product = f"{self.peak_lr:g}{times} = " if times else ""
        return f"learning rate after the warm-up: {product}{self.scaled_lr:g}"

    def freeze_steps(self, steps_per_epoch: int) -> int:
        """Steps at the start in which only the head learns."""
        return round(self.freeze_epochs * steps_per_epoch)

    def epochs_for(self, train_images: int) -> int:
        """Epochs over ``train_images``: ``epochs``, else as many as show about ``samples``, 1 to ``max_epochs``."""
        return self.epochs or max(1, min(self.max_epochs, round(self.samples / train_images)))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for YAML."""
        return json.loads(json.dumps(asdict(self)))  # which has lists for tuples


SECTIONS = {
    "augmentation": Augmentation,
    "small_images": SmallImages,
    "mixing": Mixing,
    "ema": WeightAverage,
    "distillation": Distillation,
}
FROM_THE_DATA = ("img_size", "in_chans", "num_classes")
"""Fields of CeiTConfig that no recipe may set as geometry."""


def config_from(values: dict[str, Any]) -> TrainConfig:
    """A configuration from plain values, sections as dictionaries. Raises ValueError for values of other types."""
    require_types(TrainConfig, values)
    made = {key: section(**values[key]) for key, section in SECTIONS.items() if isinstance(values.get(key), dict)}
    return TrainConfig(**values | made)


def known_keys() -> list[str]:
    """Dotted names of all options, sections included."""
    return [name for name, _ in dotted_options(TrainConfig)]
