"""Nonograms as a task of your own: a picture of 4 x 4 from its clues. Run it: python examples/nonogram.py"""

import tempfile

import numpy as np

import hrm

SIZE, CLUES = 4, 2  # cells of a line, and the most clues it can have
UNKNOWN, EMPTY, FILLED, NUMBER = 1, 2, 3, 4  # token 0 is padding; clue n is token NUMBER + n
SIDE = CLUES + SIZE  # the board has the clues of rows on its left and those of columns above


def clues(line: np.ndarray) -> list[int]:
    """The lengths of the filled runs of a line of booleans."""
    runs = "".join("#" if cell else " " for cell in line).split()
    return [len(run) for run in runs]


def board_of(lines: list[list[int]], picture: np.ndarray) -> np.ndarray:
    """``[seq_len]`` tokens of the clues of all rows, then of all columns, and of the cells of a picture."""
    board = np.full((SIDE, SIDE), NUMBER, np.uint8)
    for number, line in enumerate(lines):
        place = np.zeros(CLUES, np.uint8)
        place[CLUES - len(line) :] = line
        at = CLUES + number % SIZE
        if number < SIZE:
            board[at, :CLUES] += place
        else:
            board[:CLUES, at] += place
    board[CLUES:, CLUES:] = picture
    return board.ravel()


@hrm.register_task
class Nonogram(hrm.PuzzleTask):
    name = "nonogram"
    vocab_size, seq_len = NUMBER + SIZE + 1, SIDE * SIDE

    def parse(self, text: str) -> np.ndarray:
        sides, _, picture = text.partition("=")
        lines = [
            [int(number) for number in line.split() if number != "0"] for line in sides.replace("/", ",").split(",")
        ]
        cells = [".-#".find(cell) for cell in picture or "." * SIZE * SIZE]
        if len(lines) != 2 * SIZE or len(cells) != SIZE * SIZE or -1 in cells:
            raise hrm.InputError(f"{text!r} is not a nonogram; expected clues as in 1 1,2,0,4/1,2,1 1,3")
        if any(sum(line) + len(line) - 1 > SIZE for line in lines):
            raise hrm.InputError(f"{text!r} has clues that do not fit into {SIZE} cells")
        return board_of(lines, UNKNOWN + np.reshape(cells, (SIZE, SIZE)))

    def format(self, tokens: np.ndarray) -> str:
        lines = [" ".join(map(str, line)) or "0" for line in self.lines(tokens)]
        cells = "".join("?.-#"[min(cell, FILLED)] for cell in self.picture(tokens).ravel())
        return f"{','.join(lines[:SIZE])}/{','.join(lines[SIZE:])}={cells}"

    def check(self, inputs: np.ndarray, answer: np.ndarray) -> str | None:
        filled = self.picture(answer) == FILLED
        for number, (line, wanted) in enumerate(zip([*filled, *filled.T], self.lines(inputs))):
            if clues(line) != wanted:
                kind = "row" if number < SIZE else "column"
                return f"{kind} {number % SIZE + 1} has {clues(line)}, and its clues are {wanted}"
        return None

    def picture(self, tokens: np.ndarray) -> np.ndarray:
        return tokens.reshape(SIDE, SIDE)[CLUES:, CLUES:]

    def lines(self, tokens: np.ndarray) -> list[list[int]]:
        board = tokens.reshape(SIDE, SIDE).astype(int) - NUMBER
        sides = [*board[CLUES:, :CLUES], *board[:CLUES, CLUES:].T]
        return [[number for number in line.tolist() if number > 0] for line in sides]


def puzzles(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Puzzles with one solution and their answers: pictures whose clues no other picture has."""
    pictures = (np.arange(1 << SIZE * SIZE)[:, None] >> np.arange(SIZE * SIZE) & 1).reshape(-1, SIZE, SIZE)
    of_line = np.array([clues(line) + [0] * (CLUES - len(clues(line))) for line in pictures[: 1 << SIZE, 0]])
    code = of_line[:, 0] * (SIZE + 1) + of_line[:, 1]
    weights = 1 << np.arange(SIZE)
    keys = np.concatenate([code[pictures @ weights], code[pictures.transpose(0, 2, 1) @ weights]], 1)
    _, first, same = np.unique(keys, axis=0, return_index=True, return_counts=True)
    chosen = rng.permutation(first[same == 1])[:count]
    lines = [[clues(line) for line in [*pictures[one], *pictures[one].T]] for one in chosen]
    inputs = [board_of(one, np.full((SIZE, SIZE), UNKNOWN)) for one in lines]
    labels = [board_of(one, EMPTY + pictures[number]) for one, number in zip(lines, chosen)]
    return np.stack(inputs), np.stack(labels)


if __name__ == "__main__":
    task = Nonogram()
    inputs, labels = puzzles(np.random.default_rng(0), 60_000)  # there are 52,362
    splits = {"train": (inputs[100:], labels[100:]), "test": (inputs[:100], labels[:100])}
    with tempfile.TemporaryDirectory() as folder:
        data, run = f"{folder}/data", f"{folder}/run"
        hrm.write_dataset(data, splits, task=task)
        # A small TRM that mixes positions by an MLP. Small batches and one cycle of one update learn fastest at first.
        arch = {"hidden_size": 64, "num_heads": 2, "expansion": 1.0, "H_cycles": 1, "L_cycles": 1, "halt_max_steps": 4}
        hrm.train(
            "sudoku6", data=data, out=run, device="cpu", arch=arch, global_batch_size=16, lr=2e-3, ema_rate=0.998,
            epochs=3, max_steps=2000, log_every=500,
        )  # fmt: skip
        print(hrm.evaluate(run, data, device="cpu"))
        solutions = hrm.solve(run, inputs[:100], halt="fixed", device="cpu")
    for solution in solutions[:3]:
        print(task.format(solution.inputs), "->", task.format(solution.answer), solution.reason or "right")
    solved = sum(solution.valid for solution in solutions)
    print(f"solved {solved} of {len(solutions)}")
    assert solved >= 80
