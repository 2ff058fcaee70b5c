"""Published checkpoints: a pickle with a training configuration beside or in it, in a folder or on the hub."""

import re
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # OmegaConf does not catch it

from hrm.config import EqRConfig, HRMConfig, ModelConfig, TRMConfig, URMConfig
from hrm.errors import InputError
from hrm.locate import require_known
from hrm.untrusted_yaml import inert, parse_yaml
from hrm.weights.checkpoint import PUZZLE_EMB, Checkpoint, Weights
from hrm.weights.tensor_files import first_line, read_pickle, refused

_PREFIXES = ("_orig_mod.", "model.", "module.")
_CONFIG_FILES = ("all_config.yaml", "config.yaml", ".hydra/config.yaml")
_STATE_DICTS = ("model", "model_state_dict", "state_dict")  # in the file of a training's state
_OF_A_BATCH = (".puzzle_emb.local_weights", ".puzzle_emb.local_ids")  # not weights
_EMBED_TOKENS = "inner.embed_tokens.embedding_weight"
_ROW_PER_POSITION = ("inner.embed_pos.embedding_weight", "inner.L_level.layers.0.mlp_t.down_proj.weight")
_SEQ_LENS = {11: 81, 12: 900, 6: 900}  # by vocabulary: Sudoku, ARC, maze; a RoPE checkpoint does not hold it


def without_prefixes(name: str) -> str:
    """A tensor's name without those of the modules that wrapped the model."""
    name = name.replace("._orig_mod.", ".")
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def download(name: str, **options: Any) -> Path:
    """The folder of a model on the hub, ``owner/name``, or of one of several in it, ``owner/name/folder``.

    Args:
        name: of the model.
        options: of ``huggingface_hub.snapshot_download``, such as ``revision``.

    Raises:
        InputError: the hub has no such model, or cannot be reached.
    """
    require_known(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        owner, repository, *folder = name.split("/")
        return Path(snapshot_download(f"{owner}/{repository}", **options)).joinpath(*folder)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        revision = f" at revision {options['revision']}" if "revision" in options else ""
        raise InputError(
            f"{name}{revision} is neither a local path nor available from the hub ({first_line(error)}); "
            "check the spelling and the network, or download the folder and pass its path"
        ) from None


def read_published(path: Path, seq_len: int | None, weights: Weights = "auto") -> Checkpoint:
    """Read a published checkpoint: its file, or its folder.

    The codes of HRM and TRM write a state dict, which is the averaged one in a run that averages. That of URM writes
    it beside the state of the training, and that of EqR writes both, the trained and the averaged weights.

    Args:
        path: of either; the configuration of the training is in the folder, or in the file.
        seq_len: tokens of a puzzle, for a checkpoint that does not tell.
        weights: which weights of a file that has both.

    Raises:
        InputError: a file is missing or damaged, or holds something else.
    """
    folder = path if path.is_dir() else path.parent
    config_file = next((folder / name for name in _CONFIG_FILES if (folder / name).is_file()), None)
    if path.is_dir() and config_file is None and not _checkpoint_files(folder):
        raise InputError(
            f"{path} is not a model: expected config.json and model.safetensors (hrm.save), or a published "
            "checkpoint with all_config.yaml beside it"
        )
    file = path if path.is_file() else _newest_file(folder)
    pickled = read_pickle(file)
    state = _state_dict(file, pickled, weights)
    if isinstance(pickled.get("config"), dict):
        arch = _arch(file, inert(pickled["config"]))
    elif config_file is not None:
        arch = _read_arch(config_file)
    else:
        raise InputError(f"{file} has no configuration beside it; expected {' or '.join(_CONFIG_FILES)} in {folder}")
    config_type = _config_type(state, arch)
    values = {str(key): value for key, value in arch.items() if key in {*config_type.model_fields, "loops"}}
    if values.get("pos_encodings", "") is None or values.get("mlp_t"):  # an encoding is not used by blocks with mlp_t
        values["pos_encodings"] = "none"
    for name in (_EMBED_TOKENS, PUZZLE_EMB, *_ROW_PER_POSITION):
        if name in state and state[name].ndim != 2:
            raise InputError(
                f"{file} does not hold a model: {name} is {list(state[name].shape)}, expected two dimensions"
            )
    if _EMBED_TOKENS not in state:
        raise InputError(f"{file} does not hold a model: it lacks {_EMBED_TOKENS}")
    values["vocab_size"] = state[_EMBED_TOKENS].shape[0]
    values["num_puzzle_identifiers"] = state[PUZZLE_EMB].shape[0] if PUZZLE_EMB in state else 1
    values["seq_len"] = _seq_len(state, config_type, values, seq_len)
    return Checkpoint(config_type, state, values)


def _state_dict(file: Path, pickled: dict[str, Any], weights: Weights) -> dict[str, torch.Tensor]:
    """The weights in a file, by their names without prefixes."""
    name = next((name for name in _STATE_DICTS if isinstance(pickled.get(name), dict)), None)
    state = pickled if name is None else pickled[name]
    averaged = pickled.get("ema") if name is not None else None
    if isinstance(averaged, dict):
        averaged = averaged.get("shadow", averaged)
    if weights == "ema" and not averaged:
        raise InputError(f"{file} has no averaged weights beside others; load it with weights=auto")
    if averaged and weights != "model":  # of the parameters only
        state = _by_name(file, state) | _by_name(file, averaged)
    return _by_name(file, state)


def _by_name(file: Path, state: dict[Any, Any]) -> dict[str, torch.Tensor]:
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()):
        raise refused(file)
    named = {without_prefixes(name): value for name, value in state.items()}
    return {name: value for name, value in named.items() if not name.endswith(_OF_A_BATCH)}


