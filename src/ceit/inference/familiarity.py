"""Whether an image is one of those that a network knows: how far its features lie from those of every class.

Letters: B batch, n images, K classes, D features, m ranks.
"""

import base64
import copy
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ceit.model import CeiT

KNOWN_REJECTED = 0.05
"""The share of known images that are called unknown, unless another is asked for."""
_FOLDS, _FOLDED_IMAGES = 5, 4000  # few images are cut into more folds: all but a few of them place the others
_RANKS = 1000  # of the distances at most so many are kept
_DTYPE = "<f2"  # little-endian float16


@dataclass(frozen=True)
class Familiarity:
    """What a network's features of known images are like.

        d(f) = min over classes k of  || (f - c_k) L ||,   L L^T = S^-1
        familiarity(f) = (1 + n * share of known images with a distance of at least d(f)) / (n + 1)

    ``d`` is the Mahalanobis distance to the nearest class: ``centers_kd`` are the classes' mean features c, S is the
    covariance around them that all classes share, ``factor_dd`` is L, lower triangular. ``distances_m`` are those of
    known images, ascending, ``images`` is n. The familiarity is a p-value in (0, 1]: of images like the known ones, a
    share P has a familiarity of P or less.

    Sources: Lee et al., A simple unified framework for detecting out-of-distribution samples (arXiv 1807.03888), of the
    last layer alone; Vovk et al., Algorithmic learning in a random world, 2005, for the p-value.
    """

    centers_kd: Tensor
    factor_dd: Tensor
    distances_m: Tensor
    images: int

    def distances(self, features_bd: Tensor) -> Tensor:
        """``(B,)``, float32."""
        return _distances(features_bd.float().cpu(), self.centers_kd, self.factor_dd)

    def of(self, features_bd: Tensor) -> Tensor:
        """``(B,)``: the familiarity of each image, float64."""
        nearer_b = torch.searchsorted(self.distances_m, self.distances(features_bd))
        return (1 + self.images * (1 - nearer_b.double() / len(self.distances_m))) / (self.images + 1)

    @property
    def least(self) -> float:
        """The smallest familiarity that an image can have: so few images cannot tell smaller ones apart."""
        return 1 / (self.images + 1)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: L's lower triangle, the centers, then the distances, as float16 in base64."""
        classes, features = self.centers_kd.shape
        rows, columns = np.tril_indices(features)
        parts = self.factor_dd.numpy()[rows, columns], self.centers_kd.numpy().ravel(), self.distances_m.numpy()
        data = base64.b64encode(np.concatenate(parts).astype(_DTYPE).tobytes()).decode("ascii")
        return {"images": self.images, "classes": classes, "features": features, "data": data}

    @classmethod
    def from_dict(cls, given: Any) -> Self:
        """The inverse of ``as_dict``. Raises: ValueError for what cannot be one."""
        try:
            images, classes, features = (int(given[key]) for key in ("images", "classes", "features"))
            numbers = np.frombuffer(base64.b64decode(given["data"], validate=True), _DTYPE).astype(np.float32)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"what is said of known images is damaged ({error})") from error
        triangle = features * (features + 1) // 2
        factor, centers, distances = np.split(numbers, [triangle, triangle + classes * features])
        if min(images, classes, features, len(distances)) < 1 or not np.isfinite(numbers).all():
            raise ValueError(f"what is said of known images is damaged ({len(numbers)} numbers)")
        factor_dd = np.zeros((features, features), np.float32)
        factor_dd[np.tril_indices(features)] = factor
        centers_kd = torch.from_numpy(centers.reshape(classes, features))
        return cls(centers_kd, torch.from_numpy(factor_dd), torch.from_numpy(distances).sort().values, images)


