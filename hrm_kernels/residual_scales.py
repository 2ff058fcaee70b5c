"""The residual scales of pre-norm blocks, so that a state keeps its size over any number of updates."""

import math

import torch
from torch import nn

from hrm_kernels.casts import active

__all__ = ["ResidualScales", "residual_scales"]


def residual_scales(alpha_1: torch.Tensor, alpha_2: torch.Tensor, layers: int) -> torch.Tensor:
    """keep, add, start and inject of :class:`hrm_kernels.PreNormBlockWeights`, ``[4, D]``, differentiable.

    keep is alpha_1, start alpha_2. The other two follow from them, so that what goes in makes up for what is not kept:
    ``inject = 1 - alpha_2 alpha_1^(2 L)``, ``add = inject (1 - alpha_1) / (1 - alpha_1^(2 L) + 1e-5)``.

    Args:
        alpha_1, alpha_2: ``[D]``, 0 to 1.
        layers: L, blocks of the module; each adds twice.

    Source: the published code of FPRM (arXiv 2606.18206).
    """
    power = alpha_1.pow(2 * layers)
    inject = 1 - alpha_2 * power
    return torch.stack((alpha_1, inject * (1 - alpha_1) / (1 - power + 1e-5), alpha_2, inject))


class ResidualScales(nn.Module):
    """The learned scales of a module: logits of alpha_1 and alpha_2, one for each feature.

    Args:
        hidden_size: D.
        layers: blocks of the module.
        alpha_1_init, alpha_2_init: their values at first, above 0 and below 1.
    """

    alpha_1_param: nn.Parameter
    alpha_2_param: nn.Parameter

    def __init__(self, hidden_size: int, layers: int, alpha_1_init: float, alpha_2_init: float) -> None:
        super().__init__()
        self.layers = layers
        for name, value in (("alpha_1", alpha_1_init), ("alpha_2", alpha_2_init)):
            if not 0 < value < 1:
                raise ValueError(f"ResidualScales: {name}_init is {value!r}, expected a number between 0 and 1")
            logit = math.log(value / (1 - value))
            values = torch.full((hidden_size,), logit, dtype=torch.float32)
            self.register_parameter(f"{name}_param", nn.Parameter(values))

    def forward(self, dtype: torch.dtype) -> torch.Tensor:
        """``[4, D]`` in ``dtype``, computed in float32; inside :func:`hrm_kernels.frozen_weights` once."""
        logits: list[torch.Tensor] = [self.alpha_1_param, self.alpha_2_param]

        def make() -> torch.Tensor:
            alpha_1, alpha_2 = (one.sigmoid() for one in logits)
            return residual_scales(alpha_1, alpha_2, self.layers).to(dtype)

        frozen = active()
        if frozen is None or torch.is_grad_enabled() or torch.compiler.is_compiling() or logits[0].is_cuda:
            return make()
        scales = frozen.packed(("residual scales", dtype, *map(id, logits)), logits, make)
        frozen.add(scales)
        return scales
