"""The cuda backend: one launch of csrc/cuda/sparse_sign_sgd.cu."""

import torch
from torch import Tensor

from hrm_kernels import native
from hrm_kernels.backends import cuda_cannot_run


def step(weights: Tensor, ids: Tensor, grads: Tensor, lr: float | Tensor, weight_decay: float) -> None:
    lr_on_device = lr.detach().float() if isinstance(lr, Tensor) and lr.device == weights.device else None
    native.load("cuda").module.sparse_sign_sgd(
        weights.detach(),
        ids.contiguous(),
        grads.detach().contiguous(),
        float(lr) if lr_on_device is None else 0.0,
        lr_on_device,
        weight_decay,
    )
    torch.autograd.graph.increment_version(weights)


def unsupported(weights: Tensor, ids: Tensor, grads: Tensor, lr: float | Tensor, weight_decay: float) -> str | None:
    if not weights.is_contiguous():
        return "the weights are not contiguous"
    if grads.dtype is not weights.dtype:
        return f"the gradients are {grads.dtype} and the weights {weights.dtype}"
    return cuda_cannot_run(weights)
