"""Published checkpoints: a pickle with a training configuration beside it, in a folder or on the hub."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # OmegaConf does not catch it

from hrm.config import HRMConfig, ModelConfig, TRMConfig
from hrm.errors import InputError
from hrm.locate import require_known
from hrm.untrusted_yaml import parse_yaml
from hrm.weights.checkpoint import PUZZLE_EMB, Checkpoint
from hrm.weights.tensor_files import first_line, read_pickle

_PREFIXES = ("_orig_mod.", "model.", "module.")
_EMBED_TOKENS = "inner.embed_tokens.embedding_weight"
_ROW_PER_POSITION = ("inner.embed_pos.embedding_weight", "inner.L_level.layers.0.mlp_t.down_proj.weight")
_SEQ_LENS = {11: 81, 12: 900, 6: 900}  # by vocabulary: Sudoku, ARC, maze; a RoPE checkpoint does not hold it


def without_prefixes(name: str) -> str:
    """A tensor's name without those of the modules that wrapped the model."""
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def download(name: str) -> Path:
    """The folder of a model on the hub.

    Raises:
        InputError: the hub has no such model, or cannot be reached.
    """
    require_known(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{name} is neither a local path nor available from the hub ({first_line(error)}); check the spelling and "
            "the network, or download the folder and pass its path"
        ) from None


def read_published(path: Path, seq_len: int | None) -> Checkpoint:
    """Read a published checkpoint: its file, or its folder.

    Args:
        path: of either; ``all_config.yaml`` is in the folder.
        seq_len: tokens of a puzzle, for a checkpoint that does not tell.

    Raises:
        InputError: a file is missing or damaged, or holds something else.
    """
    folder = path if path.is_dir() else path.parent
    config_file = folder / "all_config.yaml"
    if not config_file.is_file():
        raise InputError(
            f"{path} is not a model: expected config.json and model.safetensors (hrm.save), or a published "
            "checkpoint with all_config.yaml beside it"
        )
    file = path if path.is_file() else _newest_file(folder)
    state = {without_prefixes(name): tensor for name, tensor in read_pickle(file).items()}
    arch = _read_arch(config_file)
    # Both families have configurations of two levels. A TRM has the weights of one.
    config_type = HRMConfig if any(name.startswith("inner.H_level.") for name in state) else TRMConfig
    values = {str(key): value for key, value in arch.items() if key in config_type.model_fields}
    for name in (_EMBED_TOKENS, PUZZLE_EMB, *_ROW_PER_POSITION):
        if name in state and state[name].ndim != 2:
            raise InputError(
                f"{file} does not hold an HRM or TRM: {name} is {list(state[name].shape)}, expected two dimensions"
            )
    if _EMBED_TOKENS not in state:
        raise InputError(f"{file} does not hold an HRM or TRM: it lacks {_EMBED_TOKENS}")
    values["vocab_size"] = state[_EMBED_TOKENS].shape[0]
    values["num_puzzle_identifiers"] = state[PUZZLE_EMB].shape[0] if PUZZLE_EMB in state else 1
    values["seq_len"] = _seq_len(state, config_type.parse(values | {"seq_len": 1}), seq_len)
    return Checkpoint(config_type, state, values)


def _newest_file(folder: Path) -> Path:
    """The published code writes a ``step_<n>`` file at each evaluation; a folder on the hub has one ``checkpoint``."""
    files = [p for p in folder.iterdir() if p.is_file() and (p.name.startswith("step_") or p.name == "checkpoint")]
    files = [p for p in files if p.suffix in ("", ".pt", ".pth")]
    if not files:
        raise InputError(
            f"{folder} has all_config.yaml but no checkpoint file ('checkpoint' or 'step_<n>'); pass the file's path"
        )
    return max(files, key=lambda p: (len(p.stem), p.stem))


def _read_arch(file: Path) -> dict[Any, Any]:
    """The model's section of a published training configuration."""
    try:
        loaded = OmegaConf.create(parse_yaml(file.read_text(encoding="utf-8-sig")))
        training = OmegaConf.to_container(loaded, resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:  # ValueError: not text, thousands of digits
        raise InputError(f"{file} is not a training configuration: {first_line(error)}") from None
    arch = training.get("arch") if isinstance(training, dict) else None
    if not isinstance(arch, dict):
        raise InputError(f"{file} has no 'arch' section; expected the published training configuration")
    return arch


def _seq_len(state: dict[str, torch.Tensor], config: ModelConfig, seq_len: int | None) -> int:
    for name in _ROW_PER_POSITION:
        if name in state:
            return state[name].shape[0] - config.puzzle_emb_len
    if seq_len is not None:
        return seq_len
    if config.vocab_size not in _SEQ_LENS:
        raise InputError(
            f"the checkpoint does not say how long its sequences are (vocabulary {config.vocab_size}); "
            "pass seq_len to hrm.load, and write the model with hrm.save for the command line"
        )
    return _SEQ_LENS[config.vocab_size]
