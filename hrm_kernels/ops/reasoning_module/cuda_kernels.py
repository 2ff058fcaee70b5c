"""The cuda backend of updates without gradients: any number of them in one launch of csrc/cuda/recurrent_cycles.cu."""

import functools
from collections.abc import Sequence

import torch

from hrm_kernels import native
from hrm_kernels.backends import cuda_cannot_run, launcher, traced_as_constant
from hrm_kernels.damping import Damping
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.transformer_block.weights import flat

MOST_TOKENS = 4096
"""The largest B * S that the kernel serves: 32 rows of 128."""

FEW_TOKENS = 512
"""The largest B * S for which the automatic choice asks this backend before triton. An estimate, not measured yet.

Its tiles are small, so that few tokens occupy the whole device. A product therefore reads ``M N K (1/48 + 1/64)``
elements from L2. At the published sizes and M = 512 this is 0.13 GB per block, compared with 7 MB of weights. For more
tokens the reads should take longer than the launches that the kernel saves, and the larger tiles of triton should win.
"""


NO_DAMPING = "the cuda kernels have no damped updates"


def passed_over(z: torch.Tensor, *rest: object) -> str | None:
    """Why the automatic choice should not ask this backend first; None where it should."""
    tokens = z.shape[0] * z.shape[1]
    if tokens <= FEW_TOKENS:
        return None
    return f"its tiles are for few tokens (B * S), and above {FEW_TOKENS} larger ones should win; not measured yet"


def cannot_run(z: torch.Tensor, modules: Sequence[Sequence[Sequence[torch.Tensor]]], heads: Heads) -> str | None:
    """Why the kernel cannot update ``z [B, S, D]`` with the blocks of these modules; None where it can."""
    reason = cuda_cannot_run(z)
    if reason is not None:
        return reason
    if len(modules[0][0]) != 4:
        return "the cuda kernels are for post-norm blocks, not for pre-norm blocks"
    if heads.mixing:
        return "the cuda kernels are for blocks with attention, not for blocks that mix positions"
    if z.dtype is not torch.bfloat16:
        return f"its cuda kernels are for bfloat16, not {str(z.dtype).removeprefix('torch.')}"
    batch, positions, width = z.shape
    if not 1 <= batch * positions <= MOST_TOKENS:
        return f"the cuda kernels are for 1 to {MOST_TOKENS} tokens (B * S)"
    qkv, _, _, down = modules[0][0]
    columns, inner = qkv.shape[0] // 3, down.shape[1]
    if any(block[0].shape[0] != 3 * columns or block[3].shape[1] != inner for layers in modules for block in layers):
        return "the cuda kernels are for blocks of equal sizes"
    head_dim, most_layers = columns // heads.num_heads, max(len(layers) for layers in modules)
    return _cannot_run_sizes(z.device.index or 0, positions, width, heads.num_heads, head_dim, inner, most_layers)


@traced_as_constant
def _cannot_run_sizes(*sizes: int) -> str | None:
    return _ask(*sizes)


@functools.cache
def _ask(device: int, positions: int, width: int, heads: int, head_dim: int, inner: int, layers: int) -> str | None:
    module, reason = native.load("cuda")
    if reason is not None:
        return reason
    reason = module.recurrent_cycles_reason(device, positions, width, heads, head_dim, inner, layers)
    return f"the cuda kernels cannot run it: {reason}" if reason else None


@functools.cache
def _workspace_bytes(batch: int, positions: int, width: int, heads: int, head_dim: int, inner: int) -> int:
    return native.load("cuda").module.recurrent_cycles_workspace(batch, positions, width, heads, head_dim, inner)


def _ready(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as the kernel reads it: contiguous, aligned to 16 bytes (a view may not be)."""
    tensor = (tensor.detach() if tensor.requires_grad else tensor).contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


@launcher(
    "cuda_recurrent_cycles(Tensor z_H, Tensor z_L, Tensor x, Tensor[] H_weights, Tensor[] L_weights, Tensor? cos, "
    "Tensor? sin, int num_heads, int H_cycles, int L_cycles, float eps) -> (Tensor, Tensor)",
    lambda z_H, *rest: (torch.empty_like(z_H), torch.empty_like(z_H)),
    grouped=(5, Heads),
)
def update(
    z_H: torch.Tensor,
    z_L: torch.Tensor,
    x: torch.Tensor,
    H_weights: Sequence[torch.Tensor],
    L_weights: Sequence[torch.Tensor],
    heads: Heads,
    H_cycles: int,
    L_cycles: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(z_H, z_L)`` after the updates; a state without an update in these cycles is returned uninitialised.

    Args:
        H_weights, L_weights: flat, four matrices a block.
        H_cycles, L_cycles: as for ``recurrent_cycles``; 2 and 0 are a single ``z_H = H(z_H, z_L)``.
    """
    weights = [[_ready(weight) for weight in one] for one in (H_weights, L_weights)]
    states = [_ready(state) for state in (z_H, z_L, x)]
    tables = [None if table is None else _ready(table.float()) for table in (heads.cos, heads.sin)]
    qkv, _, _, down = (weights[0] or weights[1])[:4]
    head_dim, inner = qkv.shape[0] // (3 * heads.num_heads), down.shape[1]
    size = _workspace_bytes(*z_H.shape, heads.num_heads, head_dim, inner)
    results = [torch.empty_like(states[0]) for _ in range(2)]
    workspace = torch.empty(size, dtype=torch.uint8, device=z_H.device)
    native.load("cuda").module.recurrent_cycles(
        *states, *weights, *tables, heads.num_heads, H_cycles, L_cycles, eps, *results, workspace
    )
    return results[0], results[1]


def unsupported(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[Sequence[torch.Tensor]],
    heads: Heads,
    eps: float,
    recompute: bool = False,
    damping: Damping | None = None,
) -> str | None:
    if damping is not None:
        return NO_DAMPING
    tensors = [z, injection, *flat(layers)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "the cuda kernels compute no gradients"
    return cannot_run(z, [layers], heads)


def reasoning_module(
    z: torch.Tensor,
    injection: torch.Tensor,
    layers: Sequence[Sequence[torch.Tensor]],
    heads: Heads,
    eps: float,
    recompute: bool = False,
    damping: None = None,
) -> torch.Tensor:
    return update(z, injection, z, flat(layers), [], heads, 2, 0, eps)[0]
