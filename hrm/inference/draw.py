"""Pictures of boards: an answer as a PNG, all segments of a solution as an animated GIF."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hrm.data.task import Cell, PuzzleTask
from hrm.files import written_beside
from hrm.inference.solve import Solution

_PAPER, _INK, _FAINT = "#ffffff", "#1f2933", "#7b8794"
_LINE, _CHANGED, _GOOD, _BAD, _TRACK = "#c3cad3", "#f59e0b", "#15803d", "#b42318", "#e4e7eb"

_BOARD = 480  # pixels; a small board is smaller, since its cells are limited
_SMALLEST_CELL, _LARGEST_CELL = 8, 72
_MARGIN = 20
_CAPTION_WIDTH = 320  # at least, below a small board
_CAPTION_HEIGHT = 64
_TITLE, _TEXT = 17, 14  # font sizes
_FLAT = 64  # number of exact colours in an animation; boards have about a dozen


@dataclass(frozen=True)
class Caption:
    """The text below a board. A tab in a line puts the rest of it on the right.

    Attributes:
        title: the first line.
        note: the second line.
        good: whether the note reports a success (green) or a failure (red); None is neither.
        level: 0 to 1, drawn as a bar above the text; None draws no bar.
    """

    title: str
    note: str
    good: bool | None = None
    level: float | None = None


def draw_board(
    task: PuzzleTask,
    tokens: np.ndarray,
    inputs: np.ndarray,
    *,
    changed: np.ndarray | None = None,
    caption: Caption | None = None,
) -> Image.Image:
    """Draw one board.

    Args:
        task: how the cells look.
        tokens: ``[seq_len]`` tokens, a puzzle or an answer.
        inputs: ``[seq_len]`` tokens of the puzzle.
        changed: ``[seq_len]`` bool, cells with a ring; ignored unless the task draws a cell for every token.
        caption: the text below the board.

    Returns:
        An RGB picture; boards of one task and shape have the same size.
    """
    cells = task.cells(tokens, inputs)
    rows, columns = len(cells), max(len(row) for row in cells)
    size = max(_SMALLEST_CELL, min(_LARGEST_CELL, _BOARD // max(rows, columns)))
    board_width, board_height = columns * size, rows * size
    width = max(board_width, _CAPTION_WIDTH if caption else 0) + 2 * _MARGIN
    height = board_height + 2 * _MARGIN + (_CAPTION_HEIGHT if caption else 0)
    image = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(image)
    left, top = (width - board_width) // 2, _MARGIN
    _draw_cells(draw, cells, left, top, size)
    _draw_lines(draw, left, top, rows, columns, size, task.box)
    if changed is not None and changed.size == rows * columns:
        _draw_rings(draw, np.asarray(changed).reshape(rows, columns), left, top, size)
    if caption is not None:
        _draw_caption(draw, (_MARGIN, width - _MARGIN), top + board_height + 14, caption)
    return image


def draw_trace(task: PuzzleTask, solution: Solution) -> list[Image.Image]:
    """The puzzle, then the answer after each segment: ``solution.steps + 1`` pictures of the same size.

    Cells that a segment changed have a ring; the bar shows the model's confidence.
    """
    caption = Caption("The puzzle", "no segment yet", level=0)
    images = [draw_board(task, solution.inputs, solution.inputs, caption=caption)]
    for index, frame in enumerate(solution.frames if solution.steps else ()):
        reason = task.check(solution.inputs, frame.tokens)
        changed = solution.changed(index)
        title = f"Segment {frame.step}\tconfidence {100 * frame.confidence:.0f} %"
        cells = "1 cell" if changed.sum() == 1 else f"{changed.sum()} cells"
        note = f"{'valid' if reason is None else reason}\t{cells} changed"
        caption = Caption(title, note, reason is None, frame.confidence)
        images.append(draw_board(task, frame.tokens, solution.inputs, changed=changed, caption=caption))
    return images


def draw_answer(task: PuzzleTask, solution: Solution) -> Image.Image:
    """The answer with its verdict."""
    segments = "1 segment" if solution.steps == 1 else f"{solution.steps} segments"
    caption = Caption(
        f"{segments}\tconfidence {100 * solution.confidence:.0f} %",
        "valid" if solution.valid else str(solution.reason),
        solution.valid,
        solution.confidence,
    )
    return draw_board(task, solution.board, solution.inputs, caption=caption)


def save_png(image: Image.Image, path: Path | str) -> None:
    """Write ``path`` completely or not at all."""
    with written_beside(path) as part:
        image.save(part, format="PNG", optimize=True)


def save_gif(images: Sequence[Image.Image], path: Path | str, frame_ms: int = 700, last_ms: int = 3000) -> None:
    """Write ``images`` as an endless animation that pauses on the last one.

    Args:
        images: RGB, all of one size; at least one.
        path: the file, written completely or not at all.
        frame_ms: time for each picture but the last, in milliseconds; the first is shown twice as long.
        last_ms: time for the last picture, in milliseconds.
    """
    durations = [2 * frame_ms] + [frame_ms] * (len(images) - 2) + [last_ms] if len(images) > 1 else [last_ms]
    first, *others = with_common_palette(images)
    with written_beside(path) as part:
        first.save(part, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)


def _draw_cells(draw: ImageDraw.ImageDraw, cells: list[list[Cell]], left: int, top: int, size: int) -> None:
    for row, line in enumerate(cells):
        for column, cell in enumerate(line):
            x, y = left + column * size, top + row * size
            draw.rectangle((x, y, x + size - 1, y + size - 1), fill=cell.background)
            if cell.text and size >= 12:
                # a digit is easy to read at half the height of its cell; a longer text must fit the width
                font = font_of(min(size * 11 // 20, size * 9 // (8 * max(1, len(cell.text)))))
                draw.text((x + size / 2, y + size / 2), cell.text, fill=cell.foreground, font=font, anchor="mm")


def _draw_lines(
    draw: ImageDraw.ImageDraw, left: int, top: int, rows: int, columns: int, size: int, box: tuple[int, int] | None
) -> None:
    """Thin lines between cells, thick ones between boxes, a frame around them."""
    right, bottom = left + columns * size, top + rows * size
    box_rows, box_columns = box or (rows, columns)
    edge = 1 if box and size >= 20 else 0  # pixels on each side of the middle of a thick line
    # Thin lines first, so that they do not cross thick ones.
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
    # Small cells have many colours: a dark rim separates the ring from all of them.
    rings = [(4, 3, _CHANGED)] if size >= 32 else [(1, 1, _INK), (2, 2, _CHANGED)]
    for row, column in zip(*np.nonzero(changed)):
        x, y = left + int(column) * size, top + int(row) * size
        for inset, width, colour in rings:
            corners = (x + inset, y + inset, x + size - inset, y + size - inset)
            draw.rounded_rectangle(corners, radius=size // 8, outline=colour, width=width)


def _draw_caption(draw: ImageDraw.ImageDraw, span: tuple[int, int], top: int, caption: Caption) -> None:
    left, right = span
    if caption.level is not None:
        draw.rounded_rectangle((left, top, right, top + 6), radius=3, fill=_TRACK)
        end = left + round((right - left) * min(1.0, max(0.0, caption.level)))
        if end > left + 6:
            draw.rounded_rectangle((left, top, end, top + 6), radius=3, fill=_GOOD if caption.good else _CHANGED)
    colour = {None: _FAINT, True: _GOOD, False: _BAD}[caption.good]
    for y, text, size, fill in ((top + 30, caption.title, _TITLE, _INK), (top + 54, caption.note, _TEXT, colour)):
        at_left, _, at_right = text.partition("\t")
        width = right - left
        if at_right:
            small = font_of(_TEXT)
            draw.text((right, y), at_right, fill=_FAINT, font=small, anchor="rs")
            width -= round(small.getlength(at_right)) + 12
        font = font_of(size, bold=size == _TITLE)
        draw.text((left, y), _shortened(at_left, font, width), fill=fill, font=font, anchor="ls")


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip(" ,;:") + "…"


@cache
def font_of(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it, so that pictures are the same on every machine."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")), max(6, size))


def with_common_palette(images: Sequence[Image.Image]) -> list[Image.Image]:
    """The pictures with a common palette of 256 colours that has the exact colours of flat areas.

    Pillow's palettes would shift flat colours, and differ from picture to picture.
    """
    pixels = np.stack([np.asarray(image.convert("RGB"), np.int32) for image in images])
    codes = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    colours, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    rgb = np.stack((colours >> 16, (colours >> 8) & 255, colours & 255), -1)
    flat = np.argsort(-counts, kind="stable")[:_FLAT]
    # The rest of the palette is for the edges of letters: next is always the colour with the largest error so far.
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
