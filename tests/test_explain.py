"""``ceit explain`` draws a sheet for every image and writes over nothing."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
import torch
from PIL import Image

import ceit
import ceit_cli
from ceit.data.preprocessing import Preprocessing
from ceit.explain import sheet
from ceit.explain.explanation import Explanation, PatchMap, explain
from ceit.explain.maps import contributions
from ceit.inference.example_images import synthetic
from ceit.inference.exporter import export
from ceit.inference.predictor import Score

CLASSES = ("cat", "dog $x$", "Œuf")


def save(path: Path, **changes: Any) -> str:
    torch.manual_seed(3)
    geometry: dict[str, Any] = {"embed_dim": 16, "depth": 3, "num_heads": 2, "stem_channels": 8, "stem_stride": 1}
    geometry |= {"img_size": (16, 24), "in_chans": 3, "num_classes": 3, "patch_size": 4, **changes}
    preprocessing = Preprocessing((0.3,) * geometry["in_chans"], (0.4,) * geometry["in_chans"])
    model = ceit.CeiT(ceit.CeiTConfig(**geometry))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.dim() > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    ceit.save_checkpoint(path, model, class_names=CLASSES, preprocessing=preprocessing)
    return str(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a/holi day.jpg", "b/Holi day.png", "$weird$ näme.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(name)).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


def explained(*arguments: object) -> int:
    return ceit_cli.main(["explain", "--device", "cpu", *map(str, arguments)])


@pytest.mark.parametrize(
    "changes", [{}, {"lca": False}, {"global_pool": "avg", "lca": False}, {"global_pool": "sum"}, {"in_chans": 1}]
)
def test_every_image_gets_a_sheet_of_its_own(
    changes: dict[str, Any], tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save(tmp_path / "model.safetensors", **changes)
    assert explained("--checkpoint", checkpoint, "--output", tmp_path / "why", "--json", photos) == 0
    documents = json.loads(capsys.readouterr().out)
    names = {path.name for path in (tmp_path / "why").iterdir()}
    stems = ("holi day", "Holi day-2", "$weird$ näme")
    assert names == {f"{stem}.explained.{form}" for stem in stems for form in ("png", "svg")}
    predictor = ceit.Predictor.from_checkpoint(checkpoint)
    for document in documents:
        with Image.open(document["sheet"]) as sheet:
            assert sheet.width == 1600
        (said,) = predictor.predict(document["path"])
        for ours, theirs in zip(document["predictions"], said.predictions, strict=True):
            assert ours["label"] == theirs.label
            assert ours["probability"] == pytest.approx(theirs.probability, abs=1e-5)
        assert all(np.shape(values) == (4, 6) for values in document["maps"].values())
        has_lca = changes.get("lca", True)
        assert (document["layer_weights"] is not None) == has_lca
        assert not has_lca or sum(document["layer_weights"]) == pytest.approx(1, abs=1e-3)


def test_another_class_can_be_asked_about(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save(tmp_path / "model.safetensors")
    image = photos / "a/holi day.jpg"
    maps = []
    for label in CLASSES:
        arguments = "--checkpoint", checkpoint, "--output", tmp_path / label, "--about", label, "--json", image
        assert explained(*arguments) == 0
        (document,) = json.loads(capsys.readouterr().out)
        assert document["about"]["label"] == label
        maps.append(document["maps"][f"Grad-CAM of {label}"])
    assert all(one != other for one, other in combinations(maps, 2))


def test_what_lies_there_is_not_written_over(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--checkpoint", save(tmp_path / "model.safetensors"), "--output", photos, photos / "$weird$ näme.png"
    before = (photos / "$weird$ näme.png").read_bytes()
    assert explained(*arguments) == 0
    assert (photos / "$weird$ näme.png").read_bytes() == before
    assert explained(*arguments) == 1
    sentence = f"already there: {photos / '$weird$ näme.explained.png'} and "
    assert sentence in capsys.readouterr().err


def test_what_cannot_be_explained_is_one_sentence(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save(tmp_path / "model.safetensors")
    (photos / "b" / "broken.png").write_bytes(b"no image")
    assert explained("--checkpoint", checkpoint, "--output", tmp_path / "1", "--about", "dgo", photos) == 1
    assert "unknown class 'dgo'; did you mean 'dog $x$'?" in capsys.readouterr().err
    assert explained("--checkpoint", checkpoint, "--output", tmp_path / "1", "--device", "gpu", photos) == 1
    assert "unknown device 'gpu': name cpu, cuda, cuda:1 or mps" in capsys.readouterr().err
    assert not (tmp_path / "1").exists()
    assert explained("--checkpoint", checkpoint, "--output", tmp_path / "2", photos / "b") == 1
    captured = capsys.readouterr()
    assert f"1 of 2 images cannot be read: {photos / 'b' / 'broken.png'}" in captured.err
    assert "Holi day.explained.png: " in captured.out
    assert re.search(r"Holi day\S*: \S+ [\d.]+%$", captured.out, re.MULTILINE)  # of which picture, with its folder
    assert len(list((tmp_path / "2").iterdir())) == 2
    model = ceit.load_checkpoint(checkpoint)
    images = synthetic(8, image_hw=(16, 24), preprocessing=Preprocessing((0.3,) * 3, (0.4,) * 3))
    export(model, tmp_path / "m.onnx", format="onnx", check=images)
    assert explained("--checkpoint", tmp_path / "m.onnx", "--output", tmp_path / "3", photos / "b") == 1
    assert "an exported file does not show its layers: name the checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "3").exists()


def test_every_map_is_drawn(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of them where both the class token and the patches are classified."""
    drawn: list[str] = []

    def noted(axes: Any, pixels: np.ndarray, entry: PatchMap, letters: int) -> None:
        drawn.append(entry.title)

    monkeypatch.setattr(sheet, "_draw_map", noted)
    predictor = ceit.Predictor.from_checkpoint(save(tmp_path / "model.safetensors", global_pool="sum"), device="cpu")
    found = explain(predictor, photos / "b/Holi day.png")
    sheet.draw_sheet(found, "a title", [tmp_path / "sheet.png"])
    assert drawn == [entry.title for entry in found.maps]
    assert len(drawn) == 4


