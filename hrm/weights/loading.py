"""Read models from disk: saved models, training checkpoints, published checkpoints, hub names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch

from hrm.config import FAMILIES, ModelConfig, automatic_dtype
from hrm.errors import InputError
from hrm.families import build, weight_shapes
from hrm.files import read_json
from hrm.locate import described, locate
from hrm.model import HRM
from hrm.weights.checkpoint import (
    CONFIG_FILE,
    EMA_FILE,
    FILES,
    IDENTIFIERS,
    PUZZLE_EMB,
    PUZZLE_EMB_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    Weights,
)
from hrm.weights.published import download, read_published, without_prefixes
from hrm.weights.puzzle_embedding import PuzzleEmb, check_rows, fill_rows, for_other_puzzles
from hrm.weights.tensor_files import read_tensors, require_undamaged
from hrm_kernels.ops.transformer_block.eight_bit import CHOICES


def load(
    path: Path | str,
    device: torch.device | str = "cpu",
    puzzle_emb: PuzzleEmb = "strict",
    num_puzzle_identifiers: int | None = None,
    seq_len: int | None = None,
    forward_dtype: str | None = None,
    weights: Weights = "auto",
    identifiers: str | None = None,
    eight_bit: str | None = None,
) -> HRM:
    """Load a model, in evaluation mode.

    Args:
        path: a folder of :func:`hrm.save`, a training run or one of its checkpoints, a published checkpoint (its file,
            or its folder with ``all_config.yaml``), a hub name such as ``sapientinc/HRM-checkpoint-sudoku-extreme`` or
            ``locuslab/EqR-model/sudoku-extreme``, or the name of a model that comes with the package, such as
            ``sudoku4`` (``hrm models`` lists them).
        device: of the model.
        puzzle_emb: what to do with a puzzle embedding of another number of rows than ``num_puzzle_identifiers``, or
            trained on other puzzles than ``identifiers`` (``"keep"`` then keeps the rows by their number).
        num_puzzle_identifiers: rows of the model's puzzle embedding; None keeps the checkpoint's.
        seq_len: tokens of a puzzle, for published checkpoints with RoPE of other tasks than the published ones.
        forward_dtype: another dtype to compute in; None keeps the checkpoint's, but a CPU computes in bfloat16 where it
            multiplies that in hardware, else in float32 (:func:`hrm.config.automatic_dtype`).
        weights: ``"ema"`` loads the averaged weights of a training checkpoint (or of EqR's published ones), ``"model"``
            the trained ones, ``"auto"`` the averaged ones if there are any.
        identifiers: which puzzle identifiers the model is used for (:func:`hrm.data.fingerprint.names_fingerprint`);
            None: those of the checkpoint.
        eight_bit: compute the products of updates without gradients in 8 bits: ``"fp8"``, ``"int8"``, or ``"auto"``,
            which takes what the GPU has. Faster and less accurate; on GPUs, for models with attention
            (:func:`hrm_kernels.recurrent_cycles`).

    Raises:
        InputError: there is no such model; it is damaged, refused (a pickle with code in it) or does not fit; or
            ``puzzle_emb``, ``weights`` or ``eight_bit`` has another value than listed.
    """
    _check_choice("weights", weights, Weights)
    _check_choice("puzzle_emb", puzzle_emb, PuzzleEmb)
    if eight_bit is not None and eight_bit not in CHOICES:
        raise InputError(f"eight_bit is {eight_bit!r}, expected None or one of {', '.join(CHOICES)}")
    found = _found(path)
    checkpoint = _read(found, seq_len, weights)
    state, values, known = checkpoint.state, checkpoint.values, checkpoint.identifiers
    rows = values.get("num_puzzle_identifiers")
    if num_puzzle_identifiers is not None:
        values["num_puzzle_identifiers"] = num_puzzle_identifiers
    if forward_dtype is not None:
        values["forward_dtype"] = forward_dtype
    elif torch.device(device).type == "cpu":
        values["forward_dtype"] = automatic_dtype(device)
    has_other_puzzles = identifiers is not None and known not in (None, identifiers)
    if has_other_puzzles and PUZZLE_EMB in state:
        state[PUZZLE_EMB] = for_other_puzzles(state[PUZZLE_EMB], puzzle_emb)
    with torch.device("cpu"):  # where the weights are, whatever torch.set_default_device says
        model = from_published(state, checkpoint.config_type.parse(values), puzzle_emb)
    model = model.to(device).eval()
    model.origin = described(path)
    model.folder = found if found.is_dir() else found.parent
    model.inner.eight_bit = eight_bit
    keeps_rows = not has_other_puzzles and rows == model.config.num_puzzle_identifiers
    model.identifiers = known if keeps_rows else identifiers
    return model


def from_published(state_dict: dict[str, torch.Tensor], config: ModelConfig, puzzle_emb: PuzzleEmb = "strict") -> HRM:
    """A model with the weights of a published state dict.

    Args:
        state_dict: tensors under the published names, with or without the prefixes ``_orig_mod.`` and ``model.``.
        config: the model's configuration, such as an HRMConfig; the model has its ``num_puzzle_identifiers``.
        puzzle_emb: what to do with a puzzle embedding of another number of rows (:data:`hrm.weights.PuzzleEmb`).

    Raises:
        InputError: a weight is missing, unknown, or of another shape; the message names it. This is checked before
            memory of the configuration's sizes is allocated.
    """
    _check_choice("puzzle_emb", puzzle_emb, PuzzleEmb)
    state = {without_prefixes(name): tensor for name, tensor in state_dict.items()}
    _check_fit(state, weight_shapes(config), puzzle_emb)
    model = build(config)
    for name, tensor in model.state_dict().items():
        stored = state[name]
        if name == PUZZLE_EMB and stored.shape != tensor.shape:
            fill_rows(tensor, stored, puzzle_emb)
        else:
            tensor.copy_(stored.reshape(tensor.shape))
    return model


def read_extra(path: Path | str) -> dict[str, Any]:
    """The values of a saved model's ``config.json`` beside its configuration; empty for other checkpoints."""
    file = locate(path) / CONFIG_FILE
    own = ("family", "model", FILES, IDENTIFIERS)
    return {k: v for k, v in read_json(file).items() if k not in own} if file.is_file() else {}


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(get_args(choices))}")


