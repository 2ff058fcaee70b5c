from typing import Any

import torch

from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import Backend, Op, cpu_cannot_run, triton_cannot_run
from hrm_kernels.ops.conv_swiglu import cpu_kernels, reference
from hrm_kernels.ops.conv_swiglu.spec import SPEC


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        from hrm_kernels.ops.conv_swiglu import triton_kernels

        ctx.save_for_backward(gate_up, weight, bias)
        return triton_kernels.forward(gate_up, weight, bias)

    @staticmethod
    @first_order(lambda ctx: (reference.conv_swiglu, ctx.saved_tensors))
    def backward(ctx: Any, dout: torch.Tensor) -> Any:  # type: ignore[override]
        from hrm_kernels.ops.conv_swiglu import triton_kernels

        return triton_kernels.backward(dout.contiguous(), *ctx.saved_tensors)


def _in_rows(kernels: Any, gate_up: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``kernels`` of ``[B, S, 2 I]`` and of weights, all contiguous."""
    rows = gate_up.contiguous().view(gate_up.shape[:-2].numel(), *gate_up.shape[-2:])
    return kernels(rows, weight.contiguous(), bias.contiguous()).view(*gate_up.shape[:-1], bias.shape[0])


_op = Op(
    SPEC,
    {
        "reference": Backend(reference.conv_swiglu),
        "triton": Backend(
            lambda *arguments: _in_rows(_Triton.apply, *arguments), lambda gate_up, *rest: triton_cannot_run(gate_up)
        ),
        "cpu": Backend(
            lambda *arguments: _in_rows(cpu_kernels.ConvSwiGLU.apply, *arguments),
            lambda gate_up, *rest: cpu_cannot_run(gate_up),
        ),
    },
)


@_op.public
def conv_swiglu(gate_up: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """SwiGLU, a causal convolution over two positions of each channel, and SiLU: the inside of URM's ConvSwiGLU.

    With ``[gate | up] = gate_up`` and ``y = silu(gate) * up``, at position t:
    ``silu(weight[:, 0] * y[t - 1] + weight[:, 1] * y[t] + bias)``, where ``y[-1] = 0``. This is a depthwise ``Conv1d``
    with kernel size 2 and padding 1, cut to S positions. Under ``torch.autocast`` it runs in autocast's dtype, as
    convolutions do.

    Args:
        gate_up: ``[..., S, 2 I]``, float32, bfloat16 or float16; the gate is the first half.
        weight: ``[I, 2]`` in the dtype of gate_up: of the position before, then of the position itself. A ``Conv1d``
            has it as ``[I, 1, 2]``; pass ``weight.squeeze(1)``.
        bias: ``[I]`` in the dtype of gate_up.

    Returns:
        ``[..., S, I]`` in the dtype of gate_up.

    Raises:
        TypeError, ValueError: a dtype, device or shape does not fit.

    Source: URM (arXiv 2512.14693), section "ConvSwiGLU".
    """
    gate_up, weight, bias = _op.under_autocast(gate_up, weight, bias)
    SPEC.check(gate_up, weight, bias)
    return _op(gate_up, weight, bias)
