"""Runs in two processes (gloo on the CPU), started as users start them, against the same run in one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ceit.train.config import TrainConfig
from ceit.train.distributed import make_accelerator

GEOMETRY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "stem_channels": 8}
OPTIONS = {
    "data": "digits",
    "model": "ceit_pico_patch4_32",
    "geometry": json.dumps(GEOMETRY),
    "global_batch_size": "128",
    "peak_lr": "1e-2",
    "log_every_steps": "1",
    "workers": "0",
}
START = "import sys, ceit_cli; sys.exit(ceit_cli.main(sys.argv[1:]))"
# The process fails if anything that averages gradients is still there when the processes part.
START_AND_PART = """
import gc, sys, ceit_cli
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel
end_training = Accelerator.end_training
def part(self):
    assert self.num_processes == 2
    assert not [one for one in gc.get_objects() if type(one) is DistributedDataParallel], "it is still there"
    end_training(self)
    print("parted", file=sys.stderr)
Accelerator.end_training = part
sys.exit(ceit_cli.main(sys.argv[1:]))
"""
TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]


def start(tmp_path: Path, output: Path, processes: int, script: str = START, **options: str) -> subprocess.Popen[str]:
    program = tmp_path / "start.py"
    program.write_text(script, encoding="utf-8")
    launcher = [sys.executable] if processes == 1 else TWO_PROCESSES
    given = [word for key, value in (OPTIONS | options).items() for word in (f"--{key}", value)]
    command = [*launcher, str(program), "train", *given, "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(tmp_path: Path, output: Path, processes: int, script: str = START, **options: str) -> str:
    process = start(tmp_path, output, processes, script, **options)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages
    return messages


def lines(output: Path, event: str) -> list[dict[str, Any]]:
    found = map(json.loads, (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in found if line["event"] == event]


EXACT = {
    "precision": "float64",
    "batch_norm": "frozen",
    "epochs": "5",
    "geometry": json.dumps(GEOMETRY | {"skip_dead": True}),  # leaves parameters without a gradient
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    run(folder, folder / "run", 1, **EXACT)
    return folder / "run"


def test_two_processes_of_64_images_are_one_of_128(alone: Path, tmp_path: Path) -> None:
    together = tmp_path / "run"
    messages = run(tmp_path, together, 2, START_AND_PART, **EXACT)
    assert messages.count("parted\n") == 2
    one, two = ([line["loss"] for line in lines(output, "step")] for output in (alone, together))
    assert len(one) == 50
    assert one[-1] < one[0] - 0.1  # it has learnt something, so that there is something to differ in
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-9
    assert lines(alone, "test")[0]["top1_percent"] == lines(together, "test")[0]["top1_percent"]
    for name in ("model.safetensors", "checkpoints/step_00000050.safetensors"):
        torch.testing.assert_close(load_file(together / name), load_file(alone / name), rtol=0, atol=1e-9)
    messages = run(tmp_path, together, 2, resume="auto", **EXACT)
    assert "resumed after step 50 of 50" in messages


def test_two_processes_train_the_head_first_as_one_does(alone: Path, tmp_path: Path) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    options = EXACT | {"geometry": json.dumps(GEOMETRY), "initial_checkpoint": str(alone), "classes": "[1, 2, 3, 4]"}
    options |= {"epochs": "2", "freeze_epochs": "0.7", "ema.decay": "0.9"}
    messages = [run(tmp_path, output, processes, **options) for processes, output in enumerate(runs, 1)]
    assert "find_unused_parameters" not in messages[1]
    one, two = ([line["loss"] for line in lines(output, "step")] for output in runs)
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-9
    weights = [load_file(output / "model.safetensors") for output in runs]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-9)


def test_two_processes_that_compute_their_share_in_pieces_are_one(alone: Path, tmp_path: Path) -> None:
    together = tmp_path / "run"
    run(tmp_path, together, 2, **EXACT, device_batch_size="32")
    torch.testing.assert_close(
        load_file(together / "model.safetensors"), load_file(alone / "model.safetensors"), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(
    ("options", "is_static", "looks_for_unused"),
    [
        ({}, True, False),
        ({"geometry": {"skip_dead": True}}, True, False),
        ({"device_batch_size": 8}, False, False),
        ({"device_batch_size": "auto", "geometry": {"skip_dead": True}}, False, True),
        ({"freeze_epochs": 1.0, "initial_checkpoint": "a.safetensors"}, False, True),
    ],
)
def test_unused_parameters_are_looked_for_in_every_step_only_where_they_may_change(
    options: dict[str, Any], is_static: bool, looks_for_unused: bool
) -> None:
    ddp = make_accelerator(TrainConfig(**options)).ddp_handler
    assert ddp is not None
    assert (ddp.static_graph, ddp.find_unused_parameters) == (is_static, looks_for_unused)
    assert ddp.gradient_as_bucket_view


# Both processes write down the statistics that they evaluate with.
WITNESS = """
import os, sys, torch, ceit_cli
from ceit.train.trainer import Trainer
validate = Trainer.validate
def witness(trainer, model):
    kind = "raw" if model is trainer.learner.model else "ema"
    rank, epoch = trainer.accelerator.process_index, trainer.progress.epoch
    statistics = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    torch.save(statistics, f"{trainer.directory.path}.{kind}.{epoch}.{rank}")
    return validate(trainer, model)
