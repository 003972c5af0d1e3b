"""What strangers call their classes and files reaches no terminal and no page as more than text."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ceit
import ceit_cli
from ceit.messages import plain
from ceit.model import CeiT, CeiTConfig
from ceit.train.model_card import FinishedRun, classes_told
from ceit.web.answers import answers_html, remarks_html, shown

ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202e"
MARKUP = '"><script>alert(1)</script>&'
SMALL = CeiTConfig(img_size=32, embed_dim=24, depth=1, num_heads=2, num_classes=2, stem_channels=8)


def checkpoint(folder: Path, names: list[str]) -> str:
    path = folder / "model.safetensors"
    told = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop": 1.0, "interpolation": "bicubic"}
    ceit.save_checkpoint(path, CeiT(SMALL), class_names=names, preprocessing=told)
    return str(path)


def photos(folder: Path, names: tuple[str, str]) -> Path:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for image in range(12):
            pixels = np.random.default_rng(12 * number + image).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{image}{ESCAPES}\n{image}.png")
        (folder / name / f"broken{ESCAPES}\nx.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "--checkpoint", "MODEL", "PHOTOS/a"],
        ["explain", "--checkpoint", "MODEL", "PHOTOS/a"],
        ["evaluate", "--checkpoint", "MODEL", "--data", "PHOTOS", "--skip-broken"],
        ["evaluate", "--checkpoint", "MODEL", "--data", "PHOTOS"],
        ["embed", "--checkpoint", "MODEL", "--duplicates", "0.1", "PHOTOS"],
        ["data", "check", "PHOTOS"],
        ["train", "--data", "PHOTOS", "--output", "run"],
        ["predict", "--checkpoint", f"no{ESCAPES}", "PHOTOS/a"],
        [f"no{ESCAPES}"],
    ],
    ids=lambda words: plain(" ".join(words[:2])),
)
def test_escapes_in_names_of_files_do_not_reach_the_terminal(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    places = {"MODEL": checkpoint(tmp_path, ["a", "b"]), "PHOTOS": str(photos(tmp_path / "photos", ("a", "b")))}
    words = [
        places.get(word.split("/")[0], word.split("/")[0]) + word.removeprefix(word.split("/")[0]) for word in words
    ]
    ceit_cli.main(words)
    said = "".join(capsys.readouterr())
    assert said.strip()
    assert [letter for letter in said if letter != "\n" and plain(letter) != letter] == []


def test_a_class_of_a_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(tmp_path / "photos", (f"a{ESCAPES}", "b"))
    assert (
        ceit_cli.main(["train", "--data", str(tmp_path / "photos"), "--skip-broken", "--output", str(tmp_path / "run")])
        == 1
    )
    said = "".join(capsys.readouterr())
    assert "has a control character or a line break in it: rename it" in said
    assert "\x1b" not in said


def test_markup_in_names_of_classes_is_text_on_pages(tmp_path: Path) -> None:
    model = shown(checkpoint(tmp_path, [MARKUP, "b"]), "cpu", True, 0.0)
    picture = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(picture)
    for page in (
        answers_html([model], picture.read_bytes()),
        answers_html([model], MARKUP.encode()),
        remarks_html([model]),
    ):
        assert "<script" not in page
    assert "&lt;script&gt;" in answers_html([model], picture.read_bytes())


def test_the_model_card_shows_names_letter_for_letter() -> None:
    found = FinishedRun({}, {}, {"class_names": [f"`{MARKUP}", "[a](javascript:b)"]})
    assert classes_told(found) == f"It tells 2 classes apart: `'{MARKUP}`, `[a](javascript:b)`."


def test_a_pages_templates_escape_what_they_show() -> None:
    folder = Path(ceit.__file__).parent
    templates = {path.name: path.read_text("utf-8") for path in folder.rglob("*.j2")}
    assert len(templates) == 3
    makers = [
        path.read_text("utf-8") for path in folder.rglob("*.py") if "jinja2.Environment(" in path.read_text("utf-8")
    ]
    assert all(text.count("jinja2.Environment(autoescape=True") == text.count("jinja2.Environment(") for text in makers)
    assert os.sep not in "".join(templates)
