from collections.abc import Sequence
from typing import Any

import torch

from hrm_kernels.backends import Backend, Op
from hrm_kernels.damping import Damping, as_damping, by_row
from hrm_kernels.movement import check_weight, move
from hrm_kernels.ops.reasoning_module import cuda_kernels as module_on_cuda
from hrm_kernels.ops.recurrent_cycles import arguments, triton_updates
from hrm_kernels.ops.recurrent_cycles import cuda_kernels as cycles_on_cuda
from hrm_kernels.ops.recurrent_segment import reference
from hrm_kernels.ops.recurrent_segment.spec import SPEC
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.transformer_block.weights import Layer, flat, layers_of


def _triton(
    z_H: torch.Tensor,
    z_L: torch.Tensor,
    x: torch.Tensor,
    H_layers: Sequence[Layer],
    L_layers: Sequence[Layer],
    heads: Heads,
    H_cycles: int,
    L_cycles: int,
    eps: float,
    weight: torch.Tensor | None = None,
    damping: Damping | None = None,
) -> tuple[torch.Tensor, ...]:
    return triton_updates(z_H, z_L, x, H_layers, L_layers, heads, H_cycles, L_cycles, eps, damping, weight, True)


def _cpu(
    z_H: torch.Tensor,
    z_L: torch.Tensor,
    x: torch.Tensor,
    H_layers: Sequence[Layer],
    L_layers: Sequence[Layer],
    heads: Heads,
    H_cycles: int,
    L_cycles: int,
    eps: float,
    weight: torch.Tensor | None = None,
    damping: Damping | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from hrm_kernels.ops.recurrent_cycles.cpu_segment import run

    if heads.mixing and z_H.shape[1] == 0:  # nothing to compute, and no weights to pack
        return z_H, z_L, torch.zeros(z_H.shape[0], 2, dtype=torch.float32, device="cpu")
    states = z_H.contiguous(), z_L.contiguous(), x.contiguous()
    rows: tuple[Any, ...] = (None, 0.0, None, None) if damping is None else by_row(damping, z_H)
    weight = None if weight is None else weight.detach().contiguous()
    return run(True, *states, flat(H_layers), flat(L_layers), heads, H_cycles, L_cycles, eps, weight, *rows)


def _cuda(
    z_H: torch.Tensor,
    z_L: torch.Tensor,
    x: torch.Tensor,
    H_layers: Sequence[Layer],
    L_layers: Sequence[Layer],
    heads: Heads,
    H_cycles: int,
    L_cycles: int,
    eps: float,
    weight: torch.Tensor | None = None,
    damping: None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The cycles in one launch, and one for the last update of each state."""
    new_H, new_L = cycles_on_cuda.recurrent_cycles(z_H, z_L, x, H_layers, L_layers, heads, H_cycles, L_cycles, eps)
    new_L = module_on_cuda.reasoning_module(new_L, new_H + x, L_layers, heads, eps)
    new_H = module_on_cuda.reasoning_module(new_H, new_L, H_layers, heads, eps)
    return move((z_H, z_L), (new_H, new_L), weight)


def _cuda_cannot_run(
    z_H: torch.Tensor,
    z_L: torch.Tensor,
    x: torch.Tensor,
    H_layers: Sequence[Layer],
    L_layers: Sequence[Layer],
    heads: Heads,
    H_cycles: int,
    L_cycles: int,
    eps: float,
    weight: torch.Tensor | None = None,
    damping: Damping | None = None,
) -> str | None:
    return cycles_on_cuda.unsupported(z_H, z_L, x, H_layers, L_layers, heads, H_cycles, L_cycles, eps, damping)


def _unflatten(
    z_H: torch.Tensor,
    z_L: torch.Tensor,
    x: torch.Tensor,
    H_layers: Sequence[Layer],
    L_layers: Sequence[Layer],
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    H_cycles: int,
    L_cycles: int,
    eps: float,
    weight: torch.Tensor | None = None,
    *damping: Any,
) -> tuple[Any, ...]:
    layers = layers_of(H_layers, num_heads), layers_of(L_layers, num_heads)
    return z_H, z_L, x, *layers, Heads(cos, sin, num_heads), H_cycles, L_cycles, eps, weight, as_damping(*damping)


_op = Op(
    SPEC,
    {
        "reference": Backend(reference.recurrent_segment),
        "triton": Backend(_triton, arguments.triton_cannot_run),
        "cpu": Backend(_cpu, arguments.cpu_cannot_run),
        "cuda": Backend(_cuda, _cuda_cannot_run, module_on_cuda.passed_over),
    },
    unflatten=_unflatten,
)


@_op.public
def recurrent_segment(
    z_H: torch.Tensor,
    z_L: torch.Tensor,
    x: torch.Tensor,
    H_layers: Sequence[Layer],
    L_layers: Sequence[Layer],
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    H_cycles: int,
    L_cycles: int,
    eps: float = 1e-5,
    weight: torch.Tensor | None = None,
    damping: Damping | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A whole segment without gradients, and how far it has moved each row.

    ``H_cycles`` times: ``L_cycles`` times ``z_L = L(z_L, z_H + x)``, then once ``z_H = H(z_H, z_L)``. The change is
    measured where the new states are written, on a CPU without another pass over them. With ``weight`` the states then
    go only part of the way, ``start + weight * (end - start)``, which has the same fixed points and cures a row that
    oscillates. Under ``torch.autocast`` it runs in autocast's dtype,
    as products do.

    Args:
        z_H, z_L: ``[B, S, D]`` states, float32, bfloat16 or float16; they are not written to.
        x: ``[B, S, D]`` input embedding.
        H_layers, L_layers, cos, sin, num_heads, H_cycles, L_cycles, eps: as for
            :func:`hrm_kernels.recurrent_cycles`.
        weight: ``[B]`` float32, 0 to 1, how far each row goes; None is 1.
        damping: how far each *update* moves its state, and its noise (:class:`hrm_kernels.Damping`); None for plain
            updates. Their numbers go on from ``damping.first_step``, in the order above.

    Returns:
        ``(z_H, z_L, change)``, without gradients: the states ``[B, S, D]``, and ``[B, 2]`` float32 (float64 for such
        states): the squares of ``end - start``, before the weight, and of the new states, summed over both states. The
        root of their quotient is the relative change of a row.

    Raises:
        TypeError, ValueError: a dtype, device, shape or number of cycles does not fit.
        NotImplementedError: an argument carries a tangent of forward-mode differentiation.

    Source: HRM (arXiv 2506.21734), section 2; damping of whole steps: FPRM (arXiv 2606.18206).
    """
    z_H, z_L, x, H_layers, L_layers = inputs = _op.under_autocast(z_H, z_L, x, H_layers, L_layers)
    arguments.check(SPEC, inputs, cos, sin, num_heads, H_cycles, L_cycles, eps, damping)
    check_weight(SPEC.name, weight, "z_H", z_H)
    with torch.no_grad():
        heads = Heads(cos, sin, int(num_heads))
        new = _op(z_H, z_L, x, H_layers, L_layers, heads, int(H_cycles), int(L_cycles), eps, weight, damping)
    z_H, z_L, change = new
    return z_H.detach(), z_L.detach(), change.detach()
