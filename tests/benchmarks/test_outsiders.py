"""Outsiders are told from known images by what the benchmark says, and a class that was left out is one of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import outsiders
from benchmarks.outsiders import measured, table
from ceit.inference.predictor import Prediction
from ceit.train.run import train
from tests.train.conftest import SMALL

CONFIG = replace(SMALL, classes=tuple("01234567"), epochs=6)


def test_left_out_classes_noise_and_another_set_are_judged(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(CONFIG, "digits", run)
    result = measured(str(run), "digits", 60)
    assert (result["data"], result["classes"]) == ("digits", 8)
    for score in outsiders.SCORES:
        found = result["scores"][score]
        assert 0 <= found["known_rejected"] < 0.15
        assert list(found["outsiders"]) == ["classes left out: 8, 9", "digits", "noise", "smooth noise", "one colour"]
    familiarity = result["scores"]["familiarity"]["outsiders"]
    assert familiarity["one colour"]["rejected"] > 0.3  # six times as many as of known images
    assert familiarity["classes left out: 8, 9"]["auroc"] > 0.6
    assert familiarity["digits"]["auroc"] < familiarity["classes left out: 8, 9"]["auroc"]  # eight of ten are known
    assert len(table(result).rows) == 7


def test_drawn_outsiders_are_what_their_names_say() -> None:
    drawn = dict(outsiders.outsiders("digits", tuple("0123456789"), "digits", 3, (16, 24), 5))
    assert list(drawn) == ["digits", "noise", "smooth noise", "one colour"]
    images: dict[str, list[Image.Image]] = {name: list(drawn[name]) for name in list(drawn)[1:]}
    assert all(image.size == (24, 16) for own in images.values() for image in own)
    steps = {
        name: np.mean([np.abs(np.diff(np.array(image, dtype=float), axis=0)).mean() for image in own])
        for name, own in images.items()
    }
    assert steps["one colour"] == 0 < steps["smooth noise"] < steps["noise"] / 3
    assert len({image.getpixel((0, 0)) for image in images["one colour"]}) == 5


def test_a_broken_image_is_no_outsider() -> None:
    class Broken:
        def predict_stream(self, images: object, top_k: int) -> list[Prediction]:
            return [Prediction(None, error="cannot be read")]

    predictor: Any = Broken()
    with pytest.raises(ValueError, match="cannot be read"):
        outsiders.judged(predictor, [])
