"""The API answers as ``ceit predict --json`` does, and every bad file with a sentence; the page shows the same."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ceit
import ceit_cli
from ceit.data.preprocessing import Preprocessing
from ceit.inference.example_images import synthetic
from ceit.inference.exporter import export
from ceit.inference.familiarity import KNOWN_REJECTED
from ceit.inference.predictor import Prediction, Predictor, Score
from ceit.shipped import DEFAULT
from ceit.web.answers import Shown, _render, answers_html, remarks_html, shown
from ceit.web.api import api
from ceit.web.guard import Guard

Ask = Callable[..., Any]
HOSTILE = ("<script>alert(1)</script>", "a\"'&b", "${alert(2)}{{ 7 }}")


def as_file(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def picture() -> bytes:
    """A photograph's way of being awkward: turned by its EXIF, larger than the network, not square."""
    pixels = np.random.default_rng(5).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    return as_file(Image.fromarray(pixels).resize((300, 200)), "JPEG", exif=exif)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of three classes with hostile names: one with LCA, and the same exported."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("models")
    geometry: dict[str, Any] = {"embed_dim": 16, "depth": 3, "num_heads": 2, "stem_channels": 8, "stem_stride": 1}
    preprocessing = Preprocessing((0.3,) * 3, (0.4,) * 3)
    model = ceit.CeiT(ceit.CeiTConfig(**geometry, img_size=(16, 24), num_classes=3, patch_size=4))
    ceit.save_checkpoint(folder / "m.safetensors", model, class_names=HOSTILE, preprocessing=preprocessing)
    images = synthetic(8, image_hw=(16, 24), preprocessing=preprocessing)
    export(ceit.load_checkpoint(folder / "m.safetensors"), folder / "m.onnx", format="onnx", check=images)
    return folder


@pytest.fixture(scope="module")
def models(folder: Path) -> list[Shown]:
    names = (DEFAULT, str(folder / "m.safetensors"), str(folder / "m.onnx"))
    return [
        shown(name, None if name.endswith(".onnx") else "cpu", calibrated=True, unknown_below=KNOWN_REJECTED)
        for name in names
    ]


def test_the_answer_is_that_of_ceit_predict(
    ask: Ask, models: list[Shown], picture: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "picture.jpg"
    file.write_bytes(picture)
    for model in models:
        judged = ["--unknown-below", "auto"] if model.as_dict()["tells_unknown"] else []
        assert ceit_cli.main(["predict", "--json", "--checkpoint", model.name, *judged, str(file)]) == 0
        (expected,) = json.loads(capsys.readouterr().out)
        answer = ask(api(models), f"/api/predict?model={model.name}", picture, method="POST")
        assert answer.status == 200
        found = answer.json()
        assert found.keys() == expected.keys()
        assert found["path"] is None
        for ours, theirs in zip(found["predictions"], expected["predictions"], strict=True):
            assert ours["label"] == theirs["label"]
            assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-4)
        assert found.get("unknown") == expected.get("unknown")
        assert found.get("familiarity") == pytest.approx(expected.get("familiarity"), abs=1e-3)


def test_without_a_name_the_first_model_answers(ask: Ask, models: list[Shown], picture: bytes) -> None:
    by_name = ask(api(models), f"/api/predict?model={DEFAULT}&top_k=2", picture, method="POST").json()
    assert ask(api(models), "/api/predict?top_k=2", picture, method="POST").json() == by_name
    assert len(by_name["predictions"]) == 2
    assert len(ask(api(models), "/api/predict?top_k=999999999999", picture, method="POST").json()["predictions"]) == 10


def test_models_say_what_they_can(ask: Ask, models: list[Shown]) -> None:
    first, second, exported = ask(api(models), "/api/models").json()
    assert first == {
        "name": DEFAULT,
        "classes": list(models[0].predictor.class_names),
        "image_hw": [32, 32],
        "tells_unknown": True,
        "explains": True,
        "remarks": [],
    }
    assert (second["tells_unknown"], second["explains"]) == (False, True)
    assert second["remarks"][0].startswith("this model cannot tell unknown images: that takes validation images")
    assert (exported["tells_unknown"], exported["explains"]) == (False, False)
    assert "an exported file does not show its layers: name the checkpoint that it was made of" in exported["remarks"]


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ("model=cifar10", 404, "unknown model 'cifar10'; did you mean 'ceit_nano_patch4_32.cifar10'?"),
        ("top_k=0", 400, "top_k 0 must be a whole number of at least 1"),
        ("top_k=-1", 400, "top_k -1 must be a whole number of at least 1"),
        ("top_k=%C2%B2", 400, "top_k ² must be a whole number of at least 1"),
        (f"top_k={'0' * 5000}1", 400, "top_k 000"),
        ("top_k=", 400, "top_k must be a whole number of at least 1"),
    ],
)
def test_a_wrong_question_is_a_sentence(
    query: str, status: int, sentence: str, ask: Ask, models: list[Shown], picture: bytes
) -> None:
    answer = ask(api(models), f"/api/predict?{query}", picture, method="POST")
    assert answer.status == status
    assert answer.json()["error"].startswith(sentence)


