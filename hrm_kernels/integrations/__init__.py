"""Run models of other projects on the ops."""

from hrm_kernels.integrations.patch import PatchReport, patch, unpatch

__all__ = ["PatchReport", "patch", "unpatch"]
