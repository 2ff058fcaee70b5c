"""Models on disk: our folders, published checkpoints, hub names."""

import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from yaml import YAMLError  # OmegaConf lets it through

from hrm.config import FAMILIES, HRMConfig, ModelConfig, TRMConfig, parse_yaml
from hrm.errors import InputError
from hrm.files import checksum, folder_written_beside, read_json, require_unchanged
from hrm.locate import checkpoints as checkpoints
from hrm.locate import locate, require_known
from hrm.model import HRM
from hrm.trm import build, weight_shapes
from hrm_kernels.sharded_embedding import ShardedEmbedding

PuzzleEmb = Literal["strict", "keep", "mean", "zero"]
"""What to do with a puzzle embedding of another number of rows: refuse; keep the rows that both have (further ones
start at 0); fill all rows with the mean of the old ones; start all rows at 0."""
Weights = Literal["model", "ema", "auto"]
"""Which weights of a training checkpoint: those that were trained, the averaged ones, or these where there are any."""

_PREFIXES = ("_orig_mod.", "model.", "module.")
_PUBLISHED_SEQ_LEN = {11: 81, 12: 900, 6: 900}  # by vocabulary: Sudoku, ARC, Maze; not in a RoPE checkpoint
_SAY_THE_LENGTH = ("inner.embed_pos.embedding_weight", "inner.L_level.layers.0.mlp_t.down_proj.weight")
PUZZLE_EMB = "inner.puzzle_emb.weights"
"""The puzzle embedding's name in a state dict."""
STATE_FILE = "state.json"
"""What else a training run needs to go on, with every file's checksum, beside the weights."""
_FILES, _IDENTIFIERS = "files", "identifiers"  # of config.json; the first of state.json too
PUZZLE_EMB_FILE = "puzzle_emb.safetensors"
"""Where a training run keeps the puzzle embedding whose rows are divided among processes, beside the other weights."""


def save(model: HRM, folder: Path | str, overwrite: bool = False, **extra: Any) -> None:
    """Write ``model.safetensors`` and ``config.json`` into a new ``folder``, complete or not at all.

    ``config.json`` has the weights' checksum, and which puzzle identifiers the model knows (``model.identifiers``).

    Args:
        model: the model; weights are stored in their own dtype under the published names. Tied ones are stored each,
            and no longer tied in the model that is loaded.
        folder: must be new or empty unless ``overwrite``.
        overwrite: replace a folder that exists.
        extra: more JSON values for ``config.json`` (such as ``task``).

    Raises:
        InputError: the folder exists, or the model's puzzle embedding is divided among processes.
        OSError: it cannot be written, such as on a full disk.
    """
    if isinstance(model.puzzle_emb, ShardedEmbedding):
        raise InputError("no process has all rows of a sharded puzzle embedding to save; load a checkpoint of its run")
    with folder_written_beside(folder, overwrite) as part:
        write_model(model, part, **extra)