def bad_files(picture: bytes) -> dict[str, tuple[bytes, str]]:
    many = Image.new("1", (12_000, 9_000))
    return {
        "nothing": (b"", "not an image"),
        "text": (b"root:x:0:0:root:/root:/bin/sh\n" * 50, "not an image"),
        "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "not an image"),
        "an address": (b"http://127.0.0.1:1/a.png", "not an image"),
        "a path": (b"/etc/passwd", "not an image"),
        "JSON": (b'{"path": "/etc/passwd"}', "not an image"),
        "damaged": (picture[: len(picture) // 3], "truncated"),
        "108 megapixels": (as_file(many), "12000 x 9000 pixels, above the limit of 64 megapixels"),
        "a lie of size": (as_file(Image.new("L", (2, 2))).replace(b"\0\0\0\2\0\0\0\2", b"\0\1\0\0\0\1\0\0"), "damaged"),
    }


@pytest.mark.parametrize("name", bad_files(b"\xff\xd8\xff"))
def test_a_bad_file_is_a_sentence_and_the_next_is_answered(
    name: str, ask: Ask, models: list[Shown], picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEIT_MAX_MEGAPIXELS", "64")
    data, words = bad_files(picture)[name]
    answer = ask(api(models), "/api/predict", data, method="POST")
    assert answer.status == 422
    assert set(answer.json()) == {"error"}
    if name != "a lie of size":
        assert words in answer.json()["error"]
    assert 'role="alert"' in answers_html(models, data)
    assert ask(api(models), "/api/predict", picture, method="POST").status == 200


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (torch.nan, "the network's answer is not a number"),
        (MemoryError(), "this machine has too little memory for it"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "has too little memory for it"),
        (RuntimeError("an illegal memory access"), "an illegal memory access"),
    ],
)
def test_a_network_that_fails_is_a_sentence(
    wrong: float | Exception, sentence: str, ask: Ask, models: list[Shown], picture: bytes
) -> None:
    def network(images: torch.Tensor) -> torch.Tensor:
        if isinstance(wrong, Exception):
            raise wrong
        return torch.full((len(images), 3), wrong)

    failing = Shown("failing", Predictor.from_model(models[1].predictor.model, device="cpu", network=network))
    answer = ask(api([failing]), "/api/predict", picture, method="POST")
    assert answer.status == 422
    assert sentence in answer.json()["error"]
    assert sentence in answers_html([failing], picture).replace("&#39;", "'")
    both = answers_html([failing, models[0]], picture).replace("&#39;", "'")
    assert f"failing: {answer.json()['error']}" in both
    assert f'data-model="{models[0].name}"' in both, "the other one has answered"


def test_what_cannot_be_explained_is_answered(
    models: list[Shown], picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("ceit.web.answers.explain", fails)
    text = answers_html([models[1]], picture)
    assert "data-probability" in text
    assert "not explained: this machine has too little memory for it" in text


def test_the_most_familiar_picture_is_a_hundred_percent(models: list[Shown], picture: bytes) -> None:
    said = Prediction(None, (Score("a", 1.0),), familiarity=1.0)
    card = {"name": "m", "said": said, "panels": [], "weights": [], "unexplained": None}
    assert "familiarity 100 %" in _render(cards=[card])


def test_behind_the_guard_fifty_megabytes_are_refused_and_the_next_is_answered(
    ask: Ask, models: list[Shown], picture: bytes, tmp_path: Path
) -> None:
    app = Guard(api(models), tmp_path)
    refused = ask(app, "/api/predict", *[bytes(1_000_000)] * 50, method="POST")
    assert (refused.status, refused.json()) == (413, {"error": "more than 20 MB: make the picture smaller"})
    assert ask(app, "/api/predict", picture, method="POST").status == 200


def test_the_page_shows_what_the_api_answers(ask: Ask, models: list[Shown], picture: bytes) -> None:
    text = answers_html(models, picture)
    cards = text.split("<section")[1:]
    assert len(cards) == 3
    for model, card in zip(models, cards, strict=True):
        said = ask(api(models), f"/api/predict?model={model.name}", picture, method="POST").json()
        shares = [float(share) for share in re.findall(r'data-probability="([^"]+)"', card)]
        assert shares == pytest.approx([score["probability"] for score in said["predictions"]], abs=1e-6)
        assert ("familiarity" in card) == ("familiarity" in said)
        assert ("what the network sees" in card) == model.explains
        assert ("which blocks LCA listens to" in card) == (model is models[1])
    assert cards[1].count("<img") == 1 + 3, "Grad-CAM, and attention of all layers and of the last"


def test_names_are_text_on_the_page(models: list[Shown], picture: bytes) -> None:
    text = answers_html(models, picture) + remarks_html(models)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "a&#34;&#39;&amp;b" in text


def test_what_models_cannot_do_is_said_once(models: list[Shown]) -> None:
    text = remarks_html(models)
    assert text.count("this model cannot tell unknown images") == 1
    assert text.count("an exported file does not show its layers") == 1
    assert "<li" not in remarks_html(models[:1])
