"""A training step never waits for the device, and its replay as a graph computes the same as its launches."""

import pytest
import torch
import torch.distributed as dist
from runs import rows
from safetensors.torch import load_file

from hrm.errors import InputError
from hrm.step_graph import WARM_UP, CudaCapture, StepGraph
from hrm.training import trainer as trainer_module
from hrm.training.distributed import World
from hrm.training.runner import graph_capture
from hrm.training.trainer import Trainer, train
from hrm_kernels import use_backend

aten = torch.ops.aten


@pytest.fixture
def recorded(monkeypatch, recorded_capture):
    """Runs on the CPU use a recorded graph, on the reference backend: kernels of other backends are not recorded."""
    capture = recorded_capture
    monkeypatch.setattr(trainer_module, "graph_capture", lambda config, world: capture)
    with use_backend("reference"):
        yield capture


def assert_close_runs(a, b):
    for row, other in zip(rows(a / "metrics.csv"), rows(b / "metrics.csv"), strict=True):
        for name, value in row.items():
            assert float(value or 0) == pytest.approx(float(other[name] or 0), rel=2e-4, abs=1e-6), name
    for file in ("model", "carry"):
        one, two = (load_file(max(run.glob("checkpoints/step_*")) / f"{file}.safetensors") for run in (a, b))
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, two[name], rtol=1e-3, atol=1e-4, msg=f"{file} {name}")


OPTIONS = {
    "puzzles": {"ema": True, "ema_rate": 0.9},
    "trm": {"family": "trm", "arch": {"no_ACT_continue": False}},
    "learned-softmax": {
        "loss": "softmax_cross_entropy",
        "arch": {"puzzle_emb_ndim": 0, "pos_encodings": "learned"},
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_replayed_run_equals_the_direct_run(configure, cpu, recorded, options, monkeypatch):
    """With schedule, exploration, refill, halting, and evaluations of other weights in between."""
    changes = {"max_steps": 12, "eval_interval": 1, "lr_warmup_steps": 6, "eval_max_examples": 3, **options}
    changes["arch"] = {"halt_exploration_prob": 0.5} | changes.get("arch", {})
    train(configure("graph", **changes), cpu)
    assert len(recorded.recorders) == 1 and recorded.replays == 12 - WARM_UP
    monkeypatch.undo()
    train(configure("direct", **changes), cpu)
    graph, direct = (configure(name).out for name in ("graph", "direct"))
    assert_close_runs(graph, direct)
    for row, other in zip(rows(graph / "evaluation.csv"), rows(direct / "evaluation.csv"), strict=True):
        assert float(row["lm_loss"]) == pytest.approx(float(other["lm_loss"]), rel=1e-4)


def test_a_step_in_bfloat16_reads_the_copies_that_the_optimiser_writes(configure, cpu, recorded):
    run = Trainer(configure(max_steps=9, ema=True, arch={"forward_dtype": "bfloat16"}), cpu)
    weights = list(run.state.model.parameters())
    for step in range(9):
        versions = [p._version for p in weights]
        run.train_step()
        assert all(p._version > version for p, version in zip(weights, versions, strict=True))
        assert all(torch.equal(run.state.adam.copies[p], p.bfloat16()) for p in weights), step
        if step == 6:  # as an evaluation does
            with run.state.ema.applied():
                pass
    casts = [
        (function, args)
        for function, args, _, _ in recorded.recorders[0].calls
        if function is aten._to_copy.default and any(args[0] is p for p in weights)
    ]
    assert not casts and recorded.replays == 9 - WARM_UP
    run.close()


def test_a_replayed_run_resumes(configure, cpu, recorded):
    whole = train(configure("whole", max_steps=11), cpu)
    train(configure("parts", max_steps=5), cpu)
    resumed = train(configure("parts", max_steps=11, resume=True), cpu)
    for name in ("model", "carry", "optimizer_adam"):
        one, two = (load_file(run.checkpoint / f"{name}.safetensors") for run in (whole, resumed))
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items()), name


def test_another_depth_captures_another_graph(configure, cpu, recorded, monkeypatch):
    stages = [{"until": 5, "H_cycles": 1, "L_cycles": 1}, {"until": 10, "H_cycles": 1, "L_cycles": 2}]
    changes = {"max_steps": 15, "depth": stages, "loss_decay": 0.7, "arch": {"L_cycles": 2}}
    train(configure("graph", **changes), cpu)
    assert len(recorded.recorders) == 3 and recorded.replays == 3 * (5 - WARM_UP)
    monkeypatch.undo()
    train(configure("direct", **changes), cpu)
    assert_close_runs(*(configure(name).out for name in ("graph", "direct")))


def test_another_gradient_mode_captures_another_graph(configure, cpu, recorded, monkeypatch):
    """Four stages of five steps, each with its warm-up and capture; the last one goes on after the gradient warm-up."""
    changes = {"max_steps": 25, "gradient_warmup": 20, "arch": {"gradient": 5, "L_cycles": 2}}
    train(configure("graph", **changes), cpu)
    assert len(recorded.recorders) == 4 and recorded.replays == 4 * 5 - 4 * WARM_UP + 5
    monkeypatch.undo()
    train(configure("direct", **changes), cpu)
    assert_close_runs(*(configure(name).out for name in ("graph", "direct")))


def test_a_run_may_change_from_graph_to_direct(configure, cpu, recorded, monkeypatch):
    train(configure("whole", max_steps=10), cpu)
    train(configure("parts", max_steps=5), cpu)
    monkeypatch.undo()
    train(configure("parts", max_steps=10, resume=True), cpu)
    one, two = (
        load_file(configure(name).out / "checkpoints/step_00000010/model.safetensors") for name in ("whole", "parts")
    )
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-3, atol=1e-4)


