from dataclasses import replace

import torch
from torch import Tensor

from hrm_kernels.spec import Cost, OpSpec, Random, Sizes


def sample(sizes: Sizes, random: Random) -> tuple[Tensor, Tensor, int]:
    """Every fifth token is ignored. Logits end where float16 does; labels are int32 where V is odd."""
    logits = random(*sizes.leading, sizes.V, scale=sizes.scale).clamp(-6e4, 6e4)
    labels = random.integers(*sizes.leading, below=sizes.V)
    labels = labels.int() if sizes.V % 2 else labels
    if labels.numel() > 1:
        labels.view(-1)[::5] = -100
    return logits, labels, -100


def oracle(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """``log(sum of all / that of the label)``, as ``log1p(the others / that of the label)``, which does not cancel."""
    s = torch.where(logits >= 0, logits + 1, 1 / (1 - logits.clamp(max=0)))
    valid = labels != ignore_index
    own = torch.nn.functional.one_hot(torch.where(valid, labels, 0).long(), logits.shape[-1]).bool()
    others, label = torch.where(own, 0, s).sum(-1), torch.where(own, s, 0).sum(-1)
    return torch.where(valid, torch.log1p(others / label), 0)


def cost(sizes: Sizes, itemsize: int, backward: bool) -> Cost:
    """Backward: what forward saved (two sums) is written and read; logits, label, dloss are read, dlogits written."""
    logits, label, loss, sums = sizes.V * itemsize, 8, 4, 8
    forward = logits + label + loss
    return Cost((2 * forward + logits + 2 * sums if backward else forward) * sizes.tokens, 0)


SPEC = OpSpec(
    name="stablemax_cross_entropy",
    schema="(Tensor logits, Tensor labels, int ignore_index) -> Tensor",
    shapes={"logits": "[..., V]"},
    not_empty=("V",),
    sample=sample,
    oracle=oracle,
    cost=cost,
    sizes=tuple(
        Sizes(B, S, V=V, scale=scale)
        for B, S, V, scales in (
            (3, 5, 11, (1.0, 0.1, 1e3, 2e4)),
            (4, 7, 12, (0.2, 2e3, 2e4)),
            (1, None, 1, (1.0,)),
            (5, None, 1, (3.0,)),
            (None, None, 11, (0.1, 3.0, 3e4)),
            (40, None, 6, (30.0,)),
            (3, 81, 6, (0.1, 3.0, 1e3, 3e4)),
            (2, 300, 11, (0.1, 3.0, 1e3, 3e4)),
            (129, None, 12, (0.1, 3.0, 1e3, 3e4)),
            (7, None, 1000, (0.1, 3.0, 1e3, 3e4)),
            (2, None, 2049, (0.1, 3.0, 1e3, 3e4)),
            (2, None, 5000, (1e5,)),
            (1, None, 50_000, (0.1, 3.0, 1e3, 3e4)),
            (0, None, 6, (1.0,)),
            (0, 4, 11, (1.0,)),
        )
        for scale in scales
    ),
)
WITH_ARGMAX = replace(
    SPEC,
    name="stablemax_cross_entropy_with_argmax",
    schema="(Tensor logits, Tensor labels, int ignore_index) -> (Tensor, Tensor)",
    oracle=lambda logits, *rest: (oracle(logits, *rest), logits.detach().argmax(-1)),
    sizes=tuple(sizes for sizes in SPEC.sizes if sizes.scale in (1.0, 3.0)),
)
