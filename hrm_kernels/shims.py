"""Replacements for packages that are hard to install, so that code which imports them runs unchanged.

``flash_attn`` and ``flash_attn_interface`` need certain NVIDIA GPUs and a long build, ``adam_atan2`` a CUDA compiler.
Where the originals cannot be imported, :func:`install` adds modules of the same names to ``sys.modules``, which run on
the ops of this package.
"""

import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

from hrm_kernels.checks import check_like, check_shape, check_tensor
from hrm_kernels.ops.rope_attention import rope_attention
from hrm_kernels.optim import AdamATan2

__all__ = ["install", "uninstall"]


def install() -> dict[str, str]:
    """Provide ``flash_attn.flash_attn_func``, ``flash_attn_interface.flash_attn_func`` and ``adam_atan2.AdamATan2``.

    Call it before the code that imports them. An original that can be imported stays. A missing or broken one is
    replaced by a module whose ``__hrm_kernels__`` is the reason.

    Returns:
        For each module ``"the original"``, or ``"hrm_kernels: ..."`` with the reason why the original cannot be used.
    """
    return {name: _provide(name, attribute, make) for name, (attribute, make) in _SHIMS.items()}


def uninstall() -> None:
    """Remove the modules of :func:`install` from ``sys.modules``; names imported from them go on working."""
    for name in _SHIMS:
        if hasattr(sys.modules.get(name), "__hrm_kernels__"):
            del sys.modules[name]


def _provide(name: str, attribute: str, value: Any) -> str:
    before = set(sys.modules)
    try:
        module = import_module(name)
        getattr(module, attribute)
    except Exception as error:  # a broken build raises ImportError, OSError, RuntimeError and others
        reason = (str(error) or type(error).__name__).splitlines()[0]
    else:
        return f"hrm_kernels: {module.__hrm_kernels__}" if hasattr(module, "__hrm_kernels__") else "the original"
    for imported in set(sys.modules) - before:  # remove the submodules of a broken import
        if imported == name or imported.startswith(f"{name}."):
            del sys.modules[imported]
    shim = ModuleType(name, f"{name}.{attribute} on the ops of hrm_kernels; the original: {reason}")
    shim.__spec__ = ModuleSpec(name, None)  # importlib.util.find_spec needs it
    shim.__dict__.update({attribute: value, "__hrm_kernels__": reason, "__all__": [attribute]})
    sys.modules[name] = shim
    return f"hrm_kernels: {reason}"


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: float | None, causal: bool
) -> torch.Tensor:
    op = "flash_attn_func"
    check_tensor(op, "q", q)
    check_shape(op, "q", q, (None, None, None, None), "[B, S, H, d]")
    rows, positions, heads, width = q.shape
    for name, value in (("k", k), ("v", v)):
        check_like(op, name, value, "q", q)
        check_shape(op, name, value, (rows, None, None, width), "[B, S_k, H_k, d]")
    check_shape(op, "v", v, tuple(k.shape), "the shape of k")
    if k.shape[2] == 0 or heads % k.shape[2]:
        raise ValueError(f"{op}: q has {heads} heads and k {k.shape[2]}, expected a divisor of {heads} for k")
    if not causal and softmax_scale is None and k.shape == q.shape:
        packed = torch.stack((q, k, v), dim=2).view(rows, positions, 3 * heads * width)
        return rope_attention(packed, None, None, heads).view(q.shape)
    mask = None
    if causal and positions != k.shape[1]:  # aligned at the last position; torch's is_causal aligns the first
        mask = torch.ones(positions, k.shape[1], dtype=torch.bool, device=q.device)
        mask = mask.tril(k.shape[1] - positions)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal and mask is None, scale=softmax_scale, enable_gqa=k.shape[1] != heads
    )
    if mask is not None:  # positions that attend to nothing give 0
        out = torch.where(mask.any(-1)[:, None], out, 0)
    return out.transpose(1, 2).contiguous()  # callers take views of it


def _check_defaults(arguments: Iterable[tuple[str, Any, bool]]) -> None:
    """Raise for the first of (name, value, is the default) that is not the default."""
    for name, value, is_default in arguments:
        if not is_default:
            shown = "a tensor" if isinstance(value, torch.Tensor) else repr(value)
            raise NotImplementedError(
                f"flash_attn_func: hrm_kernels.shims does not support {name}={shown}; leave it at its default, or "
                "install the original package"
            )


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> torch.Tensor:
    """Attention with the signature of FlashAttention 2, on :func:`hrm_kernels.rope_attention` or torch's attention.

    Args:
        q: ``[B, S, H, d]``, of any floating dtype, on any device.
        k, v: ``[B, S_k, H_k, d]``; H_k divides H.
        softmax_scale: None is 1/sqrt(d).
        causal: position i of q attends to positions of k up to ``i + S_k - S``.
        deterministic: ignored; the result always is.
        dropout_p, window_size, softcap, alibi_slopes, return_attn_probs: must have their defaults.

    Returns:
        ``[B, S, H, d]`` in the dtype of q.

    Raises:
        NotImplementedError: an argument that must have its default has another value.
        TypeError, ValueError: dtypes, devices or shapes do not fit.
    """
    _check_defaults(
        (
            ("dropout_p", dropout_p, dropout_p == 0),
            ("window_size", window_size, tuple(window_size) == (-1, -1)),
            ("softcap", softcap, softcap == 0),
            ("alibi_slopes", alibi_slopes, alibi_slopes is None),
            ("return_attn_probs", return_attn_probs, not return_attn_probs),
        )
    )
    return _attention(q, k, v, softmax_scale, causal)


def flash_attn_3_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: torch.Tensor | None = None,
    q_descale: torch.Tensor | None = None,
    k_descale: torch.Tensor | None = None,
    v_descale: torch.Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
) -> torch.Tensor:
    """Attention with the signature of FlashAttention 3 (``flash_attn_interface``); see :func:`flash_attn_func`.

    ``num_splits``, ``pack_gqa``, ``deterministic`` and ``sm_margin`` tune the original and are ignored here; ``qv``,
    the descales, ``window_size``, ``attention_chunk`` and ``softcap`` must have their defaults.
    """
    _check_defaults(
        (
            ("qv", qv, qv is None),
            ("q_descale", q_descale, q_descale is None),
            ("k_descale", k_descale, k_descale is None),
            ("v_descale", v_descale, v_descale is None),
            ("window_size", window_size, tuple(window_size) == (-1, -1)),
            ("attention_chunk", attention_chunk, attention_chunk == 0),
            ("softcap", softcap, softcap == 0),
        )
    )
    return _attention(q, k, v, softmax_scale, causal)


class PublishedAdamATan2(AdamATan2):
    """:class:`hrm_kernels.optim.AdamATan2` with the arguments and defaults of the package ``adam_atan2``."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, weight_decay)


_SHIMS: dict[str, tuple[str, Callable[..., Any]]] = {
    "flash_attn": ("flash_attn_func", flash_attn_func),
    "flash_attn_interface": ("flash_attn_func", flash_attn_3_func),
    "adam_atan2": ("AdamATan2", PublishedAdamATan2),
}
