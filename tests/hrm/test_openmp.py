"""A thread that waits for another thread's results keeps no OpenMP threads."""

import os
import threading
import time

import numpy as np
import pytest
import torch

from hrm import HRM, Engine, HRMConfig
from hrm.openmp import gnu_runtime, release_threads

pytestmark = pytest.mark.skipif(gnu_runtime() is None, reason="torch comes without GNU OpenMP here")


def in_a_new_thread(run):
    """The result of ``run()``, called in a new thread that computes with two."""
    returned = []

    def body():
        torch.set_num_threads(2)
        returned.append(run())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return returned[0]


def threads():
    return set(os.listdir("/proc/self/task"))


def compute():
    x = torch.ones(1_000_000)
    assert x.add_(1).unique().item() == 2


def new_team():
    """Compute for the first time in the calling thread; returns the other thread of its team."""
    before = threads()
    compute()
    (other,) = threads() - before
    return other


def ends(thread):
    """Whether ``thread`` ends, which may take a moment."""
    deadline = time.monotonic() + 60
    while thread in threads() and time.monotonic() < deadline:
        time.sleep(0.001)
    return thread not in threads()


def test_threads_end_and_come_back():
    def run():
        other = new_team()
        compute()
        assert other in threads()
        release_threads()
        release_threads()  # nothing is left to end
        return ends(other) and new_team() != other

    assert in_a_new_thread(run)


def test_only_the_engine_has_threads_while_it_computes():
    torch.manual_seed(0)
    sizes = {"seq_len": 16, "vocab_size": 6, "hidden_size": 32, "num_heads": 2, "expansion": 1, "H_layers": 1}
    model = HRM(HRMConfig(**sizes, L_layers=1, forward_dtype="float32", halt_max_steps=4))
    puzzles = np.zeros((8, 16), np.int64)

    def run():
        other = new_team()
        with Engine(model, 2) as engine:
            assert len(list(engine.solve(puzzles))) == 8
            ended = ends(other)
            compute()
            results = engine.solve(puzzles)
            assert next(results).steps
            return ended, len(list(results))

    assert in_a_new_thread(run) == (True, 7)
