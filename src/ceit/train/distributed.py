"""What the processes of one run agree on."""

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list, gather_object
from torch import Tensor, nn

from ceit.inference.device import default_device
from ceit.machine import MachineError
from ceit.train.config import TrainConfig

HEARTBEAT_SECONDS = 1.0

_Value = TypeVar("_Value")
_WRAPPERS = {
    "USE_FSDP": "FSDP",
    "USE_DEEPSPEED": "DeepSpeed",
    "USE_MEGATRON_LM": "Megatron-LM",
    "USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The process's place among all of them, and its device.

    Raises: ValueError for what the device cannot do, a batch that the processes cannot share, or a launcher that asks
    for another computation than the options do.
    """
    _refuse_another_computation(config)
    if int(os.environ.get("WORLD_SIZE") or 1) > 1 and "LOCAL_RANK" not in os.environ:
        fix = "start with torchrun or accelerate launch, or unset WORLD_SIZE for one process"
        raise MachineError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and LOCAL_RANK is not set: {fix}")
    learns_all_along = config.freeze_epochs == 0
    # the first step of a static graph shows which parameters are unused; torch's breaks where steps come in pieces
    is_static = learns_all_along and config.device_batch_size is None
    leaves_parameters_unused = bool(config.geometry.get("skip_dead", False)) or not learns_all_along
    ddp = DistributedDataParallelKwargs(
        broadcast_buffers=False,  # BatchNorm statistics are averaged before they are used, see batch_norm
        gradient_as_bucket_view=True,
        static_graph=is_static,
        find_unused_parameters=leaves_parameters_unused and not is_static,
    )
    # without being told, accelerate takes several processes on a machine without a GPU for single ones
    accelerator = Accelerator(
        cpu=config.device == "cpu" or default_device().type == "cpu",
        kwargs_handlers=[ddp],
        # what is not said here would be read from the launcher's environment
        mixed_precision="no",
        dynamo_backend="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    require_even_shares(config, accelerator.num_processes)
    require_device_for(config, accelerator.device.type)
    return accelerator


def require_device_for(config: TrainConfig, device: str) -> None:
    """Raises: ValueError for what a kind of device, as torch calls it, cannot do."""
    if config.batch_norm == "sync" and device == "cpu":
        raise ValueError("batch_norm sync needs GPUs, torch has no synchronised BatchNorm on the CPU: set it to local")
    if config.precision == "float64" and device == "mps":
        raise ValueError("Apple's GPUs have no float64: set precision to float32, or device to cpu")
    if config.small_images.scale < 1 and config.deterministic and device == "cuda":
        what = f"small_images.scale {config.small_images.scale} is not deterministic on a GPU"
        raise ValueError(f"{what}, torch has no such kernel: set it to 1, or leave out deterministic")


def require_even_shares(config: TrainConfig, processes: int) -> None:
    """Raises: ValueError for a batch that the processes cannot share; one that is left open is chosen to suit them."""
    batch_size = config.global_batch_size
    share, rest = divmod(batch_size or 0, processes)
    if rest:
        raise ValueError(f"global_batch_size {batch_size} must be a multiple of the {processes} processes")
    if config.mixing.on and share % 2:
        raise ValueError(f"each process's share of {share} images must be even to be mixed: change global_batch_size")


def _refuse_another_computation(config: TrainConfig) -> None:
    """The options alone decide what is computed; a launcher decides how many processes there are, and where.

    ``accelerate launch`` hands its own settings over in the environment. Its "no" is what it says unasked. What agrees
    with the options changes nothing.

    Raises: ValueError for a setting that says something else.
    """

    def setting(name: str) -> str:
        return os.environ.get(f"ACCELERATE_{name}", "no").lower()

    if (precision := setting("MIXED_PRECISION")) not in ("no", config.precision):
        raise MachineError(
            f"the launcher asks for mixed precision {precision}, the options for precision {config.precision}: "
            "--precision alone decides, so set the launcher's mixed precision to no"
        )
    if (backend := setting("DYNAMO_BACKEND")) not in ("no", "inductor" if config.compile is True else "no"):
        raise MachineError(
            f"the launcher asks for the dynamo backend {backend}, the options for compile "
            f"{str(config.compile).lower()}: set the launcher's dynamo backend to no, and --compile true to compile"
        )
    if (steps := setting("GRADIENT_ACCUMULATION_STEPS")) not in ("no", "1"):
        fix = "global_batch_size and device_batch_size decide: set the launcher's to 1"
        raise MachineError(f"the launcher asks for {steps} gradient accumulation steps, which {fix}")
    for name, wrapper in _WRAPPERS.items():
        if setting(name) in ("1", "true", "yes", "on"):
            fix = "this run shares out its work by itself: start it with --multi_gpu or torchrun"
            raise MachineError(f"the launcher asks for {wrapper}, but {fix}")


def shared_gradients(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The network as its processes train it together: gradients are averaged, BatchNorm statistics stay each one's."""
    if accelerator.num_processes > 1:
        # a depth-wise weight (E, 1, k, k) is laid out alike in both formats but for the stride of its one channel
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
        # with freeze_epochs they are unused at first only
        warnings.filterwarnings("ignore", "find_unused_parameters=True was specified", UserWarning)
    with warnings.catch_warnings():
        # torch has renamed the option that keeps the statistics apart, and torch 2.10 has only the old name
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return accelerator.prepare_model(model)


@contextmanager
def naming_lost_processes(accelerator: Accelerator) -> Iterator[None]:
    """Says in a sentence that another process of the run is gone, where the backend only lost a connection.

    Raises: ValueError then.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        if accelerator.num_processes == 1 or not lost:
            raise
        lost_one = f"process {accelerator.process_index} has lost another process of this run"
        raise ValueError(f"{lost_one}, whose own message says why; the last checkpoint is intact") from error


def total_of(values: list[float], accelerator: Accelerator) -> list[float]:
    """The sum of each value over all processes."""
    if accelerator.num_processes == 1:
        return values
    device = accelerator.device
    return summed_(torch.tensor(values, dtype=widest_dtype(device), device=device), accelerator).tolist()


def summed_(values: Tensor, accelerator: Accelerator) -> Tensor:
    """A tensor on the device, made the sum of all processes' in place."""
    if accelerator.num_processes > 1:
        torch.distributed.all_reduce(values)
    return values


def widest_dtype(device: torch.device) -> torch.dtype:
    """For sums: float64, which gloo and NCCL both add up, but not every accelerator has."""
    return torch.float32 if device.type == "mps" else torch.float64


def from_main(value: _Value) -> _Value:
    """The main process's value, in every process."""
    return broadcast_object_list([value])[0]


def from_all(value: _Value) -> list[_Value]:
    """Every process's value, in every process."""
    return gather_object([value])


def with_heartbeat(work: Callable[[], _Value], accelerator: Accelerator) -> _Value:
    """``work()``, which may take the processes long and unequally long: they exchange a sign of life all the while.

    A backend gives up a process that it waits for in vain, NCCL after ten minutes. Raises: what the work raises here;
    ValueError if it failed in another process alone.
    """
    if accelerator.num_processes == 1:
        return work()
    pool = ThreadPoolExecutor(1)
    done = pool.submit(work)
    pool.shutdown(wait=False)
    while True:
        wait([done], timeout=HEARTBEAT_SECONDS)
        is_done = done.done()
        failed = is_done and done.exception() is not None
        ready, failures = total_of([is_done, failed], accelerator)
        if failed or (ready == accelerator.num_processes and not failures):
            return done.result()
        if failures:
            number = accelerator.process_index
            raise ValueError(f"process {number} stops, as another could not read the data; its own message says why")
