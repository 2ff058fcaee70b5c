"""The optimisers of recursive reasoning models: AdamATan2 for the weights, SparseSignSGD for puzzle embeddings."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from hrm_kernels.casts import keep_copy, written
from hrm_kernels.nn import SparseEmbedding
from hrm_kernels.ops.adam_atan2 import Step, adam_atan2
from hrm_kernels.ops.sparse_sign_sgd import sparse_sign_sgd
from hrm_kernels.sharded_embedding import ShardedEmbedding

__all__ = ["AdamATan2", "SparseSignSGD"]


def _check(optimizer: str, name: str, value: Any, fits: bool, expected: str) -> None:
    if not fits:
        raise ValueError(f"{optimizer}: {name} is {value!r}, expected {expected}")


def _check_lr_and_decay(optimizer: str, lr: float | torch.Tensor, weight_decay: float) -> None:
    _check(optimizer, "lr", lr, isinstance(lr, torch.Tensor) or lr >= 0, "a number >= 0")
    _check(optimizer, "weight_decay", weight_decay, weight_decay >= 0, "a number >= 0")


class _LightOptimizer(Optimizer):
    """An optimiser that does not import torch's compiler, which takes 1.7 s of every training's start.

    torch wraps these methods so that its compiler leaves them out, and the wrapper imports it. The methods themselves
    do not need it.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        inspect.unwrap(Optimizer.add_param_group)(self, param_group)

    def state_dict(self) -> dict[str, Any]:
        return inspect.unwrap(Optimizer.state_dict)(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        inspect.unwrap(Optimizer.load_state_dict)(self, state_dict)


class AdamATan2(_LightOptimizer):
    """Adam with the step ``lr * atan2(m, sqrt(v))``: bounded, independent of scale, without an epsilon.

    With t counted from 1: ``p *= 1 - lr * weight_decay``; ``m += (1 - b1) (g - m)``; ``v += (1 - b2) (g² - v)``;
    ``p -= lr / (1 - b1^t) * atan2(m, sqrt(v) / sqrt(1 - b2^t))``.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, a number, or a tensor to change it inside a CUDA graph.
        betas: decay rates of the averages of the gradient and of its square.
        weight_decay: decoupled weight decay.
        capturable: keep the step counts on the device of the parameters, so that a CUDA graph can contain ``step``.

    ``copies`` maps a parameter to a tensor of its shape in another dtype, such as the bfloat16 weights of the forward
    pass. A step writes the copy together with the parameter. ``copies`` starts empty and is not part of the state.
    :meth:`keep_copies` fills it with the copies that the layers of :mod:`hrm_kernels.nn` use. If you add a tensor
    yourself, initialise it with the values of the parameter.

    On GPUs with Triton a step is one launch for all parameters of a group (two if ``capturable``); on the ``cuda``
    backend it is one launch for every 64 parameters.

    State of a parameter: ``step`` (float32 scalar), ``exp_avg`` and ``exp_avg_sq`` (like the parameter; float32 for a
    float16 parameter, because squares of gradients would be 0 in float16, and steps 15 times too large).

    Source: Everett et al., arXiv 2407.05872, section 5.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        capturable: bool = False,
    ) -> None:
        _check_lr_and_decay("AdamATan2", lr, weight_decay)
        two = isinstance(betas, tuple | list) and len(betas) == 2
        _check("AdamATan2", "betas", betas, two and all(0 <= beta < 1 for beta in betas), "two numbers in [0, 1)")
        self.copies: dict[torch.Tensor, torch.Tensor] = {}
        self._tables: dict[Any, Any] = {}
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "capturable": capturable})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.copies, self._tables = getattr(self, "copies", {}), getattr(self, "_tables", {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; unlike the method of the base class it keeps averages in float32 for float16 parameters."""
        super().load_state_dict(state_dict)
        numbers = (number for group in state_dict["param_groups"] for number in group["params"])
        params = (p for group in self.param_groups for p in group["params"])
        for number, p in zip(numbers, params):
            if p.dtype != _state_dtype(p) and number in state_dict["state"]:
                for name in ("exp_avg", "exp_avg_sq"):
                    saved = state_dict["state"][number][name]
                    self.state[p][name] = saved.to(p.device, _state_dtype(p), copy=True)

    def keep_copies(self, dtype: torch.dtype) -> None:
        """From now on, let each step also write the copies in ``dtype`` that layers of :mod:`hrm_kernels.nn` use.

        Then no forward pass casts a weight. Call it again after moving the parameters to another device.
        """
        for group in self.param_groups:
            self.copies |= {p: keep_copy(p, dtype, self) for p in group["params"] if p.dtype != dtype}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None and p.numel() > 0]
            if params:
                self._step_group(group, params)
        return loss

    def _step_group(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        for p in params:
            if p.grad.is_sparse:  # type: ignore[union-attr]
                raise ValueError("AdamATan2: a gradient is sparse, expected dense; use SparseSignSGD for embeddings")
            if not self.state[p]:
                device = p.device if group["capturable"] else "cpu"
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=device)
                dtype = _state_dtype(p)
                self.state[p]["exp_avg"] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
        buckets: dict[Any, list[torch.Tensor]] = {}
        for p in params:
            copy = self.copies.get(p)
            buckets.setdefault((p.device, p.dtype, None if copy is None else copy.dtype), []).append(p)
        for (_, dtype, copied), bucket in buckets.items():
            params, grads = bucket, [p.grad for p in bucket if p.grad is not None]  # (every one has a gradient)
            copies = None if copied is None else [self.copies[p] for p in bucket]
            if dtype is torch.float16:  # step a float32 copy, and write the parameter as the copy of that
                params, grads, copies = [p.float() for p in bucket], [grad.float() for grad in grads], bucket
            adam_atan2(
                Step(
                    params,
                    grads,
                    exp_avgs=[self.state[p]["exp_avg"] for p in bucket],
                    exp_avg_sqs=[self.state[p]["exp_avg_sq"] for p in bucket],
                    steps=[self.state[p]["step"] for p in bucket],
                    copies=copies,
                    lr=group["lr"],
                    betas=group["betas"],
                    weight_decay=group["weight_decay"],
                    capturable=group["capturable"],
                    tables=self._tables,
                )
            )
            if copied is not None:
                if dtype is torch.float16:
                    torch._foreach_copy_([self.copies[p] for p in bucket], bucket)
                written(bucket, self.copies)


