"""An embedding whose rows are divided among processes, for tables too large for one process."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hrm_kernels.nn import LookUp, SparseEmbedding

__all__ = ["ShardedEmbedding"]


@dataclass(frozen=True)
class _Route:
    """The exchange of one look-up's rows.

    Attributes:
        order: ``[B]``, indices into the look-up, sorted by the process that owns the row.
        requested: ``[N]``, rows of this process that all processes request, by process, then in their order.
        send, receive: for each process, how many rows this process requests from it, and it from this process.
    """

    order: Tensor
    requested: Tensor
    send: list[int]
    receive: list[int]


class ShardedEmbedding(SparseEmbedding):
    """A :class:`hrm_kernels.nn.SparseEmbedding` whose rows are divided equally among processes.

    Process r of n holds the rows ``[r * R, (r + 1) * R)`` with ``R = ceil(num_embeddings / n)``. A look-up sends each
    identifier to the process that owns its row and returns the row; :class:`hrm_kernels.optim.SparseSignSGD` sends
    the gradients the same way. These all-to-all exchanges move only the requested rows; an all-gather of identifiers
    and gradients would move n times as much. The host needs the number of rows per process, so on a GPU a look-up
    synchronises with the device once.

    Look-up and optimiser step are collective: every process of the group must call them equally often. The results
    equal those of the undivided table, to the bit.

    Args:
        num_embeddings: rows of all processes together.
        embedding_dim: D.
        process_group: the processes; None selects the default group, or only this process where there is none.

    Attributes:
        weights: ``[rows of this process, D]`` float32, initially 0; not in the state dict, which would otherwise
            differ between processes.
        first_row: the index of its first row.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, process_group: "dist.ProcessGroup | None" = None
    ) -> None:
        nn.Module.__init__(self)  # the constructor of SparseEmbedding would allocate the whole table
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
        """Look up ``[B]`` identifiers; returns ``[B, embedding_dim]`` float32.

        Raises:
            IndexError: an identifier is negative, or not below ``num_embeddings``.
        """
        with torch.no_grad():
            route = self._route(ids)
            rows = self.weights.new_empty(len(ids), self.weights.shape[1])
            rows[route.order] = self._exchange(self.weights[route.requested], route.receive, route.send)
        if self.training and torch.is_grad_enabled():
            self.keep(LookUp(ids, rows.requires_grad_(), route))
        return rows

    def owned_gradients(self, look_up: LookUp) -> tuple[Tensor, Tensor]:
        """Rows ``[N]`` of ``weights`` that all processes used in this look-up, and a gradient for each, ``[N, D]``."""
        route, grad = look_up.route, look_up.rows.grad
        assert grad is not None
        return route.requested, self._exchange(grad[route.order], route.send, route.receive)

    def _route(self, ids: Tensor) -> _Route:
        wrong = (ids < 0) | (ids >= self.num_embeddings)
        owner = torch.where(wrong, self._processes, ids // self._rows_each)
        order = owner.argsort(stable=True)  # stable: gradients of equal identifiers are added in their order
        counts = owner.bincount(minlength=self._processes + 1)
        requests = self._exchange(counts[: self._processes], *[[1] * self._processes] * 2)
        *send, invalid = counts.tolist()
        if invalid:
            raise IndexError(
                f"ShardedEmbedding: {invalid} of {len(ids)} identifiers are outside 0 to {self.num_embeddings - 1}, "
                f"for example {int(ids[wrong][0])}; the data and num_embeddings belong to different data sets"
            )
        receive = requests.tolist()
        requested = self._exchange(ids[order].long(), send, receive) - self.first_row
        return _Route(order, requested, send, receive)

    def _exchange(self, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Send ``send[r]`` consecutive rows to each process r; return the ``receive[r]`` rows from each."""
        if self._processes == 1:
            return rows
        received = rows.new_empty(sum(receive), *rows.shape[1:])
        dist.all_to_all_single(received, rows.contiguous(), receive, send, group=self.process_group)
        return received
