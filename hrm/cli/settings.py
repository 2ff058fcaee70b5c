"""``key=value`` arguments of the subcommands that take a few of them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrm.errors import InputError
from hrm.files import require_writable

if TYPE_CHECKING:
    import torch

    from hrm.data.format import PuzzleDataset
    from hrm.model import HRM

PuzzleEmb = Annotated[
    str, typer.Option(help="A puzzle embedding of other puzzles, or of another number: strict, keep, mean or zero.")
]


def read_settings(command: str, values: list[str], **parsers: Callable[[str], Any]) -> dict[str, Any]:
    """The settings among ``values``, parsed; ``data`` (a path) is always one, and has to be there.

    Args:
        command: the subcommand, for messages.
        values: ``key=value`` each.
        parsers: for each further key, what reads its value; it raises ValueError for one that is none.

    Raises:
        InputError: a key is unknown, twice or missing, or a value is malformed.
    """
    known: dict[str, Callable[[str], Any]] = {"data": folder, **parsers}
    settings: dict[str, Any] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or key not in known:
            more = "".join(f", {name}=" for name in parsers)
            raise InputError(
                f"hrm {command} does not know {value!r}; expected data=DIR{more} "
                f"(the rest are options: hrm {command} --help)"
            )
        if key in settings:
            what = "one data folder" if key == "data" else f"one {key}="
            raise InputError(f"hrm {command} takes {what}, got {' '.join(values)}; give it once")
        if not text:
            raise InputError(f"{key}= names no {'folder; expected data=DIR' if key == 'data' else 'value'}")
        try:
            settings[key] = known[key](text)
        except ValueError as error:
            raise InputError(f"hrm {command}: {value} cannot be read ({error})") from None
    if "data" not in settings:
        raise InputError(f"hrm {command} needs a data folder; give data=DIR")
    return settings


def folder(text: str) -> Path:
    """A path; the shell leaves the ~ of ``data=~/x`` alone."""
    return Path(text).expanduser()


def numbers(text: str) -> list[int]:
    """``1,4,16``, each 1 or more."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(f"{min(found)} is below 1")
    return found


def seed(text: str) -> int:
    """0 or more."""
    if int(text) < 0:
        raise ValueError(f"{int(text)} is below 0")
    return int(text)


def yes_or_no(text: str) -> bool:
    """``true`` or ``false``."""
    if text.lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return text.lower() == "true"


def require_free(out: Path, names: Iterable[str], force: bool) -> None:
    """Refuse before the work an ``--out`` that could not be written to after it, or has files that are not to go.

    Raises:
        InputError: it has one of ``names``, and they are not to be replaced.
        NotADirectoryError, PermissionError: see :func:`hrm.files.require_writable`.
    """
    require_writable(out)
    for name in names:
        if not force and (out / name).exists():
            raise InputError(f"{out / name} exists already; choose another --out, or pass --force to replace it")


def load_for(dataset: "PuzzleDataset", checkpoint: str, device: "torch.device", puzzle_emb: str) -> "HRM":
    """The model of ``checkpoint`` for ``dataset``, with its puzzle embedding made to fit as ``--puzzle-emb`` says.

    Raises:
        InputError: there is no such way to make it fit, or see :func:`hrm.load`.
    """
    from hrm.weights import load

    if puzzle_emb not in ("strict", "keep", "mean", "zero"):
        raise InputError(f"--puzzle-emb is {puzzle_emb!r}, expected strict, keep, mean or zero")
    from hrm.data.fingerprint import names_fingerprint

    metadata, fits = dataset.metadata, puzzle_emb != "strict"
    return load(
        checkpoint,
        device,
        puzzle_emb=puzzle_emb,  # type: ignore[arg-type]
        # Without a choice the checkpoint keeps its rows, and what measures it says how they differ from the data's.
        num_puzzle_identifiers=metadata.num_puzzle_identifiers if fits else None,
        seq_len=metadata.seq_len,
        identifiers=names_fingerprint(dataset) if fits else None,
    )
