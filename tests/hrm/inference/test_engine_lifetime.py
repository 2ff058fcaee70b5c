"""However an engine ends, all callers are woken, and the model's mode and the backend are restored."""

import asyncio
import contextlib
import gc
import signal
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch

from hrm import Engine, InputError
from hrm.inference.engine import EngineError, Puzzle
from hrm.inference.engine.processes import running_engines
from hrm.inference.segments import evaluating
from hrm_kernels import explain

ONES = np.ones(16, int)
BUSY = """
import asyncio, atexit, gc, os, sys, threading
atexit.register(lambda: ending == "late" and print_error(lambda: Engine(model)))  # runs after the engine's own
import numpy as np, torch
from hrm import HRM, Engine, HRMConfig

sizes = {"seq_len": 16, "vocab_size": 6, "hidden_size": 32, "num_heads": 2, "expansion": 1, "H_layers": 1}
ones, ending, running = np.ones(16, int), None, threading.Event()

def print_error(call):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error, flush=True)

def busy():
    torch.set_num_threads(1)
    model = HRM(HRMConfig(**sizes, L_layers=1, forward_dtype="float32"))
    model.register_forward_hook(lambda *_: running.set())
    engine = Engine(model, 4, max_steps=10**9, halt="fixed")
    futures = [engine.submit(ones) for _ in range(8)]
    assert running.wait(60)
    return model, engine, futures
"""


def run(program):
    done = subprocess.run([sys.executable, "-c", BUSY + program], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_a_program_that_ends_with_a_busy_engine_keeps_its_exit_code():
    """Each ending runs in a forked child, so that torch is imported once."""
    endings = {
        "late": ("model, engine, futures = busy()", 0),
        "raise": ("model, engine, futures = busy(); raise KeyError('the program')", 1),
        "dropped": ("model = busy()[0]; sys.exit(4)", 4),
        "iterating": ("model, engine, _ = busy(); results = engine.solve([ones] * 9, ordered=False); sys.exit(5)", 5),
        "callback": (
            "model, engine, futures = busy()\n"
            "for one in futures: one.add_done_callback(lambda one: print('cancelled', one.cancelled(), flush=True))\n"
            "sys.exit(3)",
            3,
        ),
        "thread": (
            "left = threading.Event()\n"
            "def body(): kept.append(busy()); left.wait(60); sys.exit(6)\n"
            "kept = []; threading.Thread(target=body).start(); left.set()",
            0,
        ),
    }
    program = f"""
gc.freeze()  # else the collector of each child would traverse all objects of torch
endings = {endings}
for ending, (text, code) in endings.items():
    child = os.fork()
    if not child:
        exec(text)
        break
    print(ending, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    ending = None
"""
    code, out, err = run(program)
    assert code == 0, err
    expected = [f"{name} {code}" for name, (_, code) in endings.items()]
    expected.insert(0, "EngineError the program is ending, and no engine starts any more")
    expected[-2:-2] = 8 * ["cancelled True"]
    assert out.splitlines() == expected, err
    assert err.count("Traceback") == 1 and err.endswith("KeyError: 'the program'\n")


def test_a_forked_child_is_refused_and_may_make_an_engine():
    program = """
model, engine, futures = busy()
started = engine.solve([ones] * 9)
next(engine.solve([np.zeros(3)]))
child = os.fork()
if not child:
    async def main():
        await engine.asubmit(ones)
    for call in (lambda: engine.submit(ones), lambda: list(engine.solve([ones])), lambda: asyncio.run(main()),
                 lambda: next(started)):
        print_error(call)
    engine.close()
    print(model.training, flush=True)
    with Engine(model, 1, max_steps=2) as child_engine:
        print(child_engine.submit(ones).result().error, flush=True)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), model.training, flush=True)
futures[0].cancel()
engine.close(cancel=True)
print(model.training)
"""
    code, out, err = run(program)
    assert (code, err) == (0, "")
    *refused, training, error, child, restored = out.splitlines()
    assert len(refused) == 4 and (training, error, child, restored) == ("True", "None", "7 False", "True")
    for line in refused:
        assert line.startswith("EngineError the engine runs in the process that this one (")
        assert line.endswith(") was forked from; make an engine here")


class Process:
    """The state that an engine must restore: the model's mode. It never changes the calling thread's backend."""

    def __init__(self, model):
        self.model, self.x = model, torch.zeros(1, 4)
        self.before = self.state()

    def state(self):
        return self.model.training, explain("swiglu", self.x)


@pytest.fixture
def ctrl_c(until):
    """A function for another thread: it raises one KeyboardInterrupt in the main thread."""
    interrupted = threading.Event()

    def interrupt(*_):
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    def send():
        # repeatedly: a signal just before the main thread waits for a lock does not wake it
        until(lambda: interrupted.is_set() or signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))

    before = signal.signal(signal.SIGINT, interrupt)
    yield send
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("way", ["close", "with"])
def test_ctrl_c_while_an_engine_closes(gate, until, ctrl_c, way):
    """The signal comes during a segment; all puzzles are cancelled."""
    model = gate(permits=1000)
    process = Process(model.train())

    def during_the_first_segment(*_):
        until(lambda: engine._scheduler.queue.closing)
        ctrl_c()
        until(lambda: engine._scheduler.queue.cancelling)

    model.register_forward_pre_hook(during_the_first_segment)
    futures = []
    with pytest.raises(KeyboardInterrupt):
        engine = Engine(model, slots=1, max_steps=50, backend="reference")
        with engine if way == "with" else contextlib.nullcontext():
            assert process.state() == (False, process.before[1]) != process.before
            futures += [engine.submit(ONES) for _ in range(3)]
        engine.close()
    assert process.state() == process.before
    assert all(future.cancelled() for future in futures) and model.calls == 1
    assert not engine._scheduler._thread.is_alive()


