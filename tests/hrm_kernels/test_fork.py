"""Kernels in processes that fork from one that has used them: a child has no threads of its parent's OpenMP runtime."""

import subprocess
import sys

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
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