def test_long_names_are_told_apart_and_many_bars_have_room(tmp_path: Path) -> None:
    names = [f"a warbler of the north (class {number})" for number in range(30)]
    scores = tuple(Score(name, 0.03) for name in names)
    maps = tuple(PatchMap("for and against", np.ones((4, 4)), signed=True, about=name) for name in names[:2])
    found = Explanation(np.zeros((16, 16, 3), np.uint8), scores, scores[25], maps, None, None)
    pictures = [tmp_path / "sheet.svg", tmp_path / "sheet.png"]
    sheet.draw_sheet(found, "a title", pictures)
    words = pictures[0].read_text(encoding="utf-8")  # which stand in front of their outlines
    numbers = Counter(re.findall(r"<!-- a warbler.*lass ([0-9]+)\) -->", words))
    assert numbers.pop("0") == numbers.pop("1") == 2  # above a map, and beside a bar
    assert set(numbers) == {*map(str, range(2, 20)), "25"}
    with Image.open(pictures[1]) as drawn:
        assert drawn.height > 21 * 40 + 400  # pixels of the bars, and of the maps


def test_no_sheet_takes_the_place_of_another_and_none_has_too_long_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, folder = save(tmp_path / "model.safetensors"), tmp_path / "many"
    folder.mkdir()
    names = ["a.jpg", "a.png", "a-2.jpg", f"{'n' * 240}.png", f"{'n' * 241}.png", f"{'猫' * 80}.png"]
    for name in names:
        Image.new("RGB", (20, 20), (9, 99, 199)).save(folder / name)
    assert explained("--checkpoint", checkpoint, "--output", tmp_path / "why", "--json", folder) == 0
    captured = capsys.readouterr()
    documents = json.loads(captured.out)
    assert sorted(Path(document["path"]).name for document in documents) == sorted(names)
    assert len({document["sheet"] for document in documents}) == len(names)
    assert all(Path(document["sheet"]).is_file() for document in documents)
    assert "Glyph" not in captured.err


