"""Checks of arguments. Messages name the op, the argument, the value, the expected value and what to do."""

from collections.abc import Hashable, Iterable
from numbers import Integral
from operator import attrgetter
from typing import Any

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Only the reference serves float64, as the measure of the others."""


_layout = attrgetter("shape", "dtype", "device")


class Accepted:
    """The layouts (shapes, dtypes, devices) of arguments that have passed a check, which need not be checked again."""

    MOST = 1024

    def __init__(self) -> None:
        self._keys: set[Hashable] = set()

    def key(self, tensors: Iterable[Any], *rest: Hashable) -> Hashable | None:
        """What a check of ``tensors`` depends on, with ``rest``; None where that has no hash, or is being traced.

        A key of anything but tensors is never added, because the check raises.
        """
        if torch.compiler.is_compiling():
            return None
        try:
            key = (*map(_layout, tensors), *rest)
            hash(key)  # symbolic sizes have none
        except (AttributeError, TypeError):
            return None
        return key

    def __contains__(self, key: Hashable | None) -> bool:
        return key in self._keys

    def add(self, key: Hashable | None) -> None:
        """Note that the check has passed; nothing for None."""
        if key is None:
            return
        if len(self._keys) >= self.MOST:
            self._keys.clear()
        self._keys.add(key)


def check_tensor(op: str, name: str, value: Any) -> None:
    """``value`` is a tensor of a floating dtype."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}: {name} is {type(value).__name__}, expected a torch.Tensor")
    if value.dtype not in DTYPES:
        raise TypeError(
            f"{op}: {name} is {value.dtype}, expected float32, bfloat16 or float16; convert it with .to(torch.bfloat16)"
        )


def check_like(op: str, name: str, value: Any, model_name: str, model: torch.Tensor) -> None:
    """``value`` is a tensor of the dtype and on the device of ``model``."""
    check_tensor(op, name, value)
    if value.dtype != model.dtype:
        raise TypeError(
            f"{op}: {name} is {value.dtype}, expected {model.dtype} as {model_name}; convert one of them with .to(...)"
        )
    if value.device != model.device:
        raise ValueError(
            f"{op}: {name} is on {value.device}, expected {model.device} as {model_name}; move one of them"
        )


def check_shape(op: str, name: str, value: torch.Tensor, expected: tuple[int | None, ...], meaning: str) -> None:
    """``value`` has the shape ``expected``, where None allows any size; ``meaning`` is the shape in letters."""
    fits = value.ndim == len(expected)
    if fits:
        for size, want in zip(value.shape, expected, strict=True):
            if want is not None and size != want:
                fits = False
    if not fits:
        numbers = ", ".join("any" if want is None else str(want) for want in expected)
        raise ValueError(f"{op}: {name} has shape {list(value.shape)}, expected {meaning} = [{numbers}]")