def test_a_number_that_is_not_finite_names_its_step(configure, cpu, recorded):
    run = Trainer(configure(max_steps=20, log_every=50), cpu)
    for _ in range(7):
        run.train_step()
    with torch.no_grad():
        run.state.model.inner.lm_head.weight.fill_(float("nan"))
    run.train_step()
    run.train_step()
    with pytest.raises(InputError, match="step 8 is not finite"):
        run._require_finite()
    run.close()


def test_direct_steps_never_wait_either(configure, cpu, recorder):
    """As several processes and cuda_graph=false run them, without the optimiser, which counts steps on the CPU."""
    run = Trainer(configure(), cpu)
    with use_backend("reference"):
        run.train_step()
        run.state.adam.step = lambda: None  # its step count is always a CPU tensor
        with recorder() as seen:
            run.train_step()
    assert len(seen.calls) > 100
    run.close()


def test_the_recorder_detects_operations_that_wait(recorder):
    x = torch.arange(4.0)
    for waiting in (lambda: x.sum().item(), lambda: x[x > 1], lambda: bool(x[0] > 0), lambda: x.nonzero()):
        with pytest.raises(AssertionError, match="waits for the device|boolean index"), recorder():
            waiting()


def test_other_shapes_start_over(recorded_capture):
    capture, total, want = recorded_capture, torch.zeros(()), 0.0
    graph = StepGraph(lambda inputs: total.add_(inputs["x"].sum()), capture, torch.device("cpu"))
    replayed = []
    for size in (2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 2):
        replayed.append(graph({"x": torch.full((size,), float(size))}))
        want += size * size
        assert total == want
    assert replayed == [False] * 3 + [True] * 2 + [False] * 3 + [True] * 2 + [False]
    assert len(capture.recorders) == 2


@pytest.fixture
def alike(monkeypatch):
    """The first of two processes whose other one has the same rows; notes what is summed and gathered."""
    exchanged = []

    def all_reduce(tensor, op=dist.ReduceOp.SUM, group=None):
        if op == dist.ReduceOp.SUM:
            exchanged.append(tensor.shape)
            tensor.mul_(2)

    def all_gather(parts, local, group=None):
        exchanged.append(local.shape)
        for part in parts:
            part.copy_(local)

    def gather(local, parts):
        for part in parts:
            part.copy_(local)

    for function in (all_reduce, all_gather, gather):
        monkeypatch.setattr(dist, function.__name__, function)
    monkeypatch.setattr(dist, "barrier", lambda group=None: None)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(dist, "get_rank", lambda group=None: 0)
    return World(0, 2, torch.device("cpu")), exchanged


def test_the_sums_over_processes_are_part_of_the_graph(configure, alike, recorded):
    world, exchanged = alike
    changes = {"max_steps": 8, "log_every": 8}
    replayed = train(configure("graph", **changes), world)
    assert recorded.replays == 8 - WARM_UP and len(recorded.recorders) == 1
    once = exchanged.count(exchanged[0])  # of the gradients: in the warm-up and in the capture, which replays repeat
    assert exchanged[0].numel() > 1000 and once == WARM_UP + 1
    exchanged.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "graph_capture", lambda config, world: None)
        direct = train(configure("direct", **changes), world)
    assert exchanged.count(exchanged[0]) == 8
    assert_close_runs(*(run.checkpoint.parents[1] for run in (replayed, direct)))


def test_a_closed_run_has_no_graph(configure, cpu, recorded):
    run = Trainer(configure(max_steps=9), cpu)
    for _ in range(WARM_UP + 1):
        run.train_step()
    assert run.runner._graph._replay is not None
    run.close()
    assert run.runner._graph._replay is None


def test_several_gpus_capture_where_that_is_wanted(configure, monkeypatch):
    monkeypatch.setattr("hrm.training.runner.CudaCapture", lambda device, off: "a capture")
    world = World(0, 2, torch.device("cuda", 0))
    assert graph_capture(configure(cuda_graph="distributed"), world) == "a capture"
    assert graph_capture(configure(cuda_graph="distributed", puzzle_emb_sharded=True), world) is None
    assert graph_capture(configure(), world) is None


def test_when_steps_run_without_a_graph(configure, cpu):
    assert graph_capture(configure(), cpu) is None
    for changes, size in (
        ({"cuda_graph": False}, 1),
        ({"compile": True}, 1),
        ({"puzzle_emb_sharded": True}, 1),
        ({}, 2),
    ):
        world = World(0, size, torch.device("cuda", 0))
        assert graph_capture(configure(**changes), world) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_a_graph_trains_as_launch_by_launch(configure, dtype):
    world = World(0, 1, torch.device("cuda", 0))
    assert isinstance(graph_capture(configure(), world), CudaCapture)
    changes = {"max_steps": 12, "eval_interval": 1, "ema": True, "log_every": 1, "device": "cuda"}
    changes["arch"] = {"forward_dtype": dtype, "hidden_size": 64, "halt_exploration_prob": 0.5}
    graph, direct = (train(configure(str(on), cuda_graph=on, **changes), world) for on in (True, False))
    losses = [
        [float(row["loss"]) for row in rows(run.checkpoint.parents[1] / "metrics.csv")] for run in (graph, direct)
    ]
    tolerance = 1e-4 if dtype == "float32" else 2e-2
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    assert train(configure("True", **changes | {"max_steps": 15, "resume": True}), world).step == 15
