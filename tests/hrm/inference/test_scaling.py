import json
from itertools import combinations

import pytest
from tiny_sudoku import tiny, write_data

from hrm.data import sudoku
from hrm.data.format import open_dataset
from hrm.inference.evaluate import evaluate
from hrm.inference.scaling import Scaling, ScalingCell, scale


@pytest.mark.parametrize("how", [{}, {"augment": False, "noise": 0.7}])
def test_cells_are_those_of_separate_runs(how, tmp_path, told):
    write_data(tmp_path / "data")
    dataset, task = open_dataset(tmp_path / "data", "test"), sudoku.Sudoku(4)
    several = {"segments": [1, 3, 6], "rollouts": [1, 3]}
    found = scale(tiny(), task, dataset, slots=8, halt="q", progress=told, **several, **how)
    cells = found.cells
    assert told.ends == {"rollouts": (3 * dataset.num_examples,) * 2}
    assert [(one.segments, one.rollouts) for one in cells] == [(1, 1), (3, 1), (6, 1), (1, 3), (3, 3), (6, 3)]
    for one in cells:
        separate = {"segments": [one.segments], "rollouts": [one.rollouts]}
        assert Scaling((one,)) == scale(tiny(), task, dataset, slots=8, halt="q", **separate, **how)
    direct = evaluate(tiny(), dataset, batch_size=8, halt="q", max_steps=3)
    assert (cells[1].exact_accuracy, cells[1].compute) == pytest.approx((direct.exact_accuracy, direct.steps))
    found.save(tmp_path, data="x")
    assert json.loads((tmp_path / "scaling.json").read_text())["cells"][0]["segments"] == 1
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("settles", [2, 8, 64])
def test_labels_of_the_figure_do_not_overlap(settles):
    """Points coincide beyond ``settles`` segments, when every puzzle has halted; those of rollouts are close."""
    cells = [
        ScalingCell(steps, tries, min(0.995, 0.9 + 0.01 * min(steps, settles).bit_length()), 1, used)
        for tries in (1, 4, 16)
        for steps in (1, 2, 4, 8, 16, 32, 64)
        for used in [tries * min(steps, settles, 4 + steps / 20)]
    ]
    (axes,) = (figure := Scaling(tuple(cells)).figure()).axes
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    dots = [axes.transData.transform((one.compute, 100 * one.exact_accuracy)) for one in cells]
    assert not any(box.contains(*dot) for box in boxes for dot in dots)
    covered = [tuple(map(int, text.get_text().split(" to "))) for text in axes.texts]
    each = [[one for one in covered if one[0] <= steps <= one[-1]] for steps in (1, 2, 4, 8, 16, 32, 64)]
    assert [len(one) for one in each] == [3] * 7  # one for each number of rollouts
