"""``hrm export``: a model for other runtimes."""

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli.options import Force, Json, MaxExamples, Model, Split
from hrm.errors import InputError
from hrm.files import require_new

if TYPE_CHECKING:
    from hrm.data.task import PuzzleTask
    from hrm.export.folder import Examples
    from hrm.model import HRM


class Weights(str, Enum):
    """How weights are stored (:data:`hrm.export.WeightFormat`)."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


def export(
    model: Model,
    onnx: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write segment.onnx, model.json and solve.py, a host loop, to this folder."),
    ] = None,
    web: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the page of hrm play, which then needs no server but a static host."),
    ] = None,
    weights: Annotated[
        Weights,
        typer.Option(
            metavar="FORMAT", help="How matrices are stored: float32, float16 (half the size), int8 (a quarter)."
        ),
    ] = Weights.float32,
    unroll: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Write N segments as one static graph, instead of one that is repeated."),
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="For --web: the folder of the npm package onnxruntime-web (default: npm downloads it)."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Compare on the puzzles of this data folder (default: generated ones)."),
    ] = None,
    split: Split = "test",
    max_examples: MaxExamples = 200,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Export a model to ONNX, and compare it with the original in onnxruntime: tokens, Q values, halting, accuracy.

    Exit code 0: with float32 weights all answers are equal (for other weights: exported). 1: some answer differs.
    """
    from hrm.locate import require_known

    if (onnx is None) == (web is None):
        raise InputError("hrm export writes one folder; give either --onnx DIR or --web DIR")
    if web is not None and unroll is not None:
        raise InputError("the page of --web runs one segment after another; leave out --unroll")
    if web is None and runtime is not None:
        raise InputError("--runtime is for --web; leave it out")
    folder = onnx or web
    assert folder is not None
    require_known(model)
    require_new(folder, force)
    from hrm.export.onnx_file import require_packages

    require_packages()
    from hrm.export import export_onnx
    from hrm.weights import load

    loaded = load(model, forward_dtype="float32")
    task = _task(model, loaded)
    examples = None if data is None else _examples(loaded, data, split, max_examples)
    name = Path(model).name or model
    if web is None:
        exported = export_onnx(
            loaded, folder, task=task, weights=weights.value, unroll=unroll, examples=examples, name=name,
            overwrite=force,
        )  # fmt: skip
    else:
        from hrm.export.web import export_web

        exported = export_web(
            loaded, folder, task=task, weights=weights.value, runtime=runtime, examples=examples, name=name,
            overwrite=force,
        )  # fmt: skip
    if as_json:
        print(json.dumps({"folder": str(folder), "bytes": exported.bytes} | asdict(exported.compared)))
    else:
        print(f"{folder}: {exported.bytes / 1e6:.2f} MB ({weights.value})")
        print(exported.compared)
        if web is not None:
            print(f"python -m http.server -d {folder}    # or any static host")
    raise typer.Exit(weights is Weights.float32 and exported.compared.equal_tokens < 1)


def _task(model: str, loaded: "HRM") -> "PuzzleTask | None":
    """The task of the model; None for one whose shape no task has."""
    from hrm import api

    try:
        return api.task_of_model(model, loaded)
    except InputError:
        return None


def _examples(model: "HRM", data: Path, split: str, most: int | None) -> "Examples":
    import numpy as np

    from hrm.data.format import open_dataset
    from hrm.export.folder import Examples
    from hrm.inference.examples import LabelledPuzzles

    dataset = open_dataset(data, split)
    puzzles = LabelledPuzzles(model, dataset, most)
    inputs = np.stack([one.inputs for one in puzzles.puzzles])
    identifiers = np.array([one.identifier for one in puzzles.puzzles], np.int64)
    return Examples(inputs, puzzles.labels, identifiers, f"puzzles of {data} ({split})")
