"""Random arguments of the public ops and the optimisers."""

from collections.abc import Sequence
from typing import Any

import torch

import hrm_kernels as k
from bench.sizes import EPS, Size
from hrm_kernels.nn import SparseEmbedding, rope_tables, swiglu_inner_size
from hrm_kernels.optim import AdamATan2, SparseSignSGD

OPS = (
    "add_rms_norm",
    "swiglu",
    "rope_attention",
    "stablemax_cross_entropy",
    "token_mixing",
    "transformer_block",
    "reasoning_module",
    "recurrent_cycles",
)


class RandomTensors:
    """Draws the same float32 values for every dtype."""

    def __init__(self, device: str, dtype: torch.dtype, seed: int) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        self.device, self.dtype = device, dtype

    def __call__(self, *shape: int, scale: float = 1.0, grad: bool = True) -> torch.Tensor:
        values = torch.randn(shape, generator=self.generator, device=self.device, dtype=torch.float32) * scale
        return values.to(self.dtype).requires_grad_(grad)

    def integers(self, *shape: int, below: int) -> torch.Tensor:
        return torch.randint(0, below, shape, generator=self.generator, device=self.device)

    def labels(self, rows: int, columns: int, below: int) -> torch.Tensor:
        """Labels of which every fifth is ignored."""
        labels = self.integers(rows, columns, below=below)
        labels[:, ::5] = -100
        return labels

    def block(self, size: Size) -> k.BlockWeights:
        D, inner = size.width, size.inner
        shapes = ((3 * D, D), (D, D), (2 * inner, D), (D, inner))
        return k.BlockWeights(*(self(*shape, scale=shape[1] ** -0.5) for shape in shapes))


def op_arguments(op: str, size: Size, device: str, dtype: torch.dtype, seed: int) -> tuple[Any, ...]:
    """Arguments of a public op of ``hrm_kernels``."""
    random = RandomTensors(device, dtype, seed)
    B, S, D, heads = size.batch, size.positions, size.width, size.heads
    cos, sin = rope_tables(S, D // heads, device=device)
    if op == "add_rms_norm":
        return random(B, S, D), random(B, S, D), EPS
    if op == "swiglu":
        return (random(B, S, 2 * size.inner),)
    if op == "rope_attention":
        return random(B, S, 3 * D), cos, sin, heads
    if op == "token_mixing":
        inner = swiglu_inner_size(S, 4.0)
        return random(B, S, D), random(2 * inner, S, scale=S**-0.5), random(S, inner, scale=inner**-0.5), EPS
    if op == "transformer_block":
        return random(B, S, D), random.block(size), cos, sin, heads, EPS
    if op == "stablemax_cross_entropy":
        return random(B, S, size.vocabulary, scale=3), random.labels(B, S, size.vocabulary), -100
    blocks = [random.block(size) for _ in range(size.layers)]
    if op == "reasoning_module":
        return random(B, S, D), random(B, S, D), blocks, cos, sin, heads, EPS
    L_blocks = [random.block(size) for _ in range(size.layers)]
    return random(B, S, D), random(B, S, D), random(B, S, D), blocks, L_blocks, cos, sin, heads, 2, 2, EPS


def adam_atan2_arguments(shapes: Sequence[tuple[int, ...]], device: str, seed: int) -> tuple[Any, ...]:
    """An AdamATan2 and its float32 parameters, with gradients."""
    random = RandomTensors(device, torch.float32, seed)
    parameters = [torch.nn.Parameter(random(*shape, grad=False)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = random(*parameter.shape, grad=False)
    return AdamATan2(parameters, lr=1e-3, weight_decay=0.1, capturable=device != "cpu"), parameters


def sparse_sign_sgd_arguments(rows: int, table: int, width: int, device: str, seed: int) -> tuple[Any, ...]:
    """A SparseSignSGD and its table, with gradients of ``rows`` rows, whose identifiers may repeat."""
    random = RandomTensors(device, torch.float32, seed)
    embedding = SparseEmbedding(table, width).to(device).train()
    embedding(random.integers(rows, below=table))
    assert embedding.local_weights is not None
    embedding.local_weights.grad = random(rows, width, grad=False)
    return SparseSignSGD([embedding], lr=1e-2), [embedding.weights]
