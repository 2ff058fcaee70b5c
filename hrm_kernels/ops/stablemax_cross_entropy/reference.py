import torch


def stablemax_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = -100) -> torch.Tensor:
    x = logits.to(torch.float64)
    s = torch.where(x < 0, 1 / (1 - x + 1e-30), x + 1)
    valid = labels != ignore_index
    target = torch.where(valid, labels, 0).long()
    loss = s.sum(-1).log() - s.gather(-1, target.unsqueeze(-1)).squeeze(-1).log()
    return torch.where(valid, loss, 0).to(torch.promote_types(logits.dtype, torch.float32))


def with_argmax(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = -100
) -> tuple[torch.Tensor, torch.Tensor]:
    return stablemax_cross_entropy(logits, labels, ignore_index), logits.detach().argmax(-1)