Trainer.validate = witness
sys.exit(ceit_cli.main(sys.argv[1:]))
"""


def test_batch_norm_statistics_are_one_before_evaluation_and_saving(tmp_path: Path) -> None:
    output = tmp_path / "run"
    options = {"epochs": "2", "ema.decay": "0.9", "select": "last", "precision": "float32"}
    run(tmp_path, output, 2, WITNESS, **options)
    for kind in ("raw", "ema"):
        for epoch in (0, 1):
            first, second = (torch.load(f"{output}.{kind}.{epoch}.{rank}") for rank in (0, 1))
            assert len(first) == 2 * 7  # mean and variance: stem, and three a LeFF in two blocks
            assert all(torch.equal(first[name], second[name]) for name in first)
    kept = lines(output, "epoch")[-1]
    saved = load_file(output / "model.safetensors")
    kind = json.loads((output / "model.json").read_text(encoding="utf-8"))["training"]["weights"]
    last = torch.load(f"{output}.{kind}.1.0")
    assert all(torch.equal(last[name], saved[name]) for name in last)
    assert kept["step"] == 20


# wandb writes a line for each thing that it is told.
FAKE_WANDB = """
class Run:
    def log(self, values, step):
        told(f"log {step}")
    def finish(self):
        told("finish")
def init(id, **options):
    told("init")
    return Run()
def told(line):
    with open("told", "a") as file:
        print(line, file=file)
"""


def test_of_several_processes_the_main_one_tells_the_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb.py").write_text(FAKE_WANDB, encoding="utf-8")  # beside the program, so it is found
    monkeypatch.chdir(tmp_path)
    options = {"tracker": "wandb", "epochs": "1", "limit_batches": "2", "precision": "float32"}
    run(tmp_path, tmp_path / "run", 2, **options)
    assert (tmp_path / "told").read_text(encoding="utf-8").split("\n") == [
        *("init", "log 1", "log 2", "log 2", "log 2", "finish", "")  # two steps, the epoch, the test
    ]


FAILING = """
import os, sys, ceit_cli
from ceit.train import trainer as loop
step = loop.train_step
def failing(learner, images, labels, number):
    if number == 5 and learner.accelerator.process_index == 1:
        raise ValueError("the second process has met its end")
    return step(learner, images, labels, number)
loop.train_step = failing
sys.exit(ceit_cli.main(sys.argv[1:]))
"""


def test_a_failing_process_ends_all_with_its_message(tmp_path: Path) -> None:
    process = start(tmp_path, tmp_path / "run", 2, FAILING, epochs="2")
    _, messages = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "error: the second process has met its end" in messages
    assert "unexpected" not in messages


SIGNS_OF_LIFE = """
import os, sys, time
from datetime import timedelta
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from ceit.train import distributed
from ceit.train.distributed import with_heartbeat
distributed.HEARTBEAT_SECONDS = 0.1
patience = InitProcessGroupKwargs(timeout=timedelta(seconds=2))  # NCCL has ten minutes
accelerator = Accelerator(cpu=True, kwargs_handlers=[patience])
rank, signs = accelerator.process_index, 0
all_reduce = torch.distributed.all_reduce
def counting(*given):
    global signs
    signs += 1
    return all_reduce(*given)
torch.distributed.all_reduce = counting
def slow():
    time.sleep(4 * rank)
    return rank
assert with_heartbeat(slow, accelerator) == rank
assert signs > 20, signs
def failing():
    if rank:
        raise ValueError("photos has no images")
    time.sleep(0.3)
    return rank
try:
    with_heartbeat(failing, accelerator)
except ValueError as error:
    sys.stderr.write(f"process {rank}: {error}" + chr(10))
"""


def test_m5_a_slow_reader_does_not_let_the_others_wait_in_silence(tmp_path: Path) -> None:
    messages = run(tmp_path, tmp_path / "run", 2, SIGNS_OF_LIFE)
    assert "process 1: photos has no images" in messages
    assert "process 0: process 0 stops, as another could not read the data; its own message says why" in messages


def test_a_terminated_run_goes_on_in_another_number_of_processes(tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = start(tmp_path, output, 2, epochs="3", checkpoint_every_steps="4")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch   1"):
            break
    process.terminate()
    _, rest = process.communicate(timeout=120)
    assert "SIGTERM: saved step_" in rest
    assert process.returncode != 0
    messages = run(tmp_path, output, 1, epochs="3", checkpoint_every_steps="4", resume="auto")
    assert "the run had 2 processes, now 1: the images of each step stay the same" in messages
    assert [line["step"] for line in lines(output, "step")] == list(range(1, 31))
    assert lines(output, "test")[0]["images"] == 360


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_norm": "sync"}, "batch_norm sync needs GPUs"),
        ({"batch_norm": "sync", "device_batch_size": "auto"}, "device_batch_size auto needs local BatchNorm"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_accelerator(TrainConfig(**options))


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    process = start(tmp_path, tmp_path / "run", 2, global_batch_size="127")
    _, messages = process.communicate(timeout=120)
    assert "global_batch_size 127 must be a multiple of the 2 processes" in messages
    assert process.returncode != 0
