"""The cuda backend: all parameters in one launch of csrc/cuda/adam_atan2.cu (64 at a time)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hrm_kernels import native


def step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    copies: Sequence[Tensor] | None,
    lr: float | Tensor,
    betas: tuple[float, float],
    weight_decay: float,
    capturable: bool,
    tables: dict,
) -> None:
    """As the op. Step counts on the CPU go up there, before the launch has run; those on the device in the launch."""
    device = params[0].device
    lr_on_device = lr.detach().float() if isinstance(lr, Tensor) and capturable and lr.device == device else None
    copies = list(copies or ())
    native.load("cuda").module.adam_atan2(
        [p.detach() for p in params],
        [g.detach().contiguous() for g in grads],
        list(exp_avgs),
        list(exp_avg_sqs),
        copies,
        list(steps),
        float(lr) if lr_on_device is None else 0.0,
        lr_on_device,
        *betas,
        weight_decay,
        _arrived(device, tables) if capturable else None,
    )
    # as PyTorch's own kernels do: a later backward through old values is an error, not a wrong gradient
    torch.autograd.graph.increment_version([*params, *exp_avgs, *exp_avg_sqs, *copies])


def _arrived(device: torch.device, tables: dict) -> Tensor:
    """An int32 zero for the kernel to count its blocks with; it leaves it zero."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        # the graph's own, which every replay sets to zero: one that is only captured must not be used outside it
        return torch.zeros(1, dtype=torch.int32, device=device)
    if ("arrived", device) not in tables:
        tables["arrived", device] = torch.zeros(1, dtype=torch.int32, device=device)
    return tables["arrived", device]
