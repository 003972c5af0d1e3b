"""What training minimises: labels mixed, smoothed and weighed, and a teacher's beside them.

Letters: ``B`` batch, ``C`` channels, ``H W`` pixels, ``K`` classes.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from ceit.train.config import Mixing, TrainConfig
from ceit.train.teacher import Teacher, divergence


class Targets(NamedTuple):
    """What the logits of a batch are compared with: labels ``(B,)``, or ``(B, K)`` if mixed, and a teacher's logits."""

    labels: Tensor
    teacher_bk: Tensor | None


@dataclass(frozen=True)
class Objective:
    """The loss of a run. ``weights_k`` weigh each image by its class, ``teacher`` is None without distillation."""

    config: TrainConfig
    classes: int
    weights_k: Tensor | None = None
    teacher: Teacher | None = None

    def mixed(self, images_bchw: Tensor, labels_b: Tensor, step: int, process: int) -> tuple[Tensor, Tensor]:
        """Images and labels as the network sees them: mixed, or as they are; a function of (seed, step, process)."""
        if not self.config.mixing.on:
            return images_bchw, labels_b
        seed = seed_of(self.config.seed, step, process)
        return mix(self.config.mixing, self.config.label_smoothing, self.classes, images_bchw, labels_b, seed)

    def targets(self, images_bchw: Tensor, labels: Tensor) -> Targets:
        """What the network is to say of these images: their labels, and what the teacher says."""
        return Targets(labels, None if self.teacher is None else self.teacher(images_bchw))

    def loss(self, logits_bk: Tensor, targets: Targets) -> Tensor:
        """``(1 - share) l + share t`` as a mean over the images: ``l`` of their labels, ``t`` of a teacher's.

        With class weights each image's ``l`` is multiplied by its own, see ``image_weights``.
        """
        config, labels = self.config, targets.labels
        if self.weights_k is None:
            loss = label_loss(config.loss, logits_bk, labels, config.label_smoothing)
        else:
            each_b = label_loss(config.loss, logits_bk, labels, config.label_smoothing, each=True)
            loss = (each_b * image_weights(labels, self.weights_k, config.label_smoothing).to(each_b)).mean()
        if targets.teacher_bk is None:
            return loss
        share = config.distillation.weight
        if config.distillation.kind == "hard":
            taught = label_loss(config.loss, logits_bk, targets.teacher_bk.argmax(1), smoothing=0.0)
        else:
            taught = divergence(logits_bk, targets.teacher_bk, config.distillation.temperature)
        return (1 - share) * loss + share * taught


def label_loss(
    kind: Literal["cross_entropy", "bce"], logits_bk: Tensor, labels: Tensor, smoothing: float, each: bool = False
) -> Tensor:
    """The loss of labels ``(B,)``, to be smoothed, or ``(B, K)`` as they are: a mean, or of ``each`` image, ``(B,)``.

        cross_entropy: -sum_k y_k log softmax(z)_k
        bce:           -sum_k y_k log sigmoid(z_k) + (1 - y_k) log(1 - sigmoid(z_k))
    Source of ``bce``: Wightman, Touvron and Jegou, ResNet strikes back (2021). Differs: it is summed over the classes.
    """
    if kind == "cross_entropy":
        reduction = "none" if each else "mean"
        if labels.dim() == 2:
            return F.cross_entropy(logits_bk, labels.to(logits_bk.dtype), reduction=reduction)
        return F.cross_entropy(logits_bk, labels, label_smoothing=smoothing, reduction=reduction)
    if labels.dim() == 1:
        classes = logits_bk.shape[1]
        labels = F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
    each_b = F.binary_cross_entropy_with_logits(logits_bk, labels.to(logits_bk.dtype), reduction="none").sum(1)
    return each_b if each else each_b.mean()


def start_rare(head: nn.Linear) -> None:
    """A new head for ``bce`` begins with the probability ``1 / K`` for each class: a bias of ``-log(K - 1)``.

    At 1/2, as a bias of 0 has it, the first steps would do nothing but lower all biases. A head that has been trained
    keeps its own.
    """
    if not head.bias.any():
        nn.init.constant_(head.bias, -math.log(max(1, head.out_features - 1)))


def balanced_weights(labels_n: Tensor, classes: int) -> Tensor:
    """``n / (K n_k)`` for every class: their mean over the images is 1. A class without images gets 0."""
    counts_k = torch.bincount(labels_n, minlength=classes)
    present = int((counts_k > 0).sum())
    return torch.where(counts_k > 0, len(labels_n) / (present * counts_k.clamp(min=1)), 0.0).float()


def image_weights(labels: Tensor, weights_k: Tensor, smoothing: float) -> Tensor:
    """``sum_k m_k w_k`` of each image, ``(B,)``, where ``m`` is its label before smoothing.

    So an image has its class's weight, and one mixed of two has ``share w_a + (1 - share) w_b``. Smoothing
    ``y = (1 - s) m + s / K`` is taken back.
    """
    if labels.dim() == 1:
        return weights_k[labels]
    mixed_bk = (labels - smoothing / labels.shape[1]) / (1 - smoothing)
    return mixed_bk @ weights_k.to(mixed_bk)


def mix(
    mixing: Mixing, smoothing: float, classes: int, images_bchw: Tensor, labels_b: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix by timm: images and labels ``(B, K)``. Its draws from numpy's global generator follow ``seed``.

    Source: Zhang et al., mixup (ICLR 2018); Yun et al., CutMix (ICCV 2019).
    """
    mixup = Mixup(
        mixup_alpha=mixing.mixup_alpha,
        cutmix_alpha=mixing.cutmix_alpha,
        prob=mixing.probability,
        switch_prob=mixing.switch_probability,
        label_smoothing=smoothing,
        num_classes=classes,
    )
    generator = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        return mixup(images_bchw, labels_b)
    finally:
        np.random.set_state(generator)


def seed_of(seed: int, step: int, process: int) -> int:
    """A seed for all that one process draws in one step: nothing is carried from step to step."""
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0]) >> 1
