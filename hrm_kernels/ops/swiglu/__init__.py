from typing import Any

import torch

from hrm_kernels.autodiff import first_order
from hrm_kernels.backends import Backend, Op, cpu_cannot_run, triton_cannot_run
from hrm_kernels.ops.swiglu import cpu_kernels, reference
from hrm_kernels.ops.swiglu.spec import SPEC


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:
        from hrm_kernels.ops.swiglu import triton_kernels

        ctx.save_for_backward(gate_up)
        return triton_kernels.forward(gate_up)

    @staticmethod
    @first_order(lambda ctx: (reference.swiglu, ctx.saved_tensors))
    def backward(ctx: Any, dout: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        from hrm_kernels.ops.swiglu import triton_kernels

        return triton_kernels.backward(dout.contiguous(), *ctx.saved_tensors)[0]


_op = Op(
    SPEC,
    {
        "reference": Backend(reference.swiglu),
        "triton": Backend(lambda gate_up: _Triton.apply(gate_up.contiguous()), triton_cannot_run),
        "cpu": Backend(cpu_kernels.swiglu, cpu_cannot_run),
    },
)


@_op.public
def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up`` with ``[gate | up] = gate_up``.

    Args:
        gate_up: ``[..., 2 I]``, float32, bfloat16 or float16; the gate is the first half.

    Returns:
        ``[..., I]`` in the same dtype, under ``torch.autocast`` too.

    Raises:
        TypeError, ValueError: the dtype is not supported, or the last dimension is odd or empty.

    Source: GLU variants, arXiv 2002.05202.
    """
    SPEC.check(gate_up)
    return _op(gate_up)
