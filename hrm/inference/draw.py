"""Pictures of boards: one as a PNG, a solution's way as an animated GIF."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hrm.data.task import Cell, PuzzleTask
from hrm.files import written_beside
from hrm.inference.solve import Solution

_PAPER, _INK, _FAINT = "#ffffff", "#1f2933", "#7b8794"
_LINE, _CHANGED, _GOOD, _BAD, _TRACK = "#c3cad3", "#f59e0b", "#15803d", "#b42318", "#e4e7eb"

_BOARD = 480  # pixels a board aims at; small boards stop at the largest cell
_SMALLEST_CELL, _LARGEST_CELL = 8, 72
_MARGIN = 20
_CAPTION_WIDTH = 320  # room for a caption below a small board
_TITLE, _TEXT = 17, 14
_FLAT = 64  # colours of an animation that are exact; boards have about a dozen


def draw_board(
    task: PuzzleTask,
    tokens: np.ndarray,
    inputs: np.ndarray,
    *,
    changed: np.ndarray | None = None,
    title: str | None = None,
    note: str = "",
    good: bool | None = None,
    level: float | None = None,
) -> Image.Image:
    """Draw one board, with a caption below it.

    Args:
        task: says how the cells look.
        tokens: ``[seq_len]`` tokens, a puzzle or an answer.
        inputs: ``[seq_len]`` tokens of the puzzle.
        changed: ``[seq_len]`` bool, cells to be ringed; only where the task draws a cell for every token.
        title: the caption's first line; None draws no caption.
        note: the caption's second line.
        good: whether the note tells of a success (green) or a failure (red); None is neither.
        level: 0 to 1, drawn as a bar between board and caption.

    Returns:
        An RGB picture; boards of one task and shape are of one size.
    """
    cells = task.cells(tokens, inputs)
    rows, columns = len(cells), max(len(row) for row in cells)
    size = max(_SMALLEST_CELL, min(_LARGEST_CELL, _BOARD // max(rows, columns)))
    board_width, board_height = columns * size, rows * size
    caption = 0 if title is None else 64
    width = max(board_width, _CAPTION_WIDTH if caption else 0) + 2 * _MARGIN
    image = Image.new("RGB", (width, board_height + 2 * _MARGIN + caption), _PAPER)
    draw = ImageDraw.Draw(image)
    left, top = (width - board_width) // 2, _MARGIN
    _draw_cells(draw, cells, left, top, size)
    _draw_lines(draw, left, top, rows, columns, size, task.box)
    if changed is not None and changed.size == rows * columns:
        _draw_rings(draw, np.asarray(changed).reshape(rows, columns), left, top, size)
    if title is not None:
        _draw_caption(draw, (_MARGIN, width - _MARGIN), top + board_height + 14, title, note, good, level)
    return image


def draw_trace(task: PuzzleTask, solution: Solution) -> list[Image.Image]:
    """The puzzle, then the answer after each segment: ``solution.steps + 1`` pictures of one size.

    Cells that a segment changed are ringed; the bar shows the model's confidence.
    """
    start = draw_board(task, solution.inputs, solution.inputs, title="The puzzle", note="no segment yet", level=0)
    images = [start]
    for index, frame in enumerate(solution.frames):
        reason = task.check(solution.inputs, frame.tokens)
        changed = solution.changed(index)
        title = f"Segment {frame.step}\tconfidence {100 * frame.confidence:.0f} %"
        cells = "1 cell" if changed.sum() == 1 else f"{changed.sum()} cells"
        note = f"{'valid' if reason is None else reason}\t{cells} changed"
        images.append(
            draw_board(
                task,
                frame.tokens,
                solution.inputs,
                changed=changed,
                title=title,
                note=note,
                good=reason is None,
                level=frame.confidence,
            )
        )
    return images


def draw_answer(task: PuzzleTask, solution: Solution) -> Image.Image:
    """The answer with its verdict."""
    segments = "1 segment" if solution.steps == 1 else f"{solution.steps} segments"
    return draw_board(
        task,
        solution.answer,
        solution.inputs,
        title=f"{segments}\tconfidence {100 * solution.confidence:.0f} %",
        note="valid" if solution.valid else str(solution.reason),
        good=solution.valid,
        level=solution.confidence,
    )


def save_png(image: Image.Image, path: Path | str) -> None:
    """Write ``path``, complete or not at all."""
    with written_beside(path) as part:
        image.save(part, format="PNG", optimize=True)


def save_gif(images: Sequence[Image.Image], path: Path | str, frame_ms: int = 700, last_ms: int = 3000) -> None:
    """Write ``images``, RGB of one size, as an endless animation that rests on the last one.

    Args:
        images: at least one.
        path: the file, written complete or not at all.
        frame_ms: time for each picture but the first, which has twice as much, and the last.
        last_ms: time for the last picture.
    """
    durations = [2 * frame_ms] + [frame_ms] * (len(images) - 2) + [last_ms] if len(images) > 1 else [last_ms]
    first, *others = _with_common_palette(images)
    with written_beside(path) as part:
        first.save(part, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)


def _draw_cells(draw: ImageDraw.ImageDraw, cells: list[list[Cell]], left: int, top: int, size: int) -> None:
    for row, line in enumerate(cells):
        for column, cell in enumerate(line):
            x, y = left + column * size, top + row * size
            draw.rectangle((x, y, x + size - 1, y + size - 1), fill=cell.background)
            if cell.text and size >= 12:
                # Half of the cell is the height of a digit that is read at ease; a longer text must fit the width.
                font = _font(min(size * 11 // 20, size * 9 // (8 * max(1, len(cell.text)))))
                draw.text((x + size / 2, y + size / 2), cell.text, fill=cell.foreground, font=font, anchor="mm")


def _draw_lines(
    draw: ImageDraw.ImageDraw, left: int, top: int, rows: int, columns: int, size: int, box: tuple[int, int] | None
) -> None:
    """Thin lines between cells, thick ones between boxes, a frame around them."""
    right, bottom = left + columns * size, top + rows * size
    box_rows, box_columns = box or (rows, columns)
    edge = 1 if box and size >= 20 else 0  # pixels on each side of a thick line's middle
    # Thin lines first: a thick one is nowhere cut by a thin one that crosses it.
    for is_thick, half in ((False, 0), (True, edge)):
        for count, step, vertical in ((rows, box_rows, False), (columns, box_columns, True)):
            for index in range(count + 1):
                if (index % step == 0 or index == count) != is_thick:
                    continue
                at, colour = index * size, _INK if is_thick else _LINE
                if vertical:
                    draw.rectangle((left + at - half, top - edge, left + at + half, bottom + edge), fill=colour)
                else:
                    draw.rectangle((left - edge, top + at - half, right + edge, top + at + half), fill=colour)


def _draw_rings(draw: ImageDraw.ImageDraw, changed: np.ndarray, left: int, top: int, size: int) -> None:
    # Small cells are coloured ones: a dark rim keeps the ring apart from whatever colours meet there.
    rings = [(4, 3, _CHANGED)] if size >= 32 else [(1, 1, _INK), (2, 2, _CHANGED)]
    for row, column in zip(*np.nonzero(changed)):
        x, y = left + int(column) * size, top + int(row) * size
        for inset, width, colour in rings:
            corners = (x + inset, y + inset, x + size - inset, y + size - inset)
            draw.rounded_rectangle(corners, radius=size // 8, outline=colour, width=width)


def _draw_caption(
    draw: ImageDraw.ImageDraw,
    span: tuple[int, int],
    top: int,
    title: str,
    note: str,
    good: bool | None,
    level: float | None,
) -> None:
    left, right = span
    if level is not None:
        draw.rounded_rectangle((left, top, right, top + 6), radius=3, fill=_TRACK)
        end = left + round((right - left) * min(1.0, max(0.0, level)))
        if end > left + 6:
            draw.rounded_rectangle((left, top, end, top + 6), radius=3, fill=_GOOD if good else _CHANGED)
    colour = {None: _FAINT, True: _GOOD, False: _BAD}[good]
    for y, text, size, fill in ((top + 30, title, _TITLE, _INK), (top + 54, note, _TEXT, colour)):
        own, _, at_right = text.partition("\t")
        room = right - left
        if at_right:
            small = _font(_TEXT)
            draw.text((right, y), at_right, fill=_FAINT, font=small, anchor="rs")
            room -= round(small.getlength(at_right)) + 12
        font = _font(size, bold=size == _TITLE)
        draw.text((left, y), _shortened(own, font, room), fill=fill, font=font, anchor="ls")


def _shortened(text: str, font: ImageFont.FreeTypeFont, room: int) -> str:
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text.rstrip(" ,;:") + "…"


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: the same pictures on every machine, whatever its fonts."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")), max(6, size))


def _with_common_palette(images: Sequence[Image.Image]) -> list[Image.Image]:
    """The pictures with one palette of 256 colours, in which flat areas keep theirs exactly.

    Pillow's own choice would shift flat colours, and differ from picture to picture.
    """
    pixels = np.stack([np.asarray(image.convert("RGB"), np.int32) for image in images])
    codes = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    colours, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    rgb = np.stack((colours >> 16, (colours >> 8) & 255, colours & 255), -1)
    flat = np.argsort(-counts, kind="stable")[:_FLAT]
    # The rest of the palette goes to the edges of letters: always to the colour that is served worst so far.
    palette = np.zeros((256, 3), np.uint8)
    nearest, distance = np.zeros(len(rgb), np.uint8), np.full(len(rgb), 1 << 30)
    for index in range(256):
        chosen = rgb[flat[index] if index < len(flat) else distance.argmax()]
        to_chosen = ((rgb - chosen) ** 2).sum(-1)
        closer = to_chosen < distance
        palette[index], nearest[closer], distance[closer] = chosen, index, to_chosen[closer]
    paletted = []
    for picture in nearest[inverse].reshape(codes.shape):
        image = Image.fromarray(picture, "P")
        image.putpalette(palette.tobytes())
        paletted.append(image)
    return paletted
