import torch


def sparse_sign_sgd(
    weights: torch.Tensor, ids: torch.Tensor, grads: torch.Tensor, lr: float | torch.Tensor, weight_decay: float
) -> None:
    # [N, N] matrix of equal identifiers: every occurrence of one gets the same sum, in the same order, so writing it
    # several times is harmless, and no sort or unique has to tell the host how many there are
    same = (ids.unsqueeze(0) == ids.unsqueeze(1)).to(grads.dtype)
    weights[ids] = weights[ids] * (1 - lr * weight_decay) - lr * torch.sign(same @ grads)
