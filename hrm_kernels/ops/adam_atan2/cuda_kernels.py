"""The cuda backend: all parameters in one launch of csrc/cuda/adam_atan2.cu (64 at a time)."""

import torch
from torch import Tensor

from hrm_kernels import native
from hrm_kernels.ops.adam_atan2.step import Step


def run(step: Step) -> None:
    """As the op. Step counts on the CPU are raised before the launch has run, those on the device by the launch."""
    device, lr = step.params[0].device, step.lr
    lr_on_device = lr.detach().float() if isinstance(lr, Tensor) and step.capturable and lr.device == device else None
    native.load("cuda").module.adam_atan2(
        [p.detach() for p in step.params],
        [g.detach().contiguous() for g in step.grads],
        list(step.exp_avgs),
        list(step.exp_avg_sqs),
        list(step.copies or ()),
        list(step.steps),
        float(lr) if lr_on_device is None else 0.0,
        lr_on_device,
        *step.betas,
        step.weight_decay,
        _arrived(device, step.tables) if step.capturable else None,
    )
    step.count_writes()


def _arrived(device: torch.device, tables: dict) -> Tensor:
    """An int32 zero with which the kernel counts its blocks; the kernel resets it to zero."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        # belongs to the graph, and every replay sets it to zero: outside the graph it is not initialised
        return torch.zeros(1, dtype=torch.int32, device=device)
    if ("arrived", device) not in tables:
        tables["arrived", device] = torch.zeros(1, dtype=torch.int32, device=device)
    return tables["arrived", device]
