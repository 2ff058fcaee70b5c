"""Long attention without gradients by other libraries, where they are installed and were measured to be faster.

They attend to queries and keys that a kernel of ours has turned before. Which one runs, the device's tuning table says;
without a table, or without the library, it is ours.
"""

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F

from hrm_kernels.autodiff import traced_as_constant
from hrm_kernels.ops.rope_attention.cuda_kernels import MOST_POSITIONS
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.tuning import table

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""``attend(q, k, v)``, ``[B, S, H, d]`` all, as the result."""


def _flash_attn_3(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    out = importlib.import_module("flash_attn_interface").flash_attn_func(q, k, v)
    return out[0] if isinstance(out, tuple) else out  # some versions also return the log-sum-exp


def _cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


LIBRARIES: dict[str, Attend] = {"flash-attn 3": _flash_attn_3, "cuDNN": _cudnn}
"""By the names of :data:`hrm_kernels.tuning.table.ATTENTION`."""


def unsupported(name: str, qkv: torch.Tensor) -> str | None:
    """Why a library cannot attend to ``qkv [B, S, 3 H d]``; None where it can."""
    if qkv.dtype not in (torch.bfloat16, torch.float16):
        return f"{name} is for bfloat16 and float16, not {str(qkv.dtype).removeprefix('torch.')}"
    if qkv.shape[0] == 0 or qkv.shape[1] <= MOST_POSITIONS:
        return f"{name} is for rows of more than {MOST_POSITIONS} positions here, not {qkv.shape[1]}"
    if qkv.device.type != "cuda" or torch.version.hip is not None:
        return f"{name} is for NVIDIA GPUs"
    return _missing(name)


@traced_as_constant
def _missing(name: str) -> str | None:
    if name != "flash-attn 3":
        return None if torch.backends.cudnn.is_available() else "this PyTorch has no cuDNN"
    try:
        module = importlib.import_module("flash_attn_interface")
    except Exception as error:  # a broken build raises ImportError, OSError, RuntimeError and others
        return f"flash_attn_interface cannot be imported ({(str(error) or type(error).__name__).splitlines()[0]})"
    # our stand-in calls rope_attention
    return "flash_attn_interface is hrm_kernels.shims'" if hasattr(module, "__hrm_kernels__") else None


def forward(name: str, qkv: torch.Tensor, heads: Heads) -> torch.Tensor:
    """Attention of contiguous arguments by a library, ``[B, S, H d]``."""
    from hrm_kernels.ops.rope_attention.triton_kernels import _turned

    batch, positions, columns = qkv.shape
    width = columns // (3 * heads.num_heads)
    v = qkv.view(batch, positions, 3, heads.num_heads, width)[:, :, 2]
    turned = _turned(qkv, heads)
    q, k = turned.view(batch, positions, -1, heads.num_heads, width)[:, :, :2].unbind(2)
    return LIBRARIES[name](q, k, v).reshape(batch, positions, columns // 3)


def chosen(qkv: torch.Tensor) -> str | None:
    """The library that the device's tuning table names, if it can serve; None: our kernels."""
    name = table.choose_long_attention(qkv.device, qkv.dtype)
    return None if name == "triton" or unsupported(name, qkv) is not None else name
