"""Options of the suites, and how a workload and a candidate become a test."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that `pytest bench/` can import bench

import torch  # noqa: E402

from bench import suite  # noqa: E402
from bench.candidates import candidates  # noqa: E402
from bench.ceilings import measure_ceilings  # noqa: E402
from bench.measure import DTYPES  # noqa: E402
from bench.setup import Setup  # noqa: E402
from hrm_kernels import doctor  # noqa: E402
from hrm_kernels.spec import Cost  # noqa: E402

SESSION = pytest.StashKey[suite.Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--full", action="store_true", help="all sizes and candidates; more turns")
    group.addoption("--device", choices=("cpu", "cuda"), help="default: cuda on a machine with a GPU")
    group.addoption("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    group.addoption("--seconds", type=float, help="time for the turns of a workload; default: 1.5, with --full 10")
    group.addoption("--model", action="append", type=Path, help="a trained model for bench_solve; may be repeated")


def pytest_configure(config: pytest.Config) -> None:
    device = config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = config.getoption("--dtype") or ("bfloat16" if device == "cuda" else "float32")
    which = "*" if config.getoption("--full") or device == "cuda" else "sudoku4"  # the others take minutes on a CPU
    shipped = sorted(path.parent for path in (ROOT / "hrm" / "models").glob(f"{which}/config.json"))
    models = config.getoption("--model") or shipped
    setup = Setup(
        device,
        DTYPES[dtype],
        config.getoption("--full"),
        tuple(path.resolve() for path in models),
        config.getoption("--seconds"),
    )
    config.stash[SESSION] = suite.Session(setup)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize the tests of a suite.

    A test with the fixture ``record`` runs for each candidate of each of its module's ``workloads(setup)``; a test with
    ``parameter`` runs for each of ``parameters(setup)``.
    """
    setup = metafunc.config.stash[SESSION].setup
    if "record" in metafunc.fixturenames:
        pairs = [
            pytest.param((workload, name), id=f"{workload.name}: {name}")
            for workload in metafunc.module.workloads(setup)
            for name in candidates(workload, setup)
        ]
        metafunc.parametrize("measurement", pairs)
    if "parameter" in metafunc.fixturenames:
        metafunc.parametrize("parameter", metafunc.module.parameters(setup), ids=str)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            group = _parameters(item).get("measurement")
            name = group[0].name if group else item.name.partition("[")[0]
            item.add_marker(pytest.mark.benchmark(timer=suite.clock, group=f"{_suite(item)}: {name}"))


def _suite(item: pytest.Item) -> str:
    return item.path.stem.removeprefix("bench_")


@pytest.fixture(scope="session")
def setup(request: pytest.FixtureRequest) -> Setup:
    return request.config.stash[SESSION].setup


@pytest.fixture
def unmeasured(request: pytest.FixtureRequest) -> Callable[[str, str, str, bool], NoReturn]:
    """``unmeasured(workload, candidate, reason, failed)`` records the reason in the JSON; the test fails or skips."""
    session = request.config.stash[SESSION]

    def record(workload: str, candidate: str, reason: str, failed: bool) -> NoReturn:
        session.unmeasured.append(
            {
                "suite": _suite(request.node),
                "workload": workload,
                "candidate": candidate,
                "reason": reason,
                "failed": failed,
            }
        )
        if failed:
            pytest.fail(f"{workload}, {candidate}: {reason}", pytrace=False)
        pytest.skip(reason)

    return record


@pytest.fixture
def record(
    request: pytest.FixtureRequest,
    benchmark: object,
    measurement: tuple,
    unmeasured: Callable[[str, str, str, bool], NoReturn],
) -> Callable[[], None]:
    """Measure the workload if it has not been measured yet, and report this candidate's samples."""
    workload, name = measurement
    session = request.config.stash[SESSION]
    wanted = [
        _parameters(item)["measurement"][1]
        for item in request.session.items
        if item.path == request.path and _parameters(item)["measurement"][0] is workload
    ]

    def run() -> None:
        session.ceilings = session.ceilings or measure_ceilings(session.setup.device)
        row, eager = session.row(_suite(request.node), workload, name, wanted)
        kind, _, reason = row["status"].partition(": ")
        if kind in ("absent", "unavailable"):
            unmeasured(workload.name, name, reason, False)
        if kind != "ok":
            unmeasured(workload.name, name, row["status"], True)
        information = suite.describe(workload, row, eager, session.setup)
        suite.report_samples(benchmark, row["times"], {"suite": _suite(request.node), "candidate": name} | information)

    return run


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    report = doctor.report()
    machine_info.pop("node")  # the host's name is of no use to a reader
    machine_info |= {key: report[key] for key in ("versions", "gpus", "backends")}
    machine_info["cpu"] = report["cpu"] | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list, output_json: dict) -> None:
    session = config.stash[SESSION]
    setup = session.setup
    # measured before and after the benchmarks: the better one is the ceiling
    ceilings = {key: max(value, session.ceilings.get(key, 0)) for key, value in measure_ceilings(setup.device).items()}
    for one in output_json["benchmarks"]:
        info = one["extra_info"]
        if "operations" in info:
            cost = Cost(info["bytes"], info["operations"])
            info |= suite.against_ceilings(ceilings, one["stats"]["median"], cost, info["dtype"])
    output_json["bench"] = {
        "device": setup.device,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "full": setup.full,
        "ceilings": ceilings,
        "unmeasured": session.unmeasured,
    }


def _parameters(item: pytest.Item) -> dict[str, Any]:
    """The arguments of a parametrized test."""
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
