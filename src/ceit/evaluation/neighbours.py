"""What features are worth: images that lie next to each other, copies, and classes told apart by simple means.

Letters: n images, m other images, K classes, D features.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS, SHARPNESS = 20, 0.07  # as is usual for k nearest neighbours of features
MOST_PAIRS = 1_000_000
_BLOCK = 1024
_ROUNDS = 200
_ROUNDING = 1e-6  # of a cosine in float32: that of an image and its copy may lie below 1


class Pair(NamedTuple):
    """Two images, by number, and the cosine between their features."""

    first: int
    second: int
    cosine: float


def nearest(features_nd: Tensor, others_md: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of each image the ``count`` others of largest cosine: cosines and numbers, ``(n, count)`` each, largest first."""
    others_dm = F.normalize(others_md, dim=1).T
    parts = [
        (block_bd @ others_dm).clamp(-1, 1).topk(min(count, len(others_md)), dim=1)
        for block_bd in F.normalize(features_nd, dim=1).split(_BLOCK)
    ]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def alike(features_nd: Tensor, least_cosine: float) -> list[Pair]:
    """All pairs of images with at least this cosine, the closest first.

    Raises: ValueError for more than ``MOST_PAIRS``, which nobody reads, and memory may not hold.
    """
    units_nd = F.normalize(features_nd, dim=1)
    pairs: list[Pair] = []
    for start in range(0, len(units_nd), _BLOCK):
        cosines_bm = (units_nd[start : start + _BLOCK] @ units_nd[start:].T).clamp(-1, 1)
        are_alike = cosines_bm >= least_cosine - _ROUNDING
        rows, columns = torch.nonzero(torch.triu(are_alike, diagonal=1), as_tuple=True)
        if len(pairs) + len(rows) > MOST_PAIRS:
            fix = "ask for a higher one, or take fewer images that are nearly the same"
            raise ValueError(f"more than {MOST_PAIRS:,} pairs have a cosine of {least_cosine:g} or more: {fix}")
        found = cosines_bm[rows, columns].tolist()
        pairs += map(Pair, (rows + start).tolist(), (columns + start).tolist(), found)
    return sorted(pairs, key=lambda pair: -pair.cosine)


def knn_answers(train_nd: Tensor, labels_n: Tensor, test_md: Tensor, classes: int) -> Tensor:
    """The class of each test image by a vote of its nearest training images, int64 ``(m,)``.

        votes for class k = sum over the 20 nearest with label k of  exp(cosine / 0.07)

    Source: Wu et al., Unsupervised feature learning via non-parametric instance discrimination (arXiv 1805.01978).
    """
    cosines_mk, numbers_mk = nearest(test_md, train_nd, NEIGHBOURS)
    votes_mk = test_md.new_zeros(len(test_md), classes)
    votes_mk.scatter_add_(1, labels_n[numbers_mk], (cosines_mk / SHARPNESS).exp())
    return votes_mk.argmax(1)


def probe_answers(train_nd: Tensor, labels_n: Tensor, test_md: Tensor, classes: int) -> Tensor:
    """The class of each test image by logistic regression on the training images, int64 ``(m,)``.

    Features are standardised by those of training. The loss is the mean cross-entropy and half the squared weights over
    n, in float64, followed to its minimum; biases are free.
    """
    mean_d, std_d = train_nd.double().mean(0), train_nd.double().std(0, correction=0).clamp_min(1e-12)
    train_nd, test_md = ((features.double() - mean_d) / std_d for features in (train_nd, test_md))
    weight_kd = torch.zeros(classes, train_nd.shape[1], dtype=torch.float64, requires_grad=True)
    bias_k = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_kd, bias_k], max_iter=_ROUNDS, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(train_nd @ weight_kd.T + bias_k, labels_n)
        loss = loss + weight_kd.square().sum() / (2 * len(train_nd))
        loss.backward()
        return loss

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        return (test_md @ weight_kd.T + bias_k).argmax(1)
