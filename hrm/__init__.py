"""Hierarchical reasoning models: train, evaluate, solve, analyse."""

from hrm.config import HRMConfig
from hrm.errors import InputError
from hrm.losses import act_loss
from hrm.model import HRM, Carry
from hrm.weights import from_published, load, save

__all__ = ["HRM", "Carry", "HRMConfig", "InputError", "act_loss", "from_published", "load", "save"]
