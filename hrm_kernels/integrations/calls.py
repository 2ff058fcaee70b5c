"""The arguments of one call of a module, and changed copies of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map


class Inputs(NamedTuple):
    """The arguments that the ops use; None where a call has none.

    Attributes:
        state: the tensor to update.
        injection: what a reasoning module adds to it.
        cos, sin: RoPE tables.
    """

    state: torch.Tensor
    injection: Any
    cos: torch.Tensor | None
    sin: torch.Tensor | None


class Call(NamedTuple):
    """Positional and keyword arguments of a call."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def copied(self) -> "Call":
        """The call on clones of its tensors."""
        return _map_tensors(lambda tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad), self)

    def in_float32(self) -> "Call":
        """The call with its floating tensors converted to float32."""

        def convert(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            return tensor.detach().float().requires_grad_(tensor.requires_grad)

        return _map_tensors(convert, self)

    def with_random_states(self, inputs: Inputs) -> "Call":
        """The call with random values for state and injection, scaled to the size of the original ones."""
        drawn: dict[int, torch.Tensor] = {}
        for seed, tensor in enumerate((inputs.state, inputs.injection)):
            if isinstance(tensor, torch.Tensor):
                generator = torch.Generator(tensor.device).manual_seed(seed)
                size = tensor.detach().float().square().mean().sqrt()
                size = torch.where(size.isfinite() & (size > 0), size, 1)
                values = torch.randn(tensor.shape, generator=generator, device=tensor.device, dtype=torch.float32)
                drawn[id(tensor)] = (values * size).to(tensor.dtype).requires_grad_(torch.is_grad_enabled())

        def pick(argument: Any) -> Any:
            return drawn.get(id(argument), argument)

        return Call(tuple(map(pick, self.arguments)), {name: pick(value) for name, value in self.keywords.items()})


def _map_tensors(function: Callable[[torch.Tensor], torch.Tensor], call: Call) -> Call:
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, call)
