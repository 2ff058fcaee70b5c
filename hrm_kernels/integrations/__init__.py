"""Putting the ops of this package under models of other projects."""

from hrm_kernels.integrations.patch import PatchReport, patch, unpatch

__all__ = ["PatchReport", "patch", "unpatch"]
