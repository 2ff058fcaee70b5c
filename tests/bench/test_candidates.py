"""Which candidates a workload has on this machine."""

import dataclasses
import importlib.util

import pytest
import torch

from bench.candidates import candidates
from bench.measure import measure
from bench.peers import PEERS
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


def test_in_bfloat16_plain_pytorch_takes_part_in_both_dtypes():
    setup = Setup("cpu", torch.bfloat16, full=False)
    chosen = candidates(op_workload("swiglu", Size(1, 5)), setup)
    assert list(chosen) == ["eager", "eager, float32", "Liger", "cpu"]
    assert chosen["eager, float32"].dtype is torch.float32 and chosen["eager"].dtype is None
    assert "eager, float32" not in candidates(adam_atan2(1), setup)  # float32 anyway
    block = candidates(op_workload("transformer_block", Size(8, 82)), setup)
    assert {"compile", "OpenVINO"} <= block.keys()


@pytest.mark.parametrize("backward", [False, True])
def test_a_candidate_of_another_dtype_gets_the_same_values(backward):
    """It computes the values of the bfloat16 arguments in float32, so its error is that of float32."""
    workload = op_workload("swiglu", Size(2, 5, inner=64), backward)
    setup = Setup("cpu", torch.bfloat16, full=False)
    chosen = {name: one for name, one in candidates(workload, setup).items() if name.startswith("eager")}
    rows = measure(workload, "cpu", torch.bfloat16, chosen, lambda turn: 1)
    assert max(rows["eager, float32"]["error"]) < 1e-6 < 1e-4 < max(rows["eager"]["error"])


def test_a_peer_says_why_it_cannot_run():
    openvino = next(peer for peer in PEERS if peer.name == "OpenVINO")
    assert openvino.absent_reason("cuda") == "runs on CPUs only"
    assert openvino.absent_reason("cpu", backward=True) == "has no gradients"
    if importlib.util.find_spec("openvino") is None:
        assert openvino.absent_reason("cpu") == "openvino is not installed; pip install openvino"


def test_openvino_computes_the_block():
    pytest.importorskip("openvino")
    workload = op_workload("transformer_block", Size(2, 5, width=64, heads=2, inner=96))
    for dtype in (torch.float32, torch.bfloat16):
        chosen = candidates(workload, Setup("cpu", dtype, full=False))
        rows = measure(workload, "cpu", dtype, {"OpenVINO": chosen["OpenVINO"]}, lambda turn: 1)
        assert rows["OpenVINO"]["status"] == "ok", dtype
