"""``ceit report``: one page with everything inside, true to what was measured, whatever classes are called."""

import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

import ceit_cli
from ceit.data.sources.choose import load_images
from ceit.evaluation.scores import ConfidenceBin
from ceit.report import contents
from ceit.report.charts import Frame, Line, bar_chart, line_chart, reliability_chart
from ceit.report.contents import contents_of
from ceit.report.page import page
from ceit.train.run import train
from tests.train.conftest import SMALL

_BARS = re.compile(r'<rect class="b1" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"')

NAMES = ("<b>bold</b>", '"&quot;', "{{ 7 * 7 }}", "mañana 明日")


class Seen(HTMLParser):
    """What a browser would come across."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data"):
                self.addresses.append(value or "")
            if tag == "img" and name == "alt":
                assert value

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four digits in folders whose names are not harmless."""
    folder = tmp_path_factory.mktemp("photos")
    number = 0
    for split in load_images("digits").parts.values():
        for index, label in enumerate(split.labels.tolist()):
            if label < len(NAMES):
                place = folder / NAMES[label].replace("/", "\N{FRACTION SLASH}")
                place.mkdir(exist_ok=True)
                split.read(index, 1).save(place / f"{number}.png")
                number += 1
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "four"
    train(replace(SMALL, img_size=(8, 8), precision="auto"), str(photos), output)
    return output