def _state_dtype(p: torch.Tensor) -> torch.dtype:
    return torch.float32 if p.dtype is torch.float16 else p.dtype


def _joined(parts: Sequence[Any]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class SparseSignSGD(_LightOptimizer):
    """Sign SGD on the rows that a training step looked up in a :class:`hrm_kernels.nn.SparseEmbedding`.

    A step uses the gradients of all look-ups since the last step or ``zero_grad``, so that gradients can be accumulated
    over several batches; every process must have made the same number of look-ups. Gradients of equal identifiers are
    summed, also over all processes of the group. Then each identifier that occurs is updated once:
    ``w = w * (1 - lr * weight_decay) - lr * sign(g)``. A row whose gradient is 0 still decays. No other row is read or
    written, nothing waits for the device, and there is no state except the learning rate.

    Args:
        embeddings: the tables. They may be :class:`hrm_kernels.sharded_embedding.ShardedEmbedding`: then each process
            updates its own rows. ``param_groups[0]["params"]`` holds their ``weights``.
        lr: learning rate, a number or a tensor.
        weight_decay: decoupled weight decay.
        process_group: the group to sum over; None is the default group if ``torch.distributed`` is initialised. A
            sharded table has its own group.

    Source: published HRM code, arXiv 2506.21734; signSGD, arXiv 1802.04434.
    """

    def __init__(
        self,
        embeddings: Iterable[SparseEmbedding],
        lr: float | torch.Tensor = 1e-2,
        weight_decay: float = 0.1,
        process_group: "dist.ProcessGroup | None" = None,
    ) -> None:
        _check_lr_and_decay("SparseSignSGD", lr, weight_decay)
        self.embeddings = list(embeddings)
        for embedding in self.embeddings:
            if not isinstance(embedding, SparseEmbedding):
                raise TypeError(
                    f"SparseSignSGD: got {type(embedding).__name__}, expected hrm_kernels.nn.SparseEmbedding"
                )
        self.process_group = process_group
        super().__init__([e.weights for e in self.embeddings], {"lr": lr, "weight_decay": weight_decay})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the look-ups and their gradients."""
        for embedding in self.embeddings:
            embedding.forget()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update the rows that were looked up and have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lr, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        for embedding in self.embeddings:
            embedding.used = True
            look_ups = [look_up for look_up in embedding.look_ups if look_up.rows.grad is not None]
            if not look_ups:
                continue
            if isinstance(embedding, ShardedEmbedding):
                owned = zip(*map(embedding.owned_gradients, look_ups))
                ids, grads = map(_joined, owned)
                sparse_sign_sgd(embedding.weights, ids, grads, lr, decay)
            else:
                parts = [one.ids for one in look_ups], [one.rows.grad for one in look_ups]
                ids, grads = (self._gather(_joined(part)) for part in parts)
                sparse_sign_sgd(embedding.weights, ids, grads, lr, decay)
        return loss

    def _gather(self, local: torch.Tensor) -> torch.Tensor:
        if not (dist.is_available() and dist.is_initialized()):
            return local
        world = dist.get_world_size(self.process_group)
        parts = [torch.empty_like(local) for _ in range(world)]
        dist.all_gather(parts, local.contiguous(), group=self.process_group)
        return torch.cat(parts)
