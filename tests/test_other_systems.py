"""What Windows and macOS do otherwise, played on Linux: each test stands in for a system that is not at hand."""

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from ceit import atomic, lock, messages, paths
from ceit.atomic import append, move, remove, replace_files, write_text
from ceit.cli.predict import images_of
from ceit.data.batches.batch import Varied
from ceit.inference import folding
from ceit.inference.backend import in_turns
from ceit.lock import InUseError, locked
from ceit.model import CeiT, config_of
from ceit.paths import expanded, last_part
from ceit.train import distributed
from ceit.train.checkpoint import checkpoints_in, load_state
from ceit.train.distributed import make_accelerator
from ceit.train.learner import Learner
from ceit.train.resolve import resolve
from ceit.train.run import train
from ceit.train.run_directory import RunDirectory
from ceit.train.step import _move, train_step
from ceit.train.trainer import Trainer
from tests.train.conftest import SMALL, TINY

APPLE = torch.device("mps")


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    """Behind its first step, so that the optimizer has a state."""
    accelerator = make_accelerator(SMALL)
    run = resolve(SMALL, "digits", accelerator, say=lambda message: None)
    trainer = Trainer(run, RunDirectory(tmp_path / "run"), accelerator, say=lambda message: None)
    (tmp_path / "run").mkdir()
    trainer.learner.start_training()
    train_step(trainer.learner, *next(trainer.train_loader.epoch(0)), 0)
    return trainer


def test_batch_norm_is_folded_on_the_cpu_as_apples_gpu_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CeiT(config_of("ceit_pico_patch4_32", **TINY))
    steps: list[str] = []
    to_cpu, to_device, fold = CeiT.cpu, CeiT.to, folding._fold

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*arguments: Any) -> Any:
            steps.append(name)
            return call(*arguments)

        return noting

    monkeypatch.setattr(CeiT, "cpu", noted("to the CPU", to_cpu))
    monkeypatch.setattr(CeiT, "to", noted("back", to_device))
    monkeypatch.setattr(folding, "_fold", noted("fold", fold))
    folding.fuse(model)
    assert list(dict.fromkeys(steps)) == ["to the CPU", "fold", "back"]


