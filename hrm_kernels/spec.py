"""What an op is, apart from how it is computed.

Each op package has a ``spec.py`` with one :class:`OpSpec`. It feeds the checks of arguments, the registration of
``torch.ops.hrm_kernels.<op>``, the conformance tests of every backend (tests/hrm_kernels/test_conformance.py) and the
benchmarks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch

from hrm_kernels.checks import Accepted, check_like, check_tensor


@dataclass(frozen=True)
class Sizes:
    """Sizes and options of a sample call; an op reads those that it has.

    Attributes:
        B, S: rows and positions; None leaves the dimension out, where an op allows it.
        D, H, d, I, V: width of the states, heads, width of a head, inner width, vocabulary.
        layers: blocks of a module.
        rope, bias, recompute: whether there are RoPE tables, a bias, and whether activations are computed again.
        scale: of the values whose size matters to the op.
        mixing: inner size of the token mixing of a block; 0: a block with attention.
        H_cycles, L_cycles: as for ``recurrent_cycles``.
        noise: of damped updates; 0: plain ones.
        pre_norm: whether blocks norm before attention and SwiGLU, and scale their sums.
    """

    B: int | None = 2
    S: int | None = 17
    D: int = 64
    H: int = 2
    d: int = 32
    I: int = 96  # noqa: E741
    V: int = 11
    layers: int = 2
    rope: bool = True
    bias: bool = True
    recompute: bool = False
    scale: float = 1.0
    mixing: int = 0
    H_cycles: int = 2
    L_cycles: int = 2
    noise: float = 0.0
    pre_norm: bool = False

    @property
    def leading(self) -> tuple[int, ...]:
        return tuple(size for size in (self.B, self.S) if size is not None)

    @property
    def tokens(self) -> int:
        return torch.Size(self.leading).numel()


TINY = Sizes(B=2, S=3, D=8, H=2, d=4, I=6, V=8)
"""Small enough for finite differences; no kernel has tiles of these sizes."""


class Random:
    """Normal numbers, the same for the same seed."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64, device: str = "cpu") -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        self.dtype, self.device = dtype, device

    def __call__(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        made = self.dtype if self.dtype is torch.float64 else torch.float32
        values = torch.randn(shape, generator=self.generator, device=self.device, dtype=made) * scale
        return values.to(self.dtype)

    def matrix(self, rows: int, columns: int) -> torch.Tensor:
        """``[rows, columns]`` that keeps the size of what it multiplies."""
        return self(rows, columns, scale=max(columns, 1) ** -0.5)

    def integers(self, *shape: int, below: int) -> torch.Tensor:
        return torch.randint(0, below, shape, generator=self.generator, device=self.device)

    def tables(self, positions: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of random angles, float32: the two elements of a pair may turn differently."""
        angles = 3 * torch.randn(positions, width, generator=self.generator, device=self.device)
        return angles.cos(), angles.sin()


class Cost(NamedTuple):
    """The least that a call costs: each input is read once and each result written once.

    With gradients it is the cost of forward and backward.
    """

    bytes: float
    operations: float


@dataclass(frozen=True)
class OpSpec:
    """An op.

    Attributes:
        name: of the public function and of ``torch.ops.hrm_kernels.<name>``.
        schema: of the registered op; None for optimiser steps, which change tensors in place and are not registered.
        shapes: of the tensors that :meth:`check` checks, in that order: ``{"x": "[B, S, D]", "down": "[S, I]"}``. A
            letter has one size in a call; ``2 I`` is twice that of I, ``2`` is 2, ``...`` any leading dimensions.
        not_empty: letters whose size must be at least 1.
        hint: what to do about a wrong shape, by argument.
        sizes: sample sizes: the first one is small and served by every backend, the awkward ones are all there.
        sample: ``sample(sizes, random)``: arguments of the public function.
        oracle: the mathematics, independent of the reference, differentiable: of the same arguments in float64.
        cost: ``cost(sizes, itemsize, backward)``.
        autocast: what happens to dtypes under ``torch.autocast``: ``"lower"`` casts the first ``cast`` arguments to its
            dtype, ``"promote"`` casts them to the widest dtype among them, ``"keep"`` changes nothing.
        cast: how many arguments autocast changes.
        differentiates: whether the result has a gradient.
        changed: of the arguments, the tensors that the op changes in place, whose new values the oracle returns; None
            for an op that returns new tensors.
    """

    name: str
    schema: str | None
    shapes: Mapping[str, str]
    sample: Callable[[Sizes, Random], tuple[Any, ...]]
    oracle: Callable[..., Any]
    cost: Callable[[Sizes, int, bool], Cost]
    sizes: tuple[Sizes, ...]
    not_empty: tuple[str, ...] = ()
    hint: Mapping[str, str] = field(default_factory=dict)
    autocast: Literal["lower", "promote", "keep"] = "keep"
    cast: int = 0
    differentiates: bool = True
    changed: Callable[..., list[torch.Tensor]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_checked", tuple((name, _parse(shape)) for name, shape in self.shapes.items()))
        object.__setattr__(self, "_accepted", Accepted())

    def check(self, *tensors: Any) -> None:
        """Check type, dtype, device and shape of the tensors of :attr:`shapes`, in that order.

        Integer tensors and optional ones are for the op itself to check.

        Raises:
            TypeError, ValueError: naming the op, the argument, its shape, the expected one.
        """
        accepted: Accepted = self._accepted  # type: ignore[attr-defined]
        key = accepted.key(tensors)
        if key is not None and key in accepted:
            return
        checked: tuple[tuple[str, _Shape], ...] = self._checked  # type: ignore[attr-defined]
        first = tensors[0]
        check_tensor(self.name, checked[0][0], first)
        for (name, _), tensor in zip(checked[1:], tensors[1:]):
            check_like(self.name, name, tensor, checked[0][0], first)
        sizes: dict[str, Any] = {"": 1}
        for (_, shape), tensor in zip(checked, tensors):
            if not _fits(shape, tensor.shape, sizes):
                raise ValueError(self._misfit(tensors))
        for letter in self.not_empty:
            if sizes[letter] == 0:
                raise ValueError(self._misfit(tensors))
        accepted.add(key)

    def _misfit(self, tensors: Sequence[torch.Tensor]) -> str:
        """What is wrong with the first of ``tensors`` whose shape does not fit."""
        sizes: dict[str, Any] = {"": 1}
        before: list[str] = []  # arguments whose letters are known
        checked: tuple[tuple[str, _Shape], ...] = self._checked  # type: ignore[attr-defined]
        for (name, shape), tensor in zip(checked, tensors):
            (leading, dims), declared, known = shape, self.shapes[name], dict(sizes)
            if not _fits(shape, tensor.shape, sizes) or any(sizes.get(letter) == 0 for letter in self.not_empty):
                break
            before.append(f"{name} is {declared}")
        numbers = list(map(str, known.get("...", ()))) if leading else []
        numbers += [str(factor * known[letter]) if letter in known else "any" for factor, letter in dims]
        least = [f" with {letter} >= 1" for _, letter in dims if letter in self.not_empty]
        sized = f" = [{', '.join(numbers)}], as {', '.join(before)}" if before else ""
        hint = f"; {self.hint[name]}" if name in self.hint else ""
        return f"{self.name}: {name} has shape {list(tensor.shape)}, expected {declared}{sized}{''.join(least)}{hint}"


class _Shape(NamedTuple):
    leading: bool  # whether any dimensions may come first
    dims: tuple[tuple[int, str], ...]  # factor and letter of each dimension; a number alone has the letter ""


def _parse(shape: str) -> _Shape:
    parts = [part.strip() for part in shape.strip("[]").split(",") if part.strip()]
    leading = bool(parts) and parts[0] == "..."
    dims = []
    for part in parts[leading:]:
        factor, _, letter = part.partition(" ")
        is_multiple = factor.isdigit() and " " not in letter  # "3 H d" is a size of its own
        dims.append((int(factor), letter) if is_multiple else (1, part))
    return _Shape(leading, tuple(dims))


def _fits(shape: _Shape, came: torch.Size, sizes: dict[str, Any]) -> bool:
    """Whether ``came`` is of this shape, with the sizes of letters that are known; learns those that are not."""
    leading, dims = shape
    extra = len(came) - len(dims)
    if extra < 0 or extra and not leading:
        return False
    if leading:
        if "..." in sizes:
            if tuple(came[:extra]) != sizes["..."]:
                return False
        else:
            sizes["..."] = tuple(came[:extra])
    for size, (factor, letter) in zip(came[extra:], dims):
        if letter in sizes:
            if size != factor * sizes[letter]:
                return False
        elif factor == 1:
            sizes[letter] = size
        elif size % factor:
            return False
        else:
            sizes[letter] = size // factor
    return True
