"""Calls through graphs: what is a call's own, when a graph is captured, and which are kept."""

import gc
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import hrm_kernels as k
from hrm_kernels import capture_streams, graphs
from hrm_kernels.capture_streams import NoStreamLeft, OwnStream
from hrm_kernels.graphs import Graphs, launch_by_launch
from hrm_kernels.nn import rope_tables


class Fake:
    """A capture without a device: a replay runs the function again and writes its results where they were."""

    def __init__(self):
        self.captured, self.replayed = [], []

    def __call__(self, function):
        outputs = tuple(output.clone() for output in function())
        number = len(self.captured)
        self.captured.append(number)

        def replay():
            self.replayed.append(number)
            for output, value in zip(outputs, function(), strict=True):
                output.copy_(value)

        return replay, outputs


@pytest.fixture
def fake():
    return Fake()


def scaled(weight):
    def function(x, y):
        return x * weight + y, y  # the second result is an input

    return function


def test_the_first_call_is_direct_the_second_captures_and_all_are_right(fake):
    call, weight = Graphs(fake), torch.tensor(2.0)
    results = []
    for i in range(4):
        x, y = torch.full((3,), float(i)), torch.full((3,), 10.0 * i)
        results.append(call(scaled(weight), (x, y), (weight,), "scaled"))
    assert len(fake.captured) == 1 and fake.replayed == [0, 0, 0]
    for i, (a, b) in enumerate(results):  # the earlier ones too: each owns its memory
        assert a.eq(12.0 * i).all() and b.eq(10.0 * i).all()
    assert len({tensor.data_ptr() for result in results[1:] for tensor in result}) == 6


def test_weights_are_read_where_they_lie_and_elsewhere_captured_anew(fake):
    call, weight, inputs = Graphs(fake), torch.tensor(2.0), (torch.ones(3), torch.zeros(3))
    for _ in range(2):
        call(scaled(weight), inputs, (weight,), None)
    weight.fill_(5)
    assert call(scaled(weight), inputs, (weight,), None)[0].eq(5).all() and len(fake.captured) == 1
    moved = torch.tensor(7.0)
    for _ in range(2):
        assert call(scaled(moved), inputs, (moved,), None)[0].eq(7).all()
    assert call(scaled(weight), inputs, (weight,), None)[0].eq(5).all()
    assert len(fake.captured) == 2 and fake.replayed == [0, 0, 1, 0]


@pytest.mark.parametrize(
    "other",
    [
        {"shape": (4,)},
        {"dtype": torch.float64},
        {"options": 1},
        {"strided": True},
    ],
)
def test_another_layout_or_option_is_another_graph(fake, other):
    call, weight = Graphs(fake), torch.tensor(2.0)

    def run(shape=(3,), dtype=torch.float32, options=0, strided=False):
        x = torch.full((*shape, 2), 3.0, dtype=dtype)[:, 0] if strided else torch.full(shape, 3.0, dtype=dtype)
        (a, b) = call(scaled(weight), (x, x), (weight,), options)
        assert a.eq(9).all() and (a.shape, a.dtype) == (shape, dtype)

    run(), run(), run(**other)
    assert len(fake.captured) == 1
    run(**other), run()
    assert len(fake.captured) == 2 and fake.replayed == [0, 1, 0]


def test_the_last_used_are_kept(fake):
    call, weight = Graphs(fake, kept=2), torch.tensor(1.0)

    def run(size):
        call(scaled(weight), (torch.ones(size), torch.ones(size)), (weight,), None)

    for size in (1, 1, 2, 2, 1, 3, 3):  # the third takes the place of 2, used before 1
        run(size)
    assert len(fake.captured) == 3 and len(call._graphs) == 2
    run(1)
    assert len(fake.captured) == 3
    run(2), run(2)
    assert len(fake.captured) == 4 and len(call._graphs) == 2


def test_calls_that_never_come_again_capture_nothing(fake):
    call, inputs = Graphs(fake), (torch.ones(3), torch.zeros(3))
    made = [torch.tensor(float(i)) for i in range(graphs.SEEN + 10)]
    for weight in made:
        assert call(scaled(weight), inputs, (weight,), None)[0].eq(weight).all()
    assert not fake.captured and len(call._seen) == graphs.SEEN


