"""How far updates move states: the squares of the change of each row, and a share of the way."""

import torch


def check_weight(op: str, weight: torch.Tensor | None, name: str, z: torch.Tensor) -> None:
    """
    Raises:
        TypeError, ValueError: ``weight`` is neither None nor ``[B]`` float32, as ``z [B, S, D]`` of this name needs it.
    """
    if weight is None:
        return
    if not isinstance(weight, torch.Tensor) or weight.dtype is not torch.float32:
        kind = weight.dtype if isinstance(weight, torch.Tensor) else type(weight).__name__
        raise TypeError(f"{op}: weight is {kind}, expected float32 [B], one for each row of {name}, or None")
    if weight.shape != z.shape[:1] or weight.device != z.device:
        raise ValueError(
            f"{op}: weight has shape {list(weight.shape)} on {weight.device}, expected [B] = [{z.shape[0]}] on "
            f"{z.device} as {name}"
        )


def move(
    starts: tuple[torch.Tensor, torch.Tensor], ends: tuple[torch.Tensor, torch.Tensor], weight: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both states ``start + weight * (end - start)``, ``[B, S, D]``, and the change of their rows, ``[B, 2]``.

    The change is the sums of squares of ``end - start`` and of the new states, in float32 (float64 for such states).
    """
    dtype = torch.promote_types(starts[0].dtype, torch.float32)
    states, squares = [], []
    for start, end in zip(starts, ends):
        change = end.to(dtype) - start.to(dtype)
        if weight is not None:
            end = (start.to(dtype) + weight.to(dtype).view(-1, 1, 1) * change).to(start.dtype)
        states.append(end)
        squares.append(torch.stack([one.square().sum((1, 2)) for one in (change, end.to(dtype))], 1))
    return states[0], states[1], squares[0] + squares[1]