def check_count(op: str, name: str, value: Any) -> None:
    """``value`` is an integer above 0 (NumPy integers too)."""
    if not isinstance(value, int | Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{op}: {name} is {value!r}, expected an integer >= 1")


def check_heads(op: str, name: str, columns: int, num_heads: Any, parts: int) -> None:
    """``columns`` is ``parts * num_heads`` heads of an even width."""
    check_count(op, "num_heads", num_heads)
    if columns == 0 or columns % (parts * num_heads):
        packed = "; pass packed [q | k | v] heads" if parts == 3 else ""
        product = f"{parts} * num_heads ({num_heads})" if parts > 1 else "num_heads"
        raise ValueError(
            f"{op}: {name} has {columns} columns, not a multiple of {product} = {parts * num_heads}{packed}"
        )


def check_tables(op: str, cos: Any, sin: Any, positions: int, head_dim: int, device: torch.device) -> None:
    """``cos`` and ``sin`` are both None, or float32 tables ``[>= positions, head_dim]``."""
    if (cos is None) != (sin is None):
        raise TypeError(f"{op}: one of cos and sin is None; pass both tables, or None for both to leave RoPE out")
    if cos is None:
        return
    if head_dim % 2:
        raise ValueError(
            f"{op}: head_dim is {head_dim}, expected an even number: RoPE turns pairs (i, i + head_dim / 2)"
        )
    for name, table in (("cos", cos), ("sin", sin)):
        check_tensor(op, name, table)
        if table.device != device:
            raise ValueError(f"{op}: {name} is on {table.device}, expected {device} as the other tensors; move it")
        if table.ndim != 2 or table.shape[0] < positions or table.shape[1] != head_dim:
            raise ValueError(
                f"{op}: {name} has shape {list(table.shape)}, expected [>= S, head_dim] = "
                f"[>= {positions}, {head_dim}]; make it with hrm_kernels.nn.rope_tables"
            )


def check_block_weights(op: str, name: str, weights: Any, x_name: str, x: torch.Tensor) -> None:
    """``weights`` are the four matrices of a block for hidden states ``x [..., D]``."""
    try:
        qkv, o, gate_up, down = weights
    except (TypeError, ValueError):
        raise TypeError(
            f"{op}: {name} is {type(weights).__name__}, expected BlockWeights(qkv, o, gate_up, down)"
        ) from None
    for part, weight in (("qkv", qkv), ("o", o), ("gate_up", gate_up), ("down", down)):
        check_like(op, f"{name}.{part}", weight, x_name, x)
        check_shape(op, f"{name}.{part}", weight, (None, None), "[out, in]")
    dim, inner = x.shape[-1], down.shape[1]
    check_shape(op, f"{name}.qkv", qkv, (None, dim), "[3 H d, D]")
    if qkv.shape[0] % 3:
        raise ValueError(
            f"{op}: {name}.qkv has {qkv.shape[0]} rows, not a multiple of 3; pass packed [q | k | v] heads"
        )
    check_shape(op, f"{name}.o", o, (dim, qkv.shape[0] // 3), "[D, H d]")
    check_shape(op, f"{name}.gate_up", gate_up, (2 * inner, dim), "[2 I, D] with I from down's [D, I]")
    check_shape(op, f"{name}.down", down, (dim, inner), "[D, I]")


def check_mixing_block_weights(op: str, name: str, weights: Any, x_name: str, x: torch.Tensor) -> None:
    """``weights`` are the four matrices of a block that mixes the positions of ``x [B, S, D]``."""
    try:
        mix_gate_up, mix_down, gate_up, down = weights
    except (TypeError, ValueError):
        raise TypeError(
            f"{op}: {name} is {type(weights).__name__}, expected MixingBlockWeights(mix_gate_up, mix_down, gate_up, "
            "down)"
        ) from None
    parts = (("mix_gate_up", mix_gate_up), ("mix_down", mix_down), ("gate_up", gate_up), ("down", down))
    for part, weight in parts:
        check_like(op, f"{name}.{part}", weight, x_name, x)
        check_shape(op, f"{name}.{part}", weight, (None, None), "[out, in]")
    _, positions, dim = x.shape
    width, inner = mix_down.shape[1], down.shape[1]
    check_shape(op, f"{name}.mix_down", mix_down, (positions, None), "[S, T]")
    meaning = "[2 T, S] with T from mix_down's [S, T]"
    check_shape(op, f"{name}.mix_gate_up", mix_gate_up, (2 * width, positions), meaning)
    check_shape(op, f"{name}.down", down, (dim, None), "[D, I]")
    check_shape(op, f"{name}.gate_up", gate_up, (2 * inner, dim), "[2 I, D] with I from down's [D, I]")


def check_layers(
    op: str, name: str, layers: Any, x_name: str, x: torch.Tensor, num_heads: Any, cos: Any, sin: Any
) -> None:
    """``layers`` is a sequence of block weights that fits ``x [B, S, D]``, the heads and the RoPE tables.

    With num_heads 0 the blocks mix positions.
    """
    key = _layers_key(layers, x, num_heads, cos, sin)
    if key is not None and key in _accepted_layers:
        return
    if not isinstance(layers, list | tuple) or len(layers) == 0:
        raise TypeError(
            f"{op}: {name} is {type(layers).__name__} of no block, expected a list of BlockWeights or of "
            "MixingBlockWeights"
        )
    kinds = [type(weights).__name__ for weights in layers]
    if "PreNormBlockWeights" in kinds:
        _check_pre_norm_layers(op, name, layers, kinds, x_name, x, num_heads)
    if isinstance(num_heads, int | Integral) and not isinstance(num_heads, bool) and num_heads == 0:
        if kinds[0] != "BlockWeights":
            _check_mixing_layers(op, name, layers, kinds, x_name, x, cos, sin)
            _accepted_layers.add(key)
            return
    if "MixingBlockWeights" in kinds:
        index = kinds.index("MixingBlockWeights")
        raise TypeError(
            f"{op}: {name}[{index}] is MixingBlockWeights, expected BlockWeights for num_heads {num_heads!r}; blocks "
            "that mix positions take num_heads 0, and all blocks of a call are of one kind"
        )
    for index, weights in enumerate(layers):
        matrices = weights[:4] if kinds[index] == "PreNormBlockWeights" else weights
        check_block_weights(op, f"{name}[{index}]", matrices, x_name, x)
        rows = weights[0].shape[0]
        check_heads(op, f"{name}[{index}].qkv", rows, num_heads, 3)
        check_tables(op, cos, sin, x.shape[1], rows // (3 * num_heads), x.device)
    _accepted_layers.add(key)


_accepted_layers = Accepted()


def _layers_key(layers: Any, x: torch.Tensor, num_heads: Any, cos: Any, sin: Any) -> Hashable | None:
    if not isinstance(layers, list | tuple) or not all(isinstance(weights, list | tuple) for weights in layers):
        return None
    tables = [table for table in (cos, sin) if table is not None]
    tensors = [x, *(weight for weights in layers for weight in weights), *tables]
    kinds: tuple[Hashable, ...] = tuple(map(type, layers))
    # its type too: True == 1 and 2.0 == 2, but they are not numbers of heads
    heads: Hashable = (type(num_heads), num_heads)
    return _accepted_layers.key(tensors, tuple(map(len, layers)), kinds, cos is None, sin is None, heads)


def _check_pre_norm_layers(
    op: str, name: str, layers: Any, kinds: list[str], x_name: str, x: torch.Tensor, num_heads: Any
) -> None:
    """What distinguishes pre-norm blocks: all are of this kind, they attend, and have scales."""
    others = [index for index, kind in enumerate(kinds) if kind != "PreNormBlockWeights"]
    if others:
        raise TypeError(
            f"{op}: {name}[{others[0]}] is {kinds[others[0]]}, expected PreNormBlockWeights; all blocks of a call are "
            "of one kind"
        )
    if num_heads == 0 and not isinstance(num_heads, bool):
        raise ValueError(f"{op}: num_heads is 0, expected 1 or more; pre-norm blocks attend, and mix no positions")
    for index, weights in enumerate(layers):
        scales = f"{name}[{index}].scales"
        check_like(op, scales, weights[4], x_name, x)
        check_shape(op, scales, weights[4], (4, x.shape[-1]), "[4, D]: keep, add, start, inject")


def _check_mixing_layers(
    op: str, name: str, layers: Any, kinds: list[str], x_name: str, x: torch.Tensor, cos: Any, sin: Any
) -> None:
    if "BlockWeights" in kinds:
        index = kinds.index("BlockWeights")
        raise TypeError(
            f"{op}: {name}[{index}] is BlockWeights, expected {kinds[0]} as {name}[0]; all blocks of a call are of one "
            "kind"
        )
    for index, weights in enumerate(layers):
        check_mixing_block_weights(op, f"{name}[{index}]", weights, x_name, x)
    for table_name, table in (("cos", cos), ("sin", sin)):
        if table is not None:
            raise TypeError(
                f"{op}: {table_name} is {type(table).__name__}, expected None; blocks that mix positions rotate nothing"
            )


def check_eps(op: str, eps: Any) -> None:
    """``eps`` is a positive number."""
    if not isinstance(eps, float | int) or not eps > 0:
        raise ValueError(f"{op}: eps is {eps!r}, expected a number above 0 (the published models use 1e-5)")