def _config_type(state: dict[str, torch.Tensor], arch: dict[Any, Any]) -> type[ModelConfig]:
    """The family of a model, by its weights: all have configurations alike."""
    if "inner.init_hidden" in state:
        return URMConfig
    if any(name.startswith("inner.H_level.") for name in state):
        return HRMConfig
    return EqRConfig if "lambda_" in arch else TRMConfig


def _checkpoint_files(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix in ("", ".pt", ".pth")]
    return [
        path for path in files if path.suffix == ".pth" or path.stem.startswith("step_") or path.name == "checkpoint"
    ]


def _newest_file(folder: Path) -> Path:
    """The published codes write a ``step_<n>`` file at each evaluation; a folder on the hub has one ``checkpoint``."""
    files = _checkpoint_files(folder)
    if not files:
        raise InputError(
            f"{folder} has a configuration but no checkpoint file ('checkpoint' or 'step_<n>'); pass the file's path"
        )
    return max(files, key=lambda path: _step(path))


def _step(path: Path) -> tuple[int, str]:
    step = re.match(r"step_(\d+)", path.name)
    return int(step[1]) if step else -1, path.name


def _read_arch(file: Path) -> dict[Any, Any]:
    """The model's section of a published training configuration."""
    try:
        values = parse_yaml(file.read_text(encoding="utf-8-sig"))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:  # ValueError: not text, thousands of digits
        raise InputError(f"{file} is not a training configuration: {first_line(error)}") from None
    return _arch(file, values)


def _arch(file: Path, values: Any) -> dict[Any, Any]:
    """The model's section of a training configuration in ``file``, whose references are filled in."""
    try:
        training = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise InputError(f"{file} is not a training configuration: {first_line(error)}") from None
    arch = training.get("arch") if isinstance(training, dict) else None
    if not isinstance(arch, dict):
        raise InputError(f"{file} has no 'arch' section; expected the published training configuration")
    return arch


def _seq_len(
    state: dict[str, torch.Tensor], config_type: type[ModelConfig], values: dict[str, Any], seq_len: int | None
) -> int:
    without_board = {"pos_encodings": "rope"} if values.get("pos_encodings") == "rope2d" else {}
    config = config_type.parse(values | without_board | {"seq_len": 1})
    for name in _ROW_PER_POSITION:
        if name in state:
            return state[name].shape[0] - config.puzzle_emb_len
    if seq_len is not None:
        return seq_len
    if config.board_height and config.board_width:
        return config.board_height * config.board_width
    if config.vocab_size not in _SEQ_LENS:
        raise InputError(
            f"the checkpoint does not say how long its sequences are (vocabulary {config.vocab_size}); "
            "pass seq_len to hrm.load, and write the model with hrm.save for the command line"
        )
    return _SEQ_LENS[config.vocab_size]
