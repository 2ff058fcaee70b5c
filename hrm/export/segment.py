"""A segment as a ``torch.export`` program: tensors in, tensors out, any batch size, the weights inside."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode

from hrm.errors import InputError
from hrm.inference.engine.segment import residual
from hrm.inference.segments import evaluating
from hrm.model import HRM
from hrm_kernels import use_backend

States = tuple[torch.Tensor, ...]
"""``z_H`` and ``z_L``; ``z_H`` only for a model with one state."""


class Segment(nn.Module):
    """One segment for a batch: states in, states and answers out.

    The arguments are :meth:`names`, in order:

    - ``inputs``: ``[B, seq_len]`` int64 tokens.
    - ``steps``: ``[B]`` int64, segments so far. A row with 0 starts from its initial states; its states are not read.
    - ``puzzle_identifiers``: ``[B]`` int64 rows of the puzzle embedding, for models that have one.
    - ``seeds``: ``[B]`` int64, for models with random states (EqR).
    - ``z_H``, ``z_L``: ``[B, P + seq_len, D]`` float32 states; a URM has no ``z_L``.

    It returns the new states, ``logits [B, seq_len, vocab_size]``, and ``[B]`` float32 ``q_halt``, ``q_continue`` and
    ``residual``, the change of the states (:func:`hrm.inference.engine.segment.residual`).
    """

    def __init__(self, model: HRM) -> None:
        """
        Raises:
            InputError: the model does not compute in float32.
        """
        super().__init__()
        config = model.config
        if config.dtype is not torch.float32:
            raise InputError(
                f"the model computes in {config.forward_dtype}, and an export in float32; load it with "
                "forward_dtype='float32'"
            )
        self.inner = model.inner
        self.config = config

    @property
    def state_names(self) -> list[str]:
        """The names of the states."""
        return ["z_H", "z_L"] if self.inner.state_positions[1] else ["z_H"]

    @property
    def data_names(self) -> list[str]:
        """The names of the arguments that describe a puzzle."""
        embedding = ["puzzle_identifiers"] if self.config.puzzle_emb_ndim else []
        return ["inputs", "steps", *embedding, *(["seeds"] if self.config.has_random_starts else [])]

    @property
    def names(self) -> list[str]:
        """The names of the arguments."""
        return self.data_names + self.state_names

    @property
    def output_names(self) -> list[str]:
        """The names of the results."""
        return [*(f"next_{name}" for name in self.state_names), "logits", "q_halt", "q_continue", "residual"]

    def forward(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        data = dict(zip(self.names, arguments))
        inputs, steps = data["inputs"], data["steps"]
        identifiers, seeds = (data.get(name, torch.zeros_like(steps)) for name in ("puzzle_identifiers", "seeds"))
        z_H = data["z_H"]
        z_L = data.get("z_L", z_H[:, :0])
        with use_backend("reference"):
            x = self.inner.embed({"inputs": inputs, "puzzle_identifiers": identifiers})
            z_H, z_L = self.inner.restart(steps == 0, seeds, z_H, z_L)
            new = self.inner.segment(z_H, z_L, x, self.inner.damping(seeds, steps))
            logits, q_values = self.inner.logits(new[0]), self.inner.q_values(new[0])
        return *new[: len(self.state_names)], logits, *q_values, residual(squares((z_H, z_L), new))

    def examples(self, rows: int = 2) -> tuple[torch.Tensor, ...]:
        """Arguments of the right shapes: blank puzzles."""
        config = self.config
        data = {name: torch.zeros(rows, dtype=torch.int64) for name in self.data_names}
        data["inputs"] = torch.ones(rows, config.seq_len, dtype=torch.int64)
        states = [torch.zeros(rows, config.positions, config.hidden_size) for _ in self.state_names]
        return (*data.values(), *states)


class Unrolled(nn.Module):
    """The first ``segments`` segments of each row, without states in or out.

    The arguments are those of :class:`Segment` that describe a puzzle, without ``steps``. It returns
    ``logits [B, segments, seq_len, vocab_size]`` and ``q_halt``, ``q_continue`` and ``residual``, ``[B, segments]``.
    """

    def __init__(self, model: HRM, segments: int) -> None:
        super().__init__()
        self.segment = Segment(model)
        self.config = model.config
        self.segments = segments

    @property
    def names(self) -> list[str]:
        """The names of the arguments."""
        return [name for name in self.segment.data_names if name != "steps"]

    @property
    def output_names(self) -> list[str]:
        """The names of the results."""
        return ["logits", "q_halt", "q_continue", "residual"]

    def forward(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        config, segment = self.config, self.segment
        data = dict(zip(self.names, arguments))
        rows = data["inputs"].shape[0]
        shape = rows, config.positions, config.hidden_size
        states: Sequence[torch.Tensor] = [torch.zeros(shape) for _ in segment.state_names]
        answers: list[tuple[torch.Tensor, ...]] = []
        for step in range(self.segments):
            data["steps"] = torch.full_like(data["inputs"][:, 0], step)
            outputs = segment(*(data[name] for name in segment.data_names), *states)
            states, rest = outputs[: len(states)], outputs[len(states) :]
            answers.append(rest)
        return tuple(torch.stack(one, 1) for one in zip(*answers))

    def examples(self, rows: int = 2) -> tuple[torch.Tensor, ...]:
        """Arguments of the right shapes: blank puzzles."""
        named = dict(zip(self.segment.names, self.segment.examples(rows)))
        return tuple(named[name] for name in self.names)


def squares(before: States, after: States) -> torch.Tensor:
    """``[B, 2]`` float32: the squares of the change and of the new states, summed over all states, as of a model."""
    pairs = [(old, new) for old, new in zip(before, after) if new.shape[1]]
    sums = [((new - old).square().sum((1, 2)), new.square().sum((1, 2))) for old, new in pairs]
    return torch.stack([functools.reduce(torch.add, one) for one in zip(*sums)], 1)


def segment_program(model: HRM) -> ExportedProgram:
    """One segment of ``model`` as a program with any batch size; :class:`Segment` has its arguments and results.

    ``torch.export.save`` writes it, and a program that is loaded again runs without this package.

    Raises:
        InputError: the model does not compute in float32.
    """
    return program_of(Segment(model))


def unrolled_program(model: HRM, segments: int) -> ExportedProgram:
    """The first ``segments`` segments of ``model`` as a program with any batch size; see :class:`Unrolled`.

    Raises:
        InputError: the model does not compute in float32.
    """
    return program_of(Unrolled(model, segments))


def program_of(module: Segment | Unrolled) -> ExportedProgram:
    """``torch.export`` of a module in evaluation mode, without gradients."""
    examples = module.examples()
    batch = Dim("batch", min=1, max=1 << 20)
    with torch.no_grad(), evaluating(module), _ElementaryFunctions():
        program = torch.export.export(module, examples, dynamic_shapes=(tuple({0: batch} for _ in examples),))
    return _without_history(program)


class _ElementaryFunctions(TorchFunctionMode):
    """Replaces a function that neither ONNX nor every other runtime has."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return erfinv(*args) if function is torch.erfinv else function(*args, **(kwargs or {}))


def _without_history(program: ExportedProgram) -> ExportedProgram:
    """Forget from which node of an earlier program each node comes: every further step would copy it, for minutes."""
    for node in program.graph.nodes:
        node.meta.pop("from_node", None)
    return program


def erfinv(x: torch.Tensor) -> torch.Tensor:
    """The inverse error function of float32 numbers in functions that every runtime has in float32.

    A closed approximation (S. Winitzki, "A handy approximation for the error function and its inverse", 2008) is good
    to three digits, and a step of Halley's method triples them. For numbers cut at two deviations, ``|x| < 0.9545``,
    the error is below 2.2e-7 (that of ``torch.erfinv``: 6e-8).
    """
    a = 0.147
    logarithm = torch.log((1 - x) * (1 + x))
    half = 2 / (math.pi * a) + logarithm / 2
    y = torch.sign(x) * torch.sqrt(torch.clamp(torch.sqrt(half * half - logarithm / a) - half, min=0))
    for _ in range(2):
        step = (torch.erf(y) - x) * (math.sqrt(math.pi) / 2) * torch.exp(y * y)
        y = y - step / (1 + y * step)
    return y
