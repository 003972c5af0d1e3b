"""Weights that ship: found by ``MODEL.TAG``, of the geometry in their own file, without a network, by ceit and timm."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data.config import resolve_data_config, resolve_model_data_config

import ceit
import ceit_cli
from ceit import shipped
from ceit.data.sources.known_sets import SETS
from ceit.model import config_of
from ceit.weights.stored import is_shipped_name
from tools.ship import MOST_BYTES

NAME, GREY = "ceit_nano_patch4_32.cifar10", "ceit_pico_patch4_32.fashion_mnist"
CLASSES = SETS["cifar10"].class_names
# another geometry than that of the registered name, and one with a field that no shape tells
GEOMETRY = {"embed_dim": 16, "depth": 2, "num_heads": 2, "stem_channels": 8, "global_pool": "sum"}
PREPROCESSING = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "crop": 1.0, "interpolation": "bicubic"}

ESCAPES = {"XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME", "CEIT_DATA"}

Create = Callable[..., Any]


def fill(folder: Path) -> None:
    """Weights in float16 as ``tools.ship`` leaves them: of colour images, and of grey ones of another size."""
    torch.manual_seed(0)
    colour = ceit.CeiT(config_of("ceit_nano_patch4_32", **GEOMETRY))
    grey = ceit.CeiT(config_of("ceit_pico_patch4_32", **GEOMETRY, img_size=28, in_chans=1))
    for name, network, data, means in ((NAME, colour, "cifar10", 3), (GREY, grey, "fashion_mnist", 1)):
        preprocessing = {
            key: value[:means] if isinstance(value, list) else value for key, value in PREPROCESSING.items()
        }
        ceit.save_checkpoint(
            folder / f"{name}.safetensors",
            network.half(),
            class_names=SETS[data].class_names,
            preprocessing=preprocessing,
            model_name=name.partition(".")[0],
            training={"data": data, "seed": 0, "images": "as published"},
        )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of the weights, with two of them."""
    place = tmp_path / "pretrained"
    place.mkdir()
    fill(place)
    monkeypatch.setattr(shipped, "FOLDER", place)
    return place


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture larger than the network's, as a camera names it."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    path = tmp_path / "IMG 0001 (copy).JPG"
    Image.fromarray(pixels).save(path, "JPEG")
    return path


def both() -> pytest.MarkDecorator:
    """For timm's way to a network, and ours."""
    return pytest.mark.parametrize("create", [timm.create_model, ceit.create_model], ids=["timm", "ceit"])


@both()
@pytest.mark.parametrize("name", [NAME, NAME.partition(".")[0]])
def test_the_network_is_that_of_the_file_in_float32(folder: Path, create: Create, name: str) -> None:
    network = create(name, pretrained=True)
    assert isinstance(network, ceit.CeiT)
    assert network.config == config_of("ceit_nano_patch4_32", **GEOMETRY) == config_of(NAME)
    stored = load_file(folder / f"{NAME}.safetensors")
    for key, value in network.state_dict().items():
        assert torch.equal(value, stored[key].to(value.dtype)), key
        assert value.dtype in (torch.float32, torch.int64)
    assert network.class_names == list(CLASSES)
    assert network.preprocessing == PREPROCESSING
    assert network.training, "as timm gives it"


@both()
def test_without_pretrained_a_tag_gives_its_geometry_and_a_name_alone_its_own(folder: Path, create: Create) -> None:
    assert create(NAME).config == config_of(NAME)
    plain = create("ceit_nano_patch4_32")
    assert plain.config == config_of("ceit_nano_patch4_32") != config_of(NAME)
    cfg = plain.pretrained_cfg
    assert (cfg["num_classes"], cfg["mean"]) == (10, (0.485, 0.456, 0.406)), "nothing of the weights that ship"


def test_timm_learns_how_to_feed_the_network(folder: Path) -> None:
    network: Any = timm.create_model(NAME, pretrained=True)
    cfg = network.pretrained_cfg
    data = resolve_data_config({}, pretrained_cfg=cfg)
    assert (data["mean"], data["std"], data["crop_pct"]) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 1.0)
    assert data["input_size"] == (3, 32, 32)
    assert (cfg["num_classes"], list(cfg["label_names"])) == (10, list(CLASSES))
    assert (cfg["architecture"], cfg["tag"], cfg["license"]) == ("ceit_nano_patch4_32", "cifar10", "apache-2.0")
    grey = timm.create_model(GREY, pretrained=True)
    assert resolve_model_data_config(grey)["input_size"] == (1, 28, 28)


@both()
@pytest.mark.parametrize("name", [NAME, GREY])
def test_other_classes_channels_and_sizes_adapt_the_weights(folder: Path, create: Create, name: str) -> None:
    plain = create(name, pretrained=True)
    channels = 4 - plain.config.in_chans  # 1 for 3, and 3 for 1
    changed = create(name, pretrained=True, num_classes=7, in_chans=channels, img_size=(64, 40))
    wanted = replace(plain.config, num_classes=7, in_chans=channels, img_size=(64, 40))
    assert changed.config == wanted
    assert changed(torch.randn(2, channels, 64, 40)).shape == (2, 7)
    assert changed.class_names is None
    assert changed.preprocessing is None
    kept, before = changed.state_dict(), plain.state_dict()
    assert torch.equal(kept["blocks.1.attn.qkv.weight"], before["blocks.1.attn.qkv.weight"])
    assert torch.equal(kept["pos_embed"][:, 0], before["pos_embed"][:, 0])
    assert kept["patch_embed.conv.weight"].any()
    larger = create(name, pretrained=True, img_size=64)
    assert larger.class_names == plain.class_names
    assert larger.config.image_hw == (64, 64)