@pytest.mark.parametrize("way", ["submit", "solve"])
def test_ctrl_c_while_the_queue_is_full(gate, until, ctrl_c, way):
    """The caller gets no result, so the puzzle that it tried to queue does not run."""
    model = gate()
    with Engine(model, slots=1, max_steps=1, queue_size=1) as engine:
        futures = [engine.submit(ONES)]
        assert model.entered.acquire(timeout=60)
        futures.append(engine.submit(ONES))
        sender = threading.Thread(target=lambda: (until(lambda: engine._scheduler.queue.blocked), ctrl_c()))
        sender.start()
        with pytest.raises(KeyboardInterrupt):
            if way == "submit":
                engine.submit(0 * ONES)
            else:
                list(engine.solve([0 * ONES] * 9))
        sender.join(60)
        model.permits.release(1000)
        futures.append(engine.submit(ONES))
    assert [future.result().steps for future in futures] == [1, 1, 1] and model.served == [1, 1, 1]


def test_a_thread_that_cannot_start_restores_the_state(gate, monkeypatch):
    def fail(thread):
        raise RuntimeError("can't start new thread")

    model = gate()
    process = Process(model.train())
    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="can't start"):
        Engine(model, backend="reference")
    assert process.state() == process.before


def test_an_engine_without_references_finishes_and_is_collected(gate):
    model = gate()
    process = Process(model.train())
    engine = Engine(model, slots=1, max_steps=3, backend="reference")
    alive, thread = weakref.ref(engine), engine._scheduler._thread
    futures = [engine.submit(ONES) for _ in range(2)]
    del engine
    gc.collect()
    assert alive() is None and thread.is_alive() and process.state() == (False, process.before[1])
    model.permits.release(6)
    thread.join(60)
    assert [future.result(timeout=60).steps for future in futures] == [3, 3]
    assert not thread.is_alive() and process.state() == process.before


def test_an_idle_engine_in_a_cycle_is_collected(gate):
    """The collector may run in any thread, which may hold any lock: the finalizer takes none."""
    model = gate()
    process = Process(model.train())
    engine = Engine(model, slots=1)
    engine.itself, scheduler = engine, engine._scheduler
    alive = weakref.ref(engine)
    with scheduler.queue.lock, running_engines._lock:
        del engine
        collector = threading.Thread(target=gc.collect)
        collector.start()
        collector.join(60)
        assert alive() is None and not collector.is_alive()
    scheduler._thread.join(60)
    assert not scheduler._thread.is_alive() and process.state() == process.before


def test_an_exception_does_not_keep_an_engine_alive(gate):
    def broken():
        yield ONES
        raise KeyError

    gc.disable()
    try:
        engine = Engine(gate(permits=1), slots=1, max_steps=1)
        with contextlib.suppress(KeyError):
            list(engine.solve(broken()))
        alive = weakref.ref(engine)
        del engine
        assert alive() is None
    finally:
        gc.enable()


