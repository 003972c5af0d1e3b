"""The temperature makes probabilities as good as the answers, and leaves the answers."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from ceit.evaluation.temperature import KeptLogits, fit_temperature


def drawn(images: int, sharpness: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that are ``sharpness`` times as large as those that their labels were drawn by."""
    generator = torch.Generator().manual_seed(seed)
    true = 2 * torch.randn(images, 6, generator=generator)
    labels = torch.multinomial(true.softmax(1), 1, generator=generator)[:, 0]
    return sharpness * true, labels


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_labels_drawn_from_the_probabilities_give_back_the_temperature(sharpness: float) -> None:
    assert fit_temperature(*drawn(20_000, sharpness)) == pytest.approx(sharpness, rel=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_where_the_loss_is_least(seed: int) -> None:
    logits, labels = drawn(3_000, 1.7, seed)

    def loss(temperature: float) -> float:
        return F.cross_entropy(logits.double() / temperature, labels).item()

    least = minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-6})
    assert fit_temperature(logits, labels) == pytest.approx(least.x, rel=3e-3)  # the soft targets, and four digits


def test_few_images_that_are_all_right_leave_a_doubt() -> None:
    """Of n answers without a mistake the next one is right with about (n + 1) / (n + 2), as Laplace has it."""
    for images in (10, 100, 1_000):
        labels = torch.arange(images) % 4
        logits = 3.0 * F.one_hot(labels, 4).double()
        sure = (logits / fit_temperature(logits, labels)).softmax(1).amax(1).mean().item()
        assert 1 - sure == pytest.approx(0.75 / (images + 2), rel=2e-3)


def test_answers_that_mean_nothing_are_as_unsure_as_can_be() -> None:
    logits, labels = torch.randn(2_000, 4), torch.randint(4, (2_000,))
    temperature = fit_temperature(20 * logits, labels)
    assert pytest.approx(temperature, rel=1e-3) == 20


def test_images_shared_out_over_processes_give_the_temperature_of_all() -> None:
    """One of the three has no images at all. Here they are threads that meet where processes would."""
    logits, labels = drawn(999, 2.0)
    shares = [KeptLogits() for _ in range(3)]
    for start in range(0, 999, 100):
        shares[start // 100 % 2](logits[start : start + 100], labels[start : start + 100])
    told, meeting = [[0.0]] * 3, Barrier(3)

    def fitted(rank: int) -> float:
        def total(values: list[float]) -> list[float]:
            told[rank] = values
            meeting.wait(timeout=60)
            totals = [float(sum(values)) for values in zip(*told, strict=True)]
            meeting.wait(timeout=60)
            return totals

        return fit_temperature(*shares[rank].joined(6), total=total)

    assert [len(share.joined(6)[1]) for share in shares] == [500, 499, 0]
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(fitted, range(3))) == {fit_temperature(logits, labels)}
