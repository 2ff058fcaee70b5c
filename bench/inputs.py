"""Random arguments of the public ops and the optimisers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

import hrm_kernels
from bench.sizes import Size
from bench.workload import tensors
from hrm_kernels import specs
from hrm_kernels.nn import SparseEmbedding, rope_tables
from hrm_kernels.optim import AdamATan2, SparseSignSGD
from hrm_kernels.spec import Random

OPS = tuple(op for op in specs() if op in hrm_kernels.__all__)
"""The public ops: a new op takes part with its specification."""


class Inputs(Random):
    """Draws inputs as the specifications do, but with the RoPE tables of real positions."""

    def tables(self, positions: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.made_tables = rope_tables(positions, width, device=self.device)
        return self.made_tables


def op_arguments(op: str, size: Size, device: str, dtype: torch.dtype, seed: int) -> tuple[Any, ...]:
    """Arguments of a public op of ``hrm_kernels``. All floating-point tensors but the RoPE tables require gradients."""
    random = Inputs(seed, dtype, device)
    if op == "recurrent_cycles":  # in the specification the L module has one block less than the H module
        deeper = replace(size, layers=size.layers + 1)
        z_H, z_L, x, H_layers, *rest = specs()[op].sample(deeper.of(op), random)
        arguments: tuple[Any, ...] = (z_H, z_L, x, H_layers[: size.layers], *rest)
    else:
        arguments = specs()[op].sample(size.of(op), random)
    tables = getattr(random, "made_tables", ())
    for tensor in tensors(arguments):
        if tensor.is_floating_point() and not any(tensor is table for table in tables):
            tensor.requires_grad_()
    return arguments


def adam_atan2_arguments(shapes: Sequence[tuple[int, ...]], device: str, seed: int) -> tuple[Any, ...]:
    """An AdamATan2 and its float32 parameters, with gradients."""
    random = Inputs(seed, torch.float32, device)
    parameters = [torch.nn.Parameter(random(*shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = random(*parameter.shape)
    return AdamATan2(parameters, lr=1e-3, weight_decay=0.1, capturable=device != "cpu"), parameters


def sparse_sign_sgd_arguments(rows: int, table: int, width: int, device: str, seed: int) -> tuple[Any, ...]:
    """A SparseSignSGD and its table, with gradients of ``rows`` rows, whose identifiers may repeat."""
    random = Inputs(seed, torch.float32, device)
    embedding = SparseEmbedding(table, width).to(device).train()
    embedding(random.integers(rows, below=table))
    assert embedding.local_weights is not None
    embedding.local_weights.grad = random(rows, width)
    return SparseSignSGD([embedding], lr=1e-2), [embedding.weights]
