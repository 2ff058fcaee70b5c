import torch

from hrm_kernels.backends import Backend, Op, cpu_cannot_run, triton_cannot_run
from hrm_kernels.checks import check_eps
from hrm_kernels.ops.token_mixing import cpu_kernels, reference
from hrm_kernels.ops.token_mixing.spec import SPEC


def _triton(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, eps: float) -> torch.Tensor:
    from hrm_kernels.ops.token_mixing import triton_mixing

    return triton_mixing.token_mixing(x, gate_up, down, eps)


_op = Op(
    SPEC,
    {
        "reference": Backend(reference.token_mixing),
        "triton": Backend(_triton, lambda x, *rest: triton_cannot_run(x)),
        "cpu": Backend(cpu_kernels.token_mixing, lambda x, *rest: cpu_cannot_run(x)),
    },
)


@_op.public
def token_mixing(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """A SwiGLU over the positions of each channel, added to its input and normed: TRM's ``mlp_t``.

    With ``t = x`` transposed to ``[B, D, S]``: ``t = rms_norm(t + down(swiglu(gate_up(t))))``, transposed back. The
    norm is over the positions, too: the mean square of each channel becomes 1. Under ``torch.autocast`` it runs in
    autocast's dtype, as products do.

    Args:
        x: ``[B, S, D]``, float32, bfloat16 or float16.
        gate_up: ``[2 I, S]`` in the dtype of x, the gate first.
        down: ``[S, I]`` in the dtype of x.
        eps: of the norm.

    Returns:
        ``[B, S, D]`` in the dtype of x.

    Raises:
        TypeError, ValueError: a dtype, device or shape does not fit. The matrices fit one sequence length only.

    Source: TRM (arXiv 2510.04871), section 4, "Attention-free architecture"; MLP-Mixer, arXiv 2105.01601.
    """
    x, gate_up, down = _op.under_autocast(x, gate_up, down)
    SPEC.check(x, down, gate_up)
    check_eps(SPEC.name, eps)
    return _op(x, gate_up, down, eps)
