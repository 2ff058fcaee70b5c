"""Programs as ONNX files, with weights in float32, float16 or int8."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from hrm.errors import InputError

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

WeightFormat = Literal["float32", "float16", "int8"]
"""How weights are stored. The runtime computes in float32 in each case."""

OPSET = 23
"""Version of ONNX's operators (2025): onnxruntime and onnxruntime-web serve it since version 1.22."""

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_SMALLEST = 256  # entries; smaller tensors keep float32, as do all vectors


def require_packages() -> None:
    """
    Raises:
        InputError: a package that an export needs is not installed.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"an export needs {', '.join(missing)}; install it with: pip install 'hrm[export]'")


def write_onnx(
    program: "ExportedProgram", names: list[str], output_names: list[str], weights: WeightFormat, file: Path
) -> None:
    """Write ``program`` as an ONNX file.

    Args:
        program: with a dynamic batch.
        names, output_names: of its arguments and results.
        weights: how matrices are stored.
        file: the file; protobuf limits it to 2 GB.

    Raises:
        InputError: a package is missing, or the weights exceed 2 GB.
    """
    require_packages()
    import onnx
    import torch

    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=output_names,
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    _name_batch(model)
    _remove_comments(model)
    if weights != "float32":
        _store_smaller(model, weights)
    if model.ByteSize() >= 1 << 31:
        raise InputError(
            f"the model takes {model.ByteSize() >> 20} MB, and an ONNX file at most 2048; use weights=int8"
        )
    onnx.checker.check_model(model)
    onnx.save(model, file)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that a model does not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _name_batch(model: "onnx.ModelProto") -> None:
    """Call the first dimension of every argument and result ``batch``."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _remove_comments(model: "onnx.ModelProto") -> None:
    """Remove what the exporter notes about each node: paths of source files, four fifths of a small model."""
    del model.metadata_props[:]
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]


def _store_smaller(model: "onnx.ModelProto", weights: WeightFormat) -> None:
    """Store matrices in fewer bits, and restore them at the start of the graph, once for all their uses."""
    from onnx import helper, numpy_helper

    graph = model.graph
    matrices: list[onnx.TensorProto] = []
    others: list[onnx.TensorProto] = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        (matrices if _is_matrix(values) else others).append(tensor)
    # on the right of a product, a column has the weights of one feature; elsewhere, a row
    factors = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    nodes, stored = [], list(others)
    for tensor in matrices:
        values, name = numpy_helper.to_array(tensor), tensor.name
        if weights == "float16":
            stored.append(numpy_helper.from_array(values.astype(np.float16), f"{name}.float16"))
            nodes.append(helper.make_node("Cast", [f"{name}.float16"], [name], to=1))
        else:
            axis = int(name in factors)
            codes, scales = int8_of(values, axis)
            stored.append(numpy_helper.from_array(codes, f"{name}.int8"))
            stored.append(numpy_helper.from_array(scales, f"{name}.scale"))
            arguments = [f"{name}.int8", f"{name}.scale"]
            nodes.append(helper.make_node("DequantizeLinear", arguments, [name], axis=axis))
    nodes += graph.node
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(stored)
    graph.node.extend(nodes)


def _is_matrix(values: np.ndarray) -> bool:
    return values.dtype == np.float32 and values.ndim == 2 and values.size >= _SMALLEST and min(values.shape) > 1


def int8_of(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers -127 to 127 and float32 scales, one for each index of ``axis``, with products nearest to ``values``."""
    scales = np.abs(values).max(1 - axis).astype(np.float32) / 127
    scales[scales == 0] = 1
    wide = np.expand_dims(scales, 1 - axis)
    return np.rint(values / wide).clip(-127, 127).astype(np.int8), scales
