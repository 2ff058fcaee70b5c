"""Notice changes in a module between calls."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""The attributes of a module that hold its hooks."""


@dataclass
class Snapshot:
    """The state of a module when it was compared. Two snapshots agree as long as nothing in the module changes.

    Attributes:
        dictionaries: attributes and children of each inner module and attributes of its configuration, with copies.
            Values are compared by identity first, so this is fast.
        hooks: hooks of the inner modules.
        parameters: for each parameter its dictionary, the size of that dictionary, its name and shape (None without),
            and the type of the module that holds it.
        buffers: for each buffer its dictionary, name, value and version.
        agreed: for each kind of call whether the ops compute it (else the original forward does).
    """

    dictionaries: list[tuple[dict[str, Any], dict[str, Any]]]
    hooks: list[dict[Any, Any]]
    parameters: list[tuple[dict[str, Any], int, str, torch.Size | None, type]]
    buffers: list[tuple[dict[str, Any], str, Any, int]]
    agreed: dict[Hashable, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module) -> "Snapshot":
        modules = list(module.modules())
        dictionaries = [dictionary for inner in modules for dictionary in (inner.__dict__, inner._modules)]
        configurations = {id(config): config for config in map(_configuration, modules) if config is not None}
        dictionaries += map(vars, configurations.values())
        return cls(
            [(current, dict(current)) for current in dictionaries],
            [getattr(inner, hooks) for inner in modules for hooks in HOOKS if inner is not module],
            [
                (inner._parameters, len(inner._parameters), name, getattr(value, "shape", None), type(inner))
                for inner in modules
                for name, value in inner._parameters.items()
            ],
            [
                (inner._buffers, name, value, _version(value))
                for inner in modules
                for name, value in inner._buffers.items()
            ],
        )

    def is_current(self) -> bool:
        """Whether the module still has the attributes, parameter shapes and buffers of the snapshot."""
        try:
            return (
                all(current == copied for current, copied in self.dictionaries)
                and all(
                    len(parameters) == count and getattr(parameters.get(name), "shape", None) == shape
                    for parameters, count, name, shape, _ in self.parameters
                )
                and all(
                    buffers.get(name) is value and _version(value) == version
                    for buffers, name, value, version in self.buffers
                )
            )
        except Exception:  # the comparison of two arrays is not a bool, for example
            return False

    def allows_ops(self, dtype: torch.dtype) -> bool:
        """Whether the ops may compute states of ``dtype``: no inner hooks, only plain parameters of fitting dtypes."""
        if any(self.hooks):
            return False
        for parameters, _, name, shape, kind in self.parameters:
            if shape is None:
                continue
            parameter = parameters[name]
            if type(parameter) is not nn.Parameter or not is_fitting_dtype(kind, parameter.dtype, dtype):
                return False
        return True


def is_fitting_dtype(kind: type, weight: torch.dtype, state: torch.dtype) -> bool:
    """Whether the ops compute states of dtype ``state`` as a module of type ``kind`` with such weights does.

    ``nn.Linear`` takes states of its dtype only. The published URM keeps its convolutions in bfloat16 and rounds wider
    states to it, which the ops do not.
    """
    if weight == state or kind not in (nn.Linear, nn.Conv1d):
        return True
    return kind is nn.Conv1d and weight.itemsize > 2


def _configuration(module: nn.Module) -> Any:
    values = (module.__dict__.get(name) for name in ("config", "cfg", "args"))
    return next((value for value in values if hasattr(value, "__dict__") and not isinstance(value, type)), None)


def _version(buffer: torch.Tensor | None) -> int:
    return -1 if buffer is None or buffer.is_inference() else buffer._version
