"""Nearest neighbours and the linear probe give what scikit-learn gives."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler, normalize
from torch import Tensor

from ceit.evaluation import neighbours
from ceit.evaluation.neighbours import NEIGHBOURS, SHARPNESS, alike, knn_answers, nearest, probe_answers

CLASSES, FEATURES = 4, 9


def drawn(images: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = np.random.default_rng(seed)
    centers = 1.2 * np.random.default_rng(0).normal(size=(CLASSES, FEATURES))
    labels = generator.integers(0, CLASSES, images)
    features = (centers[labels] + generator.normal(size=(images, FEATURES))) * np.geomspace(1, 100, FEATURES)
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def test_logistic_regression_is_that_of_scikit_learn() -> None:
    (train, labels), (test, true) = drawn(400, 1), drawn(500, 2)
    scaler = StandardScaler().fit(train.double().numpy())
    model = LogisticRegression(C=1.0, tol=1e-8, max_iter=2000)
    model.fit(scaler.transform(train.double().numpy()), labels.numpy())
    wanted = model.predict(scaler.transform(test.double().numpy()))
    found = probe_answers(train, labels, test, CLASSES).numpy()
    assert (found != wanted).mean() <= 0.002
    assert (found == true.numpy()).mean() > 0.7


def test_exact_copies_have_a_cosine_of_one() -> None:
    features = torch.randn(50, 96, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    pairs = alike(features, 1.0)
    assert sorted(pair[:2] for pair in pairs) == [(i, i + 50) for i in range(50)]
    assert all(pair.cosine <= 1 for pair in pairs)
    assert nearest(features, features, 2)[0].max() <= 1


def test_more_pairs_than_anybody_reads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MOST_PAIRS", 45)
    assert len(alike(torch.ones(10, 3), 0.9)) == 45
    with pytest.raises(ValueError, match=r"more than 45 pairs have a cosine of 0\.9 or more: ask for a higher one"):
        alike(torch.ones(11, 3), 0.9)


def test_the_vote_of_neighbours_is_that_of_scikit_learn() -> None:
    (train, labels), (test, _) = drawn(400, 1), drawn(300, 2)

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances**2 / 2) / SHARPNESS)  # of unit vectors: the cosine

    options: dict[str, Any] = {"weights": weights, "algorithm": "brute"}
    model = KNeighborsClassifier(NEIGHBOURS, **options)
    model.fit(normalize(train.double().numpy()), labels.numpy())
    wanted = model.predict(normalize(test.double().numpy()))
    assert (knn_answers(train, labels, test, CLASSES).numpy() != wanted).mean() <= 0.004


@pytest.mark.parametrize("block", [7, 1024])
def test_pairs_and_neighbours_are_found_whatever_the_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    features[23] = 2.5 * features[4]
    features[11] = features[4] + 1e-3
    units = features / features.norm(dim=1, keepdim=True)
    cosines = units @ units.T
    pairs = alike(features, 0.6)
    assert {(pair.first, pair.second) for pair in pairs} == {
        (i, j) for i in range(30) for j in range(i + 1, 30) if cosines[i, j] >= 0.6
    }
    assert [pair[:2] for pair in pairs[:1]] == [(4, 23)]
    assert [pair.cosine for pair in pairs] == sorted((pair.cosine for pair in pairs), reverse=True)
    values, numbers = nearest(features[:3], features, 4)
    assert torch.allclose(values, cosines[:3].topk(4).values, atol=1e-6)
    assert numbers[:, 0].tolist() == [0, 1, 2]
    assert nearest(features[:3], features[:2], 4)[0].shape == (3, 2)
