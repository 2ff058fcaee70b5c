"""Which candidates a workload has on this machine."""

import dataclasses

import torch

from bench.candidates import candidates
from bench.setup import Setup
from bench.sizes import Size
from bench.workloads import adam_atan2, op_workload, sparse_sign_sgd


def test_every_candidate_says_whether_it_can_run():
    setup = Setup("cpu", torch.float32, full=False)
    chosen = candidates(op_workload("rope_attention", Size(1, 5)), setup)
    assert list(chosen) == ["eager", "flash-attn 2", "flash-attn 3", "cuDNN", "cpu"]
    assert chosen["cuDNN"].absent_reason == "runs on NVIDIA GPUs only" and chosen["cpu"].absent_reason is None
    full = candidates(op_workload("swiglu", Size(1, 5)), dataclasses.replace(setup, full=True))
    assert list(full) == ["eager", "compile", "compile, max-autotune", "Liger", "cpu"]
    assert "torch fused AdamW" in candidates(adam_atan2(1), setup)
    assert "torch fused AdamW" not in candidates(sparse_sign_sgd(3), setup)
