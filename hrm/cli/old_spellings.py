"""Commands as they were spelled up to version 0.1, translated for the error message."""

import re
import shlex
from collections.abc import Sequence

_OPTIONS = {
    "eval": {"data": "--data", "halt": "--halt"},
    "scale": {
        "data": "--data",
        "halt": "--halt",
        "scale": "--segments",
        "rollouts": "--trajectories",
        "--rollouts": "--trajectories",
        "augment": "--augment",
        "noise": "--start-noise",
        "seed": "--seed",
    },
    "adapt": {
        "data": "--data",
        "out": "--out",
        "steps": "--steps",
        "batch_size": "--batch-size",
        "lr": "--lr",
        "weight_decay": "--weight-decay",
        "init": "--init",
        "seed": "--seed",
    },
    "calibrate": {"data": "--data", "loss": "--loss", "out": "--out"},
    "analyze": {
        "data": "--data",
        "puzzles": "--puzzles",
        "boards": "--boards",
        "baselines": "--baseline-steps",
        "seed": "--seed",
    },
    "data": {"--subsample": "--train", "--test-subsample": "--test"},
}
"""For each command the keys of its ``key=value`` arguments (of ``data``: its options), and the options of today."""


def new_spelling(arguments: Sequence[str]) -> str | None:
    """The command line of today for ``arguments`` of an earlier version; None if they have no old spelling.

    Args:
        arguments: without the program's name.
    """
    if not arguments:
        return None
    command, *rest = arguments
    if command == "eval" and any(re.match(r"(scale|rollouts|augment|noise|seed)=", argument) for argument in rest):
        command = "scale"
    options = _OPTIONS.get(command, {})
    translated = [part for argument in rest for part in _translate(argument, options)]
    if translated == rest:
        return None
    if command == "scale" and "--segments" not in translated:
        translated = ["--segments" if part == "--max-steps" else part for part in translated]
    return shlex.join(["hrm", command, *translated])


def _translate(argument: str, options: dict[str, str]) -> list[str]:
    key, equals, value = argument.partition("=")
    if key not in options or (not equals and not key.startswith("--")):
        return [argument]
    if key == "augment":
        return [] if value.lower() == "false" else ["--augment"]
    return [options[key], value.removeprefix("segments:")] if equals else [options[key]]