def test_answers_that_are_no_numbers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, photo = Path(save(tmp_path / "model.safetensors")), tmp_path / "x.png"
    Image.new("RGB", (20, 20)).save(photo)
    model = ceit.load_checkpoint(path)
    with torch.no_grad():
        next(model.get_classifier().parameters())[0] = float("nan")
    ceit.save_checkpoint(path, model, class_names=CLASSES)
    assert explained("--checkpoint", path, "--output", tmp_path / "why", photo) == 1
    assert "the network's answer is not a number" in capsys.readouterr().err
    assert list((tmp_path / "why").iterdir()) == []


def test_a_class_that_is_not_among_the_most_probable_is_told_and_changes_no_map(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save(tmp_path / "model.safetensors", global_pool="avg", lca=False)
    documents = []
    for top_k in (1, 3):
        arguments = "--output", tmp_path / str(top_k), "--json", "--top-k", top_k, photos / "a/holi day.jpg"
        assert explained("--checkpoint", checkpoint, *arguments) == 0
        documents += json.loads(capsys.readouterr().out)
    assert len(documents[0]["predictions"]) == 1
    assert documents[0]["maps"] == documents[1]["maps"]
    last = documents[1]["predictions"][-1]
    arguments = (
        "--output",
        tmp_path / "last",
        "--json",
        "--top-k",
        1,
        "--about",
        last["label"],
        photos / "a/holi day.jpg",
    )
    assert explained("--checkpoint", checkpoint, *arguments) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert document["about"] == last
    assert explained("--checkpoint", checkpoint, "--output", tmp_path / "0", "--top-k", 0, photos) == 2
    assert "0 must be at least 1" in capsys.readouterr().err


def test_predicting_and_explaining_leave_the_network_as_it_is(tmp_path: Path, photos: Path) -> None:
    model = ceit.load_checkpoint(save(tmp_path / "model.safetensors")).bfloat16().train()
    predictor = ceit.Predictor.from_model(model, device="cpu")
    list(predictor.predict(photos / "b/Holi day.png"))
    explain(predictor, photos / "b/Holi day.png")
    assert all(module.training for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_class_may_be_typed_in_letters_and_signs_of_their_own(tmp_path: Path, photos: Path) -> None:
    model = ceit.load_checkpoint(save(tmp_path / "model.safetensors"))
    predictor = ceit.Predictor(model, class_names=["cat", "niña", "ni"], device="cpu")
    assert explain(predictor, photos / "b/Holi day.png", normalize("NFD", "niña")).about.label == "niña"


@pytest.mark.parametrize("about", [None, "cat"])
def test_of_equal_names_the_more_probable_is_explained(about: str | None, tmp_path: Path, photos: Path) -> None:
    model = ceit.load_checkpoint(save(tmp_path / "model.safetensors", global_pool="avg", lca=False))
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n == "head.bias").copy_(torch.tensor([9.0, 0.0, 99.0]))
    predictor = ceit.Predictor(model, class_names=["cat", "dog", "cat"], device="cpu")
    found = explain(predictor, photos / "b/Holi day.png", about)
    images = predictor.preprocessing.normalise(found.pixels_hwc[None]).permute(0, 3, 1, 2)
    assert found.about == found.answers[0] == ("cat", pytest.approx(1))
    for entry, number in zip(found.maps, (2, 0), strict=False):
        assert entry.title == f"for and against cat (class {number})"
        expected = contributions(model, images, torch.tensor([number]))[0].numpy()
        np.testing.assert_allclose(entry.values_hw, expected, atol=1e-5)


def test_an_explanation_is_the_same_inside_inference_mode(tmp_path: Path, photos: Path) -> None:
    predictor = ceit.Predictor.from_checkpoint(save(tmp_path / "model.safetensors", global_pool="sum"), device="cpu")
    outside = explain(predictor, photos / "b/Holi day.png").as_dict()
    with torch.inference_mode():
        assert explain(predictor, photos / "b/Holi day.png").as_dict() == outside
