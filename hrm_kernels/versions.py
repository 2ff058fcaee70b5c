"""Versions of installed packages."""

import importlib.metadata

UNKNOWN = "0+unknown"
"""The version of this package where it is used from a source tree that is not installed."""


def installed(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def own() -> str:
    """The version of this package, which is part of ``hrm`` or, for other projects, ``hrm-kernels``."""
    return installed("hrm-kernels") or installed("hrm") or UNKNOWN
