"""A network of ours goes to disk and back through timm's own functions, with all that belongs to it."""

import pickle
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import save_for_hf

import ceit


def test_timm_saves_and_loads_a_network_of_ours(tmp_path: Path) -> None:
    config = ceit.CeiTConfig(
        img_size=32, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=2, stem_stride=1
    )
    preprocessing = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3], "crop": 0.9, "interpolation": "bicubic"}
    path = tmp_path / "model.safetensors"
    ceit.save_checkpoint(path, ceit.CeiT(config), class_names=["cat", "dog"], preprocessing=preprocessing)
    model = ceit.load_checkpoint(path)
    model.set_input_size(48)
    save_for_hf(model, str(tmp_path / "hub"), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    assert isinstance(again, ceit.CeiT)
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(again(images), model(images))
    assert (again.config, again.class_names, again.preprocessing) == (model.config, ["cat", "dog"], preprocessing)


def test_the_folder_that_timm_writes_is_a_checkpoint(tmp_path: Path) -> None:
    model = timm.create_model("ceit_nano_patch4_32.cifar10", pretrained=True)
    assert isinstance(model, ceit.CeiT)
    save_for_hf(model, str(tmp_path / "hub"), safe_serialization=True)
    again = ceit.load_checkpoint(tmp_path / "hub")
    assert (again.config, again.class_names, again.preprocessing) == (
        model.config,
        model.class_names,
        model.preprocessing,
    )
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), model.eval()(images))
    for strange in ("[]", '{"architecture": "resnet18"}', '{"architecture": [], "model_args": {}}', "not JSON"):
        (tmp_path / "hub" / "config.json").write_text(strange, encoding="utf-8")
        with pytest.raises(ValueError, match="do not tell what is classified"):
            ceit.load_checkpoint(tmp_path / "hub")


def test_what_a_network_has_learnt_since_goes_along_instead_of_what_it_was_made_of(tmp_path: Path) -> None:
    model = timm.create_model("ceit_pico_patch4_32.cifar10", pretrained=True)
    assert isinstance(model, ceit.CeiT)
    for names, folder in ((None, "fresh"), (list("abcdefghij"), "named")):
        model.reset_classifier(10)
        preprocessing = {"mean": [0.5] * 3, "std": [0.25] * 3, "crop": 0.9, "interpolation": "bilinear"}
        model.class_names, model.preprocessing = names, preprocessing
        save_for_hf(model, str(tmp_path / folder), safe_serialization=True)
        again = timm.create_model(f"local-dir:{tmp_path / folder}", pretrained=True)
        assert isinstance(again, ceit.CeiT)
        assert (again.class_names, again.preprocessing) == (names, preprocessing)


def test_timms_configuration_of_a_network_may_be_changed_and_an_earlier_one_is_kept(tmp_path: Path) -> None:
    name = "ceit_pico_patch4_32.cifar10"
    model = timm.create_model(name, pretrained=True)
    assert isinstance(model, ceit.CeiT)
    model.pretrained_cfg["crop_pct"] = 0.9
    assert resolve_model_data_config(model)["crop_pct"] == 0.9
    model.default_cfg = {**model.pretrained_cfg, "crop_pct": 0.8}
    assert model.pretrained_cfg["crop_pct"] == 0.8
    state = pickle.loads(pickle.dumps(model)).__dict__
    before = state.pop("_cfg")
    del state["_known_before"]
    earlier = ceit.CeiT.__new__(ceit.CeiT)
    earlier.__setstate__({**state, "pretrained_cfg": before, "default_cfg": before})
    assert earlier.pretrained_cfg == model.pretrained_cfg
    named = timm.create_model(name.partition(".")[0], pretrained_cfg_overlay={"label_names": list("abcdefghij")})
    assert isinstance(named, ceit.CeiT)
    assert named.pretrained_cfg["label_names"] == list("abcdefghij")
    named.preprocessing = {"mean": [0.4] * 3, "std": [0.2] * 3}
    assert named.pretrained_cfg["mean"] == (0.4,) * 3
