"""What training minimises: labels mixed, smoothed and weighed, and a teacher's beside them.

Letters: ``B`` batch, ``C`` channels, ``H W`` pixels, ``K`` classes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor

from ceit.train.config import Mixing, TrainConfig
from ceit.train.teacher import Teacher, distillation_loss


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
        """``(1 - w) CE + w distillation`` as a mean over the images.

        ``CE`` is cross-entropy with smoothed labels; with class weights each image's term is multiplied by its own.
        """
        labels = targets.labels
        if labels.dim() == 2:
            loss = F.cross_entropy(logits_bk, labels.to(logits_bk.dtype))
        elif self.weights_k is None:
            loss = F.cross_entropy(logits_bk, labels, label_smoothing=self.config.label_smoothing)
        else:
            each_b = F.cross_entropy(logits_bk, labels, label_smoothing=self.config.label_smoothing, reduction="none")
            loss = (each_b * self.weights_k.to(each_b)[labels]).mean()
        if targets.teacher_bk is None:
            return loss
        share = self.config.distillation.weight
        taught = distillation_loss(logits_bk, targets.teacher_bk, self.config.distillation)
        return (1 - share) * loss + share * taught


def balanced_weights(labels_n: Tensor, classes: int) -> Tensor:
    """``n / (K n_k)`` for every class: their mean over the images is 1. A class without images gets 0."""
    counts_k = torch.bincount(labels_n, minlength=classes)
    present = int((counts_k > 0).sum())
    return torch.where(counts_k > 0, len(labels_n) / (present * counts_k.clamp(min=1)), 0.0).float()


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
