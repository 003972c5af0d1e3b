"""Distillation: teachers of timm's and of this project, and what they are shown."""

import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

import ceit
from ceit.data.preprocessing import Preprocessing
from ceit.train.config import Distillation
from ceit.train.run import train
from ceit.train.run_directory import saved_config
from ceit.train.step import train_step
from ceit.train.teacher import Teacher, make_teacher
from tests.train.conftest import SMALL, MakeTrainer, train_until

CPU = torch.device("cpu")
SEVEN = tuple("abcdefg")
RGB = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


class Means(torch.nn.Module):
    """Logits are the channels' means: they tell what the teacher sees."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[2:] == (8, 8)
        return images.mean((2, 3))


def test_a_teacher_sees_the_images_normalised_and_sized_as_its_own() -> None:
    own = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    pixels = torch.rand(2, 3, 1, 1).expand(-1, -1, 16, 16)
    seen = [(pixels - torch.tensor(p.mean).view(3, 1, 1)) / torch.tensor(p.std).view(3, 1, 1) for p in (RGB, own)]
    torch.testing.assert_close(Teacher(Means(), own, (8, 8), RGB)(seen[0]), seen[1].mean((2, 3)))


def test_a_teacher_of_timm_with_weights_from_a_file(tmp_path: Path) -> None:
    network = timm.create_model("resnet10t", num_classes=7).eval()
    path = tmp_path / "teacher.pth"
    torch.save(network.state_dict(), path)
    teacher = make_teacher(Distillation("resnet10t", str(path)), SEVEN, RGB, CPU, torch.float32)
    assert teacher is not None
    images = torch.randn(2, 3, 32, 32)
    assert teacher(images).shape == (2, 7)
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert not teacher.network.training


class Payload:
    """Writes a file when it is unpickled without restriction."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_m12_a_teachers_file_executes_nothing_whatever_the_default_of_timm_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = torch.load

    def permissive(*arguments: Any, weights_only: bool | None = None, **options: Any) -> Any:
        asked.append(weights_only)
        return load(*arguments, weights_only=weights_only, **options)

    asked: list[bool | None] = []
    monkeypatch.setattr(torch, "load", permissive)
    monkeypatch.setattr("timm.models._helpers.load_checkpoint.__defaults__", (True, "cpu", True, False, None, False))
    torch.save({"state_dict": Payload(tmp_path / "executed")}, tmp_path / "teacher.pth")
    with pytest.raises(ValueError, match=r"teacher resnet10t cannot be loaded from .*teacher.pth"):
        make_teacher(Distillation("resnet10t", str(tmp_path / "teacher.pth")), SEVEN, RGB, CPU, torch.float32)
    assert not (tmp_path / "executed").exists()
    assert set(asked) == {True}


