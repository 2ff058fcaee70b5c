"""Results as text, and as HTML in notebooks."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from hrm import InputError
from hrm.data.maze import Maze
from hrm.data.sudoku import Sudoku
from hrm.inference.board import board_html
from hrm.inference.calibrate import Calibration, Point
from hrm.inference.engine import Frame, Result
from hrm.inference.scaling import Scaling, ScalingCell
from hrm.inference.solve import Solution

TASK = Sudoku(4)
PUZZLE, ANSWER = TASK.parse("1.34341221434321"), TASK.parse("1234341221434321")


def cells_of(table):
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]


def test_frame_and_result():
    tokens = np.arange(20, dtype=np.uint8)
    assert repr(Frame(2, tokens[:4], 0.0, 0.0)) == "Frame(step=2, confidence=50.0%, tokens=[0 1 2 3])"
    assert repr(Result(7, tokens, 3, 2.0, 0.0)) == (
        "Result(index=7, steps=3, confidence=88.1%, tokens=[ 0  1  2  3  4  5 ... 14 15 16 17 18 19])"
    )
    refused = Result.refused(4, InputError("the puzzle holds token 9"))
    assert repr(refused) == "Result(index=4, error=InputError('the puzzle holds token 9'))"
    assert (refused.steps, len(refused.tokens), math.isnan(refused.q_halt)) == (0, 0, True)


@pytest.mark.parametrize("reason", [None, "2 twice in row 1 <&>"])
def test_solution(reason):
    solution = Solution(PUZZLE, (Frame(1, ANSWER, 2.0, 0.0),), reason, TASK)
    verdict = f"{reason or 'valid'}, 1 segment, confidence 88.1%"
    assert repr(solution) == f"Solution({verdict})"
    assert str(solution) == f"{TASK.render(ANSWER)}\n{verdict}" and "1 2 │ 3 4" in str(solution)
    page = ElementTree.fromstring(f"<body>{solution._repr_html_()}</body>")
    assert cells_of(page) == [list("1234"), list("3412"), list("2143"), list("4321")]
    assert page[-1].text == verdict


def test_solution_without_a_task():
    solution = Solution(PUZZLE, (Frame(1, ANSWER, 2.0, 0.0), Frame(2, ANSWER, 2.0, 0.0)), None)
    assert str(solution) == "valid, 2 segments, confidence 88.1%"
    assert solution._repr_html_() == "<p>valid, 2 segments, confidence 88.1%</p>"


def test_a_board_has_the_colours_and_boxes_of_its_task():
    cells = TASK.cells(ANSWER, PUZZLE)
    styles = [[cell.get("style") for cell in row] for row in ElementTree.fromstring(board_html(TASK, ANSWER, PUZZLE))]
    for row, line in enumerate(styles):
        for column, style in enumerate(line):
            cell = cells[row][column]
            assert f"background: {cell.background}; color: {cell.foreground}" in style
            assert ("border-top: 2px" in style) == (row % 2 == 0) and ("border-left: 2px" in style) == (column % 2 == 0)
    maze = np.full(25, 2, np.uint8)
    assert len(cells_of(ElementTree.fromstring(board_html(Maze(5), maze, maze)))) == 5


def test_scaling():
    one = ScalingCell(1, 1, {"q": 0.5, "vote,q": 0.5}, 0.5, 1.0)
    found = Scaling((one, ScalingCell(4, 2, {"q": 0.625, "vote,q": 0.75}, 1.0, 7.25)))
    assert str(found).splitlines() == [
        "| trajectories | segments | by q | by vote,q | any right | segments per puzzle |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 1 | 1 | 50.00% | 50.00% | 50.00% | 1.0 |",
        "| 2 | 4 | 62.50% | 75.00% | 100.00% | 7.2 |",
    ]
    rows = cells_of(ElementTree.fromstring(found._repr_html_()))
    assert rows[0][0] == "trajectories" and rows[2] == ["2", "4", "62.50%", "75.00%", "100.00%", "7.2"]
    assert found.as_dict(seed=0)["cells"][1]["compute"] == 7.25 and list(found.as_dict(seed=0)) == ["seed", "cells"]
    assert list(found) == list(found.cells)


def test_calibration():
    points = tuple(Point(step / 10, 0.9, 2.0) for step in range(60))
    found = Calibration(points, points[3], Point(0.0, 0.8, 1.5), Point(math.inf, 0.9, 4.0), 0.01, 4, 50)
    assert repr(found).startswith("Calibration(chosen=Point(threshold=0.3, ") and len(repr(found)) < 200
    assert str(found).splitlines() == [
        "50 puzzles, at most 4 segments, allowed loss 1.00%.",
        "",
        "| rule | q_halt - q_continue above | exact accuracy | segments |",
        "| --- | --- | --- | --- |",
        "| fixed | - | 90.00% | 4.000 |",
        "| q | 0 | 80.00% | 1.500 |",
        "| calibrated | 0.3 | 90.00% | 2.000 |",
    ]
    assert found.markdown().startswith(str(found)) and found.markdown().endswith("|\n")
    assert len(found.markdown().splitlines()) == 7 + 20
    page = ElementTree.fromstring(f"<body>{found._repr_html_()}</body>")
    assert cells_of(page)[3] == ["calibrated", "0.3", "90.00%", "2.000"]
