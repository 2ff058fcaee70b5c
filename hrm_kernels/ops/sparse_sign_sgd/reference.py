import torch


def sparse_sign_sgd(
    weights: torch.Tensor, ids: torch.Tensor, grads: torch.Tensor, lr: float | torch.Tensor, weight_decay: float
) -> None:
    # with the [N, N] matrix of equal identifiers every occurrence gets the same sum, in the same order: writing it
    # several times is harmless, and no sort or unique has to report a count to the host
    same = (ids.unsqueeze(0) == ids.unsqueeze(1)).to(grads.dtype)
    weights[ids] = weights[ids] * (1 - lr * weight_decay) - lr * torch.sign(same @ grads)
