"""Models for other runtimes: ONNX with a small host loop, and a page for a static host.

Needs the extra packages of ``hrm[export]``: onnx, onnxscript and onnxruntime.
"""

from hrm.export.folder import Exported, WeightFormat, export_onnx
from hrm.export.segment import segment_program, unrolled_program

__all__ = ["Exported", "WeightFormat", "export_onnx", "segment_program", "unrolled_program"]
