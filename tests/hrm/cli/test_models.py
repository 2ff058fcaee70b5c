import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

import hrm
from hrm import InputError, models
from hrm.data import maze, sudoku, task_of
from hrm.inference.halting import parse_halting
from hrm.inference.solve import solve
from hrm.locate import locate
from hrm.weights import read_extra


def test_every_model_has_a_card_a_recipe_and_weights():
    from hrm.training.config import recipes

    cards = models.cards()
    assert [card.name for card in cards] == models.names() and "sudoku4" in models.names()
    assert sum(card.size for card in cards) < 6e6
    for card in cards:
        model = hrm.load(card.name)
        assert sum(one.numel() for one in model.parameters()) == card.parameters and card.recipe in recipes()
        task = task_of(model.config.vocab_size, model.config.seq_len, read_extra(card.name)["task"])
        assert len(task.parse(card.example)) == model.config.seq_len and card.accuracy
        assert all(0 <= one.exact_accuracy <= 1 and one.count >= 500 for one in card.accuracy)


@pytest.mark.parametrize(
    ("name", "generate", "accuracy"),
    [
        ("sudoku4", partial(sudoku.generate, 200, size=4, difficulty=sudoku.Difficulty(extra_clues=4)), 0),
        ("sudoku6", partial(sudoku.generate, 200, size=6, difficulty=sudoku.Difficulty(extra_clues=20)), 0),
        ("sudoku6", partial(sudoku.generate, 200, size=6), 1),
        (
            "sudoku9",
            partial(sudoku.generate, 60, size=9, difficulty=sudoku.Difficulty(max_rating=0, clues=(28, 36))),
            0,
        ),
        ("maze11", partial(maze.generate, 150, size=11, min_path=2), 0),
        # 1,000 puzzles measure an accuracy to within 1.5 %
        pytest.param("maze11", partial(maze.generate, 1000, size=11, min_path=2), 0, marks=pytest.mark.slow),
    ],
)
def test_models_reach_the_accuracy_of_their_cards(name, generate, accuracy):
    (card,) = (card for card in models.cards() if card.name == name)
    model = hrm.load(name)
    task = task_of(model.config.vocab_size, model.config.seq_len, read_extra(name)["task"])
    inputs = generate(rng=np.random.default_rng(99)).inputs
    halt = parse_halting("calibrated", name)
    reached = np.mean([solution.valid for solution in solve(model, task, inputs, halt=halt)])
    assert reached > card.accuracy[accuracy].early_exact_accuracy - 0.04


def test_a_path_takes_precedence_over_a_shipped_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("sudoku4") == models.folder("sudoku4")
    (tmp_path / "sudoku4").mkdir()
    with pytest.raises(InputError, match="sudoku4 is not a model"):
        hrm.load("sudoku4")
    with pytest.raises(InputError, match="models that come with the package: .*sudoku4"):
        hrm.load("sudoku44")


def test_the_list_of_models(call):
    code, text, _ = call("models")
    assert code == 0 and all(name in text for name in models.names())
    code, text, _ = call("models", "--json")
    listed = json.loads(text)
    assert [one["name"] for one in listed] == models.names() and all(one["bytes"] > 1e5 for one in listed)
    code, text, err = call("solve", "sudoku4", "..1.3.......12..")
    assert code == 0 and "valid" in text, err


def test_the_interval_of_an_accuracy_is_wilsons():
    measured = models.Accuracy(
        puzzles="", data="", count=1000, exact_accuracy=0.5, steps=1, early_exact_accuracy=0, early_steps=1
    )
    assert measured.interval(0.5) == pytest.approx((0.4691, 0.5309), abs=1e-4)
    assert measured.interval(0.99) == pytest.approx((0.9817, 0.9946), abs=1e-4)  # not symmetric near an end
    assert measured.interval(1.0) == pytest.approx((0.9962, 1.0), abs=1e-4)


def test_the_list_does_not_import_torch():
    code = "import sys; import hrm.models; hrm.models.cards(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