def test_a_run_of_this_project_teaches_another(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    model = ceit.create_model("ceit_pico_patch4_32", num_classes=10, in_chans=1, img_size=32)
    names = [str(digit) for digit in range(10)]
    ceit.save_checkpoint(
        tmp_path / "teacher.safetensors", model, class_names=names, preprocessing=Preprocessing((0.3,), (0.35,))
    )
    taught = Distillation("ceit_pico_patch4_32", str(tmp_path / "teacher.safetensors"), weight=0.9)
    trainer, alone = make_trainer(distillation=taught), make_trainer()
    batch = next(trainer.train_loader.epoch(0))
    assert trainer.learner.objective.teacher is not None
    assert trainer.learner.objective.teacher.size == (32, 32)
    assert train_step(trainer.learner, *batch, 0).loss != train_step(alone.learner, *batch, 0).loss


def test_a_run_says_what_its_teacher_sees_and_how_much_it_knows(tmp_path: Path) -> None:
    model = ceit.create_model("ceit_pico_patch4_32", num_classes=10, in_chans=1, img_size=32)
    names, own = [str(digit) for digit in range(10)], Preprocessing((0.3,), (0.35,))
    ceit.save_checkpoint(tmp_path / "teacher.safetensors", model, class_names=names, preprocessing=own)
    taught = Distillation("ceit_pico_patch4_32", str(tmp_path / "teacher.safetensors"))
    said = list[str]()
    train(replace(SMALL, epochs=1, limit_batches=2, distillation=taught), "digits", tmp_path / "run", say=said.append)
    (sentence,) = (line for line in said if line.startswith("the teacher"))
    known = re.fullmatch(
        r"the teacher sees 32 x 32 px, of mean 0\.3 and deviation 0\.35; it names (.+) % of the validation .* rightly",
        sentence,
    )
    assert known is not None
    assert 0 < float(known[1]) < 40, "it was never trained"


def test_a_teacher_of_timm_that_names_its_classes_is_read_in_the_datas_order(tmp_path: Path) -> None:
    network = timm.create_model("resnet10t", num_classes=7)
    named = {"label_names": list("gfedcba")}
    save_for_hf(network, str(tmp_path / "hub"), named, safe_serialization=True)
    teacher = make_teacher(Distillation(f"local-dir:{tmp_path / 'hub'}"), SEVEN, RGB, CPU, torch.float32)
    assert teacher is not None
    assert teacher.order == [6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("teacher", "checkpoint", "sentence"),
    [
        ("resnet10", "x.pth", "unknown teacher 'resnet10'; did you mean"),
        ("resnet10t", "missing.pth", "teacher resnet10t cannot be loaded from missing.pth: it is no file"),
    ],
)
def test_a_teacher_that_cannot_be_had_is_one_sentence(teacher: str, checkpoint: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_teacher(Distillation(teacher, checkpoint), SEVEN, RGB, CPU, torch.float32)


@pytest.mark.parametrize("content", [b"", b"half of a file", pickle.dumps([1.0], protocol=2)])
@pytest.mark.parametrize("name", ["teacher.pth", "teacher.safetensors"])
def test_a_damaged_file_of_a_teacher_is_one_sentence(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"teacher resnet10t cannot be loaded from {tmp_path / name}: .."):
        make_teacher(Distillation("resnet10t", str(tmp_path / name)), SEVEN, RGB, CPU, torch.float32)


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    ceit.save_checkpoint(path, ceit.create_model("ceit_pico_patch4_32", num_classes=4))
    with pytest.raises(ValueError, match="tells 4 classes apart, the data has 7"):
        make_teacher(Distillation("ceit_pico_patch4_32", str(path)), SEVEN, RGB, CPU, torch.float32)


@pytest.mark.parametrize("preprocessing", [RGB, None])
def test_a_teachers_classes_are_brought_into_the_order_of_the_data(
    preprocessing: Preprocessing | None, tmp_path: Path
) -> None:
    path = tmp_path / "teacher.safetensors"
    network = ceit.create_model("ceit_pico_patch4_32", num_classes=7, depth=2).eval()
    ceit.save_checkpoint(path, network, class_names=list("gfedcba"), preprocessing=preprocessing)
    taught = Distillation("ceit_pico_patch4_32", str(path))
    teacher = make_teacher(taught, SEVEN, RGB, CPU, torch.float32)
    assert teacher is not None
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        as_taught = images * teacher.factor + teacher.offset
        torch.testing.assert_close(teacher(images), network(as_taught).flip(1))
    with pytest.raises(ValueError, match="was not trained on the data's classes: only one knows 'g'"):
        make_teacher(taught, tuple("abcdefx"), RGB, CPU, torch.float32)


def test_a_teacher_by_its_tag_is_the_checkpoint_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    network = ceit.create_model("ceit_pico_patch4_32", num_classes=7, depth=2).eval()
    ceit.save_checkpoint(
        path, network, class_names=list("gfedcba"), preprocessing=RGB, model_name="ceit_pico_patch4_32"
    )
    teacher = make_teacher(Distillation("ceit_pico_patch4_32.cifar10", str(path)), SEVEN, RGB, CPU, torch.float32)
    assert teacher is not None
    assert teacher.order == [6, 5, 4, 3, 2, 1, 0]
    with pytest.raises(ValueError, match="but ceit_nano_patch4_32 has embed_dim 160"):
        make_teacher(Distillation("ceit_nano_patch4_32", str(path)), SEVEN, RGB, CPU, torch.float32)


def test_a_run_goes_on_when_its_teacher_lies_elsewhere(tmp_path: Path) -> None:
    teacher = tmp_path / "first" / "teacher.safetensors"
    teacher.parent.mkdir()
    network = ceit.create_model("ceit_pico_patch4_32", num_classes=10, in_chans=1, img_size=16, depth=1)
    ceit.save_checkpoint(teacher, network, preprocessing=Preprocessing((0.3,), (0.4,)))
    taught = Distillation("ceit_pico_patch4_32", str(teacher), kind="soft")
    config = replace(SMALL, epochs=1, checkpoint_every_steps=2, limit_batches=4, distillation=taught)
    train_until(3, config, tmp_path / "run")
    (tmp_path / "second").mkdir()
    moved = teacher.rename(tmp_path / "second" / teacher.name)
    other = shutil.copy(moved, tmp_path / "other.safetensors")
    config = replace(config, distillation=replace(taught, checkpoint=str(other)))
    with pytest.raises(ValueError, match="this run was started with distillation"):
        train(config, "digits", tmp_path / "run", resume="auto")
    said: list[Any] = []
    config = replace(config, distillation=replace(taught, checkpoint=str(moved)))
    train(config, "digits", tmp_path / "run", resume="auto", say=said.append)
    assert any(f"{line}".startswith("resumed with another option: distillation was") for line in said)
    assert saved_config(tmp_path / "run")["distillation"]["checkpoint"] == str(moved)
