"""A puzzle task of your own: sort four digits. Run it: python examples/custom_task.py"""

import tempfile

import numpy as np

import hrm


class Sort(hrm.PuzzleTask):
    name = "sort"
    vocab_size, seq_len = 7, 4  # token 0 is padding, tokens 1 to 6 are the digits

    @classmethod
    def from_shape(cls, vocab_size: int, seq_len: int) -> "Sort | None":
        return cls() if (vocab_size, seq_len) == (cls.vocab_size, cls.seq_len) else None

    def parse(self, text: str) -> np.ndarray:
        if len(text) != 4 or not set(text) <= set("123456"):
            raise hrm.InputError(f"{text!r} is not a puzzle; expected four digits from 1 to 6")
        return np.array([int(digit) for digit in text], np.uint8)

    def format(self, tokens: np.ndarray) -> str:
        return "".join(map(str, tokens))

    render = format

    def check(self, inputs: np.ndarray, answer: np.ndarray) -> str | None:
        return None if (np.sort(inputs) == answer).all() else "not sorted"

    def cells(self, tokens: np.ndarray, inputs: np.ndarray) -> list[list[hrm.Cell]]:
        return [[hrm.Cell(str(token)) for token in tokens]]


if __name__ == "__main__":
    task, rng, splits = Sort(), np.random.default_rng(0), {}
    for split, count in (("train", 2000), ("test", 100)):
        inputs, builder = rng.integers(1, 7, (count, 4)), hrm.SetBuilder()
        builder.add_puzzles(inputs, np.sort(inputs))
        splits[split] = {"all": builder}
    with tempfile.TemporaryDirectory() as folder:
        data, run = f"{folder}/data", f"{folder}/run"
        hrm.write_dataset(data, splits, vocab_size=task.vocab_size, seq_len=task.seq_len)
        hrm.train("demo", data=data, out=run, device="cpu", epochs=16, lr=3e-3, arch={"halt_max_steps": 4})
        print(hrm.evaluate(run, data, device="cpu"))
        solutions = hrm.solve(run, inputs, task=task, device="cpu")
    for solution in solutions[:3]:
        print(task.format(solution.inputs), "->", task.format(solution.answer), solution.reason or "right")
    solved = sum(solution.valid for solution in solutions)
    print(f"solved {solved} of {len(solutions)}")
    assert solved > 60
