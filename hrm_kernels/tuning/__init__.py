"""Which of several ways to compute is the fastest on a device: code, and one JSON per device.

``python -m hrm_kernels.tuning`` measures on a GPU and writes that device's table; nothing is measured in a user's run.
"""

from hrm_kernels.tuning.table import CANDIDATES, TuningError, choose, default

__all__ = ["CANDIDATES", "TuningError", "choose", "default"]
