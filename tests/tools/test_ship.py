"""A finished run becomes weights that ship: small files that compute the same, and a card of measured figures."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

import ceit
import ceit_cli
from ceit import shipped
from ceit.train.run import train
from tests.train.conftest import SMALL
from tools.ship import ship

NAME = "ceit_pico_patch4_32.digits"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another geometry than the name's."""
    path = tmp_path_factory.mktemp("runs") / "little"
    train(replace(SMALL, epochs=4, geometry=SMALL.geometry | {"global_pool": "sum"}), "digits", path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    return tmp_path


def test_a_run_becomes_three_files_and_its_card_says_what_ceit_measures(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = ship(run, NAME)
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{NAME}{end}" for end in (".json", ".md", ".safetensors")
    ]
    assert (folder / f"{NAME}.md").read_text(encoding="utf-8") == card
    assert ceit.list_models(pretrained=True) == [NAME]
    trained, ships = ceit.load_checkpoint(run), timm.create_model(NAME, pretrained=True).eval()
    images = torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(ships(images), trained(images), rtol=1e-2, atol=1e-2)
    sizes = [
        (path / file).stat().st_size for path, file in ((run, "model.safetensors"), (folder, f"{NAME}.safetensors"))
    ]
    assert sizes[1] < 0.6 * sizes[0]

    capsys.readouterr()
    assert (
        ceit_cli.main(["evaluate", "--checkpoint", NAME, "--data", "digits", "--precision", "float32", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    said = json.loads((folder / f"{NAME}.json").read_text(encoding="utf-8"))
    assert said["training"]["test_top1_percent"] == found["top1_percent"]
    rows = re.findall(r"^\| (.*) \| (.*) MB \| (.*) % \| (.*) \|$", card, re.MULTILINE)
    assert [row[0].rpartition(" ")[2] for row in rows] == ["float32", "float16", "int8"]
    assert rows[1][1:] == (
        f"{sizes[1] / 1e6:.2f}",
        f"{found['top1_percent']:.2f}",
        f"{found['uncalibrated']['loss']:.4f}",
    )
    assert "CC BY 4.0" in card
    assert re.search(r"- Work: \d\S* PFLOP", card)
    for path in ("/", str(run), "None"):
        assert f" {path}" not in card.replace(" / ", " ")


def test_what_cannot_ship_is_refused_and_leaves_what_ships(run: Path, folder: Path, tmp_path: Path) -> None:
    (folder / f"{NAME}.md").write_text("the old one", encoding="utf-8")
    for name in ("ceit_pico_patch4_32", "ceit_picco.digits"):
        with pytest.raises(ValueError, match=rf"^{name} must be MODEL\.TAG, such as ceit_nano"):
            ship(run, name)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in ("config.yaml", "model.json", "model.safetensors"):
        (copy / file).write_bytes((run / file).read_bytes())
    with pytest.raises(ValueError, match=r"copy holds no finished run: it has no test\.json$"):
        ship(copy, NAME)
    report = json.loads((run / "test.json").read_text(encoding="utf-8"))
    (copy / "test.json").write_text(json.dumps(report | {"data": "photos"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"copy was trained on photos: only a run on cifar10, .* ships, whose licence"):
        ship(copy, NAME)
    (copy / "test.json").write_text(json.dumps(report), encoding="utf-8")
    network = ceit.load_checkpoint(run)
    with torch.no_grad():
        network.get_parameter("norm.weight")[0] = 1e5
    ceit.save_checkpoint(copy / "model.safetensors", network, training={})
    with pytest.raises(ValueError, match=r"^norm\.weight of .*copy is larger than float16 holds$"):
        ship(copy, NAME)
    assert (folder / f"{NAME}.md").read_text(encoding="utf-8") == "the old one"


def test_what_is_too_large_for_the_wheel_is_refused(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.ship.MOST_BYTES", {"pico": 1e4})
    with pytest.raises(ValueError, match=r"^ceit_pico_patch4_32\.digits takes 0\.\d\d MB, and at most 0\.01 MB ship"):
        ship(run, NAME)
    assert not [*folder.iterdir()]