def test_each_module_gets_its_mode_back(gate):
    model = gate(permits=1)
    model.frozen, model.trained = torch.nn.Dropout().eval(), torch.nn.Dropout()
    with Engine(model, slots=1) as first, Engine(model, slots=1):
        first.close()
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, False, True]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, False, True]


def test_a_worker_that_fails_restores_the_state(gate):
    model = gate(permits=1, fails_at=1)
    process = Process(model.train())
    engine = Engine(model, slots=1, backend="reference")
    with pytest.raises(EngineError):
        engine.submit(ONES).result(timeout=60)
    assert process.state() == process.before


def test_a_callback_may_close(gate):
    model = gate()
    process = Process(model.train())
    engine = Engine(model, slots=1, max_steps=1)
    thread = engine._scheduler._thread
    first, second = engine.submit(ONES), engine.submit(ONES)
    first.add_done_callback(lambda _: engine.close())
    model.permits.release(2)
    thread.join(60)
    assert not thread.is_alive() and second.result(timeout=60).steps == 1 and process.state() == process.before


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, ValueError])
def test_callbacks_that_raise_do_not_stop_others(gate, caplog, error):
    def fail(future):
        raise error("raised by a callback")

    model, called = gate(), []

    async def wait(future):
        return (await asyncio.wrap_future(future)).steps

    async def main():
        with Engine(model, slots=8, max_steps=2) as engine:
            futures = [engine.submit(ONES) for _ in range(24)]
            for future in futures:
                future.add_done_callback(fail)
                future.add_done_callback(called.append)
            waiting = [asyncio.create_task(wait(future)) for future in futures]
            await asyncio.sleep(0)
            model.permits.release(1000)
            steps = await asyncio.wait_for(asyncio.gather(*waiting), 60)
            assert engine.submit(ONES).result(timeout=60).steps == 2  # the worker still runs
        return futures, steps

    futures, steps = asyncio.run(main())
    assert steps == [2] * 24 and len(called) == 24 and set(called) == set(futures)
    assert sum("exception calling callback" in record.message for record in caplog.records) == 24


def test_a_callback_that_raises_in_the_caller_s_thread(gate):
    def interrupt(future):
        raise KeyboardInterrupt

    model, called = gate(), []
    with Engine(model, slots=1, max_steps=1) as engine:
        engine.submit(ONES)
        assert model.entered.acquire(timeout=60)
        waiting = engine.submit(ONES)
        waiting.add_done_callback(interrupt)
        with pytest.raises(KeyboardInterrupt):
            waiting.cancel()
        waiting.add_done_callback(called.append)
        model.permits.release(2)
    assert called == [waiting]


@pytest.mark.parametrize("kind", ["good", "bad", "cancelled"])
def test_a_long_chain_of_callbacks_that_submit(gate, kind):
    length, done, failures = 2_000 if kind == "good" else 10_000, threading.Event(), []

    def again(future):
        nonlocal length
        length -= 1
        try:
            if not length:
                done.set()
                return
            following = engine.submit(np.zeros(3, int) if kind == "bad" else ONES)
            following.add_done_callback(again)
            if kind == "cancelled":
                following.cancel()
        except BaseException as error:
            failures.append(error)
            done.set()

    with Engine(gate(permits=20_000), slots=1, max_steps=1) as engine:
        engine.submit(ONES).add_done_callback(again)
        assert done.wait(120)
    assert not failures and length == 0


class Unreadable:
    """An object that raises when it is read."""

    def __init__(self, where, error):
        self.where, self.error = where, error

    def __array__(self, dtype=None, copy=None):
        if self.where == "array":
            raise self.error
        return ONES

    @property
    def __class__(self):
        if self.where == "class":
            raise self.error
        return Unreadable


class Silent(Exception):
    def __str__(self):
        raise RuntimeError


class Opaque(str):
    def __repr__(self):
        raise MemoryError("no repr")


UNREADABLE = [
    (Unreadable("array", OSError("the disk is gone")), OSError, "OSError: the disk is gone"),
    (Unreadable("class", KeyError("name")), KeyError, "KeyError: 'name'"),
    (Unreadable("array", Silent()), Silent, "tests.hrm.inference.test_engine_lifetime.Silent: <exception str"),
    (Puzzle(ONES, 0, Opaque()), MemoryError, "MemoryError: no repr"),
]


