"""Every refusal of ``CeiTConfig`` is one sentence that names the value and the limit."""

import re
from dataclasses import fields, replace
from typing import Any

import pytest

from ceit.model import CeiTConfig, config_of

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"img_size": (225, 224)}, "image size (225, 224) must be a multiple of 16 (remainder 1, 0), such as (224, 224)"),
    ({"img_size": 225}, "image size (225, 225) must be a multiple of 16 (remainder 1, 1), such as (224, 224)"),
    (
        {"img_size": (224, 30), "patch_size": 32},
        "image size (224, 30) must be a multiple of 32 (remainder 0, 30), such as (224, 32)",
    ),
    ({"img_size": 0}, "image size (0, 0) must be at least 16 on each side, one patch"),
    ({"img_size": (32, -32)}, "image size (32, -32) must be at least 16 on each side, one patch"),
    ({"img_size": "224"}, "img_size '224' must be a whole number of pixels, or two: height and width"),
    ({"img_size": 224.0}, "img_size 224.0 must be a whole number of pixels, or two: height and width"),
    ({"img_size": None}, "img_size None must be a whole number of pixels, or two: height and width"),
    ({"img_size": True}, "img_size True must be a whole number of pixels, or two: height and width"),
    ({"img_size": (224,)}, "img_size (224,) must be a whole number of pixels, or two: height and width"),
    ({"img_size": (3, 224, 224)}, "img_size (3, 224, 224) must be a whole number of pixels, or two: height and width"),
    ({"img_size": (224.0, 224)}, "img_size (224.0, 224) must be a whole number of pixels, or two: height and width"),
    ({"leff_kernel_size": 4}, "leff_kernel_size 4 must be odd, so that the padding keeps the grid"),
    ({"leff_kernel_size": -3}, "leff_kernel_size -3 must be odd, so that the padding keeps the grid"),
    ({"stem_kernel_size": 2}, "stem_kernel_size 2 must be odd, so that the padding keeps the grid"),
    ({"stem_kernel_size": 0}, "stem_kernel_size 0 must be odd, so that the padding keeps the grid"),
    ({"leff_kernel_size": 3.0}, "leff_kernel_size 3.0 must be a whole number"),
    ({"num_heads": 5}, "num_heads 5 must divide embed_dim 192 (remainder 2)"),
    ({"patch_size": 6, "img_size": 24}, "patch_size 6 must be a multiple of the stem's total stride 4"),
    ({"patch_size": 16, "stem_stride": 16}, "patch_size 16 must be a multiple of the stem's total stride 32"),
    ({"num_classes": -1}, "num_classes -1 must be at least 0 (0 means features without a head)"),
    ({"num_classes": "10"}, "num_classes '10' must be a whole number"),
    ({"num_classes": True}, "num_classes True must be a whole number"),
    *[
        ({name: 0}, f"{name} 0 must be at least 1")
        for name in ("in_chans", "patch_size", "embed_dim", "depth", "num_heads", "stem_channels", "stem_stride")
    ],
    ({"depth": 12.0}, "depth 12.0 must be a whole number"),
    ({"mlp_ratio": 0.0}, "mlp_ratio 0.0 must be positive"),
    ({"mlp_ratio": -4}, "mlp_ratio -4 must be positive"),
    ({"mlp_ratio": float("nan")}, "mlp_ratio nan must be positive"),
    ({"mlp_ratio": float("inf")}, "mlp_ratio inf must be positive"),
    ({"mlp_ratio": "4"}, "mlp_ratio '4' must be a number"),
    ({"drop_path_rate": 1.0}, "drop_path_rate 1.0 must be in [0, 1)"),
    ({"drop_path_rate": -0.1}, "drop_path_rate -0.1 must be in [0, 1)"),
    ({"drop_path_rate": float("nan")}, "drop_path_rate nan must be in [0, 1)"),
    ({"layer_norm_eps": 0.0}, "layer_norm_eps 0.0 must be between 0 and 1"),
    ({"layer_norm_eps": "1e-6"}, "layer_norm_eps '1e-6' must be a number"),
    ({"lca": "false"}, "lca 'false' must be true or false"),
    ({"stem_pool": 1}, "stem_pool 1 must be true or false"),
    ({"stem": "i3t"}, "unknown stem 'i3t'; did you mean 'i2t'? Known: i2t, patch"),
    ({"feed_forward": "conv"}, "unknown feed_forward 'conv'; known: leff, mlp"),
    ({"leff_norm": None}, "unknown leff_norm 'None'; did you mean 'none'? Known: batch, none"),
    ({"stem_norm": "layer"}, "unknown stem_norm 'layer'; known: batch, none"),
    (
        {"leff_class_token": "normalised"},
        "unknown leff_class_token 'normalised'; did you mean 'normalized'? Known: identity, normalized",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED, ids=[str(changes) for changes, _ in REFUSED])
def test_refusal_is_this_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        CeiTConfig(**changes)


def test_every_field_refuses_a_foreign_type_with_a_sentence_that_names_it() -> None:
    for field in fields(CeiTConfig):
        values: list[Any] = ["?", None, [], object()]
        for foreign in values:
            with pytest.raises(ValueError, match=field.name):
                CeiTConfig(**{field.name: foreign})


def test_named_configuration_refuses_unknown_names_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"^unknown model 'ceit_tinny_patch16_224'; did you mean 'ceit_tiny_patch16_224'"
    ):
        config_of("ceit_tinny_patch16_224")
    with pytest.raises(ValueError, match=r"^unknown model field 'embed_dims'; did you mean 'embed_dim'"):
        config_of("ceit_tiny_patch16_224", embed_dims=32)


def test_image_size_is_height_then_width() -> None:
    config = CeiTConfig(img_size=(32, 64))
    assert config.image_hw == (32, 64)
    assert config.grid == (2, 4)
    assert CeiTConfig(img_size=64).image_hw == (64, 64)
    assert CeiTConfig(img_size=(64, 64)) == CeiTConfig(img_size=64)


def test_a_list_from_a_file_equals_the_tuple() -> None:
    from_file: Any = [32, 64]
    assert CeiTConfig(img_size=from_file) == CeiTConfig(img_size=(32, 64))
    assert hash(CeiTConfig(img_size=from_file)) == hash(CeiTConfig(img_size=(32, 64)))


def test_a_whole_number_is_a_number() -> None:
    assert CeiTConfig(mlp_ratio=3, drop_path_rate=0).expanded_dim == 576


def test_a_changed_copy_is_checked_again() -> None:
    with pytest.raises(ValueError, match=r"multiple of 16"):
        replace(CeiTConfig(), img_size=100)
