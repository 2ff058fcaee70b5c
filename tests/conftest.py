import os

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread each: the workers share the cores. The variable is for processes that tests start.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before hrm_kernels or Triton is imported: kernels run on CPU tensors
