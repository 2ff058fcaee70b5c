import torch
from torch import Tensor

from hrm_kernels import native
from hrm_kernels.backends import cpu_cannot_run


def step(weights: Tensor, ids: Tensor, grads: Tensor, lr: float | Tensor, weight_decay: float) -> None:
    native.load("cpu").module.sparse_sign_sgd(
        weights.detach(), ids.long().contiguous(), grads.detach().contiguous(), float(lr), weight_decay
    )
    torch.autograd.graph.increment_version(weights)


def unsupported(weights: Tensor, *rest: object) -> str | None:
    if weights.dtype is not torch.float32:
        return f"its CPU kernel is for float32 weights, not {str(weights.dtype).removeprefix('torch.')}"
    return cpu_cannot_run(weights) if weights.is_contiguous() else "the weights are not contiguous"