def write_model(model: HRM, folder: Path, **extra: Any) -> None:
    """The files of :func:`save` in a folder that exists."""
    file = folder / "model.safetensors"
    write_tensors(file, model.state_dict())
    own: dict[str, Any] = {"family": model.config.family, "model": model.config.model_dump()}
    if model.identifiers is not None:
        own[_IDENTIFIERS] = model.identifiers
    config = own | extra | {_FILES: {file.name: checksum(file)}}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors of any device as safetensors; those that share memory are written each.

    Raises:
        OSError: the file cannot be written.
    """
    on_cpu: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        on_cpu[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    try:
        save_file(on_cpu, file)
    except SafetensorError as error:  # it has the system's error as text only
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise OSError(None, f"cannot be written ({_first_line(error)})", str(file)) from error
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(file)) from error


def from_published(state_dict: dict[str, torch.Tensor], config: ModelConfig, puzzle_emb: PuzzleEmb = "strict") -> HRM:
    """A model with the weights of a published state dict.

    Args:
        state_dict: tensors under the published names, with or without the prefixes ``_orig_mod.`` and ``model.``.
        config: the model's configuration, an HRMConfig or a TRMConfig; its ``num_puzzle_identifiers`` is what the model
            will have.
        puzzle_emb: what to do with a puzzle embedding of another number of rows (:data:`PuzzleEmb`).

    Raises:
        InputError: a weight is missing, not known, or of another shape; the message names it. Nothing of the
            configuration's sizes is allocated before.
    """
    _check_choice("puzzle_emb", puzzle_emb, PuzzleEmb)
    state = {_without_prefixes(name): tensor for name, tensor in state_dict.items()}
    own = weight_shapes(config)
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        problem = f"it lacks {missing[0]}" if missing else f"it has {unknown[0]}, which this model has not"
        more = f" (and {len(missing) + len(unknown) - 1} more)" if len(missing) + len(unknown) > 1 else ""
        raise InputError(
            f"the checkpoint does not fit the configuration: {problem}{more}; check layers, pos_encodings, mlp_t"
        )
    for name, shape in own.items():
        if name == PUZZLE_EMB:
            _check_puzzle_emb(state[name].shape, shape, puzzle_emb)
        elif _without_ones(state[name].shape) != _without_ones(shape):
            raise InputError(
                f"the checkpoint does not fit the configuration: {name} is {list(state[name].shape)}, "
                f"expected {list(shape)}"
            )
    model = build(config)
    for name, tensor in model.state_dict().items():
        given = state[name]
        if name == PUZZLE_EMB and given.shape != tensor.shape:
            _fill_puzzle_emb(tensor, given, puzzle_emb)
        else:
            tensor.copy_(given.reshape(tensor.shape))
    return model


def _without_ones(shape: torch.Size) -> list[int]:
    return [size for size in shape if size != 1]


def _without_prefixes(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(get_args(choices))}")


def _check_puzzle_emb(given: torch.Size, own: torch.Size, choice: PuzzleEmb) -> None:
    if given == own:
        return
    if len(given) != 2 or given[1] != own[1]:
        raise InputError(f"the checkpoint's puzzle_emb is {list(given)}, expected [rows, {own[1]}] (puzzle_emb_ndim)")
    if choice == "strict":
        raise InputError(
            f"the checkpoint's puzzle_emb has {given[0]} rows and the data {own[0]} puzzle identifiers; choose "
            "puzzle_emb=keep (the rows both have), puzzle_emb=mean (all rows the mean) or puzzle_emb=zero (start anew)"
        )


def _fill_puzzle_emb(own: torch.Tensor, given: torch.Tensor, choice: PuzzleEmb) -> None:
    own.zero_()
    if choice == "keep":
        rows = min(len(given), len(own))
        own[:rows] = given[:rows]
    elif choice == "mean":
        own[:] = given.float().mean(0)


def _for_others(given: torch.Tensor, choice: PuzzleEmb) -> torch.Tensor:
    """The rows of a puzzle embedding for other puzzles than those it was trained on."""
    if choice == "strict":
        raise InputError(
            "the checkpoint was trained on other puzzle identifiers than those of the data (their names differ), and "
            "its puzzle_emb on those; choose puzzle_emb=mean (all rows the mean), puzzle_emb=zero (start anew) or "
            "puzzle_emb=keep (by number all the same)"
        )
    if choice == "keep":
        return given
    return torch.zeros_like(given) if choice == "zero" else given.float().mean(0).expand_as(given)


def load(
    path: Path | str,
    device: torch.device | str = "cpu",
    puzzle_emb: PuzzleEmb = "strict",
    num_puzzle_identifiers: int | None = None,
    seq_len: int | None = None,
    forward_dtype: str | None = None,
    weights: Weights = "auto",
    identifiers: str | None = None,
) -> HRM:
    """Load a model, in evaluation mode.

    Args:
        path: a folder of :func:`save`, a training run or one of its checkpoints, a published checkpoint (its file, or
            its folder with ``all_config.yaml``), a hub name such as ``sapientinc/HRM-checkpoint-sudoku-extreme``, or
            the name of a model that comes with the package, such as ``sudoku4`` (``hrm models`` lists them).
        device: where the model goes.
        puzzle_emb: what to do with a puzzle embedding of another number of rows than ``num_puzzle_identifiers``, or of
            other puzzles than ``identifiers`` (``"keep"`` then keeps the rows by their number).
        num_puzzle_identifiers: rows the model's puzzle embedding is to have; None keeps the checkpoint's.
        seq_len: tokens of a puzzle, for published checkpoints with RoPE of other tasks than the published ones.
        forward_dtype: another dtype to compute in; None keeps the checkpoint's, but float32 on a CPU.
        weights: ``"ema"`` loads the averaged weights of a training checkpoint, ``"model"`` those that were trained,
            ``"auto"`` the averaged ones where there are any.
        identifiers: which puzzle identifiers the model is to know
            (:func:`hrm.data.fingerprint.names_fingerprint`); None leaves those of the checkpoint.

    Raises:
        InputError: nothing is there, or it is damaged, refused (a pickle with code in it) or does not fit; or
            ``puzzle_emb`` or ``weights`` is none of its values.
    """
    _check_choice("weights", weights, Weights)
    _check_choice("puzzle_emb", puzzle_emb, PuzzleEmb)
    config_type, state, values, known = _read(Path(path), str(path), seq_len, weights)
    rows = values.get("num_puzzle_identifiers")
    if num_puzzle_identifiers is not None:
        values["num_puzzle_identifiers"] = num_puzzle_identifiers
    if forward_dtype is not None:
        values["forward_dtype"] = forward_dtype
    elif torch.device(device).type == "cpu":
        values["forward_dtype"] = "float32"  # a CPU gains nothing from bfloat16 activations
    others = identifiers is not None and known not in (None, identifiers)
    if others and PUZZLE_EMB in state:
        state[PUZZLE_EMB] = _for_others(state[PUZZLE_EMB], puzzle_emb)
    with torch.device("cpu"):  # where the weights are, whatever torch.set_default_device says
        model = from_published(state, config_type.parse(values), puzzle_emb)
    model = model.to(device).eval()
    model.identifiers = identifiers if others or rows != model.config.num_puzzle_identifiers else known
    return model


def read_extra(path: Path | str) -> dict[str, Any]:
    """What ``config.json`` of a saved model holds beside the model's configuration; empty for other checkpoints."""
    file = locate(path) / "config.json"
    own = ("family", "model", _FILES, _IDENTIFIERS)
    return {k: v for k, v in read_json(file).items() if k not in own} if file.is_file() else {}


