import numpy as np
import pytest
from PIL import Image, ImageColor

from hrm.data.maze import Maze
from hrm.data.sudoku import Sudoku, generate
from hrm.inference.draw import draw_answer, draw_board, draw_trace, save_gif, save_png
from hrm.inference.solve import Frame, Solution


def sudoku_solution(size):
    """A solution whose first frame has half of the blanks wrong, and whose second is right."""
    task = Sudoku(size)
    puzzle = generate(1, size, np.random.default_rng(0))
    inputs, label = puzzle.inputs[0], puzzle.labels[0]
    half = label.copy()
    half[np.flatnonzero(inputs == 1)[::2]] = 2
    frames = (Frame(1, half, -1.0, 0.0), Frame(2, label, 3.0, 0.0))
    return task, Solution(inputs, frames, None)


def board_origin(image, columns, cell):
    return (image.width - columns * cell) // 2, 20


@pytest.mark.parametrize(("size", "cell"), [(4, 72), (6, 72), (9, 53)])
def test_cells_have_the_tasks_colours(size, cell):
    task, solution = sudoku_solution(size)
    tokens = solution.frames[0].tokens
    image = draw_board(task, tokens, solution.inputs)
    assert image.size == (size * cell + 40, size * cell + 40)
    left, top = board_origin(image, size, cell)
    for row, line in enumerate(task.cells(tokens, solution.inputs)):
        for column, one in enumerate(line):
            # outside lines (3 pixels at most) and the digit in the middle
            corner = image.getpixel((left + column * cell + cell // 8, top + row * cell + cell // 8))
            assert corner == ImageColor.getrgb(one.background)
            middle = np.asarray(
                image.crop(
                    (
                        left + column * cell + 8,
                        top + row * cell + 8,
                        left + (column + 1) * cell - 8,
                        top + (row + 1) * cell - 8,
                    )
                )
            )
            has_text = (middle == ImageColor.getrgb(one.foreground)).all(-1).any()
            assert has_text == bool(one.text)


def test_lines_between_boxes_are_thick():
    task, solution = sudoku_solution(6)  # boxes of 2 rows and 3 columns
    pixels = np.asarray(draw_board(task, solution.inputs, solution.inputs).convert("L"), int)
    across = pixels[20 + 36 : 20 + 432 : 72, :].max(0)  # dark in every row of cells: a thick vertical line
    down = pixels[:, 20 + 5 : 20 + 432 : 72].max(1)
    thick = [3 * 72, 0, 6 * 72]
    assert set(np.flatnonzero(across < 60)) == {20 + at + d for at in thick for d in (-1, 0, 1)}
    assert set(np.flatnonzero(down < 60)) == {20 + 72 * at + d for at in (0, 2, 4, 6) for d in (-1, 0, 1)}


def test_changed_cells_have_a_ring():
    task, solution = sudoku_solution(4)
    changed = solution.changed(1)
    plain = np.asarray(draw_board(task, solution.answer, solution.inputs))
    ringed = np.asarray(draw_board(task, solution.answer, solution.inputs, changed=changed))
    different = (plain != ringed).any(-1)[20 : 20 + 288, 20 : 20 + 288].reshape(4, 72, 4, 72).any((1, 3))
    np.testing.assert_array_equal(different.ravel(), changed)
    assert 0 < changed.sum() < 16


@pytest.mark.parametrize("size", [4, 9])
def test_gif_of_a_trace(tmp_path, size):
    task, solution = sudoku_solution(size)
    images = draw_trace(task, solution)
    assert len(images) == solution.steps + 1
    save_gif(images, tmp_path / "trace.gif", frame_ms=500, last_ms=2000)
    with Image.open(tmp_path / "trace.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (3, images[0].size, 0)
        durations = []
        cell = 480 // max(size, 480 // 72 + 1)
        left, top = board_origin(images[0], size, cell)
        for number, tokens in enumerate([solution.inputs, *(frame.tokens for frame in solution.frames)]):
            gif.seek(number)
            durations.append(gif.info["duration"])
            frame = gif.convert("RGB")
            for row, line in enumerate(task.cells(tokens, solution.inputs)):
                for column, one in enumerate(line):
                    inside = (left + column * cell + cell // 6, top + row * cell + cell // 2)  # between ring and digit
                    assert frame.getpixel(inside) == ImageColor.getrgb(one.background), (number, row, column)
            # only edges of letters may differ a little
            difference = np.abs(np.asarray(frame, int) - np.asarray(images[number], int)).max()
            assert difference <= 24
        assert durations == [1000, 500, 2000]
    assert (tmp_path / "trace.gif").stat().st_size < 100_000


def test_a_maze_of_30_by_30(tmp_path):
    task = Maze(30)
    random = np.random.default_rng(0)
    inputs = random.choice([1, 2], 900).astype(np.uint8)
    inputs[0], inputs[-1] = 3, 4
    answer = np.where((inputs == 2) & (random.random(900) < 0.3), 5, inputs).astype(np.uint8)
    answer[40] = 3 - inputs[40] if inputs[40] < 3 else 1  # a wall removed, or added
    solution = Solution(inputs, (Frame(1, answer, 0.0, 0.0),), task.check(inputs, answer))
    images = draw_trace(task, solution)
    save_gif(images, tmp_path / "maze.gif")
    assert images[0].width == 30 * 16 + 40
    with Image.open(tmp_path / "maze.gif") as gif:
        gif.seek(1)
        frame = gif.convert("RGB")
    for row, line in enumerate(task.cells(answer, inputs)):
        for column, one in enumerate(line):
            if not one.text:
                assert frame.getpixel((20 + column * 16 + 8, 20 + row * 16 + 8)) == ImageColor.getrgb(one.background)


def test_png_of_an_answer(tmp_path):
    task, solution = sudoku_solution(4)
    good = draw_answer(task, solution)
    save_png(good, tmp_path / "board.png")
    with Image.open(tmp_path / "board.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(good))
    bad = draw_answer(task, Solution(solution.inputs, solution.frames, "a reason " * 20))
    assert bad.size == good.size  # a long reason is shortened
    red, green = ImageColor.getrgb("#b42318"), ImageColor.getrgb("#15803d")
    assert (np.asarray(bad) == red).all(-1).any() and not (np.asarray(good) == red).all(-1).any()
    assert (np.asarray(good) == green).all(-1).any()
    assert not (np.asarray(bad)[:, -20:] == red).all(-1).any()  # the margin is empty
