"""Checks of what a call of a model gets: messages name the tensor, its value or shape, and the expected one."""

import torch

from hrm.config import ModelConfig
from hrm.errors import InputError

Tensors = dict[str, torch.Tensor]


def as_indices(owner: str, name: str, values: torch.Tensor) -> torch.Tensor:
    """Return ``values`` in a dtype for look-ups: int32 and int64 unchanged, other integers widened.

    Raises:
        InputError: ``values`` is not a tensor of integers.
    """
    if not isinstance(values, torch.Tensor):
        raise InputError(f"{owner}: {name} is {type(values).__name__}, expected a tensor of integers (torch.as_tensor)")
    dtype = values.dtype
    if dtype in (torch.int32, torch.int64):
        return values
    if dtype is torch.bool or dtype.is_floating_point or dtype.is_complex:
        raise InputError(f"{owner}: {name} is {dtype}, expected integers of any dtype; convert it, as with .long()")
    return values.to(torch.int32 if dtype.itemsize < 4 else torch.int64)


def check_batch(config: ModelConfig, batch: Tensors) -> Tensors:
    """Return the batch with indices in a dtype for look-ups.

    Raises:
        InputError: a tensor is missing or has another shape than the configuration asks for.
    """
    for name in ("inputs", "puzzle_identifiers"):
        if name not in batch:
            raise InputError(
                f"HRM: the batch has {', '.join(batch) or 'nothing'}, expected 'inputs' and 'puzzle_identifiers'"
            )
    indices = {n: as_indices("HRM", n, batch[n]) for n in ("inputs", "labels", "puzzle_identifiers") if n in batch}
    inputs, identifiers = indices["inputs"], indices["puzzle_identifiers"]
    if inputs.ndim != 2 or inputs.shape[1] != config.seq_len:
        raise InputError(
            f"HRM: inputs has shape {list(inputs.shape)}, expected [B, seq_len] = [any, {config.seq_len}]; "
            "the data and the model are of different tasks"
        )
    if identifiers.shape != inputs.shape[:1]:
        raise InputError(
            f"HRM: puzzle_identifiers has shape {list(identifiers.shape)}, expected [B] = [{inputs.shape[0]}]"
        )
    return batch | indices


def check_carry(halted: torch.Tensor, data: Tensors, batch: Tensors) -> None:
    """Check that a carry with these ``halted`` rows and this ``current_data`` takes ``batch``.

    Raises:
        InputError: the number of rows or the names of the tensors differ.
    """
    if len(halted) != len(batch["inputs"]):
        raise InputError(
            f"HRM: the batch has {len(batch['inputs'])} rows and the carry {len(halted)}; use one batch size, or start "
            "over with model.initial_carry(batch)"
        )
    for name in batch:
        if name not in data:
            raise InputError(
                f"HRM: the batch has {name!r}, which the carry lacks (it has {', '.join(data)}); pass it in every "
                "batch, also in that of model.initial_carry"
            )


def check_range(config: ModelConfig, data: Tensors) -> None:
    """Check that every index is in the table it looks up. On a GPU this makes the host wait.

    Raises:
        InputError: a value is out of range.
    """
    for name, size in (("inputs", config.vocab_size), ("puzzle_identifiers", config.num_puzzle_identifiers)):
        wrong = data[name][(data[name] < 0) | (data[name] >= size)]
        if wrong.numel():
            raise InputError(
                f"HRM: {name} holds {wrong[0].item()}, expected 0 to {size - 1}; the data and the model are of "
                "different tasks"
            ) from None  # the caller handles the IndexError of the look-up