def test_the_page_needs_nothing_and_nobody_else(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "page.html"
    assert ceit_cli.main(["report", str(run), "--output", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    text = file.read_text(encoding="utf-8")
    assert len(text) < 5e6
    assert str(run.parent) not in text  # where it lies is nobody's business
    seen = Seen(text)
    assert seen.addresses
    assert all(address.startswith("data:image/") for address in seen.addresses)
    assert "//" not in re.sub(r'"data:image/[^"]*"', "", text)
    assert not {"link", "iframe", "object", "embed", "form", "a"} & set(seen.tags)
    assert "default-src 'none'; img-src data:" in text
    assert [tag for tag in seen.tags if tag == "script"] == ["script"]
    assert ceit_cli.main(["report", str(run), "--output", str(file)]) == 1
    assert f"{file} exists" in capsys.readouterr().err


def test_it_tells_what_was_measured(run: Path) -> None:
    report = json.loads((run / "test.json").read_text(encoding="utf-8"))
    found = contents_of(run)
    seen = Seen(page(found)).text
    assert f"{report['top1_percent']:.2f} %" in seen
    assert f"{report['parameters']:,}" in seen
    low, high = report["top1_interval_percent"]
    assert f"95 % interval {low:.1f} to {high:.1f} %" in seen
    for entry, row in zip(report["per_class"], found.per_class, strict=True):
        assert row[:2] == [entry["label"], str(entry["images"])]
        assert [float(cell) for cell in row[2:5]] == pytest.approx(
            [entry["precision"], entry["recall"], entry["f1"]],
            abs=0.02,  # computed in the same precision, in another way
        )
    assert found.confusion is not None
    cells = [[int(cell["images"]) for cell in row["cells"]] for row in found.confusion["rows"]]
    assert sum(map(sum, cells)) == report["images"]
    assert f"temperature {report['calibration']['temperature']:.3g}" in seen
    for words in ("How it learned", "The surest mistakes", "Why it answered so", "Which blocks decide", "ceit train"):
        assert words in seen
    (measure,) = (command["text"] for command in found.commands if command["title"] == "Measure it")
    assert measure.startswith(f"ceit evaluate --checkpoint {run.name} --data ")
    assert report["finished"][:10] in found.finished
    assert found.remarks == []


def test_names_of_classes_are_words_and_nothing_else(run: Path) -> None:
    text = page(contents_of(run))
    seen = Seen(text)
    for name in NAMES:
        assert name.replace("/", "\N{FRACTION SLASH}") in seen.text
    assert "&lt;b&gt;bold" in text
    assert "<b>bold" not in text


def test_without_its_images_the_page_says_so_and_other_images_may_be_named(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    options = (moved / "config.yaml").read_text(encoding="utf-8")
    gone = tmp_path / "gone"
    (moved / "config.yaml").write_text(options.replace(str(photos), str(gone)), encoding="utf-8")
    assert ceit_cli.main(["report", str(moved), "--output", str(tmp_path / "a.html")]) == 0
    told = capsys.readouterr().err
    assert "This page has no pictures" in told
    assert str(gone) in told
    without = Seen((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert "img" not in without.tags
    assert "This page has no pictures" in without.text
    assert str(tmp_path) not in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "Class by class" in without.text

    command = ["report", str(moved), "--output", str(tmp_path / "b.html"), "--data"]
    assert ceit_cli.main([*command, str(photos)]) == 0
    assert "img" in Seen((tmp_path / "b.html").read_text(encoding="utf-8")).tags
    (tmp_path / "b.html").unlink()
    assert ceit_cli.main([*command, str(gone)]) == 1
    assert not (tmp_path / "b.html").exists()


@pytest.fixture
def copied(run: Path, photos: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the run, and one of its images, in which it looks for them."""
    copies = Path(shutil.copytree(run, tmp_path / "run")), Path(shutil.copytree(photos, tmp_path / "photos"))
    options = (run / "config.yaml").read_text(encoding="utf-8")
    (copies[0] / "config.yaml").write_text(options.replace(str(photos), str(copies[1])), encoding="utf-8")
    return copies


@pytest.mark.parametrize("change", ["no test image", "a new class"])
def test_images_that_have_changed_cost_the_pictures_and_not_the_page(
    change: str, copied: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, photos = copied
    if change == "a new class":
        reason = "the checkpoint does not know 'new' of photos: it has 4 classes, "
        (photos / "new").mkdir()
        Image.new("L", (8, 8), 77).save(photos / "new" / "1.png")
    else:
        reason = "is of the test part of this run"
        with (run / "images.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["part"] == "test":
                    (photos / f"{row['name']}.png").unlink()
    assert ceit_cli.main(["report", str(run), "--output", str(tmp_path / "a.html")]) == 0
    told = capsys.readouterr().err
    assert reason in told
    assert "--split" not in told
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "This page has no pictures: the images are gone or have changed." in Seen(text).text
    assert "Class by class" in Seen(text).text
    assert str(tmp_path) not in text
    assert ceit_cli.main(["report", str(run), "--data", str(photos), "--output", str(tmp_path / "b.html")]) == 1
    told = capsys.readouterr().err
    assert reason in told
    assert "--split" not in told


def test_new_images_are_told_without_an_option_that_the_verb_has_not(copied: tuple[Path, Path]) -> None:
    run, photos = copied
    Image.new("L", (8, 8), 77).save(photos / NAMES[0].replace("/", "\N{FRACTION SLASH}") / "new.png")
    assert "New images are measured too (1)." in contents_of(run).remarks


def test_options_tell_no_way_to_a_file(copied: tuple[Path, Path]) -> None:
    run, photos = copied
    options = (run / "config.yaml").read_text(encoding="utf-8").replace(f"data: {photos}", "data: pets:/home/ann/pets")
    private = options.replace("\n  checkpoint: null", "\n  checkpoint: /home/ann/teacher.safetensors")
    (run / "config.yaml").write_text(private, encoding="utf-8")
    found = dict(contents_of(run).options)
    assert found["data"] == "pets:DIR"
    assert json.loads(found["distillation"])["checkpoint"] == "teacher.safetensors"
    assert "/home" not in str(found)


def test_what_is_no_finished_run_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page_file = str(tmp_path / "page.html")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    (unfinished / "test.json").unlink()
    assert ceit_cli.main(["report", str(unfinished), "--output", page_file]) == 1
    assert "holds no finished run: it has no test.json" in capsys.readouterr().err
    assert ceit_cli.main(["report", str(run), "--output", str(tmp_path / "page.pdf")]) == 2
    assert ceit_cli.main(["report", str(tmp_path / "nowhere"), "--output", page_file]) == 1


def test_large_test_sets_are_asked_about_evenly(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MOST_IMAGES", 20)
    found = contents_of(run)
    assert sum(int(row[1]) for row in found.per_class) == 20
    assert all(int(row[1]) for row in found.per_class)
    assert any("test images 20 are looked at here" in remark for remark in found.remarks)


def test_a_run_of_an_earlier_version_has_a_page(run: Path, tmp_path: Path) -> None:
    """Its report told accuracies alone, its model had no temperature, and its curves no averaged weights."""
    old = tmp_path / "old"
    shutil.copytree(run, old)
    report = json.loads((old / "test.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in report.items() if key not in ("macro", "calibration", "uncalibrated")}
    kept["per_class"] = [
        {key: entry[key] for key in ("label", "images", "top1_percent")} for entry in report["per_class"]
    ]
    kept.pop("top1_interval_percent")
    (old / "test.json").write_text(json.dumps(kept), encoding="utf-8")
    found = contents_of(old)
    assert [card["name"] for card in found.cards][:2] == ["test accuracy (top-1)", "test images"]
    assert len(found.per_class) == len(NAMES)
    config = (old / "config.yaml").read_text(encoding="utf-8")
    (old / "config.yaml").write_text(
        re.sub("^data: .*$", "data: nowhere", config, flags=re.MULTILINE), encoding="utf-8"
    )
    without = contents_of(old)
    assert [row[2] for row in without.per_class] == ["-"] * len(NAMES)
    page(without)


def test_a_name_that_is_no_text_has_a_mark_and_breaks_nothing(tmp_path: Path) -> None:
    """As from an archive that was packed on an old Windows."""
    folder, number = tmp_path / "photos", 0
    for split in load_images("digits").parts.values():
        for index, label in enumerate(split.labels.tolist()):
            if label < 2:
                place = folder / ("zero$x_{" if label else "one")
                place.mkdir(parents=True, exist_ok=True)
                split.read(index, 1).save(place / f"l14\udce9$x_{{{number}\n.png")
                number += 1
    output = tmp_path / "run"
    train(replace(SMALL, img_size=(8, 8), epochs=1), str(folder), output)
    text = page(contents_of(output))
    assert "\N{REPLACEMENT CHARACTER}" in text
    text.encode()
    assert "circle" in text  # one epoch is a point, not a line


def points_of(svg: str) -> list[tuple[float, float]]:
    (points,) = re.findall(r'<polyline class="line s1" points="([^"]*)"/></svg>|$', svg)[:1] or [""]
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]


def numbers_of(svg: str) -> list[str]:
    """What stands at the vertical axis, from below."""
    return re.findall('text-anchor="end">([^<]*)<', svg)


def test_a_line_goes_where_its_values_are_and_leaves_out_what_is_none() -> None:
    svg = str(line_chart("losses", "epoch", "loss", [Line("a", [0, 1, 2, 3], [4.0, 3.0, float("nan"), 1.0])]))
    chart = svg.partition("</svg>")[0] + "</svg>"
    points = points_of(chart)
    assert len(points) == 3
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted(y for _, y in points)  # downwards on the screen as the loss falls
    assert points[1][1] - points[0][1] == pytest.approx((points[2][1] - points[0][1]) / 3, abs=0.2)


def test_charts_of_few_many_and_equal_values_can_be_drawn() -> None:
    assert "polyline" in line_chart("one", "x", "y", [Line("a", [1], [0.5])])
    assert "polyline" in line_chart("equal", "x", "y", [Line("a", [1, 2], [3.0, 3.0])])
    assert numbers_of(line_chart("equal", "x", "y", [Line("a", [1, 2], [5e-4, 5e-4])]))[0] == "0"  # not below
    assert "line" in line_chart("alike", "x", "y", [Line("a", [1, 2], [5e-4, 5e-4 * (1 + 1e-15)])])
    assert "line" in line_chart("huge", "x", "y", [Line("a", [1, 2], [1e20, 1e20])])
    for narrow in ([99.9991, 100.0], [2.30001, 2.30009], [1000.1, 1000.4], [0.2, 0.7]):
        numbers = numbers_of(line_chart("narrow", "x", "y", [Line("a", [1, 2], narrow)]))
        values = [float(number.replace(",", "")) for number in numbers]
        assert len({round(b - a, 9) for a, b in pairwise(values)}) == 1  # told apart, and truly spaced
    assert "svg" in line_chart("none", "x", "y", [Line("a", [1, 2], [float("nan")] * 2)])
    many = str(line_chart("many", "x", "y", [Line("a", range(100_000), [1e-7 * i for i in range(100_000)])]))
    assert len(many) < 20_000
    assert bar_chart("blocks", "block", "share", [0.1, 0.7, 0.2]).count("<rect") == 3
    fifths = ConfidenceBin(0.2, 4 / 15, 3, 0.2, 0.3), ConfidenceBin(14 / 15, 1.0, 5, 1.0, 1.0)
    bars = _BARS.findall(reliability_chart("all", fifths))
    (left, _), (_, right) = ((float(x), float(x) + float(width)) for x, width in bars)
    frame = Frame([0.0, 1.0], [0.0, 1.0], "", "")
    assert (left, right) == pytest.approx((frame.x(0.2) + 1, frame.x(1.0) - 1), abs=0.11)  # where they were counted
    assert "&lt;i&gt;" in line_chart("<i>", "<i>", "y", [Line("<i>", [1, 2], [1, 2])])
