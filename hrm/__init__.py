"""Hierarchical reasoning models: train, evaluate, solve, analyse."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrm.config import HRMConfig, TRMConfig
    from hrm.errors import InputError
    from hrm.inference.engine import Engine
    from hrm.losses import act_loss
    from hrm.model import HRM, Carry
    from hrm.trm import TRM
    from hrm.weights import from_published, load, save

__all__ = [
    "HRM",
    "TRM",
    "Carry",
    "Engine",
    "HRMConfig",
    "InputError",
    "TRMConfig",
    "act_loss",
    "from_published",
    "load",
    "save",
]

_HOME = {
    "HRM": "model",
    "TRM": "trm",
    "Carry": "model",
    "Engine": "inference.engine",
    "HRMConfig": "config",
    "InputError": "errors",
    "TRMConfig": "config",
    "act_loss": "losses",
    "from_published": "weights",
    "load": "weights",
    "save": "weights",
}


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used: building data, or ``hrm --help``, need not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'hrm' has no attribute {name!r}")
    return getattr(import_module(f"hrm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