def test_features_have_the_weights_too(folder: Path) -> None:
    extractor = timm.create_model(NAME, pretrained=True, features_only=True, out_indices=(0, 1)).eval()
    network = ceit.load_checkpoint(NAME)
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(
        extractor(images), network.forward_intermediates(images, [0, 1], intermediates_only=True)
    )


@both()
def test_what_does_not_ship_is_refused_in_a_sentence(folder: Path, create: Create) -> None:
    (folder / f"{GREY}.safetensors").unlink()
    for name, sentence in {
        GREY: rf"^.*{GREY}\.safetensors is missing: install ceit-vision anew$",
        "ceit_nano_patch4_32.cifar100": r"^no weights named ceit_nano_patch4_32\.cifar100 come with the package; of",
        "ceit_micro_patch4_32": r"^no weights of ceit_micro_patch4_32 come with the package; 'ceit list weights' names",
        "ceit_tiny_patch16_224": r"^no weights of ceit_tiny_patch16_224 come with the package; convert the released",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            create(name, pretrained=True)


def test_a_name_is_taken_where_a_checkpoint_is(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = ceit.load_checkpoint(NAME)
    assert not network.training
    assert ceit.Predictor.from_checkpoint(NAME).class_names == CLASSES
    with pytest.raises(
        ValueError, match=rf"^no weights named ceit_nano_patch4_32 come with the package; of this model: {NAME}"
    ):
        ceit.load_checkpoint("ceit_nano_patch4_32")
    monkeypatch.chdir(tmp_path)
    assert is_shipped_name(NAME)
    (tmp_path / NAME).mkdir()
    assert not is_shipped_name(NAME), "a folder of the name is that folder"
    assert not is_shipped_name(f"./{NAME}/x")


def test_predict_without_checkpoint_takes_the_default_and_says_so(
    folder: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ceit_cli.main(["predict", str(photo), "--json", "--top-k", "2"]) == 0
    answered = capsys.readouterr()
    (found,) = json.loads(answered.out)
    assert {score["label"] for score in found["predictions"]} < set(CLASSES)
    words = f"no --checkpoint: {NAME} answers, a small model that comes with ceit and knows only airplane, automobile"
    assert answered.err.startswith(words)
    assert ceit_cli.main(["predict", "--checkpoint", NAME, str(photo), "--json", "--top-k", "2"]) == 0
    named = capsys.readouterr()
    assert (named.out, named.err) == (answered.out, "")
    assert ceit_cli.main(["info", NAME, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["embed_dim"] == GEOMETRY["embed_dim"]
    shutil.rmtree(folder)
    assert ceit_cli.main(["predict", str(photo)]) == 1
    expected = "error: no trained model ships with this version: name one with --checkpoint RUN|FILE\n"
    assert capsys.readouterr().err.endswith(expected)


def test_training_starts_from_them(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--data", "digits", "--output", str(tmp_path / "run"), "--fast-dev-run"]
    command += ["--model", NAME, "--initial-checkpoint", NAME, "--in-chans", "3", "--img-size", "32"]
    assert ceit_cli.main(command) == 0
    assert f"starting from the weights of {NAME}, at 32 x 32 pixels" in " ".join(capsys.readouterr().err.split())
    assert ceit.load_checkpoint(tmp_path / "run").config == config_of(NAME)


def test_what_ships_is_whole_small_and_has_a_card() -> None:
    for name in ceit.list_models(pretrained=True):
        network, folder = ceit.load_checkpoint(name), shipped.FOLDER
        assert network.class_names
        assert network.preprocessing
        assert all(value.isfinite().all() for value in network.state_dict().values())
        (limit,) = (most for size, most in MOST_BYTES.items() if f"_{size}_" in name)
        assert shipped.weights_file(name).stat().st_size <= limit
        assert (folder / f"{name}.md").read_text(encoding="utf-8").startswith(f"# {name}\n")


def test_an_installation_answers_without_a_network_or_a_cache(repository: Path, photo: Path, tmp_path: Path) -> None:
    """Of the package as a folder: timm lists what ships, and everything works with sockets that fail."""
    installed = tmp_path / "site"
    shutil.copytree(repository / "src", installed, ignore=shutil.ignore_patterns("__pycache__"))
    names = shipped.shipped_names()
    program = f"""
import socket
def refuse(*args, **kwargs):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
import timm, ceit, ceit_cli
assert ceit.list_models(pretrained=True) == timm.list_models("ceit*", pretrained=True) == {names!r}
for name in {names!r}:
    assert timm.models.is_model_pretrained(name) and not timm.models.is_model_pretrained(name.partition(".")[0])
    assert timm.get_pretrained_cfg(name).num_classes == 10
    timm.create_model(name, pretrained=True)
raise SystemExit(ceit_cli.main(["predict", {str(photo)!r}, "--json"]))
"""
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in ESCAPES | {"HF_HUB_OFFLINE"}}
    environment = kept | {"PYTHONPATH": str(installed), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    asked = [sys.executable, "-c", program]
    answer = subprocess.run(asked, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=6000)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)[0]["predictions"][0]["label"] in CLASSES
    assert not [path for path in home.rglob("*") if path.suffix in (".safetensors", ".bin", ".pth")]
