"""The public functions of ``hrm``: what they accept and return, and what they refuse before torch is imported."""

import json
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest

import hrm
from hrm.data.sudoku import Difficulty, generate
from hrm.inference.halting import Margin


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api") / "data"
    puzzles, more = (generate(24, 4, np.random.default_rng(seed), Difficulty(extra_clues=4)) for seed in (0, 1))
    splits = {"train": (more.inputs, more.labels), "test": (puzzles.inputs, puzzles.labels)}
    hrm.write_dataset(folder, splits, vocab_size=6, seq_len=16, task="sudoku")
    return folder


def in_new_process(program: str, *arguments: object) -> str:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_exists_and_is_listed():
    for name in hrm.__all__:
        assert getattr(hrm, name) is getattr(hrm, name)
    assert set(hrm.__all__) <= set(dir(hrm)) and len(set(hrm.__all__)) == len(hrm.__all__)
    assert hrm.__version__ == version("hrm")
    with pytest.raises(AttributeError, match="module 'hrm' has no attribute 'nothing'"):
        hrm.nothing  # noqa: B018


def test_type_checkers_and_the_program_find_the_same_names():
    """The names under TYPE_CHECKING, of ``__all__`` and of the table of modules."""
    import ast
    from pathlib import Path

    tree = ast.parse(Path(hrm.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        (node.module.removeprefix("hrm."), name.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert typed == {(module, name) for module, names in hrm._MODULES.items() for name in names}
    assert {name for _, name in typed} | {"__version__"} == set(hrm.__all__)


def test_importing_hrm_and_its_functions_does_not_import_torch():
    program = "import sys, hrm; hrm.train, hrm.solve, hrm.InputError, dir(hrm); print('torch' in sys.modules)"
    assert in_new_process(program) == "False\n"


def test_wrong_arguments_are_refused_before_torch_is_imported(data, tmp_path):
    (tmp_path / "metrics.json").write_text("precious")
    program = """
import sys, hrm
data, out = sys.argv[1:]
for call in (
    lambda: hrm.solve("nowhere", "..1."),
    lambda: hrm.solve("sudoku4", "..1.", halt="never"),
    lambda: hrm.evaluate("sudoku4", "nowhere"),
    lambda: hrm.evaluate("sudoku4", data, split="dev"),
    lambda: hrm.evaluate("sudoku4", data, out=out),
    lambda: hrm.scale("sudoku4", data, noise=0.5),
    lambda: hrm.adapt("sudoku4", data),
):
    try:
        call()
    except hrm.InputError as error:
        print(error)
assert "torch" not in sys.modules
"""
    messages = in_new_process(program, data, tmp_path).splitlines()
    parts = [
        "nowhere does not exist",
        "halt is 'never'",
        "data folder nowhere does not exist",
        "has no split 'dev'",
        "metrics.json exists already",
        "noise changes no answer",
        "add --out DIR",
    ]
    assert len(messages) == len(parts)
    for message, part in zip(messages, parts):
        assert part in message


def test_solve_takes_text_texts_and_tokens():
    puzzle = "..1.3.......12.."
    model = hrm.load("sudoku4")
    one = hrm.solve("sudoku4", puzzle)
    assert one.valid and one.answer.shape == (16,)
    by_name, by_object = hrm.solve("sudoku4", [puzzle, puzzle]), hrm.solve(model, np.stack([one.inputs] * 2))
    for solution in (*by_name, *by_object):
        assert (solution.answer == one.answer).all() and solution.steps == one.steps
    (fixed,) = hrm.solve(model, [puzzle], halt="fixed", max_steps=3)
    assert fixed.steps == 3 and hrm.solve("sudoku4", []) == []
    with pytest.raises(hrm.InputError, match="expected 16"):
        hrm.solve("sudoku4", "12")
    assert hrm.solve(model, puzzle, halt="calibrated").steps == one.steps
    with pytest.raises(hrm.InputError, match="the model was not loaded from a folder; give halt='margin:X'"):
        hrm.solve(hrm.HRM(model.config), puzzle, halt="calibrated")


def test_evaluate_takes_names_and_objects(data, tmp_path):
    dataset, model = hrm.open_dataset(data, "test"), hrm.load("sudoku4")
    by_name = hrm.evaluate("sudoku4", str(data), out=tmp_path)
    by_object = hrm.evaluate(model, dataset)
    assert isinstance(by_name, hrm.Metrics) and by_name.count == 24 and by_name.exact_accuracy > 0.9
    names = set(by_name.as_dict()) - {"puzzles_per_second"}
    assert all(by_name.as_dict()[name] == by_object.as_dict()[name] for name in names)
    assert json.loads((tmp_path / "metrics.json").read_text()) == by_name.as_dict()
    with pytest.raises(hrm.InputError, match="predictions.npz exists already"):
        hrm.evaluate(model, dataset, out=tmp_path)
    with pytest.raises(hrm.InputError, match="puzzle_emb is 'some', expected"):
        hrm.evaluate("sudoku4", data, puzzle_emb="some")
    with pytest.raises(hrm.InputError, match="batch_size is 0, expected 1 or more"):
        hrm.evaluate(model, dataset, batch_size=0)
    calibrated = hrm.evaluate("sudoku4", data, halt="calibrated")
    assert calibrated.steps < 4 and hrm.evaluate(model, dataset, halt=Margin(1e9)).steps == by_name.steps == 16


def test_scale_returns_what_it_writes(data, tmp_path):
    scaling = hrm.scale(hrm.load("sudoku4"), data, trajectories=[1, 2], halt="q", out=tmp_path)
    assert [(cell.trajectories, cell.segments) for cell in scaling] == [
        (count, segments) for count in (1, 2) for segments in (1, 2, 4, 8, 16)
    ]
    stored = json.loads((tmp_path / "scaling.json").read_text())
    about = {"checkpoint": "HRM", "data": str(data), "split": "test", "halt": "q", "damping": "none"}
    how = {"noise": 0.1, "start_noise": 0.0, "augment": False, "select": "check,vote,q", "seed": 0}
    assert stored == scaling.as_dict(**about, **how)
    assert str(scaling) == (tmp_path / "scaling.md").read_text().rstrip()
    for empty in ({"segments": []}, {"trajectories": []}):
        with pytest.raises(hrm.InputError, match=f"{next(iter(empty))} is empty, expected one number or more"):
            hrm.scale("sudoku4", data, **empty)


def test_calibrate_returns_what_it_writes(data, tmp_path):
    model = hrm.load("sudoku4")
    calibration = hrm.calibrate(model, hrm.open_dataset(data, "test"), out=tmp_path / "calibration")
    stored = json.loads((tmp_path / "calibration" / "halting.json").read_text())
    assert stored["threshold"] == calibration.chosen.threshold and calibration.count == 24
    before = sorted(tmp_path.iterdir())
    assert hrm.calibrate(model, data).chosen == calibration.chosen and sorted(tmp_path.iterdir()) == before
    with pytest.raises(hrm.InputError, match="sudoku4 comes with the package"):
        hrm.calibrate("sudoku4", data)


def test_train_takes_settings_and_overrides(data, tmp_path):
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # the recipe trains with one
    arch = {"hidden_size": 16, "num_heads": 2, "halt_max_steps": 2}
    result = hrm.train(
        "demo",
        "max_steps=3",
        data=hrm.open_dataset(data, "train"),
        out=tmp_path / "run",
        batch_size=8,
        seed=5,
        device="cpu",
        lr=1e-3,
        ema=False,
        eval_interval=None,
        arch=arch,
        depth=[{"until": 0.5, "H_cycles": 1, "L_cycles": 1}],
        mix_share=((1, 0.25), (0.5, 1)),
    )
    assert (result.step, result.reason) == (3, "limit") and torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    stored = json.loads((tmp_path / "run" / "training.json").read_text())
    assert (stored["global_batch_size"], stored["seed"], stored["lr"], stored["ema"]) == (8, 5, 1e-3, False)
    assert stored["depth"] == [{"until": 0.5, "H_cycles": 1, "L_cycles": 1}]
    assert stored["mix_share"] == [[1, 0.25], [0.5, 1.0]]
    assert stored["eval_interval"] is None and stored["arch"] | arch == stored["arch"]
    resumed = hrm.train(
        "demo", "max_steps=4", data=data, out=tmp_path / "run", batch_size=8, seed=5, device="cpu", lr=1e-3, ema=False,
        eval_interval=None, arch=arch, resume=True,
    )  # fmt: skip
    assert resumed.step == 4
    with pytest.raises(hrm.InputError, match="lr has two values, 0.1 and 0.2; give one"):
        hrm.train("demo", "lr=0.2", data=data, lr=0.1)
    with pytest.raises(hrm.InputError, match="unknown key learning_rate"):
        hrm.train("demo", data=data, learning_rate=0.1)