def test_a_puzzle_that_cannot_be_read_does_not_affect_others(gate):
    mixed = [one for bad, *_ in UNREADABLE for one in (ONES, bad)] + [ONES]

    async def asolve(engine):
        return [result async for result in engine.asolve(mixed)]

    with Engine(gate(permits=1000), slots=2, max_steps=1) as engine:
        every = [list(engine.solve(mixed)), list(engine.solve(iter(mixed))), asyncio.run(asolve(engine))]
        futures = [engine.submit(one) for one in mixed]
    for results in every:
        assert [result.index for result in results] == list(range(9))
        errors = [result.error for result in results]
        assert errors[::2] == [None] * 5
        for error, (_, cause, message) in zip(errors[1::2], UNREADABLE, strict=True):
            assert isinstance(error, InputError) and isinstance(error.__cause__, cause)
            assert f"the puzzle cannot be read ({message}" in str(error)
    assert all(future.result(timeout=60).steps == 1 for future in futures[::2])
    for future, (_, cause, _) in zip(futures[1::2], UNREADABLE, strict=True):
        assert isinstance(future.exception(timeout=60).__cause__, cause)


class Broken:
    """A sequence that raises when element 10 is read."""

    def __len__(self):
        return 200

    def __getitem__(self, index):
        if index == 10:
            raise OSError("the disk is gone")
        return ONES


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_source_that_raises_loses_no_result(gate, sized, ordered):
    results = []
    with Engine(gate(permits=1000), slots=4, max_steps=2) as engine:
        with pytest.raises(OSError, match="the disk is gone"):
            for result in engine.solve(Broken() if sized else iter(Broken()), ordered=ordered):
                results.append(result)
    assert sorted(result.index for result in results) == list(range(10))
    assert all(result.error is None and result.steps == 2 for result in results)


@pytest.mark.parametrize("kind", ["iterable", "asynchronous"])
def test_an_asynchronous_source_that_raises_loses_no_result(gate, kind):
    async def each():
        for one in Broken():
            yield one

    async def main():
        results = []
        with Engine(gate(permits=1000), slots=4, max_steps=2) as engine:
            with pytest.raises(OSError, match="the disk is gone"):
                async for result in engine.asolve(Broken() if kind == "iterable" else each()):
                    results.append(result)
        return results

    results = asyncio.run(asyncio.wait_for(main(), 60))
    assert [result.index for result in results] == list(range(10))
    assert all(result.error is None and result.steps == 2 for result in results)


def test_closing_loses_no_result_of_an_iterator(gate):
    with Engine(gate(permits=1000), slots=4, max_steps=2) as engine:
        results = engine.solve(iter([ONES] * 100))
        taken = [next(results)]
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            for result in results:
                taken.append(result)
    assert [result.index for result in taken] == list(range(len(taken)))
    assert all(result.error is None and result.steps == 2 for result in taken)


@pytest.mark.parametrize(
    ("one", "what"),
    [
        (ONES, r"an array of shape \[16\]"),
        (torch.ones(16).int(), r"an array of shape \[16\]"),
        (np.array(3), r"an array of shape \[\]"),
        (Puzzle(ONES), "a Puzzle"),
        ("1" * 16, "a str"),
    ],
)
def test_a_single_puzzle_is_not_taken_for_several(gate, one, what):
    message = rf"puzzles is {what}, expected several, such as \[n, seq_len\]; give \[puzzle\] for a single one"

    async def asolve(engine, puzzles):
        return [result async for result in engine.asolve(puzzles)]

    with Engine(gate(permits=1000), slots=2, max_steps=1) as engine:
        with pytest.raises(InputError, match=message):
            list(engine.solve(one))
        with pytest.raises(InputError, match=message):
            asyncio.run(asolve(engine, one))
        rows = np.array([ONES, None], object)[:1]  # an array of puzzles
        for several in (ONES[None], torch.ones(1, 16).int(), rows, [ONES]):
            for results in (list(engine.solve(several)), asyncio.run(asolve(engine, several))):
                assert [result.tokens.tolist() for result in results] == [[1] * 16]


def test_trace_is_converted_in_the_calling_thread(gate):
    with Engine(gate(permits=1000), slots=1, max_steps=1) as engine:
        with pytest.raises(ValueError, match="ambiguous"):
            engine.submit(ONES, trace=np.ones(2))
        assert len(engine.submit(ONES, trace=np.bool_(True)).result(timeout=60).trace) == 1
