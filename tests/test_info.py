"""``ceit info``: published numbers in the table and in the JSON document, and one sentence for what cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest

import ceit
import ceit_cli
from ceit.model import MODELS, CeiT, config_of
from ceit.model.complexity import complexity


@pytest.fixture(autouse=True)
def _terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def info(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert ceit_cli.main(["info", *arguments]) == 0
    captured = capsys.readouterr()
    assert not captured.err
    return captured.out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert ceit_cli.main(["info", *arguments]) == 1
    captured = capsys.readouterr()
    assert not captured.out
    return captured.err


def test_table_shows_the_published_numbers_with_their_conventions(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [" ".join(line.split()) for line in info(capsys, "ceit_tiny_patch16_224").splitlines()]
    for line in (
        "total 3x224x224 1x1000 6,356,904 1,395,307,008 100%",
        "parameters 6,356,904 5,717,416 1.112",
        "MACs, full, with attention products 1,395,307,008 1,253,683,200 1.113",
        "MACs, full, without attention products 1,216,470,528 1,074,851,328 1.132",
        "live leaves out 88,435,200 MACs here",
        "ViT patch embedding N*P^2*I*D 28,901,376 1",
        "I2T M*s^2*I*C + N*(P/S)^2*C*D 156,549,120 5.417",
        "hybrid ResNet-50 stem 3,316,432,896 114.8",
        "depth-wise conv adds k^2*E 6,912 0.02344",
    ):
        assert line in lines


@pytest.mark.parametrize("name", MODELS)
def test_table_fits_80_columns_and_says_what_the_top_rows_sum_to(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = info(capsys, name)
    assert max(map(len, output.splitlines())) <= 80
    lines = [line for line in output.splitlines() if not line.startswith(" ") and line.count("x") > 1]
    *parts, total = [
        line.split() for line in lines if line.rstrip().endswith(("%", "-"))
    ]  # top rows of the first table
    assert sum(number(row[-3]) for row in parts) == number(total[-3]) == complexity(config_of(name)).parameters
    assert sum(number(row[-2]) for row in parts) == number(total[-2]) == complexity(config_of(name)).macs


def number(cell: str) -> int:
    return 0 if cell == "-" else int(cell.replace(",", ""))


def test_no_number_is_cut_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    output = info(capsys, "ceit_base_patch16_384")
    assert "…" not in output
    assert "56,098,965,504" in output


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(info(capsys, "ceit_tiny_patch16_224", "--json"))
    expected = {
        "parameters": 6_356_904,
        "macs": 1_395_307_008,
        "macs_without_attention_products": 1_216_470_528,
        "live_macs": 1_306_871_808,
        "live_macs_without_attention_products": 1_142_862_336,
        "dead_macs": 88_435_200,
    }
    assert {key: document[key] for key in expected} == expected
    assert document["model"] == "ceit_tiny_patch16_224"
    assert document["config"]["embed_dim"] == 192
    assert document["twin"]["parameters"] == 5_717_416
    assert sum(module["macs"] for module in document["modules"]) == document["macs"]
    assert sum(module["live_macs"] for module in document["modules"]) == document["live_macs"]
    assert {cost["part"].partition(",")[0] for cost in document["analysis"]} == {"stem", "LeFF", "LCA"}


def test_size_channels_and_classes_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--img-size", "64", "96", "--in-chans", "1", "--num-classes", "7")
    document = json.loads(info(capsys, "ceit_nano_patch4_32", *asked, "--json"))
    config = config_of("ceit_nano_patch4_32", img_size=(64, 96), in_chans=1, num_classes=7)
    assert document["macs"] == complexity(config).macs
    assert document["config"]["img_size"] == [64, 96]
    square = json.loads(info(capsys, "ceit_nano_patch4_32", "--img-size", "64", "--json"))
    assert square["macs"] == complexity(config_of("ceit_nano_patch4_32", img_size=64)).macs
    assert "image 1x64x96, 16x24 patches, 7 classes" in info(capsys, "ceit_nano_patch4_32", *asked)


def test_any_field_can_be_asked_for_of_a_name_and_of_a_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ("--geometry", "embed_dim=32", "lca=false", "global_pool=avg", "--json")
    config = config_of("ceit_pico_patch4_32", embed_dim=32, lca=False, global_pool="avg")
    document = json.loads(info(capsys, "ceit_pico_patch4_32", *asked))
    assert (document["macs"], document["dead_macs"]) == (complexity(config).macs, 0)
    ceit.save_checkpoint(tmp_path / "model.safetensors", CeiT(config_of("ceit_pico_patch4_32")))
    assert json.loads(info(capsys, str(tmp_path / "model.safetensors"), *asked))["macs"] == document["macs"]


def test_a_name_is_answered_without_building_the_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("built")

    monkeypatch.setattr(CeiT, "__init__", refuse)
    assert "94,405,416" in info(capsys, "ceit_base_patch16_224")


def test_checkpoint_is_described_by_its_own_geometry(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = config_of("ceit_pico_patch4_32", num_classes=3, depth=2)
    path = tmp_path / "model.safetensors"
    ceit.save_checkpoint(path, CeiT(config))
    for checkpoint in (path, tmp_path):  # the file, and the run directory that it lies in
        document = json.loads(info(capsys, str(checkpoint), "--json"))
        assert document["parameters"] == complexity(config).parameters
        assert document["macs"] == complexity(config).macs


def test_network_of_one_block_without_some_parts_can_be_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = config_of("ceit_pico_patch4_32", depth=1, lca=False, stem_norm="none")
    path = tmp_path / "one.safetensors"
    ceit.save_checkpoint(path, CeiT(config))
    assert "block 1 " in info(capsys, str(path))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["ceit_tinny_patch16_224"],
            "error: unknown model 'ceit_tinny_patch16_224'; did you mean 'ceit_tiny_patch16_224'?",
        ),
        (
            ["ceit_tiny_patch16_224", "--img-size", "225"],
            "error: image size (225, 225) must be a multiple of 16 (remainder 1, 1), such as (224, 224)\n",
        ),
        (
            ["ceit_tiny_patch16_224", "--img-size", "224", "240", "256"],
            "error: --img-size takes one side, or height and width, not 3 numbers\n",
        ),
        (
            ["ceit_tiny_patch16_224", "--num-classes", "0"],
            "error: --num-classes 0 must be at least 1: a classifier needs a class\n",
        ),
        (["ceit_tiny_patch16_224", "--in-chans", "0"], "error: in_chans 0 must be at least 1\n"),
        (
            ["ceit_tiny_patch16_224", "--geometry", "embed_dim"],
            "error: --geometry embed_dim must be FIELD=VALUE, such as embed_dim=96\n",
        ),
        (
            ["ceit_tiny_patch16_224", "--geometry", "embed_dims=96"],
            "error: unknown model field 'embed_dims'; did you mean 'embed_dim'?\n",
        ),
        (["ceit_tiny_patch16_224", "--geometry", "depth=two"], "error: depth 'two' must be"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, *arguments)
    assert message.startswith(sentence)
    assert message.count("\n") == 1


def test_missing_checkpoint_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = tmp_path / "missing.safetensors"
    assert str(missing) in refusal(capsys, str(missing))
