import torch


def sparse_sign_sgd(
    weights: torch.Tensor, ids: torch.Tensor, grads: torch.Tensor, lr: float | torch.Tensor, weight_decay: float
) -> None:
    if not can_check_values(weights):
        update_existing_rows(weights, ids, grads, lr, weight_decay)
        return
    wrong = ids[(ids < 0) | (ids >= len(weights))]
    if len(wrong):
        raise IndexError(
            f"sparse_sign_sgd: an identifier is {int(wrong[0])}, expected 0 to {len(weights) - 1}; nothing was changed"
        )
    weights[ids] = _updated(weights, ids, grads, lr, weight_decay)


def can_check_values(weights: torch.Tensor) -> bool:
    """Whether a check of identifiers does not wait for a device. Tests of steps for CUDA graphs replace it."""
    return weights.device.type == "cpu"


def update_existing_rows(
    weights: torch.Tensor, ids: torch.Tensor, grads: torch.Tensor, lr: float | torch.Tensor, weight_decay: float
) -> None:
    """Skip identifiers that are not rows of the table, without waiting for the device.

    They become the largest identifier that is a row, with gradient 0. Without any such row nothing changes.
    """
    if not (weights.numel() and len(ids)):
        return
    exists = (ids >= 0) & (ids < len(weights))
    ids = torch.where(exists, ids, torch.where(exists, ids, 0).amax())
    new = _updated(weights, ids, torch.where(exists[:, None], grads, 0), lr, weight_decay)
    weights[ids] = torch.where(exists.any(), new, weights[ids])


def _updated(
    weights: torch.Tensor, ids: torch.Tensor, grads: torch.Tensor, lr: float | torch.Tensor, weight_decay: float
) -> torch.Tensor:
    # with the [N, N] matrix of equal identifiers every occurrence gets the same sum, in the same order: writing it
    # several times is harmless, and no sort or unique has to report a count to the host
    same = (ids.unsqueeze(0) == ids.unsqueeze(1)).to(grads.dtype)
    return weights[ids] * (1 - lr * weight_decay) - lr * torch.sign(same @ grads)