def test_weights_that_move_all_the_time_are_captured_no_more(fake):
    call, inputs, made = Graphs(fake), (torch.ones(3), torch.zeros(3)), [torch.tensor(float(i)) for i in range(6)]
    with pytest.warns(UserWarning, match="launch by launch from now on: 4 graphs of it were replaced") as said:
        for _ in range(10):
            for weight in made:
                assert call(scaled(weight), inputs, (weight,), None)[0].eq(weight).all()
    assert len(said) == 1 and len(fake.captured) == graphs.KEPT + graphs.WASTED - 1
    assert len(call._graphs) == graphs.KEPT - 1  # what is left is replayed, and other calls are captured
    replays = len(fake.replayed)
    for weight in made:
        call(scaled(weight), inputs, (weight,), None)
    assert len(fake.replayed) == replays + graphs.KEPT - 1
    for _ in range(2):
        call(scaled(made[0]), inputs, (made[0],), "another")
    assert len(fake.captured) == graphs.KEPT + graphs.WASTED


def test_graphs_that_were_worth_their_capture_may_be_replaced(fake):
    call, inputs = Graphs(fake), (torch.ones(3), torch.zeros(3))
    for i in range(12):  # models, one after the other
        weight = torch.tensor(float(i))
        for _ in range(graphs.WORTH + 1):
            call(scaled(weight), inputs, (weight,), i)
    assert len(fake.captured) == 12 and not call._wasted


def test_without_a_stream_left_a_call_runs_directly():
    def full(function):
        raise NoStreamLeft("every stream is taken")

    call, weight, inputs = Graphs(full), torch.tensor(2.0), (torch.ones(3), torch.zeros(3))
    call(scaled(weight), inputs, (weight,), None)
    with pytest.warns(UserWarning, match="from now on: every stream is taken") as said:
        for _ in range(3):
            assert call(scaled(weight), inputs, (weight,), None)[0].eq(2).all()
    assert len(said) == 1


def test_overlapping_warm_ups_leave_graphs_enabled():
    first, second = launch_by_launch(), launch_by_launch()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert graphs._warm_ups == 1  # the second still warms up
    second.__exit__(None, None, None)
    assert graphs._warm_ups == 0 and graphs.ENABLED

    def warm_up():
        for _ in range(300):
            with launch_by_launch():
                assert graphs._warm_ups

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(warm_up) for _ in range(3)]:
            done.result()
    assert graphs._warm_ups == 0


@pytest.fixture
def pool(monkeypatch):
    """A device with four streams, handed out in turn as PyTorch does."""
    streams = [SimpleNamespace(device=torch.device("cuda", 0), cuda_stream=number) for number in range(4)]
    turns = itertools.cycle(streams)
    monkeypatch.setattr(capture_streams, "POOL", 4)
    monkeypatch.setattr(capture_streams, "_taken", set())
    monkeypatch.setattr(capture_streams, "_next_of_pool", lambda device: next(turns))
    monkeypatch.setattr(capture_streams, "_wait_for", lambda device: None)


def test_no_two_living_graphs_have_one_stream(pool):
    first, *others = (OwnStream(torch.device("cuda")) for _ in range(4))
    assert len({own.stream.cuda_stream for own in (first, *others)}) == 4
    with pytest.raises(NoStreamLeft, match="every stream of cuda belongs to one of 4 CUDA graphs; free engines"):
        OwnStream(torch.device("cuda"))
    replay, number = partial(first.replay, None), first.stream.cuda_stream
    del first
    gc.collect()
    with pytest.raises(NoStreamLeft):  # the graph can still be replayed
        OwnStream(torch.device("cuda"))
    del replay
    gc.collect()
    assert OwnStream(torch.device("cuda")).stream.cuda_stream == number


def test_a_capture_that_fails_leaves_nothing_behind():
    def broken(function):
        raise RuntimeError("out of memory")

    call, weight, inputs = Graphs(broken), torch.tensor(2.0), (torch.ones(3), torch.zeros(3))
    call(scaled(weight), inputs, (weight,), None)
    with pytest.raises(RuntimeError, match="out of memory"):
        call(scaled(weight), inputs, (weight,), None)
    assert not call._graphs


