"""API pages of the public modules, from their docstrings: ``python docs/api.py OUT`` (``make docs``)."""

import sys
from pathlib import Path

import pdoc

import hrm

MODULES = (  # pdoc adds all of hrm.data, and hrm_kernels.fixed_point and .backends, whose names are functions' too
    "hrm",
    "hrm.config",
    "hrm.data",
    "hrm.inference.evaluate",
    "hrm.inference.solve",
    "hrm.training.config",
    "hrm.training.trainer",
    "hrm_kernels",
    "hrm_kernels.casts",
    "hrm_kernels.nn",
    "hrm_kernels.optim",
    "hrm_kernels.sharded_embedding",
    "hrm_kernels.shims",
)


def main(out: Path) -> None:
    for name in hrm.__all__:  # they come on first use, and pdoc looks without using
        setattr(hrm, name, getattr(hrm, name))
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*MODULES, output_directory=out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