def _check_fit(state: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size], puzzle_emb: PuzzleEmb) -> None:
    """Check the names and shapes of a state dict."""
    missing, unknown = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    if missing or unknown:
        problem = f"it lacks {missing[0]}" if missing else f"it has {unknown[0]}, which this model does not have"
        more = f" (and {len(missing) + len(unknown) - 1} more)" if len(missing) + len(unknown) > 1 else ""
        raise InputError(
            f"the checkpoint does not fit the configuration: {problem}{more}; check layers, pos_encodings, mlp_t"
        )
    for name, shape in shapes.items():
        if name == PUZZLE_EMB:
            check_rows(state[name].shape, shape, puzzle_emb)
        elif _without_ones(state[name].shape) != _without_ones(shape):
            raise InputError(
                f"the checkpoint does not fit the configuration: {name} is {list(state[name].shape)}, "
                f"expected {list(shape)}"
            )


def _without_ones(shape: torch.Size) -> list[int]:
    return [size for size in shape if size != 1]


def _found(path: Path | str) -> Path:
    """The folder or file of a model, downloaded if need be."""
    found = locate(path)
    return found if found.exists() else download(str(path))


def _read(path: Path, seq_len: int | None, weights: Weights) -> Checkpoint:
    if (path / CONFIG_FILE).is_file():
        return _read_saved(path, weights)
    return read_published(path, seq_len, weights)


def _read_saved(folder: Path, weights: Weights) -> Checkpoint:
    """A folder of :func:`hrm.save`, or a checkpoint of a training run."""
    config_file = folder / CONFIG_FILE
    config = read_json(config_file)
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise InputError(f"{config_file} has no 'model' section; expected a folder written by hrm.save")
    family = config.get("family", "hrm")
    if family not in FAMILIES:
        raise InputError(f"{folder} holds a model of family {family!r}; this version loads {', '.join(FAMILIES)}")
    averaged = weights == "ema" or (weights == "auto" and (folder / EMA_FILE).is_file())
    file = folder / (EMA_FILE if averaged else WEIGHTS_FILE)
    if not file.is_file():
        raise InputError(f"{file} is missing; the run keeps no such weights, or the checkpoint is incomplete")
    checksums, table = _checksums(folder, config), folder / PUZZLE_EMB_FILE
    require_undamaged(config_file, checksums)
    state = read_tensors(file, checksums)
    if table.is_file():
        state |= read_tensors(table, checksums)
    return Checkpoint(FAMILIES[family], state, config["model"], config.get(IDENTIFIERS))


def _checksums(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The checksums of a checkpoint's files, by name; earlier versions wrote none."""
    state_file = folder / STATE_FILE
    state = read_json(state_file) if state_file.is_file() else {}
    sums = [values.get(FILES) for values in (config, state) if isinstance(values, dict)]
    return {name: one for some in sums if isinstance(some, dict) for name, one in some.items()}