def test_inference_mode_does_not_spoil_a_graph(fake):
    call, weight = Graphs(fake), torch.tensor(2.0)
    with torch.inference_mode():
        for _ in range(2):
            call(scaled(weight), (torch.ones(3), torch.ones(3)), (weight,), None)
    (a, _) = call(scaled(weight), (torch.ones(3), torch.zeros(3)), (weight,), None)
    (a * torch.ones(3, requires_grad=True)).sum().backward()
    assert a.eq(2).all() and len(fake.captured) == 1


def test_threads_do_not_mix_their_inputs(fake):
    call, weight, wrong = Graphs(fake), torch.tensor(2.0), []

    def work(value):
        for _ in range(50):
            a, b = call(scaled(weight), (torch.full((100,), value), torch.zeros(100)), (weight,), None)
            if not a.eq(2 * value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(fake.captured) == 1


def cycle_arguments(device, dtype, batch=2, seed=0):
    g, dim, inner = torch.Generator().manual_seed(seed), 64, 96
    shapes = [(3 * dim, dim), (dim, dim), (2 * inner, dim), (dim, inner)]

    def random(*shape, scale=1.0):
        return (torch.randn(*shape, generator=g) * scale).to(device, dtype)

    modules = [[k.BlockWeights(*(random(*s, scale=s[1] ** -0.5) for s in shapes)) for _ in range(2)] for _ in range(2)]
    states = [random(batch, 9, dim) for _ in range(3)]
    return (*states, *modules, *rope_tables(9, 32, device=device), 2, 2, 2)


def test_cycles_through_a_fake_graph(fake, monkeypatch):
    """The op's own way into a graph, in the interpreter."""
    monkeypatch.setattr("hrm_kernels.ops.recurrent_cycles.capturable", lambda tensor: True)
    monkeypatch.setattr("hrm_kernels.ops.recurrent_cycles._graphs", Graphs(fake))
    arguments = cycle_arguments("cuda" if torch.cuda.is_available() else "cpu", torch.float32)
    with k.use_backend("reference"):
        want = k.recurrent_cycles(*arguments)
    with k.use_backend("triton"):
        got = [k.recurrent_cycles(*arguments) for _ in range(3)]
        assert fake.replayed == [0, 0]
        for result in got:
            for a, b in zip(result, want, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        for weights in (*arguments[3], *arguments[4]):
            weights.o.mul_(0.5)  # where it lies: the same graph
        halved = k.recurrent_cycles(*arguments)
    assert len(fake.captured) == 1 and not torch.allclose(halved[0], want[0], atol=1e-3)
    with k.use_backend("reference"):
        for a, b in zip(halved, k.recurrent_cycles(*arguments), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cycles_on_a_gpu(dtype, monkeypatch):
    call = Graphs()
    monkeypatch.setattr("hrm_kernels.ops.recurrent_cycles._graphs", call)
    arguments = cycle_arguments("cuda", dtype)
    with k.use_backend("triton"), torch.no_grad():
        direct = k.recurrent_cycles(*arguments)
        replayed = [k.recurrent_cycles(*arguments) for _ in range(3)]
        assert len(call._graphs) == 1
        assert all(torch.equal(a, b) for result in replayed for a, b in zip(result, direct, strict=True))
        for weights in (*arguments[3], *arguments[4]):
            weights.o.mul_(0.5)
        halved = k.recurrent_cycles(*arguments)
        monkeypatch.setattr(graphs, "ENABLED", False)
        want = k.recurrent_cycles(*arguments)
        assert all(torch.equal(a, b) for a, b in zip(halved, want, strict=True))
        monkeypatch.setattr(graphs, "ENABLED", True)
        for batch in range(3, 10):  # more shapes than are kept
            own = cycle_arguments("cuda", dtype, batch, seed=batch)
            first = k.recurrent_cycles(*own)
            assert all(torch.equal(a, b) for a, b in zip(k.recurrent_cycles(*own), first, strict=True))
        assert len(call._graphs) == graphs.KEPT
        graph = torch.cuda.CUDAGraph()  # within another capture: launch by launch
        with torch.cuda.graph(graph):
            out = k.recurrent_cycles(*arguments)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(out, want, strict=True))
