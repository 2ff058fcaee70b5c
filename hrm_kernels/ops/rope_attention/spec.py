import math

import torch
from torch import Tensor

from hrm_kernels.spec import Cost, OpSpec, Random, Sizes


def sample(sizes: Sizes, random: Random) -> tuple[Tensor, Tensor | None, Tensor | None, int]:
    assert sizes.S is not None
    qkv = random(*sizes.leading, 3 * sizes.H * sizes.d, scale=sizes.scale)
    return qkv, *(random.tables(sizes.S + 2, sizes.d) if sizes.rope else (None, None)), sizes.H


def oracle(qkv: Tensor, cos: Tensor | None, sin: Tensor | None, num_heads: int) -> Tensor:
    """Head by head."""
    heads = []
    width = qkv.shape[-1] // 3
    for q, k, v in zip(*(part.split(width // num_heads, -1) for part in qkv.split(width, -1))):
        if cos is not None and sin is not None:
            q, k = turned(q, cos.double(), sin.double()), turned(k, cos.double(), sin.double())
        scores = torch.einsum("bsd,btd->bst", q, k) / math.sqrt(q.shape[-1])
        heads.append(torch.einsum("bst,btd->bsd", torch.softmax(scores, -1), v))
    return torch.cat(heads, -1)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The pair (i, i + d/2) of position s by the angles of the tables there."""
    first, second = x.chunk(2, -1)
    (cos1, cos2), (sin1, sin2) = (table[: x.shape[1]].chunk(2, -1) for table in (cos, sin))
    return torch.cat((first * cos1 - second * sin1, second * cos2 + first * sin2), -1)


def cost(sizes: Sizes, itemsize: int, backward: bool) -> Cost:
    width, tokens = sizes.H * sizes.d, sizes.tokens
    assert sizes.S is not None
    return Cost((12 if backward else 4) * width * itemsize * tokens, (14 if backward else 4) * sizes.S * width * tokens)


SPEC = OpSpec(
    name="rope_attention",
    schema="(Tensor qkv, Tensor? cos, Tensor? sin, int num_heads) -> Tensor",
    shapes={"qkv": "[B, S, 3 H d]"},
    sample=sample,
    oracle=oracle,
    cost=cost,
    autocast="lower",
    cast=1,
    sizes=tuple(
        Sizes(B, S, H=H, d=d, rope=rope, scale=scale)
        for B, S, H, d, ropes, scale in (
            (2, 17, 3, 32, (True,), 1.0),
            (1, 1, 1, 32, (True, False), 1.5),
            (2, 1, 2, 32, (True, False), 1.0),
            (2, 17, 2, 64, (True, False), 1.5),
            (1, 81, 2, 64, (True, False), 1.0),
            (1, 82, 1, 64, (True, False), 1.0),
            (1, 82, 1, 128, (True,), 1.0),
            (1, 82, 2, 128, (True, False), 1.5),
            (1, 97, 1, 32, (True, False), 1.0),
            (1, 128, 1, 64, (True, False), 1.0),
            (1, 129, 1, 32, (True, False), 1.0),
            (3, 129, 1, 6, (True, False), 1.5),
            (2, 33, 3, 20, (True, False), 1.5),
            (1, 300, 1, 48, (True, False), 1.5),
            (1, 900, 1, 32, (True,), 1.0),
            (1, 901, 1, 128, (True,), 1.0),
            (1, 916, 1, 128, (True,), 1.0),
            (0, 5, 2, 8, (True, False), 1.0),
            (0, 5, 2, 32, (True,), 1.0),
            (3, 0, 2, 32, (True,), 1.0),
        )
        for rope in ropes
    ),
)
