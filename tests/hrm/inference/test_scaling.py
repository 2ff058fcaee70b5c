import json
from itertools import combinations

import pytest
from tiny_sudoku import tiny, write_data

from hrm.data import sudoku
from hrm.data.format import open_dataset
from hrm.inference.engine import Trajectories
from hrm.inference.evaluate import evaluate
from hrm.inference.scaling import Scaling, ScalingCell, scale


@pytest.mark.parametrize("how", [Trajectories(augment=True), Trajectories(noise=0.5, start_noise=0.2, select="q")])
def test_cells_are_those_of_separate_runs(how, tmp_path, told):
    write_data(tmp_path / "data")
    dataset, task = open_dataset(tmp_path / "data", "test"), sudoku.Sudoku(4)
    several = {"segments": [1, 3, 6], "trajectories": [1, 3]}
    found = scale(tiny(), task, dataset, slots=8, halt="q", progress=told, how=how, **several)
    cells = found.cells
    assert told.ends == {"trajectories": (dataset.num_examples,) * 2}
    assert [(one.segments, one.trajectories) for one in cells] == [(1, 1), (3, 1), (6, 1), (1, 3), (3, 3), (6, 3)]
    for one in cells[1::4]:
        separate = {"segments": [one.segments], "trajectories": [one.trajectories]}
        assert Scaling((one,)) == scale(tiny(), task, dataset, slots=8, halt="q", how=how, **separate)
    direct = evaluate(tiny(), dataset, batch_size=8, halt="q", max_steps=3)
    assert all(share == pytest.approx(direct.exact_accuracy) for share in cells[1].exact_accuracy.values())
    assert cells[1].compute == pytest.approx(direct.steps)
    several = Trajectories(3, how.noise, how.start_noise, how.augment, select=how.select)
    direct = evaluate(tiny(), dataset, batch_size=8, halt="q", max_steps=3, trajectories=several, task=task)
    accuracy = dict(cells[4].exact_accuracy) | {"any": cells[4].any_right}
    assert {rule: pytest.approx(accuracy[rule]) for rule in direct.selected} == direct.selected
    assert (accuracy[how.select], cells[4].compute) == pytest.approx((direct.exact_accuracy, direct.steps))
    assert max(accuracy.values()) == accuracy["any"] and len(set(accuracy.values())) > 1
    found.save(tmp_path, data="x")
    assert json.loads((tmp_path / "scaling.json").read_text())["cells"][0]["segments"] == 1
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("settles", "rules"), [(2, ["q"]), (8, ["vote", "q", "q,vote"])])
def test_labels_of_the_figure_do_not_overlap(settles, rules):
    """Points coincide beyond ``settles`` segments, when every puzzle has halted; those of trajectories are close."""
    counts = (1, 4, 16)
    cells = [
        ScalingCell(
            steps, tries, dict.fromkeys(rules, min(0.995, 0.9 + 0.01 * min(steps, settles).bit_length())), 1, used
        )
        for tries in counts
        for steps in (1, 2, 4, 8, 16, 32, 64)
        for used in [tries * min(steps, settles, 4 + steps / 20)]
    ]
    figure = Scaling(tuple(cells)).figure()
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.axison]
    assert len(panels) == len(rules)
    for axes in panels:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        dots = [axes.transData.transform((one.compute, 100 * one.exact_accuracy[rules[0]])) for one in cells]
        assert not any(box.contains(*dot) for box in boxes for dot in dots)
        covered = [tuple(map(int, text.get_text().split(" to "))) for text in axes.texts]
        each = [[one for one in covered if one[0] <= steps <= one[-1]] for steps in (1, 2, 4, 8, 16, 32, 64)]
        assert [len(one) for one in each] == [len(counts)] * 7  # one for each number of trajectories
    titles = [axes.get_title() for axes in panels]
    assert titles[-1] == ("" if len(rules) == 1 else "chosen by q, then vote")
