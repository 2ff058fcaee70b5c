from collections.abc import Sequence
from typing import Any

import torch

from hrm_kernels.backends import Backend, Op, requested
from hrm_kernels.damping import Damping, as_damping, by_row
from hrm_kernels.graphs import Graphs, capturable
from hrm_kernels.movement import move
from hrm_kernels.ops.reasoning_module.cuda_kernels import passed_over
from hrm_kernels.ops.recurrent_cycles import arguments, cuda_kernels, reference
from hrm_kernels.ops.recurrent_cycles.spec import SPEC
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.transformer_block import pre_norm
from hrm_kernels.ops.transformer_block.eight_bit import Quantized, format_for, fp8_is_missing
from hrm_kernels.ops.transformer_block.eight_bit import check as check_eight_bit
from hrm_kernels.ops.transformer_block.weights import Layer, PreNormBlockWeights, by_block, flat, layers_of

_graphs = Graphs()


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
    damping: Damping | None = None,
    eight_bit: str | None = None,
) -> tuple[torch.Tensor, ...]:
    states = z_H, z_L, x
    return triton_updates(*states, H_layers, L_layers, heads, H_cycles, L_cycles, eps, damping, eight_bit=eight_bit)


def triton_updates(
    z_H: torch.Tensor,
    z_L: torch.Tensor,
    x: torch.Tensor,
    H_layers: Sequence[Layer],
    L_layers: Sequence[Layer],
    heads: Heads,
    H_cycles: int,
    L_cycles: int,
    eps: float,
    damping: Damping | None,
    weight: torch.Tensor | None = None,
    complete: bool = False,
    eight_bit: str | None = None,
) -> tuple[torch.Tensor, ...]:
    """One CUDA graph where that is possible, single launches elsewhere.

    With ``eight_bit`` each call converts the weights again, as they may have changed. With ``complete`` it runs all
    updates, moves the states by ``weight``, and returns their change, too (:func:`move`).
    """
    from hrm_kernels.ops.reasoning_module.triton_kernels import damp
    from hrm_kernels.ops.transformer_block.triton_block import Shared, blocks, infer, infer_eight_bit, quantized_weights

    name = None if eight_bit is None else format_for(eight_bit, z_H.device)
    shape, width = z_H.shape, z_H.shape[2]
    H_weights, L_weights = flat(H_layers), flat(L_layers)
    is_pre_norm = isinstance(H_layers[0], PreNormBlockWeights)

    def run(z_H: torch.Tensor, z_L: torch.Tensor, x: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
        weights, counters = others[: weight is not None], others[weight is not None :]
        shared = Shared(shape[0], heads.contiguous(), eps, requested() is None)
        H, L = ([weight.contiguous() for weight in weights] for weights in (H_weights, L_weights))

        H8, L8 = (None, None) if name is None else (quantized_weights(weights, name) for weights in (H, L))

        def update(
            z: torch.Tensor,
            injection: torch.Tensor,
            damping: Damping | None,
            weights: list[torch.Tensor],
            quantized: list[Quantized] | None,
        ) -> torch.Tensor:
            if is_pre_norm:
                layers = by_block(weights, heads.num_heads)
                updated = pre_norm.module(z.view(shape), injection.view(shape), layers, heads, eps)
            elif heads.mixing:
                updated = blocks((z + injection).view(shape), weights, heads, eps, False)
            elif name is not None and quantized is not None:
                updated = infer_eight_bit(z + injection, weights, quantized, shared, name)
            else:
                updated = infer(z + injection, weights, shared)
            return damp(z.view(shape), updated.view(shape), damping).view(z.shape)

        ends = reference.run_cycles(
            z_H,
            z_L,
            x,
            lambda z, injection, damping: update(z, injection, damping, H, H8),
            lambda z, injection, damping: update(z, injection, damping, L, L8),
            H_cycles,
            L_cycles,
            None if damping is None else damping.with_tensors(counters),
            complete,
        )
        if not complete:
            return ends
        starts = z_H.view(shape), z_L.view(shape)
        return move(starts, (ends[0].view(shape), ends[1].view(shape)), weights[0] if weights else None)

    inputs = [tensor.reshape(-1, width).contiguous() for tensor in (z_H, z_L, x)]
    inputs += [] if weight is None else [weight]
    inputs += [] if damping is None else damping.tensors()
    if capturable(z_H) and z_H.numel() and H_cycles * L_cycles > 1:
        fixed = [*H_weights, *L_weights, *(table for _, table in heads.tables())]
        constants = None if damping is None else damping.with_tensors([])
        sizes = (shape, len(H_layers), heads.cos is None, heads.num_heads, H_cycles, L_cycles, eps, constants)
        kind = (weight is None, complete, is_pre_norm, name)
        z_H, z_L, *change = _graphs(run, inputs, fixed, (*sizes, *kind))
    else:
        z_H, z_L, *change = run(*inputs)
    return z_H.view(shape), z_L.view(shape), *change


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
    damping: Damping | None = None,
    eight_bit: None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    from hrm_kernels.ops.recurrent_cycles.cpu_segment import run

    if heads.mixing and z_H.shape[1] == 0:  # nothing to compute, and no weights to pack
        return z_H, z_L
    states = z_H.contiguous(), z_L.contiguous(), x.contiguous()
    rows: tuple[Any, ...] = (None, 0.0, None, None) if damping is None else by_row(damping, z_H)
    z_H, z_L, _ = run(False, *states, flat(H_layers), flat(L_layers), heads, H_cycles, L_cycles, eps, None, *rows)
    return z_H, z_L


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
    *rest: Any,
) -> tuple[Any, ...]:
    """``rest``: damping and eight_bit of the public function, or the damping's fields and eight_bit of the schema."""
    H, L = layers_of(H_layers, num_heads), layers_of(L_layers, num_heads)
    eight_bit = next((value for value in rest if isinstance(value, str)), None)
    damping = as_damping(*[value for value in rest if not isinstance(value, str)][: len(Damping._fields)])
    return z_H, z_L, x, H, L, Heads(cos, sin, num_heads), H_cycles, L_cycles, eps, damping, eight_bit


