import torch
from torch import Tensor

from hrm_kernels import native
from hrm_kernels.backends import cpu_cannot_run


def step(weights: Tensor, ids: Tensor, grads: Tensor, lr: float | Tensor, weight_decay: float) -> None:
    native.load("cpu").module.sparse_sign_sgd(
        weights.detach(), ids.long().contiguous(), grads.detach().contiguous(), float(lr), weight_decay
    )
    torch.autograd.graph.increment_version(weights)


def unsupported(weights: Tensor, ids: Tensor, grads: Tensor, *rest: object) -> str | None:
    if weights.dtype is not torch.float32:
        return f"its CPU kernel is for float32 weights, not {str(weights.dtype).removeprefix('torch.')}"
    if grads.dtype is not weights.dtype:
        return f"the gradients are {grads.dtype} and the weights {weights.dtype}"
    if ids.dtype not in (torch.int32, torch.int64):
        return f"the identifiers are {ids.dtype}, not int32 or int64"
    return cpu_cannot_run(weights) if weights.is_contiguous() else "the weights are not contiguous"
