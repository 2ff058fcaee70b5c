"""A puzzle task of your own: sort four digits. Run it: python examples/custom_task.py"""

import tempfile

import numpy as np

import hrm


@hrm.register_task
class Sort(hrm.PuzzleTask):
    name = "sort"
    vocab_size, seq_len = 7, 4  # token 0 is padding, tokens 1 to 6 are the digits

    def parse(self, text: str) -> np.ndarray:
        if len(text) != 4 or not set(text) <= set("123456"):
            raise hrm.InputError(f"{text!r} is not a puzzle; expected four digits from 1 to 6")
        return np.array([int(digit) for digit in text], np.uint8)

    def format(self, tokens: np.ndarray) -> str:
        return "".join(map(str, tokens))

    def check(self, inputs: np.ndarray, answer: np.ndarray) -> str | None:
        return None if (np.sort(inputs) == answer).all() else "not sorted"


if __name__ == "__main__":
    task, rng = Sort(), np.random.default_rng(0)
    train, test = rng.integers(1, 7, (2000, 4)), rng.integers(1, 7, (100, 4))
    with tempfile.TemporaryDirectory() as folder:
        data, run = f"{folder}/data", f"{folder}/run"
        hrm.write_dataset(data, {"train": (train, np.sort(train)), "test": (test, np.sort(test))}, task=task)
        hrm.train("demo", data=data, out=run, device="cpu", epochs=16, lr=3e-3, arch={"halt_max_steps": 4})
        print(hrm.evaluate(run, data, device="cpu"))
        solutions = hrm.solve(run, test, device="cpu")
    for solution in solutions[:3]:
        print(task.format(solution.inputs), "->", task.format(solution.answer), solution.reason or "right")
    solved = sum(solution.valid for solution in solutions)
    print(f"solved {solved} of {len(solutions)}")
    assert solved > 60
