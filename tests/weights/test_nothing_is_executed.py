"""Nothing in a file is executed, however it was made."""

import argparse
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ceit
from ceit.cli.convert import main as convert
from ceit.model import CeiT, config_of


class Touch:
    """Unpickled without restriction it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


class Arguments(argparse.Namespace):
    """Not the class that is tolerated."""


def test_the_harmful_pickle_of_these_tests_does_harm(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Touch(tmp_path / "touched")))
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["alone", "args", "in the namespace", "as a key", "as the state dict"])
def test_code_in_a_torch_file_is_refused_by_name_and_not_run(
    where: str, zipped: bool, tmp_path: Path, make: Callable[..., CeiT], released: Callable[[CeiT], dict[str, Tensor]]
) -> None:
    harm = Touch(tmp_path / "touched")
    content: Any = {
        "alone": harm,
        "args": {"model": released(make()), "args": harm},
        "in the namespace": {"model": released(make()), "args": argparse.Namespace(hook=harm)},
        "as a key": {"model": {harm: 1}},
        "as the state dict": {"model": harm},
    }[where]
    torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"is refused because loading it would call (posix|nt)\.system, and nothing"
    ) as refusal:
        ceit.load_checkpoint(tmp_path / "model.pth")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_code_in_a_bare_pickle_is_refused_and_not_run(name: str, protocol: int, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Touch(tmp_path / "touched"), protocol))
    message = r"would call (posix|nt)\.system" if name.endswith(".pth") else "damaged or no safetensors file"
    with pytest.raises(ValueError, match=message):
        ceit.load_checkpoint(tmp_path / name)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("os", "system"),
        ("argparse", "_os.system"),
        ("argparse", "Namespace.__init__"),
        ("argparse", "ArgumentParser"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch.serialization", "add_safe_globals"),
        ("ceit.weights.reading", "_Namespace"),
        ("pathlib", "PosixPath"),
    ],
)
def test_every_other_global_is_refused(module: str, name: str, tmp_path: Path) -> None:
    data = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"U\x04trueq\x01\x85R."
    (tmp_path / "model.pth").write_bytes(data)
    with pytest.raises(ValueError, match=rf"would call \S*{name}, and nothing in a file is executed"):
        ceit.load_checkpoint(tmp_path / "model.pth")


def test_a_subclass_of_namespace_is_refused(
    tmp_path: Path, make: Callable[..., CeiT], released: Callable[[CeiT], dict[str, Tensor]]
) -> None:
    torch.save({"model": released(make()), "args": Arguments(lr=1)}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"would call \S*Arguments"):
        ceit.load_checkpoint(tmp_path / "model.pth")


def test_a_namespace_cannot_be_given_methods_or_another_class(tmp_path: Path) -> None:
    """BUILD sets attributes, a class among them, and a second one would call a ``__setstate__`` that the first has set.

    On a stand-in that keeps nothing, neither happens.
    """
    namespace = b"cargparse\nNamespace\n)\x81"
    method = b"}U\x0c__setstate__ctorch._utils\n_rebuild_parameter\nsb"
    new_class = b"N}U\x09__class__ccollections\nCounter\ns\x86b"
    for state in (method + b"}b", new_class, method + new_class):
        pickled = b"\x80\x02" + namespace + state + b"."
        (tmp_path / "model.pth").write_bytes(pickled)
        with pytest.raises(ValueError, match=r"damaged or not what torch\.save writes"):
            ceit.load_checkpoint(tmp_path / "model.pth")
        in_zip = tmp_path / "zip.pth"
        _save_with_pickle(in_zip, b"\x80\x02}U\x04args" + namespace + state + b"s.")
        with pytest.raises(ValueError, match=r"holds no plain state dict: 'args' is a Namespace"):
            ceit.load_checkpoint(in_zip)
    assert argparse.Namespace(a=1) == argparse.Namespace(a=1)
    assert not hasattr(argparse.Namespace, "__setstate__")


def test_attributes_cannot_hide_the_methods_of_a_dictionary_or_tensor(
    tmp_path: Path, make: Callable[..., CeiT]
) -> None:
    """Such as a torch state dict's ``_metadata``, but ``items``: a call of it would be a call of what the file says."""

    class Disguised:
        def __reduce__(self) -> tuple[Any, ...]:
            return OrderedDict, (), {"items": torch.Size}, None, iter(state.items())

    state: dict[str, Any] = make(config_of("ceit_pico_patch4_32")).state_dict()
    state["cls_token"].detach = torch.Size
    torch.save({"model": Disguised()}, tmp_path / "model.pth")
    content = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    assert content.items is content["cls_token"].detach is torch.Size
    assert torch.equal(ceit.load_checkpoint(tmp_path / "model.pth").cls_token, state["cls_token"])


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_code_behind_a_protocol_that_is_too_new_is_named(
    protocol: int, tmp_path: Path, make: Callable[..., CeiT], released: Callable[[CeiT], dict[str, Tensor]]
) -> None:
    content = {"model": released(make()), "args": Touch(tmp_path / "touched")}
    torch.save(content, tmp_path / "model.pth", pickle_protocol=protocol)
    with pytest.raises(ValueError, match=r"would call (posix|nt)\.system"):
        ceit.load_checkpoint(tmp_path / "model.pth")
    assert not (tmp_path / "touched").exists()


def test_namespace_is_not_tolerated_by_others_afterwards(
    tmp_path: Path, make: Callable[..., CeiT], released: Callable[[CeiT], dict[str, Tensor]]
) -> None:
    torch.save({"model": released(make()), "args": argparse.Namespace(lr=1)}, tmp_path / "model.pth")
    ceit.load_checkpoint(tmp_path / "model.pth", num_heads=2)
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(tmp_path / "model.pth", weights_only=True)


def _save_with_pickle(path: Path, data: bytes) -> None:
    """A zip file of ``torch.save``'s form whose pickle is ``data``."""
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.write_record("data.pkl", data, len(data))
    writer.write_end_of_file()


def test_a_huge_header_does_not_take_memory(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        ceit.load_checkpoint(tmp_path / "model.safetensors")


def test_convert_refuses_a_harmful_file_and_writes_nothing(tmp_path: Path) -> None:
    torch.save(Touch(tmp_path / "touched"), tmp_path / "released.pth")
    with pytest.raises(ValueError, match="refused because loading it would call"):
        convert([str(tmp_path / "released.pth"), str(tmp_path / "out.safetensors")])
    assert [path.name for path in tmp_path.iterdir()] == ["released.pth"]