def fit_familiarity(features_nd: Tensor, labels_n: Tensor, classes: int) -> Familiarity | None:
    """That of a network whose validation images have these features, ``(n, D)``; None if there are too few.

    There must be an image of every class, and as many as tell ``KNOWN_REJECTED`` from nothing. The images are cut into
    folds. Each one's distance is taken from centers and a covariance that the other folds gave: what an image has
    helped to place is near.
    """
    images = len(labels_n)
    if images < 1 / KNOWN_REJECTED or len(labels_n.unique()) < classes:
        return None
    features_nd = features_nd.double()
    fitted = _fit(features_nd, labels_n, classes)
    distances_n = torch.empty(images, dtype=torch.float64)
    folds = min(images, max(_FOLDS, _FOLDED_IMAGES // images))
    folds_n = torch.arange(images) % folds
    for fold in range(folds):
        own_n = folds_n == fold
        others = _fit(features_nd[~own_n], labels_n[~own_n], classes)
        if fitted is None or others is None:
            return None
        distances_n[own_n] = _distances(features_nd[own_n], *others)
    assert fitted is not None
    ranks_m = torch.linspace(0, images - 1, min(images, _RANKS)).round().long()
    numbers = (*fitted, distances_n.sort().values[ranks_m])
    centers_kd, factor_dd, distances_m = (torch.from_numpy(part.numpy().astype(_DTYPE)).float() for part in numbers)
    found = Familiarity(centers_kd, factor_dd, distances_m, images)
    return found if all(part.isfinite().all() for part in (centers_kd, factor_dd, distances_m)) else None


def _fit(features_nd: Tensor, labels_n: Tensor, classes: int) -> tuple[Tensor, Tensor] | None:
    """Centers ``(K, D)``, not a number where a class has no image, and L ``(D, D)``; None if nothing varies.

    The covariance is shrunk towards a multiple of the identity, the more the fewer images there are.
    Source: the OAS estimator of Chen et al., Shrinkage algorithms for MMSE covariance estimation (arXiv 0907.4698).
    """
    counts_k = torch.bincount(labels_n, minlength=classes)
    centers_kd = features_nd.new_zeros(classes, features_nd.shape[1]).index_add_(0, labels_n, features_nd)
    centers_kd = centers_kd / counts_k[:, None]
    deviations_nd = features_nd - centers_kd[labels_n]
    free, size = len(labels_n) - int((counts_k > 0).sum()), features_nd.shape[1]
    if free < 1 or not deviations_nd.isfinite().all():
        return None
    covariance_dd = deviations_nd.T @ deviations_nd / free
    variance = covariance_dd.trace() / size
    squares, spread = covariance_dd.square().sum(), size * variance
    if spread == 0:
        return None
    off = (free + 1 - 2 / size) * (squares - spread**2 / size)
    share = float(((1 - 2 / size) * squares + spread**2) / off) if off > 0 else 1.0
    share = min(1.0, share)
    identity_dd = torch.eye(size, dtype=features_nd.dtype)
    covariance_dd = (1 - share) * covariance_dd + share * variance * identity_dd
    return centers_kd, torch.linalg.cholesky(torch.linalg.inv(covariance_dd))


def _distances(features_bd: Tensor, centers_kd: Tensor, factor_dd: Tensor) -> Tensor:
    """To the nearest center, ``(B,)``; one that is not a number is none."""
    known_kd = centers_kd[centers_kd.isfinite().all(1)]
    return torch.cdist(features_bd @ factor_dd, known_kd @ factor_dd).amin(1)


class _HeadWithFeatures(nn.Module):
    """A head that also gives what it gets: ``(B, D)`` to ``(B, K + D)``."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.linear = head

    def forward(self, pooled_bd: Tensor) -> Tensor:
        return torch.cat([self.linear(pooled_bd), pooled_bd], dim=1)


def with_features(model: CeiT) -> CeiT:
    """A copy that gives its features behind the logits, ``(B, K + D)``: those of ``forward_head(..., pre_logits)``."""
    wide = copy.deepcopy(model)
    wide.head = _HeadWithFeatures(wide.head)
    return wide


class KeptFeatures(nn.Module):
    """A network of ``with_features`` that gives the logits alone, and keeps the features of every image it is given."""

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network, self.classes = network, classes
        self._batches: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.network(images)
        self._batches.append(outputs[:, self.classes :].float().cpu())
        return outputs[:, : self.classes]

    def joined(self, features: int) -> Tensor:
        """``(n, D)``, of no images too."""
        return torch.cat([torch.empty(0, features), *self._batches])
