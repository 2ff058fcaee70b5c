"""Select the fastest implementation on a device, from one JSON table per device.

``python -m hrm_kernels.tuning`` measures on a GPU and writes its table; normal runs measure nothing.
"""

from hrm_kernels.tuning.table import CANDIDATES, TuningError, choose, choose_eight_bit, default, default_eight_bit

__all__ = ["CANDIDATES", "TuningError", "choose", "choose_eight_bit", "default", "default_eight_bit"]
