"""Layers that are copied, shared, run in threads, in inference mode and in forked processes after they were used."""

import copy
import pickle
import subprocess
import sys
import threading

import pytest
import torch

from hrm_kernels import nn as layers

X, Y = (torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
LAYERS = {
    "Linear": (lambda: layers.Linear(64, 64, bias=True), 1),
    "SwiGLU": (lambda: layers.SwiGLU(64, 1.0), 1),
    "RoPEAttention": (lambda: layers.RoPEAttention(64, 2), 1),
    "PostNormBlock": (lambda: layers.PostNormBlock(64, 2, 1.0), 1),
    "ReasoningModule": (lambda: layers.ReasoningModule(2, 64, 2, 1.0), 2),
    "MixingModule": (lambda: layers.MixingModule(1, 5, 64, 1.0), 2),
}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def given(request):
    return X.to(request.param), Y.to(request.param)


@pytest.fixture(params=LAYERS)
def used(request, given):
    """``(layer, function that makes another one, its inputs, its result)``, after a forward and a backward."""
    torch.manual_seed(0)
    make, inputs = LAYERS[request.param]
    layer, own = make(), given[:inputs]
    out = layer(*own)
    out.float().sin().sum().backward()
    return layer, make, own, out.detach()


def halve(layer):
    with torch.no_grad():
        for one in layer.parameters():
            one.mul_(0.5)


def fresh(layer, make):
    """A layer that has never run, with the same weights."""
    made = make()
    made.load_state_dict(layer.state_dict())
    return made


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_is_a_layer_of_its_own(used, duplicate):
    layer, make, own, out = used
    twin = duplicate(layer)
    assert torch.equal(twin(*own), out)
    halve(twin)
    assert torch.equal(twin(*own), fresh(twin, make)(*own)) and not torch.equal(twin(*own), out)
    assert torch.equal(layer(*own), out)


def test_shared_memory(used):
    layer, make, own, out = used
    layer.share_memory()
    assert torch.equal(layer(*own), out)
    halve(layer)
    assert torch.equal(layer(*own), fresh(layer, make)(*own))


def test_inference_mode(used):
    layer, make, own, out = used
    with torch.inference_mode():
        assert torch.equal(layer(*own), out)
        assert torch.equal(layer(*(one.clone() for one in own)), out)  # inference tensors
        assert torch.equal(fresh(layer, make)(*own), out)  # inference weights
    layer.zero_grad()
    again = layer(*own)
    again.float().sin().sum().backward()
    assert torch.equal(again, out) and all(one.grad.abs().sum() > 0 for one in layer.parameters())


def test_threads(used):
    layer, _, own, out = used
    want = [one.grad.clone() for one in layer.parameters()]
    found = []

    def run():
        for _ in range(3):
            again = layer(*own)
            gradients = torch.autograd.grad(again.float().sin().sum(), list(layer.parameters()))
            found.append(torch.equal(again, out) and all(map(torch.allclose, gradients, want)))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == [True] * 9


PROGRAM = """
import os, signal, torch, hrm_kernels as k
from torch.utils.data import DataLoader
from hrm_kernels.nn import PostNormBlock

torch.manual_seed(0)
torch.set_num_threads(2)
block, x = PostNormBlock(64, 2), torch.randn(4, 40, 64)

def run():
    with k.use_backend("cpu"):
        given = x.clone().requires_grad_()
        out = block(given)
        return torch.cat([out.detach(), *torch.autograd.grad(out.sum(), given)])

want = run()
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, index):
        return run()

got = [one[0] for one in DataLoader(Data(), num_workers=1, multiprocessing_context="fork", timeout=60)]
assert len(got) == 2 and all(torch.equal(one, want) for one in got), "a worker's result differs"
child = os.fork()
if child == 0:
    signal.alarm(60)  # ends a child that waits for threads that are not there
    os._exit(0 if torch.equal(run(), want) else 3)
assert os.waitpid(child, 0)[1] == 0, "a forked child failed"
assert torch.equal(run(), want), "the parent's result differs"
print("right")
"""


def test_forked_children_compute_the_same():
    """A child has no threads of its parent's OpenMP runtime."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