def _reference_cannot_run(*call: Any) -> str | None:
    """It only defines what 8 bits compute, slower than float32: not for the automatic choice."""
    if call[-1] is None or requested() == "reference":
        return None
    return "plain PyTorch computes 8-bit products slower than others; leave eight_bit out"


def _triton_cannot_run(*call: Any) -> str | None:
    z_H, heads, eight_bit = call[0], call[5], call[-1]
    reason = arguments.triton_cannot_run(*call)
    if reason is not None or eight_bit is None:
        return reason
    if heads.mixing:
        return "its 8-bit products are for blocks with attention; leave eight_bit out"
    return fp8_is_missing(z_H.device) if eight_bit == "fp8" else None


def _cpu_cannot_run(*call: Any) -> str | None:
    if call[-1] is not None:
        return "8-bit products gain little on a CPU (docs/numerics.md); leave eight_bit out"
    return arguments.cpu_cannot_run(*call)


def _cuda_cannot_run(*call: Any) -> str | None:
    return "it has no 8-bit products" if call[-1] is not None else cuda_kernels.unsupported(*call[:-1])


_op = Op(
    SPEC,
    {
        "reference": Backend(reference.recurrent_cycles, _reference_cannot_run),
        "triton": Backend(_triton, _triton_cannot_run),
        "cpu": Backend(_cpu, _cpu_cannot_run),
        "cuda": Backend(cuda_kernels.recurrent_cycles, _cuda_cannot_run, passed_over),
    },
    unflatten=_unflatten,
)


@_op.public
def recurrent_cycles(
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
    damping: Damping | None = None,
    eight_bit: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The part of a segment that runs without gradients: everything but its last L and its last H update.

    ``H_cycles`` times: ``L_cycles`` times ``z_L = L(z_L, z_H + x)``, then once ``z_H = H(z_H, z_L)``. The last update
    of each module is left to the caller (:func:`hrm_kernels.reasoning_module`, with gradients).

    On a GPU the triton backend runs it as one CUDA graph, from the second call with the same shapes and weights (at the
    same addresses) on. Only a few graphs are kept, to bound their memory; ``HRM_KERNELS_GRAPHS=0`` in the environment
    disables them. Under ``torch.autocast`` it runs in autocast's dtype, as products do.

    Args:
        z_H, z_L: ``[B, S, D]`` states, float32, bfloat16 or float16; they are not written to.
        x: ``[B, S, D]`` input embedding.
        H_layers, L_layers: the blocks of both modules, in the dtype of the states: all
            :class:`hrm_kernels.BlockWeights`, all :class:`hrm_kernels.MixingBlockWeights` or all
            :class:`hrm_kernels.PreNormBlockWeights`.
        cos, sin: RoPE tables as for :func:`hrm_kernels.rope_attention`, or None for both; None for blocks that mix
            positions.
        num_heads: H; 0 for blocks that mix positions.
        H_cycles, L_cycles: updates of z_H in a segment, and of z_L for each of them; both >= 1.
        eps: of the norms.
        damping: how far each update moves its state, and the noise (:class:`hrm_kernels.Damping`); None for plain
            updates. Their numbers go on from ``damping.first_step``, in the order above.
        eight_bit: compute the products with weights in 8 bits: "fp8" (e4m3), "int8", or "auto", which is FP8 on GPUs
            that have it and int8 on others. Each row of activations and of weights is scaled to the format. Attention
            and norms stay as they are. It is faster and less accurate (docs/numerics.md); where the tuning table found
            it slower, it is not used. Only for blocks with attention, on the triton backend. None: not.

    Returns:
        ``(z_H, z_L)``, ``[B, S, D]`` both, without gradients. With H_cycles 1, z_H is returned unchanged.

    Raises:
        TypeError, ValueError: a dtype, device, shape or number of cycles does not fit.
        BackendUnavailable: no backend of these tensors' device has ``eight_bit``.
        NotImplementedError: an argument carries a tangent of forward-mode differentiation.

    Source: HRM (arXiv 2506.21734), section 2, "Approximate gradient".
    """
    z_H, z_L, x, H_layers, L_layers = inputs = _op.under_autocast(z_H, z_L, x, H_layers, L_layers)
    arguments.check(SPEC, inputs, cos, sin, num_heads, H_cycles, L_cycles, eps, damping)
    check_eight_bit(SPEC.name, eight_bit, H_layers)
    with torch.no_grad():
        heads = Heads(cos, sin, int(num_heads))
        z_H, z_L = _op(z_H, z_L, x, H_layers, L_layers, heads, int(H_cycles), int(L_cycles), eps, damping, eight_bit)
    return z_H.detach(), z_L.detach()
