"""Random numbers that depend on counters only, not on the order in which they are drawn.

A row's numbers are a function of its seed, a step, the position and the feature. They are therefore the same in any
batch and any slot, on any number of threads, and again when a backward computes a forward a second time.

The bits are those of Philox 4x32 with ten rounds (J. Salmon and others, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011). The key is the seed. The counter is ``(c, position, step, stream)``; feature ``64 q + 16 w + l`` is word ``w``
of the result for ``c = 16 q + l``, so that vectors of up to 16 neighbouring features read the same word.
"""

import math

import torch

from hrm_kernels import native
from hrm_kernels.autodiff import in_transform
from hrm_kernels.backends import is_traced, requested

__all__ = ["INITIAL_H", "INITIAL_L", "TRAJECTORY", "UPDATE", "noise", "truncated_noise"]

UPDATE, INITIAL_H, INITIAL_L, TRAJECTORY = range(4)
"""Streams: the noise of updates (:class:`hrm_kernels.Damping`), random initial states, the noise of a trajectory."""

_LOW = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def noise(
    seeds: torch.Tensor, steps: torch.Tensor | int, positions: int, features: int, stream: int = UPDATE
) -> torch.Tensor:
    """Standard normal numbers, a function of the arguments only.

    Two words give two numbers (Box and Muller): ``sqrt(-2 ln u) cos(2 pi v)`` and the same with the sine, where u and v
    are the upper 23 bits of a word, plus one half, over 2^23. No number is beyond 5.8.

    Args:
        seeds: ``[B]`` int64, one for each row.
        steps: ``[B]`` integers or a number, 0 to 2^32 - 1.
        positions, features: S and D.
        stream: numbers of different streams are independent, 0 to 2^32 - 1.

    Returns:
        ``[B, S, D]`` float32.

    Raises:
        TypeError, ValueError: the seeds or the steps have another dtype or shape.
    """
    check_seeds("noise", seeds, steps)
    if _has_kernel(seeds):
        steps = steps.long() if isinstance(steps, torch.Tensor) else torch.full_like(seeds, steps)
        out = torch.empty(len(seeds), positions, features, dtype=torch.float32, device="cpu")
        arguments = seeds.contiguous(), steps.contiguous(), stream, out, torch.get_num_threads()
        native.load("cpu").module.noise(*arguments)
        return out
    return plain_noise(seeds, steps, positions, features, stream)


def plain_noise(
    seeds: torch.Tensor, steps: torch.Tensor | int, positions: int, features: int, stream: int = UPDATE
) -> torch.Tensor:
    """:func:`noise` in plain PyTorch: the definition."""
    u, v, more_u, more_v = _uniform(seeds, steps, positions, features, stream)
    first, second = (-2 * one.log() for one in (u, more_u))
    angles = 2 * math.pi * v, 2 * math.pi * more_v
    numbers = [
        radius.sqrt() * wave for radius, angle in zip((first, second), angles) for wave in (angle.cos(), angle.sin())
    ]
    return _by_feature(numbers, features)


def truncated_noise(
    seeds: torch.Tensor, steps: torch.Tensor | int, positions: int, features: int, stream: int = INITIAL_H
) -> torch.Tensor:
    """Normal numbers cut at ±2 deviations and scaled so that their deviation is 1; arguments and result as above.

    The distribution is that of :func:`hrm_kernels.nn.truncated_normal_` with std 1.
    """
    check_seeds("truncated_noise", seeds, steps)
    within = math.erf(math.sqrt(2))  # the probability of a normal number within two deviations
    wide = math.sqrt(2) / STD_OF_TRUNCATED_NORMAL
    numbers = [wide * torch.erfinv(within * (2 * u - 1)) for u in _uniform(seeds, steps, positions, features, stream)]
    return _by_feature(numbers, features)


STD_OF_TRUNCATED_NORMAL = 0.87962566103423978
"""Of a standard normal cut at ±2, as in JAX."""


def check_seeds(owner: str, seeds: torch.Tensor, steps: torch.Tensor | int, rows: int | None = None) -> None:
    """
    Raises:
        TypeError, ValueError: ``seeds`` is not ``[B]`` int64, or ``steps`` is neither ``[B]`` integers nor a number.
    """
    if not isinstance(seeds, torch.Tensor) or seeds.dtype is not torch.int64:
        kind = seeds.dtype if isinstance(seeds, torch.Tensor) else type(seeds).__name__
        raise TypeError(f"{owner}: seeds is {kind}, expected a tensor of int64, one for each row")
    if seeds.ndim != 1 or rows is not None and seeds.shape[0] != rows:
        expected = "[B]" if rows is None else f"[B] = [{rows}]"
        raise ValueError(f"{owner}: seeds has shape {list(seeds.shape)}, expected {expected}")
    if not isinstance(steps, torch.Tensor):
        return
    if steps.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{owner}: steps is {steps.dtype}, expected int64 or int32; convert it with .long()")
    if steps.shape != seeds.shape:
        raise ValueError(f"{owner}: steps has shape {list(steps.shape)}, expected {list(seeds.shape)} as seeds")
    if steps.device != seeds.device:
        raise ValueError(f"{owner}: steps is on {steps.device}, expected {seeds.device} as seeds; move one of them")


def _has_kernel(seeds: torch.Tensor) -> bool:
    """Whether the CPU library draws the numbers; those of PyTorch differ in the last bits."""
    is_plain = seeds.device.type == "cpu" and requested() in (None, "cpu") and not (is_traced() or in_transform())
    return is_plain and native.load("cpu").reason is None


def _uniform(
    seeds: torch.Tensor, steps: torch.Tensor | int, positions: int, features: int, stream: int
) -> list[torch.Tensor]:
    """Four ``[B, S, C]`` float32 tensors in (0, 1), one for each word."""
    device, count = seeds.device, -(-features // 64) * 16
    keys = [(seeds & _LOW).view(-1, 1, 1), (seeds >> 32 & _LOW).view(-1, 1, 1)]
    step = steps.long() if isinstance(steps, torch.Tensor) else torch.full_like(seeds, steps)
    words = [
        torch.arange(count, device=device).view(1, 1, -1),
        torch.arange(positions, device=device).view(1, -1, 1),
        step.view(-1, 1, 1),
        torch.full((1, 1, 1), stream, device=device, dtype=torch.int64),
    ]
    words = list(torch.broadcast_tensors(*_philox(words, keys)))
    return [((word >> 9).float() + 0.5) * 2.0**-23 for word in words]


def _philox(words: list[torch.Tensor], keys: list[torch.Tensor]) -> list[torch.Tensor]:
    """Ten rounds; all tensors are int64 that hold unsigned 32-bit numbers."""
    for _ in range(_ROUNDS):
        # a product of two such numbers has 64 bits: its sign is a bit like the others
        products = [word * factor for word, factor in zip(words[::2], _MULTIPLIERS)]
        (low, other_low), (high, other_high) = ([p & _LOW for p in products], [p >> 32 & _LOW for p in products])
        words = [other_high ^ words[1] ^ keys[0], other_low, high ^ words[3] ^ keys[1], low]
        keys = [key + step & _LOW for key, step in zip(keys, _KEY_STEPS)]
    return words


def _by_feature(numbers: list[torch.Tensor], features: int) -> torch.Tensor:
    """Four ``[B, S, 16 q]`` tensors as one ``[B, S, features]``."""
    batch, positions, count = numbers[0].shape
    groups = [one.view(batch, positions, count // 16, 1, 16) for one in numbers]
    return torch.cat(groups, 3).view(batch, positions, 4 * count)[..., :features]