_Read = tuple[type[ModelConfig], dict[str, torch.Tensor], dict[str, Any], str | None]
"""The family's configuration, the state dict, the configuration's values and the puzzle identifiers it knows."""


def _read(path: Path, name: str, seq_len: int | None, weights: str) -> _Read:
    path = locate(path)
    if not path.exists():
        path = _download(name)
    if (path / "config.json").is_file():
        return _read_saved(path, weights)
    return _read_published(path, seq_len)


def _read_saved(folder: Path, weights: str) -> _Read:
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise InputError(f"{folder / 'config.json'} has no 'model' section; expected a folder written by hrm.save")
    family = config.get("family", "hrm")
    if family not in FAMILIES:
        raise InputError(f"{folder} holds a model of family {family!r}; this version loads {', '.join(FAMILIES)}")
    averaged = folder / "ema.safetensors"
    file = averaged if weights == "ema" or (weights == "auto" and averaged.is_file()) else folder / "model.safetensors"
    if not file.is_file():
        raise InputError(f"{file} is missing; the checkpoint was not written by this training, or is not complete")
    sums, table = _checksums(folder, config), folder / PUZZLE_EMB_FILE
    _require_unchanged(folder / "config.json", sums)
    state = _load_safetensors(file, sums)
    if table.is_file():
        state |= _load_safetensors(table, sums)
    return FAMILIES[family], state, config["model"], config.get(_IDENTIFIERS)


