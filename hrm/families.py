"""The families of models: which class a configuration makes."""

import torch

from hrm.config import EqRConfig, HRMConfig, ModelConfig, TRMConfig, URMConfig
from hrm.eqr import EqR
from hrm.errors import InputError
from hrm.model import HRM
from hrm.sizes import require_memory
from hrm.trm import TRM
from hrm.urm import URM

MODELS: dict[type[ModelConfig], type[HRM]] = {HRMConfig: HRM, TRMConfig: TRM, EqRConfig: EqR, URMConfig: URM}
"""The model of each configuration."""


def build(config: ModelConfig, sharded: bool = False) -> HRM:
    """A new model of the configuration's family; ``sharded`` as for :class:`hrm.HRM`.

    Raises:
        InputError: the configuration is of no family, or this machine does not have enough memory.
    """
    if not sharded:
        require_memory(
            4 * sum(shape.numel() for shape in weight_shapes(config).values()),
            "the weights of this model",
            f"check hidden_size {config.hidden_size}, the layers and num_puzzle_identifiers "
            f"{config.num_puzzle_identifiers}",
        )
    return _build(config, sharded)


def _build(config: ModelConfig, sharded: bool = False) -> HRM:
    if type(config) not in MODELS:
        kinds = ", ".join(kind.__name__ for kind in MODELS)
        raise InputError(
            f"config is {type(config).__name__}, expected one of {kinds}; HRMConfig.parse reads plain values"
        )
    return MODELS[type(config)](config, sharded)  # type: ignore[arg-type]


def weight_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """The shape of each tensor in the ``state_dict()`` of ``build(config)``, without building it.

    Raises:
        InputError: see :func:`build`.
    """
    if isinstance(config, ModelConfig) and config.pos_encodings in ("rope", "rope2d"):
        # RoPE tables are not weights. To compute them on the meta device, torch imports its compiler for seconds.
        config = config.model_copy(update={"pos_encodings": "none"})
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in _build(config).state_dict().items()}