@pytest.mark.parametrize(("device", "waits"), [("mps", True), ("cuda", False)])
def test_only_cuda_copies_while_the_cpu_goes_on(device: str, waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def copy(tensor: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        asked.append(non_blocking)
        return tensor

    monkeypatch.setattr(Tensor, "to", copy)
    Varied(torch.zeros(1, 2, 2, 3), torch.zeros(1), torch.zeros(0), torch.zeros(0, 5).numpy()).to(torch.device(device))
    assert asked == [not waits] * 3


@pytest.mark.parametrize(("device", "most"), [(APPLE, 1), (torch.device("cpu"), 4)])
def test_on_apples_gpu_one_thread_computes_at_a_time(device: torch.device, most: int) -> None:
    inside, met = list[int](), list[bool]()
    all_there = threading.Event()

    def network(images: Tensor) -> Tensor:
        inside.append(threading.get_ident())
        if len(inside) == 4:
            all_there.set()
        met.append(all_there.wait(timeout=60 if most == 4 else 0.2))  # one alone waits in vain
        inside.pop()
        return images

    turns = in_turns([network], [device])
    threads = [threading.Thread(target=turns, args=[torch.zeros(1)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == [most == 4] * 4


def test_a_fused_optimizer_on_apples_gpu_is_not_left_to_skip_a_step_by_itself() -> None:
    """It would not: its kernels do not look at the flag."""

    class Flag:
        device = APPLE

        def __init__(self, *, is_set: bool) -> None:
            self.is_set = is_set

        def __bool__(self) -> bool:
            return self.is_set

    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.ones(3)
    learner = cast("Learner", SimpleNamespace(optimizer=optimizer))
    _move(learner, cast("Tensor", Flag(is_set=False)))
    assert weight.tolist() == [1, 1, 1]
    _move(learner, cast("Tensor", Flag(is_set=True)))
    assert weight.tolist() != [1, 1, 1]


def test_a_checkpoint_that_was_read_is_not_held(trainer: Trainer) -> None:
    """Windows deletes no file that is mapped into memory."""
    trainer.save()
    (saved,) = checkpoints_in(trainer.directory.path / "checkpoints")
    load_state(saved, trainer.learner.parts())
    assert saved.name not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_an_old_checkpoint_that_cannot_be_deleted_now_is_deleted_later(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".safetensors":
            raise PermissionError(13, "Access is denied", str(path))
        unlink(path, missing_ok)

    folder = trainer.directory.path / "checkpoints"
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        for step in range(1, 5):
            trainer.progress.step = step
            trainer.save()
    assert len(checkpoints_in(folder)) == 4
    trainer.progress.step = 5
    trainer.save()
    assert [path.stem for path in checkpoints_in(folder)] == ["step_00000004", "step_00000005"]


def test_a_lock_of_windows_keeps_others_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    for _ in range(2):  # and is free again afterwards
        with locked(tmp_path / ".lock"):
            with (
                pytest.raises(InUseError, match=f"{tmp_path} is in use by another process"),
                locked(tmp_path / ".lock"),
            ):
                pass
            with pytest.raises(ValueError, match="is in use by another run; name another"):
                train(SMALL, "digits", tmp_path, resume="auto")


@pytest.mark.parametrize("system", ["nt", "posix"])
def test_a_new_file_that_a_virus_scanner_looks_at_gets_its_name_a_moment_later(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, target = tmp_path / "new", tmp_path / "target"
    new.write_text("new", encoding="utf-8")
    target.write_text("old", encoding="utf-8")
    tries, rename = list[int](), os.replace

    def busy(*names: Path) -> None:
        tries.append(1)
        if len(tries) < 4:
            raise PermissionError(13, "Access is denied", *map(str, names))
        rename(*names)

    monkeypatch.setattr(atomic, "_BETWEEN_SECONDS", 0.001)
    monkeypatch.setattr(atomic, "os", SimpleNamespace(name=system, replace=busy))
    if system == "nt":
        move(new, target)
        assert target.read_text(encoding="utf-8") == "new"
    else:
        with pytest.raises(PermissionError):
            move(new, target)
        assert (len(tries), target.read_text(encoding="utf-8")) == (1, "old")


def test_a_file_that_is_open_elsewhere_is_written_and_removed_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, refusals = tmp_path / "metrics.jsonl", [1, 2, 3]
    write, unlink = Path.open, Path.unlink

    def busy(act: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if refusals:
            raise PermissionError(13, "Access is denied", str(refusals.pop()))
        return act(*arguments, **options)

    monkeypatch.setattr(atomic, "_BETWEEN_SECONDS", 0.001)
    monkeypatch.setattr(Path, "open", lambda *arguments, **options: busy(write, *arguments, **options))
    monkeypatch.setattr(Path, "unlink", lambda *arguments, **options: busy(unlink, *arguments, **options))
    with pytest.raises(PermissionError):
        append(file, "one\n")
    monkeypatch.setattr(atomic, "os", SimpleNamespace(name="nt"))
    append(file, "two\n")
    assert (file.read_bytes(), refusals) == (b"two\n", [])
    refusals += [1, 2, 3]
    remove(file)
    assert (file.exists(), refusals) == (False, [])


def test_wildcards_are_those_of_the_command_where_no_shell_knows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.jpg", "a.jpg", "c.png", "[x].jpg"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"\*.jpg does not exist"):
        images_of(["*.jpg"])
    monkeypatch.setattr(paths, "os", SimpleNamespace(name="nt", path=os.path, fspath=os.fspath))
    assert images_of(["?.jpg", "c.png", "[x].jpg"]) == ["a.jpg", "b.jpg", "c.png", "[x].jpg"]
    assert images_of(["[x]*.jpg"]) == ["[x].jpg"]
    with pytest.raises(ValueError, match=r"\*.gif does not exist"):
        images_of(["*.gif"])


def test_a_path_that_windows_does_not_take_is_refused_before_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch, output = Path.touch, tmp_path / ("n" * 100)

    def short(path: Path) -> None:
        if len(str(path)) >= len(str(output)) + 80:
            raise FileNotFoundError(2, "No such file or directory", str(path))  # as Windows says it
        touch(path)

    monkeypatch.setattr(Path, "touch", short)
    with pytest.raises(ValueError, match=rf"{output} has \d+ letters, and a run's files need up to 80 more"):
        train(SMALL, "digits", output)
    assert not output.exists()
    with RunDirectory(output.with_name("short")).reserved(resuming=False, say=lambda message: None):
        assert [path.name for path in output.with_name("short").iterdir()] == [".lock"]


def test_a_run_takes_the_cpu_beside_a_gpu_if_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Mock(return_value=SimpleNamespace(num_processes=1, device=APPLE))
    monkeypatch.setattr(distributed, "Accelerator", made)
    monkeypatch.setattr(distributed, "default_device", lambda: APPLE)
    for device in ("cpu", "auto"):
        make_accelerator(replace(SMALL, device=device))
    assert [call.kwargs["cpu"] for call in made.call_args_list] == [True, False]
    with pytest.raises(ValueError, match="have no float64: set precision to float32, or device to cpu"):
        make_accelerator(replace(SMALL, precision="float64"))


def test_a_target_that_stays_taken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(path: Path, target: Path) -> None:
        raise PermissionError(13, "Access is denied", str(path))

    monkeypatch.setattr(atomic, "move", taken)
    (tmp_path / "test.json").write_text("old", encoding="utf-8")
    with pytest.raises(OSError, match="cannot save, what stood there before is untouched: Access is denied") as refused:
        write_text(tmp_path / "test.json", "new")
    assert refused.value.filename == str(tmp_path / "test.json")
    assert [path.name for path in tmp_path.iterdir()] == ["test.json"]
    monkeypatch.undo()
    replace_files({tmp_path / "test.json": b"new"})
    assert (tmp_path / "test.json").read_bytes() == b"new"


def test_a_command_to_go_on_with_is_one_that_windows_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["ceit", "train", "--output", r"runs\my photos"]
    assert messages.as_typed(words) == r"ceit train --output 'runs\my photos'"
    monkeypatch.setattr(messages, "os", SimpleNamespace(name="nt"))
    assert messages.as_typed(words) == r'ceit train --output "runs\my photos"'


def test_what_a_file_manager_leaves_in_an_empty_folder_is_nobodys(tmp_path: Path) -> None:
    for name in (".DS_Store", "desktop.ini", "._photos"):
        (tmp_path / name).write_bytes(b"")
    train(replace(SMALL, epochs=1), "digits", tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert (tmp_path / ".DS_Store").is_file()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (r"C:\Users\me\photos", "photos"),
        (r"\\server\share\photos", "photos"),
        ("D:/data/birds", "birds"),
        ("/home/me/photos", "photos"),
        ("photos/birds", "birds"),
        (r"a\b", r"a\b"),  # a name on Linux
    ],
)
def test_of_a_path_that_a_run_on_another_system_wrote_down_the_name_alone_is_told(path: str, name: str) -> None:
    assert last_part(path) == name


def test_a_file_called_as_a_home_directory_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows knows a home directory for every name."""
    monkeypatch.chdir(tmp_path)
    Path("~root").write_bytes(b"")
    assert expanded("~root") == Path("~root").expanduser()  # as a shell on Linux has it
    monkeypatch.setattr(paths, "os", SimpleNamespace(name="nt", fspath=os.fspath, path=os.path))
    assert expanded("~root") == tmp_path / "~root"
    assert expanded("~") == Path.home()
