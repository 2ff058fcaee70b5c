"""The processes of a training run. torchrun starts several; one process needs no torchrun."""

import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hrm.errors import InputError


@dataclass(frozen=True)
class World:
    """The processes that train together, as one of them sees them.

    Attributes:
        rank, size: the number of this process, and how many there are; rank 0 writes.
        device: where this process computes.
        control: a gloo group, so that decisions on the CPU don't wait for the GPU; None for a single process.
    """

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def own_rows(self, global_batch_size: int) -> slice:
        """The rows of a global batch that belong to this process."""
        rows = global_batch_size // self.size
        return slice(self.rank * rows, (self.rank + 1) * rows)

    def highest(self, value: int) -> int:
        """The highest ``value`` of all processes, the same in each."""
        if self.size == 1:
            return value
        values = torch.tensor([value], dtype=torch.int32, device="cpu")
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.control)
        return int(values.item())

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum ``tensor`` over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def min_(self, tensor: Tensor) -> Tensor:
        """The minimum of ``tensor`` over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return tensor

    def gather_rows(self, tensor: Tensor) -> Tensor | None:
        """``[rows, ...]`` of each process -> ``[size * rows, ...]`` by rank, on rank 0; None in other processes."""
        if self.size == 1:
            return tensor
        raw = tensor.detach().contiguous().view(torch.uint8)  # bytes: gloo does not support bfloat16, nor NCCL bool
        parts = [torch.empty_like(raw) for _ in range(self.size)] if self.is_main else None
        dist.gather(raw, parts)
        return None if parts is None else torch.cat(parts).view(tensor.dtype)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier(group=self.control)


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started, and leave them at the end.

    Args:
        device: ``auto`` (a GPU if there is one, else the CPU) or a torch device. With ``auto`` or ``cuda`` each process
            uses the GPU of its local rank.

    Raises:
        InputError: the device does not exist, or there are more processes than GPUs.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local = int(os.environ.get("LOCAL_RANK", 0))
    chosen = _device(device, local, size)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield World(0, 1, chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank, size, chosen, dist.new_group(backend="gloo"))
    finally:
        dist.destroy_process_group()


def is_first_to_say(message: str) -> bool:
    """Whether this process is the first of those that torchrun started to ask about ``message``; True if in doubt."""
    environment = os.environ
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    try:
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
        start = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"hrm/said/{start}/{zlib.crc32(message.encode())}", 1) == 1
    except (KeyError, ValueError, RuntimeError):  # the launcher and its store are gone
        return True


def _device(name: str, local_rank: int, size: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device: torch.device | None
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name} is not supported; expected auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count()
    if device.index is not None and size > 1:
        raise InputError(f"device {name} is one GPU for {size} processes; give --device cuda, and each uses its own")
    index = local_rank if device.index is None else device.index
    if index >= count:
        raise InputError(
            f"GPU {index} does not exist, this machine has {count}; start fewer processes, or give --device cpu"
        )
    return torch.device("cuda", index)


class FlatGradients:
    """The gradients of ``parameters`` in one buffer, so that one call sums, measures or clears them all.

    The ``grad`` of each parameter is a view into the buffer, and backward adds to it in place. Clear with
    :meth:`clear`; the ``zero_grad`` of an optimiser would remove the views.

    Args:
        parameters: all of one dtype and device.
        world: the processes to sum over; None if there is only one.

    Attributes:
        flat: all gradients in the order of the parameters. Each starts at a multiple of 16 bytes, so that the kernels
            of an optimiser move 16 bytes at a time; what lies between is 0.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], world: World | None = None):
        self._world = world
        parameters = list(parameters)
        unit = 16 // parameters[0].element_size()
        sizes = [-(-parameter.numel() // unit) * unit for parameter in parameters]
        self.flat = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
        for parameter, padded in zip(parameters, self.flat.split(sizes)):
            parameter.grad = padded[: parameter.numel()].view_as(parameter)

    def clear(self) -> None:
        """Set all gradients to zero."""
        self.flat.zero_()

    def sum_over_processes(self) -> None:
        """Sum the gradients over the processes of ``world``, in place."""
        if self._world is not None:
            self._world.sum_(self.flat)

    def norm(self) -> Tensor:
        """The norm of all gradients, a scalar."""
        return self.flat.norm()


class SeparateGradients:
    """The gradients of ``parameters``, a tensor each, for one process on a CPU.

    A backward hands over the tensor that it has computed. With :class:`FlatGradients` it adds that tensor to zeros,
    which reads and writes all gradients twice more.

    Args:
        parameters: all of one dtype and device.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self._parameters = list(parameters)

    def clear(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def sum_over_processes(self) -> None:
        """There is one process. Parameters that the loss did not use get a gradient of 0, as in a flat buffer."""
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def norm(self) -> Tensor:
        """The norm of all gradients, a scalar."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        return torch.stack(torch._foreach_norm(gradients)).norm()


Gradients = FlatGradients | SeparateGradients


def gradients_of(parameters: Iterable[nn.Parameter], world: World) -> Gradients:
    """What holds the gradients of a run: one buffer where calls are launches or messages, else a tensor each."""
    if world.size == 1 and world.device.type == "cpu":
        return SeparateGradients(parameters)
    return FlatGradients(parameters, world)
