"""The page of ``hrm play`` as a folder for a static host: the model runs in the browser, with onnxruntime-web."""

import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import asdict
from pathlib import Path

from hrm.data.task import PuzzleTask
from hrm.errors import InputError
from hrm.export.folder import Examples, Exported, compare, examples_of
from hrm.export.onnx_file import OPSET, WeightFormat, require_packages, write_onnx
from hrm.export.segment import Segment, program_of
from hrm.files import folder_written_beside
from hrm.model import HRM
from hrm.play.catalogue import PAGE, page_model

RUNTIME = "onnxruntime-web@^1.22"
"""The npm package that runs ONNX in a browser."""
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def export_web(
    model: HRM,
    folder: Path | str,
    *,
    task: PuzzleTask | None,
    weights: WeightFormat = "float32",
    runtime: Path | None = None,
    examples: Examples | None = None,
    name: str = "model",
    overwrite: bool = False,
) -> Exported:
    """Write the page with ``model`` inside into a new ``folder``, and compare the model as :func:`export_onnx` does.

    The folder loads nothing from elsewhere. A browser does not run it from ``file://``; any static host serves it.

    Args:
        model: computes in float32; a Sudoku or maze model.
        folder: must be new or empty unless ``overwrite``.
        task, weights, examples, name: as for :func:`export_onnx`.
        runtime: the folder of the npm package onnxruntime-web; None downloads it with npm.
        overwrite: replace an existing folder.

    Raises:
        InputError: a package is missing, npm is missing or fails, the page cannot show the task, or the folder exists.
    """
    require_packages()
    about = page_model(model, task, name)
    module = Segment(model)
    with folder_written_beside(folder, overwrite) as part:
        copy_runtime(part / "ort", runtime)
        for file in PAGE.iterdir():
            shutil.copyfile(file, part / file.name)
        write_onnx(program_of(module), module.names, module.output_names, weights, part / "segment.onnx")
        about |= {"file": "segment.onnx", "opset": OPSET, "weights": weights, "segments": 0}
        (part / "model.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        compared = compare(model, part, examples or examples_of(model, task))
        about["compared"] = asdict(compared)
        (part / "model.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        (part / "models.json").write_text(
            json.dumps({"thinker": "browser", "models": [about]}) + "\n", encoding="utf-8"
        )
        size = (part / "segment.onnx").stat().st_size
    return Exported(Path(folder), size, compared)


def copy_runtime(folder: Path, source: Path | None) -> None:
    """Put the files of onnxruntime-web into ``folder``.

    Args:
        folder: is created.
        source: the folder of the npm package, or of its files; None downloads it with npm.

    Raises:
        InputError: a file is missing, or npm is missing or fails.
    """
    if source is None:
        with tempfile.TemporaryDirectory() as temporary:
            copy_runtime(folder, _downloaded(Path(temporary)))
        return
    files = source / "dist" if (source / "dist").is_dir() else source
    folder.mkdir(parents=True)
    for name in RUNTIME_FILES:
        if not (files / name).is_file():
            raise InputError(
                f"{files} has no {name}; expected the folder of the npm package onnxruntime-web (node_modules/"
                "onnxruntime-web)"
            )
        shutil.copyfile(files / name, folder / name)


def _downloaded(folder: Path) -> Path:
    """The npm package, unpacked in ``folder``."""
    by_hand = "or pass the package's folder with --runtime DIR (elsewhere: npm install onnxruntime-web)"
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"npm, which downloads onnxruntime-web for the page, is not installed; install it, {by_hand}")
    packed = subprocess.run([npm, "pack", "--silent", RUNTIME], cwd=folder, capture_output=True, text=True)
    archives = list(folder.glob("*.tgz"))
    if packed.returncode or len(archives) != 1:
        lines = packed.stderr.strip().splitlines() or ["no message"]
        raise InputError(f"npm cannot download {RUNTIME} ({lines[0]}); check the network, {by_hand}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"