def _checksums(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Of the files of a checkpoint, by name; none where it was written before there were any."""
    state = folder / STATE_FILE
    sums = [
        some.get(_FILES) for some in (config, read_json(state) if state.is_file() else {}) if isinstance(some, dict)
    ]
    return {name: one for some in sums if isinstance(some, dict) for name, one in some.items()}


def _read_published(path: Path, seq_len: int | None) -> _Read:
    folder = path if path.is_dir() else path.parent
    config_file = folder / "all_config.yaml"
    if not config_file.is_file():
        raise InputError(
            f"{path} is no model: expected config.json and model.safetensors (hrm.save), or a published "
            "checkpoint with all_config.yaml beside it"
        )
    file = path if path.is_file() else _checkpoint_file(folder)
    state = {_without_prefixes(key): tensor for key, tensor in _load_pickle(file).items()}
    try:
        loaded = OmegaConf.create(parse_yaml(config_file.read_text(encoding="utf-8-sig")))
        training = OmegaConf.to_container(loaded, resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:  # ValueError: no text, thousands of digits
        raise InputError(f"{config_file} is not a training configuration: {_first_line(error)}") from None
    arch = training.get("arch") if isinstance(training, dict) else None
    if not isinstance(arch, dict):
        raise InputError(f"{config_file} has no 'arch' section; expected the published training configuration")
    # both families of published models have a two-level configuration, one of them a single level of weights
    config_type = HRMConfig if any(name.startswith("inner.H_level.") for name in state) else TRMConfig
    values = {str(key): value for key, value in arch.items() if key in config_type.model_fields}
    for name in ("inner.embed_tokens.embedding_weight", PUZZLE_EMB, *_SAY_THE_LENGTH):
        if name in state and state[name].ndim != 2:
            raise InputError(
                f"{file} holds no HRM or TRM: {name} is {list(state[name].shape)}, expected two dimensions"
            )
    try:
        values["vocab_size"] = state["inner.embed_tokens.embedding_weight"].shape[0]
        rows = state[PUZZLE_EMB].shape[0] if PUZZLE_EMB in state else 1
    except KeyError as error:
        raise InputError(f"{file} holds no HRM or TRM: it lacks {error}") from None
    values["num_puzzle_identifiers"] = rows
    values["seq_len"] = _seq_len(state, config_type.parse(values | {"seq_len": 1}), seq_len)
    return config_type, state, values, None


def _seq_len(state: dict[str, torch.Tensor], config: ModelConfig, given: int | None) -> int:
    for name in _SAY_THE_LENGTH:
        if name in state:
            return state[name].shape[0] - config.puzzle_emb_len
    if given is not None:
        return given
    if config.vocab_size not in _PUBLISHED_SEQ_LEN:
        raise InputError(
            f"the checkpoint does not say how long its sequences are (vocabulary {config.vocab_size}); "
            "pass seq_len to hrm.load, and write the model with hrm.save for the command line"
        )
    return _PUBLISHED_SEQ_LEN[config.vocab_size]


def _checkpoint_file(folder: Path) -> Path:
    """The published code writes a ``step_<n>`` file at each evaluation; the hub's folders hold one ``checkpoint``."""
    files = [p for p in folder.iterdir() if p.is_file() and (p.name.startswith("step_") or p.name == "checkpoint")]
    files = [p for p in files if p.suffix in ("", ".pt", ".pth")]
    if not files:
        raise InputError(
            f"{folder} has all_config.yaml but no checkpoint file ('checkpoint' or 'step_<n>'); name the file itself"
        )
    return max(files, key=lambda p: (len(p.stem), p.stem))


def _require_unchanged(file: Path, sums: Mapping[str, Any]) -> None:
    try:
        if file.name in sums:
            require_unchanged(file, sums[file.name])
    except (OSError, InputError, LookupError, TypeError) as error:
        raise InputError(f"{file} is damaged or incomplete ({error}); use another checkpoint") from None


def _load_safetensors(file: Path, sums: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    _require_unchanged(file, sums)
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged or incomplete ({error}); use another checkpoint") from None


def _load_pickle(file: Path) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles of a kind that torch.save does not write
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle lead the unpickler into errors of any kind
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            raise InputError(
                f"{file} is refused: its pickle holds more than tensors, and loading it could run code; "
                "save its state dict again with safetensors, where you trust it"
            ) from None
        reason = type(error).__name__ if isinstance(error, pickle.UnpicklingError | LookupError) else _first_line(error)
        raise InputError(f"{file} is damaged, incomplete or no checkpoint ({reason}); use another one") from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise InputError(f"{file} holds {type(state).__name__}, expected a state dict of tensors by name")
    return state


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]


def _download(name: str) -> Path:
    require_known(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{name} is neither a path here nor to be had from the hub ({_first_line(error)}); "
            "check the spelling and the network, or download the folder and pass its path"
        ) from None
