"""Temperature scaling: one number that makes a network's probabilities as good as its answers.

Letters: n images, K classes.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST, MOST = 0.05, 20.0  # temperatures; beyond them a network is as good as never, or always, in doubt
_HALVINGS = 40


def fit_temperature(
    logits_nk: Tensor, labels_n: Tensor, total: Callable[[list[float]], list[float]] = lambda values: values
) -> float:
    """The temperature T that makes the calibrated probabilities softmax(logits / T) most likely.

        T = argmin of  mean over images of  sum over classes  -t_k log softmax(logits / T)_k
        t = (1 - e) [k = label] + e / K,   e = 1 / (n + 2)

    The accuracy stays as it is. In 1 / T the loss is convex: its slope is followed to zero by halving log T. The soft
    targets t are those of Platt: without them a hundred right answers out of a hundred would leave no doubt at all; for
    many images they change nothing. ``total`` adds up numbers over processes that hold images each.

    Shape: logits ``(n, K)``, labels int64 ``(n,)``. Returns: T in ``LEAST`` to ``MOST``, to four digits.
    Sources: Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599); Platt, Probabilistic outputs for
    support vector machines, 1999.
    """
    logits_nk = logits_nk.double()
    (images,) = total([float(len(labels_n))])
    doubt, classes = 1 / (images + 2), logits_nk.shape[1]
    targets_nk = (1 - doubt) * F.one_hot(labels_n, classes) + doubt / classes

    def slope(temperature: float) -> float:
        """Of the summed loss, in 1 / T."""
        excess_nk = (logits_nk / temperature).softmax(1) - targets_nk
        return total([(excess_nk * logits_nk).sum().item()])[0]

    low, high = math.log(LEAST), math.log(MOST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if slope(math.exp(middle)) > 0:  # too sure: the loss grows with 1 / T
            low = middle
        else:
            high = middle
    return float(f"{math.exp((low + high) / 2):.4g}")


class KeptLogits:
    """Takes the logits and labels of batch after batch, as ``evaluate`` tells them."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []

    def __call__(self, logits_bk: Tensor, labels_b: Tensor) -> None:
        self._batches.append((logits_bk.cpu(), labels_b.cpu()))

    def joined(self, classes: int) -> tuple[Tensor, Tensor]:
        """All of them; empty ones where this process had no images."""
        empty = torch.empty(0, classes), torch.empty(0, dtype=torch.int64)
        logits, labels = zip(empty, *self._batches, strict=True)
        return torch.cat(logits), torch.cat(labels)
