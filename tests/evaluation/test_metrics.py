"""Evaluation counts every image once, whatever the batch size and the number of processes, and changes nothing."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ceit.data.batches.loader import Loader, make_loader
from ceit.data.preprocessing import Preprocessing
from ceit.data.splits import ArraySplit
from ceit.evaluation.metrics import DivergedError, evaluate
from ceit.evaluation.scores import ClassScores

LETTERS = tuple("abcdefg")


class TablesOfLogits(nn.Module):
    """Answers an image whose first pixel is i with row i of a table."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.seen: list[tuple[bool, bool, torch.dtype]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((self.training, torch.is_grad_enabled(), torch.get_autocast_dtype("cpu")))
        return self.logits[(images[:, 0, 0, 0] * 255).round().long()]


def loader_of(labels: Tensor, batch_size: int = 8) -> Loader:
    """A loader whose image number i has i in every pixel."""
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()
    preprocessing = Preprocessing((0.0,), (1.0,))
    return make_loader(ArraySplit(images, labels), batch_size=batch_size, img_size=(4, 4), preprocessing=preprocessing)


@pytest.fixture
def logits() -> Tensor:
    return 2 * torch.randn(37, 7)


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(0, 7, (37,))


@pytest.mark.parametrize("batch_size", [1, 8, 37, 100])
def test_every_figure_is_that_of_the_definition(logits: Tensor, labels: Tensor, batch_size: int) -> None:
    result = evaluate(TablesOfLogits(logits), loader_of(labels, batch_size), class_names=LETTERS, device="cpu")
    order = logits.argsort(1, descending=True)
    log_probabilities = logits.double().log_softmax(1)

    assert result.images == 37
    assert result.loss == pytest.approx(-log_probabilities[torch.arange(37), labels].mean().item(), rel=1e-6)
    assert result.top1_percent == 100 * (order[:, 0] == labels).sum().item() / 37
    assert result.top5_percent == 100 * (order[:, :5] == labels[:, None]).any(1).sum().item() / 37
    assert result.confusion is not None
    for true, row in enumerate(result.confusion):
        assert row == [((labels == true) & (order[:, 0] == said)).sum().item() for said in range(7)]
        answered = sum(other[true] for other in result.confusion)
        assert result.per_class[true] == ClassScores.of_counts(LETTERS[true], sum(row), row[true], answered)
        assert result.per_class[true].top1_percent == 100 * row[true] / sum(row)


