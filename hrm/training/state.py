"""What the steps of a run change and its checkpoints keep."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from hrm.data.fingerprint import names_fingerprint
from hrm.families import build
from hrm.model import Carry
from hrm.training.checkpoint import Checkpoint, copy_into, load_optimizer_tensors, optimizer_tensors
from hrm.training.config import TrainConfig
from hrm.training.distributed import World
from hrm.training.ema import EMA
from hrm.training.run_data import RunData
from hrm.weights import PUZZLE_EMB, PuzzleEmb, load
from hrm_kernels.optim import AdamATan2, SparseSignSGD
from hrm_kernels.sharded_embedding import ShardedEmbedding

_STARTS = ("inner.H_init", "inner.L_init")
"""The initial states of a TRM; an EqR has none."""


class TrainingState:
    """Weights, optimisers, averages, carry and position of a run.

    There is no random state to keep: weights are drawn from the seed, batches from the seed and the position in the
    data, exploration from the seed and the step, always for the global batch.

    Args:
        config: the run's configuration.
        data: the run's data.
        device: where the run computes.
        capturable: keep learning rates and step counts on the device, where a CUDA graph finds them.

    Attributes:
        step: steps made since the run began.
        batches: draws the batches; its position is part of the state.
        model: in training mode.
        adam: the optimiser of all parameters.
        optimizers: all optimisers by name, as checkpoints name them.
        ema: averages of the weights; None if the run keeps none.
        carry: of the rows of this process; None before the first step.
    """

    def __init__(self, config: TrainConfig, data: RunData, device: torch.device, capturable: bool):
        torch.manual_seed(config.seed)
        self._global_batch_size = config.global_batch_size
        self.step, self.batches = 0, data.batches
        self.model = build(config.model(data.train.metadata, device), config.puzzle_emb_sharded).to(device).train()

        def on_device(lr: float) -> float | Tensor:
            return torch.tensor(lr, dtype=torch.float32, device=device) if capturable else lr

        betas = (config.beta1, config.beta2)
        self.adam = AdamATan2(self.model.parameters(), on_device(config.lr), betas, config.weight_decay, capturable)
        self.optimizers: dict[str, AdamATan2 | SparseSignSGD] = {"adam": self.adam}
        self._base_rates = {"adam": config.lr, "puzzle_emb": config.puzzle_emb_lr}
        if (table := self.model.puzzle_emb) is not None:
            self.model.identifiers = names_fingerprint(data.train)
            lr, decay = on_device(config.puzzle_emb_lr), config.puzzle_emb_weight_decay
            self.optimizers["puzzle_emb"] = SparseSignSGD([table], lr, decay)
        self.ema = EMA(self.model, config.ema_rate) if config.ema else None
        self.carry: Carry | None = None

    def set_learning_rates(self, factor: float | Tensor) -> None:
        """Set each optimiser to ``factor`` times its base rate; a tensor in place, as ``capturable`` needs it."""
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                rate = self._base_rates[name] * factor
                if isinstance(rate, Tensor):
                    group["lr"].copy_(rate)
                else:
                    group["lr"] = rate

    def keep_carry(self, carry: Carry, in_place: bool) -> None:
        """Keep the carry of a step for the next one, ``in_place`` for a CUDA graph, which finds it by address."""
        if in_place and self.carry is not None:
            self.carry.copy_(carry)
        else:
            self.carry = carry

    def start_from(self, model: str, puzzle_emb: PuzzleEmb) -> None:
        """Start with the weights of another model. An EqR may start with a TRM's: it draws its initial states.

        Args:
            model: anything :func:`hrm.load` takes.
            puzzle_emb: what to do with a puzzle embedding of other puzzles.

        Raises:
            InputError: the model cannot be loaded, or does not fit.
        """
        config, names = self.model.config, self.model.identifiers
        rows, length = config.num_puzzle_identifiers, config.seq_len
        weights = load(model, "cpu", puzzle_emb, rows, length, identifiers=names).state_dict()
        if PUZZLE_EMB in weights:
            weights[PUZZLE_EMB] = weights[PUZZLE_EMB][self._own_rows()]
        if config.has_random_starts:
            weights = {name: tensor for name, tensor in weights.items() if name not in _STARTS}
        self._load_weights(weights, f"--init {model}")
        if self.ema:
            self.ema = EMA(self.model, self.ema.rate)

    def load(self, saved: Checkpoint, world: World) -> None:
        """Continue from ``saved``.

        Raises:
            InputError: a tensor is missing, or does not fit.
        """
        where = f"checkpoint {saved.path}"
        weights = saved.tensors("model")
        if self.model.puzzle_emb is not None:
            weights[PUZZLE_EMB] = saved.table(self._own_rows())
        self._load_weights(weights, where)
        for name, optimizer in self.optimizers.items():
            load_optimizer_tensors(optimizer, saved.tensors(f"optimizer_{name}"))
        if self.ema:
            averages = saved.tensors("ema")
            copy_into(self.ema.averages, {name: averages[name] for name in self.ema.averages}, where)
        carry = saved.tensors("carry", world.own_rows(self._global_batch_size))
        self.carry = _carry_of(carry, world.device)
        self.batches.state, self.step = saved.state["sampler"], saved.state["step"]

    def tensors(self, world: World) -> dict[str, Mapping[str, Tensor]]:
        """The tensors that a checkpoint keeps beside the weights, by file.

        Every process calls this; the first returns them, the others nothing.
        """
        assert self.carry is not None
        carry = {name: world.gather_rows(tensor) for name, tensor in _carry_tensors(self.carry).items()}
        if not world.is_main:
            return {}
        files: dict[str, Mapping[str, Tensor]] = {
            f"optimizer_{name}": optimizer_tensors(optimizer) for name, optimizer in self.optimizers.items()
        }
        files["carry"] = {name: tensor for name, tensor in carry.items() if tensor is not None}
        if self.ema:
            files["ema"] = self.model.state_dict() | self.ema.averages
        return files

    def floating(self) -> Iterator[Tensor]:
        """All floating-point tensors that must be finite in a checkpoint."""
        assert self.carry is not None
        yield from self.model.state_dict().values()
        yield from (self.carry.z_H, self.carry.z_L)
        if isinstance(self.model.puzzle_emb, ShardedEmbedding):
            yield self.model.puzzle_emb.weights

    def _load_weights(self, weights: Mapping[str, Tensor], where: str) -> None:
        own = self.model.state_dict()
        if self.model.puzzle_emb is not None:
            own[PUZZLE_EMB] = self.model.puzzle_emb.weights
        copy_into(own, weights, where)

    def _own_rows(self) -> slice:
        """The rows of the puzzle embedding that this process holds."""
        table = self.model.puzzle_emb
        if not isinstance(table, ShardedEmbedding):
            return slice(None)
        return slice(table.first_row, table.first_row + len(table.weights))


_DATA = "current_data."


def _carry_tensors(carry: Carry) -> dict[str, Tensor]:
    data = {f"{_DATA}{name}": tensor for name, tensor in carry.current_data.items()}
    seeds = {} if carry.seeds is None else {"seeds": carry.seeds}
    return {"z_H": carry.z_H, "z_L": carry.z_L, "steps": carry.steps, "halted": carry.halted, **seeds, **data}


def _carry_of(tensors: Mapping[str, Tensor], device: torch.device) -> Carry:
    """The inverse of :func:`_carry_tensors`, on ``device``."""
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    data = {name.removeprefix(_DATA): moved.pop(name) for name in list(moved) if name.startswith(_DATA)}
    return Carry(**moved, current_data=data)
