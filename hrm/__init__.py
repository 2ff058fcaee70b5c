"""Hierarchical reasoning models: train, evaluate, solve, analyse.

``import hrm`` does not import torch: public names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrm.api import adapt, analyze, calibrate, evaluate, scale, solve, train
    from hrm.config import EqRConfig, HRMConfig, TRMConfig, URMConfig
    from hrm.data import register_task
    from hrm.data.format import PuzzleDataset, SetBuilder, open_dataset, write_dataset
    from hrm.data.task import Cell, PuzzleTask
    from hrm.eqr import EqR
    from hrm.errors import InputError
    from hrm.inference.engine import Engine
    from hrm.inference.metrics import Metrics
    from hrm.inference.solve import Solution
    from hrm.losses import act_loss
    from hrm.model import HRM, Carry
    from hrm.trm import TRM
    from hrm.urm import URM
    from hrm.weights import from_published, load, save

    __version__: str

__all__ = [
    "HRM",
    "TRM",
    "URM",
    "Carry",
    "Cell",
    "Engine",
    "EqR",
    "EqRConfig",
    "HRMConfig",
    "InputError",
    "Metrics",
    "PuzzleDataset",
    "PuzzleTask",
    "SetBuilder",
    "Solution",
    "TRMConfig",
    "URMConfig",
    "__version__",
    "act_loss",
    "adapt",
    "analyze",
    "calibrate",
    "evaluate",
    "from_published",
    "load",
    "open_dataset",
    "register_task",
    "save",
    "scale",
    "solve",
    "train",
    "write_dataset",
]

_MODULES = {
    "api": ("adapt", "analyze", "calibrate", "evaluate", "scale", "solve", "train"),
    "config": ("EqRConfig", "HRMConfig", "TRMConfig", "URMConfig"),
    "data": ("register_task",),
    "data.format": ("PuzzleDataset", "SetBuilder", "open_dataset", "write_dataset"),
    "data.task": ("Cell", "PuzzleTask"),
    "errors": ("InputError",),
    "inference.engine": ("Engine",),
    "inference.metrics": ("Metrics",),
    "inference.solve": ("Solution",),
    "losses": ("act_loss",),
    "model": ("HRM", "Carry"),
    "eqr": ("EqR",),
    "trm": ("TRM",),
    "urm": ("URM",),
    "weights": ("from_published", "load", "save"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name on its first use."""
    if name == "__version__":
        value: Any = import_module("hrm_kernels.versions").own()
    elif name in _MODULE_OF:
        value = getattr(import_module(f"hrm.{_MODULE_OF[name]}"), name)
    else:
        raise AttributeError(f"module 'hrm' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
