"""Side effects of a forward: random numbers it draws, parameters, attributes and arguments it changes."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hrm_kernels.casts import FrozenWeights


@contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """Restore random number generators afterwards; hide the calls from hooks on saved tensors and from caches."""
    python, numpy = random.getstate(), sys.modules.get("numpy")
    legacy = None if numpy is None else numpy.random.get_state()
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
            FrozenWeights(),  # an outer cache would keep copies of temporary weights
        ):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(legacy)


def generator_states(device: torch.device) -> list[Any]:
    """The states of all random number generators that a forward on ``device`` may use."""
    numpy = sys.modules.get("numpy")
    states: list[Any] = [torch.get_rng_state(), random.getstate()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    if numpy is not None:
        legacy = numpy.random.get_state()
        states += [torch.from_numpy(legacy[1]), legacy[2:]]
    return states


def same_states(before: list[Any], after: list[Any]) -> bool:
    """Compare two results of :func:`generator_states`."""
    return all(equal(a, b) for a, b in zip(before, after))


def parameter_fingerprint(module: nn.Module) -> list[tuple[Any, ...]]:
    """Values that change when a parameter is written, even through ``.data``."""
    fingerprint = []
    for parameter in module.parameters():
        version = None if parameter.is_inference() else parameter._version
        fingerprint.append((id(parameter), version, repr(parameter.detach().sum().item())))
    return fingerprint


def equal(a: Any, b: Any) -> bool:
    """Whether two values are equal, NaN included. Values that cannot be compared count as equal."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a is b:
            return True
        if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
            return False
        return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
    try:
        return bool(a is b or a == b)
    except Exception:  # arrays of several elements, for example
        return True


def first_change(before: Any, after: Any, name: str = "", seen: set[int] | None = None) -> str | None:
    """Return the name of the first value in ``after`` that differs from its copy ``before``, or None."""
    seen = set() if seen is None else seen
    if before is after or id(after) in seen:
        return None
    if type(before) is not type(after):
        return name
    if isinstance(after, torch.Tensor):
        return None if equal(before, after) else name
    seen.add(id(after))
    if isinstance(after, dict):
        pairs = [(f"{name}.{key}", before.get(key), value) for key, value in after.items()]
        if len(before) != len(after):
            added = set(after) - set(before) or set(before) - set(after)
            return f"{name}.{sorted(map(str, added))[0]}" if added else name
    elif isinstance(after, list | tuple):
        pairs = [(f"{name}.{index}", *values) for index, values in enumerate(zip(before, after))]
        if len(before) != len(after):
            return name
    elif isinstance(after, nn.Module):
        containers = ("_modules", "_parameters", "_buffers")
        pairs = [(f"{name}.{key}", before.__dict__.get(key), value) for key, value in after.__dict__.items()]
        pairs = [pair for pair in pairs if pair[0].rpartition(".")[2] not in containers]
        pairs += [(name, before.__dict__[key], after.__dict__[key]) for key in containers]
        if len(before.__dict__) != len(after.__dict__):
            return f"{name}.{sorted(set(after.__dict__) ^ set(before.__dict__))[0]}"
    elif hasattr(after, "__dict__"):
        pairs = [(name, vars(before), vars(after))]
    else:
        compares_identity = type(after).__eq__ is object.__eq__  # a copy never equals its original
        return None if compares_identity or equal(before, after) else name
    changes = (first_change(old, new, inner, seen) for inner, old, new in pairs)
    return next((change for change in changes if change is not None), None)
