"""An embedding whose rows are divided among processes, for tables that no process should hold alone."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hrm_kernels.nn import LookUp, SparseEmbedding

__all__ = ["ShardedEmbedding"]


@dataclass(frozen=True)
class _Route:
    """Where the rows of one look-up lie.

    Attributes:
        order: ``[B]``, the look-up's places sorted by the process that holds their row.
        asked: ``[N]``, rows of this process that all processes ask for, by process, then in their order.
        send, receive: how many rows this process asks of each, and each of this one.
    """

    order: Tensor
    asked: Tensor
    send: list[int]
    receive: list[int]


class ShardedEmbedding(SparseEmbedding):
    """A :class:`hrm_kernels.nn.SparseEmbedding` of which each process holds an equal run of rows.

    Process r of n holds the rows ``[r * R, (r + 1) * R)`` with ``R = ceil(num_embeddings / n)``. A look-up sends each
    identifier to the process that holds its row and brings the row back; :class:`hrm_kernels.optim.SparseSignSGD`
    sends the gradients the same way. These are all-to-all exchanges of the rows asked for and no others; an all-gather
    of identifiers and gradients moves n times as much. How many rows go where has to be known on the host, so on a GPU
    a look-up waits for the device once.

    Look-up and optimiser step are collective: every process of the group makes them equally often. What they compute is
    what the undivided table computes, to the bit.

    Args:
        num_embeddings: rows of all processes together.
        embedding_dim: D.
        process_group: the processes; None is the default group, or this process alone where there is none.

    Attributes:
        weights: ``[rows of this process, D]`` float32, starting at 0; no part of the state dict, which would differ
            from process to process.
        first_row: the number of its first row.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, process_group: "dist.ProcessGroup | None" = None
    ) -> None:
        nn.Module.__init__(self)  # the base makes the whole table
        self.num_embeddings, self.process_group = num_embeddings, process_group
        rank, self._processes = 0, 1
        if dist.is_available() and dist.is_initialized():
            rank, self._processes = dist.get_rank(process_group), dist.get_world_size(process_group)
        self._rows_each = -(-num_embeddings // self._processes)
        self.first_row = min(rank * self._rows_each, num_embeddings)
        rows = min(self._rows_each, num_embeddings - self.first_row)
        self.register_buffer("weights", torch.zeros(rows, embedding_dim, dtype=torch.float32), persistent=False)
        self.forget()

    def forward(self, ids: Tensor) -> Tensor:
        """``[B]`` identifiers -> ``[B, embedding_dim]`` float32.

        Raises:
            IndexError: an identifier is negative, or not below ``num_embeddings``.
        """
        with torch.no_grad():
            route = self._find(ids)
            rows = self.weights.new_empty(len(ids), self.weights.shape[1])
            rows[route.order] = self._exchange(self.weights[route.asked], route.receive, route.send)
        if self.training and torch.is_grad_enabled():
            self.keep(LookUp(ids, rows.requires_grad_(), route))
        return rows

    def owned_gradients(self, look_up: LookUp) -> tuple[Tensor, Tensor]:
        """Of this look-up of all processes: rows of ``weights`` ``[N]``, and a gradient for each ``[N, D]``."""
        route, grad = look_up.route, look_up.rows.grad
        assert grad is not None
        return route.asked, self._exchange(grad[route.order], route.send, route.receive)

    def _find(self, ids: Tensor) -> _Route:
        wrong = (ids < 0) | (ids >= self.num_embeddings)
        owner = torch.where(wrong, self._processes, ids // self._rows_each)
        order = owner.argsort(stable=True)  # equal identifiers keep their order, in which their gradients are added
        counts = owner.bincount(minlength=self._processes + 1)
        theirs = self._exchange(counts[: self._processes], *[[1] * self._processes] * 2)
        *send, bad = counts.tolist()
        if bad:
            raise IndexError(
                f"ShardedEmbedding: {bad} of {len(ids)} identifiers are outside 0 to {self.num_embeddings - 1}, such "
                f"as {int(ids[wrong][0])}; data and num_embeddings are of different data sets"
            )
        receive = theirs.tolist()
        asked = self._exchange(ids[order].long(), send, receive) - self.first_row
        return _Route(order, asked, send, receive)

    def _exchange(self, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """``send[r]`` of ``rows`` to each process r in turn; what comes, ``receive[r]`` from each."""
        if self._processes == 1:
            return rows
        came = rows.new_empty(sum(receive), *rows.shape[1:])
        dist.all_to_all_single(came, rows.contiguous(), receive, send, group=self.process_group)
        return came
