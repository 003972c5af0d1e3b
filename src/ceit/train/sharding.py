"""A network whose parameters are shared out among the processes (FSDP), and the way to whole tensors and back.

Every function that makes tensors whole is a collective one: all processes have to call it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ceit.model.ceit import CeiT


def shard(model: CeiT, processes: int, device: torch.device) -> None:
    """Share out every block's parameters and the rest's, in place. accelerate would pass over it on the CPU, so torch's
    own function is called, as accelerate does."""
    mesh = init_device_mesh(device.type, (processes,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
        register_fsdp_forward_method(block, "forward_class_token")  # what skip_dead calls of the last one
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether ``shard`` was applied."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(value: Tensor) -> Tensor:
    """The whole tensor, gathered from all processes if it is shared out."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_model(model: CeiT) -> CeiT:
    """The network itself, or a copy of it with whole parameters if they are shared out."""
    if not is_sharded(model):
        return model
    state = {key: whole(value) for key, value in model.state_dict().items()}
    some = state["cls_token"]
    copy = CeiT(model.config).to(some.device, some.dtype)
    copy.load_state_dict(state)
    return copy


def share_out(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor shared out as another of its shape is; as it is if that one is whole."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def load_whole_model(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """``load_state_dict`` of whole tensors. Raises: RuntimeError as it does."""
    own = model.state_dict()
    model.load_state_dict({key: share_out(value, own[key]) if key in own else value for key, value in state.items()})


def load_whole_optimizer(optimizer: Optimizer, state: dict[int, dict[str, Any]], groups: list[dict[str, Any]]) -> None:
    """``load_state_dict`` of whole tensors, by the parameters' numbers."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shared = {
        number: {
            key: share_out(value, parameters[number]) if isinstance(value, Tensor) else value
            for key, value in entries.items()
        }
        for number, entries in state.items()
    }
    optimizer.load_state_dict({"state": shared, "param_groups": groups})