class Cyclic(nn.Module):
    """Says of the image whose number is i the class i or, of every third one, the next."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        number = (images[:, 0, 0, 0] * 255).round().long() + 256 * (images[:, 0, 0, 1] * 255).round().long()
        said = (number + (number % 3 == 0)) % self.classes
        return 5.0 * nn.functional.one_hot(said, self.classes).float()


@pytest.mark.parametrize("deterministic", [False, True])
def test_m4_the_cost_of_an_evaluation_grows_with_images_plus_classes(deterministic: bool) -> None:
    """Of 8,142 classes a matrix alone would be 530 MB; torch's count is 70 times as slow where it is deterministic."""
    classes, images = 8142, 5000
    labels = torch.arange(images)
    pixels = torch.stack([labels % 256, labels // 256], dim=-1).to(torch.uint8)[:, None, None].expand(-1, 1, 2, 2)
    split = ArraySplit(pixels.contiguous(), labels)
    loader = make_loader(split, batch_size=250, img_size=(2, 2), preprocessing=Preprocessing((0.0,), (1.0,)))
    names = [f"class {number}" for number in range(classes)]
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        result = evaluate(Cyclic(classes), loader, class_names=names, device="cpu")
    finally:
        torch.use_deterministic_algorithms(before)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kb < 200_000
    wrong = -(-images // 3)
    assert (result.images, result.top1_percent) == (images, 100 * (images - wrong) / images)
    assert result.per_class[3] == ClassScores("class 3", 1, 0.0, None, 0.0, 0.0)  # 0 and 3 are taken for 1 and 4
    assert result.per_class[4] == ClassScores("class 4", 1, 100.0, 0.5, 1.0, 2 / 3)
    assert result.per_class[8141] == ClassScores("class 8141", 0, None, None, None, None)
    assert result.confusion is None
    assert len(json.dumps(result.as_dict())) < 150 * classes


@pytest.mark.parametrize(("classes", "is_counted"), [(100, True), (101, False)])
def test_m4_a_confusion_matrix_is_counted_where_it_can_be_read(classes: int, is_counted: bool) -> None:
    labels = torch.arange(200) % classes
    names = [str(number) for number in range(classes)]
    result = evaluate(TablesOfLogits(torch.randn(200, classes)), loader_of(labels), class_names=names, device="cpu")
    assert (result.confusion is not None) == is_counted
    assert result.confusion is None or sum(map(sum, result.confusion)) == 200
    assert sum(entry.images for entry in result.per_class) == 200
    assert [entry.label for entry in result.listed()] != names
    assert len(result.listed()) == 40
    assert max(entry.top1_percent or 0 for entry in result.listed()) <= min(
        entry.top1_percent or 0 for entry in result.per_class if entry not in result.listed()
    )


def test_below_five_classes_there_is_no_top5_and_an_absent_class_has_no_accuracy(logits: Tensor) -> None:
    result = evaluate(
        TablesOfLogits(logits[:, :4]),
        loader_of(torch.zeros(37, dtype=torch.int64)),
        class_names=LETTERS[:4],
        device="cpu",
    )
    assert result.top5_percent is None
    absent = json.loads(json.dumps(result.as_dict()))["per_class"][3]
    assert (absent.pop("label"), absent.pop("images")) == ("d", 0)
    assert absent.keys() == {"top1_percent", "precision", "recall", "f1", "auroc"}
    assert absent["top1_percent"] is absent["recall"] is absent["auroc"] is None


@pytest.mark.parametrize("training", [True, False])
def test_model_is_evaluated_in_eval_mode_and_left_as_it_was(logits: Tensor, labels: Tensor, training: bool) -> None:
    model = TablesOfLogits(logits).train(training)
    evaluate(model, loader_of(labels), class_names=LETTERS, device="cpu")
    assert {(mode, grad) for mode, grad, _ in model.seen} == {(False, False)}
    assert model.training is training


def test_forward_runs_under_the_autocast_asked_for(logits: Tensor, labels: Tensor) -> None:
    class Linear(TablesOfLogits):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) @ torch.eye(7)

    model = Linear(logits)
    exact = evaluate(model, loader_of(labels), class_names=LETTERS, device="cpu")
    rounded = evaluate(model, loader_of(labels), class_names=LETTERS, device="cpu", autocast_dtype=torch.bfloat16)
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, abs=0.02)


def test_progress_is_told_the_images_done(logits: Tensor, labels: Tensor) -> None:
    done: list[int] = []
    evaluate(TablesOfLogits(logits), loader_of(labels), class_names=LETTERS, device="cpu", progress=done.append)
    assert done == [8, 16, 24, 32, 37]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_weights_are_an_error_that_names_the_images(logits: Tensor, labels: Tensor, value: float) -> None:
    logits[34] = value
    model = TablesOfLogits(logits).train()
    with pytest.raises(ValueError, match="the loss of images 32 to 36 is nan: the weights have diverged"):
        evaluate(model, loader_of(labels), class_names=LETTERS, device="cpu")
    assert model.training


def test_diverged_weights_are_told_on_a_device_without_float64(logits: Tensor, labels: Tensor) -> None:
    class Refusing(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            options: dict[str, Any] = kwargs or {}
            if options.get("dtype") == torch.float64 and "device" in options:
                raise TypeError("this device has no float64")
            return func(*args, **options)

    logits[34] = float("nan")
    with Refusing(), pytest.raises(DivergedError, match="the loss of images 32 to 36 is nan"):
        evaluate(TablesOfLogits(logits), loader_of(labels), class_names=LETTERS, device="cpu")


def test_other_number_of_classes_is_an_error(logits: Tensor, labels: Tensor) -> None:
    with pytest.raises(ValueError, match="the model tells 7 classes apart, the data set has 3"):
        evaluate(TablesOfLogits(logits), loader_of(labels), class_names=LETTERS[:3], device="cpu")


TWO_PROCESSES = """
import json, sys, torch
from torch import nn
from ceit.data.splits import ArraySplit
from ceit.data.batches.loader import make_loader
from ceit.data.preprocessing import Preprocessing
from ceit.evaluation.metrics import DivergedError, evaluate

torch.set_num_threads(1)
rank, meeting = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
for parameter in model.parameters():
    torch.nn.init.trunc_normal_(parameter, generator=torch.Generator().manual_seed(0))

def evaluated(shard, images, batch_size):
    generator = torch.Generator().manual_seed(images)
    pixels = torch.randint(256, (images, 1, 4, 4), generator=generator).to(torch.uint8)
    split = ArraySplit(pixels, torch.randint(5, (images,), generator=generator))
    options = {"img_size": (4, 4), "preprocessing": Preprocessing((0.5,), (0.25,)), "shard": shard}
    loader = make_loader(split, batch_size=batch_size, **options)
    return evaluate(model, loader, class_names="abcde", device="cpu", temperature=0.5).as_dict()

class Diverged(nn.Module):  # gives no number for the image that is white, which one process alone sees
    def forward(self, images):
        return images.flatten(1)[:, :5] / (images.mean((1, 2, 3))[:, None] < 1.9)

def diverges(shard):
    pixels = torch.zeros(12, 1, 4, 4, dtype=torch.uint8)
    pixels[7] = 255
    split = ArraySplit(pixels, torch.zeros(12, dtype=torch.int64))
    options = {"img_size": (4, 4), "preprocessing": Preprocessing((0.5,), (0.25,)), "shard": shard}
    loader = make_loader(split, batch_size=4, **options)
    try:
        evaluate(Diverged(), loader, class_names="abcde", device="cpu")
    except DivergedError as error:
        return str(error)

sizes = ((9, 4), (1003, 64))
said = diverges((rank, 2))
together = [evaluated((rank, 2), *size) for size in sizes]
torch.distributed.destroy_process_group()
print(json.dumps([together, [evaluated((0, 1), *size) for size in sizes], said]))
"""


def test_m9_processes_share_the_images_without_padding_and_all_get_the_whole_or_the_error(tmp_path: Path) -> None:
    """Nine images in batches of four for two processes, of whose last batch one of them gets none; and 1,003 images.

    Of twelve images the loss of one is not finite, which one process alone meets: both raise, and go on together.
    """
    meeting = (tmp_path / "meeting").as_uri()
    started = [
        subprocess.Popen([sys.executable, "-c", TWO_PROCESSES, rank, meeting], stdout=subprocess.PIPE) for rank in "01"
    ]
    for process in started:
        # the last line: before it, Gloo of torch 2.10 tells on stdout to whom it is connected
        *found, said = json.loads(process.communicate(timeout=300)[0].splitlines()[-1])
        assert said == "the loss of images 4 to 7 is nan: the weights have diverged"
        assert 5 < found[0][1]["top1_percent"] < 50  # chance is 20 percent
        for together, alone, images in zip(*found, (9, 1003), strict=True):
            assert together["images"] == images
            assert together.pop("loss") == pytest.approx(alone.pop("loss"))
            for key in ("calibration", "uncalibrated"):  # sums of numbers that are not whole
                ours, theirs = (
                    np.array([list(entry.values()) for entry in found[key].pop("reliability")])
                    for found in (together, alone)
                )
                assert ours == pytest.approx(theirs)
                assert together.pop(key) == pytest.approx(alone.pop(key))
            assert together == alone
