"""Solve puzzles with an exported model: python solve.py PUZZLE ... (or a file with one puzzle per line).

Needs numpy and onnxruntime only. As a module: ``Model(folder).solve(tokens)``.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


@dataclass(frozen=True)
class Answer:
    """The answer to a puzzle after a segment.

    Attributes:
        step: number of segments, from 1.
        tokens: ``[seq_len]`` int64.
        q_halt, q_continue: logits.
        residual: how much the segment changed the states.
    """

    step: int
    tokens: np.ndarray
    q_halt: float
    q_continue: float
    residual: float


class Model:
    """An exported model.

    Attributes:
        about: the values of ``model.json``: sizes, symbols, names of arguments.
    """

    def __init__(self, folder: "Path | str" = ".") -> None:
        self.about: dict[str, Any] = json.loads(Path(folder, "model.json").read_text(encoding="utf-8"))
        self._session = onnxruntime.InferenceSession(Path(folder, self.about["file"]), providers=_providers())
        self._arguments = {one.name: one for one in self._session.get_inputs()}

    def parse(self, text: str) -> np.ndarray:
        """The tokens of a puzzle, ``[seq_len]`` int64; spaces and lines are left out unless they are cells.

        A puzzle of a task without symbols is written as token numbers with spaces between them.
        """
        symbols = self.about["symbols"]
        if not symbols:
            return np.array(text.split(), np.int64)
        cells = [symbols[letter] for letter in text if letter in symbols]
        unknown = [letter for letter in text if letter not in symbols and not letter.isspace()]
        if unknown or len(cells) != self.about["seq_len"]:
            reason = f"{unknown[0]!r} in it" if unknown else f"{len(cells)} cells"
            raise ValueError(f"a puzzle with {reason}; expected {self.about['seq_len']} of {''.join(symbols)!r}")
        return np.array(cells)

    def format(self, tokens: np.ndarray) -> str:
        """The text of ``[seq_len]`` tokens."""
        if not self.about["symbols"]:
            return " ".join(map(str, tokens))
        return "".join(self.about["characters"][token] for token in tokens)

    def solve(
        self,
        puzzles: Any,
        halt: "str | float" = "auto",
        max_steps: "int | None" = None,
        identifiers: Any = 0,
        seeds: Any = 0,
    ) -> list[list[Answer]]:
        """Solve ``[n, seq_len]`` tokens: for each puzzle its answers after each segment, up to the one where it halts.

        Args:
            puzzles: integers.
            halt: ``"q"`` (where q_halt > q_continue), a number (where q_halt - q_continue exceeds it), ``"fixed"``
                (after ``max_steps`` segments) or ``"auto"``: as calibrated if the model is, else ``"q"``.
            max_steps: most segments (default: as in training, or as many as the file has).
            identifiers: rows of the puzzle embedding, one or ``[n]``.
            seeds: of random starts, one or ``[n]``.
        """
        puzzles, about = np.asarray(puzzles, np.int64), self.about
        limit = max_steps or about["segments"] or about["halt_max_steps"]
        if about["segments"] and limit > about["segments"]:
            raise ValueError(f"max_steps is {limit}, and {about['file']} has {about['segments']} segments")
        answers: list[list[Answer]] = [[] for _ in puzzles]
        running = np.arange(len(puzzles))  # the puzzles that go on, in the rows of the batch
        feeds: dict[str, np.ndarray] = {
            "inputs": puzzles,
            "puzzle_identifiers": np.broadcast_to(np.asarray(identifiers, np.int64), len(puzzles)),
            "seeds": np.broadcast_to(np.asarray(seeds, np.int64), len(puzzles)),
        }
        shape = (len(puzzles), about["positions"], about["hidden_size"])
        feeds |= {name: np.zeros(shape, np.float32) for name in ("z_H", "z_L")}
        unrolled = self._run(feeds) if about["segments"] and len(puzzles) else None
        for step in range(1, limit + 1):
            if not len(running):
                break
            if unrolled is None:
                feeds["steps"] = np.full(len(running), step - 1)
                outputs = self._run(feeds)
            else:
                outputs = {name: values[running, step - 1] for name, values in unrolled.items()}
            tokens, q_halt, q_continue = outputs["logits"].argmax(-1), outputs["q_halt"], outputs["q_continue"]
            for row, number in enumerate(running):
                answers[number].append(
                    Answer(
                        step, tokens[row], float(q_halt[row]), float(q_continue[row]), float(outputs["residual"][row])
                    )
                )
            goes_on = np.array([not self._halts(halt, answers[number]) for number in running])
            running = running[goes_on]
            feeds |= {name: outputs["next_" + name] for name in ("z_H", "z_L") if "next_" + name in outputs}
            feeds = {name: values[goes_on] for name, values in feeds.items()}
        return answers

    def _halts(self, halt: "str | float", frames: list[Answer]) -> bool:
        known, margin = self.about["calibrated"], frames[-1].q_halt - frames[-1].q_continue
        if halt == "fixed":
            return False
        if halt == "auto" and known is not None:  # the rule that hrm calibrate stored; several are joined by |
            rests = len(frames) > 1 and all(frame.residual < known["threshold"] for frame in frames[-2:])
            holds = {"q": margin > 0, "margin": margin > known["threshold"], "residual": rests}
            return any(holds[rule] for rule in known["rule"].split("|"))
        return margin > (0.0 if halt in ("q", "auto") else float(halt))

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [one.name for one in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, {name: feeds[name] for name in self._arguments})))


def _providers() -> list[str]:
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    return [name for name in wanted if name in onnxruntime.get_available_providers()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Solve puzzles with the exported model in this folder.")
    parser.add_argument("puzzles", nargs="+", metavar="PUZZLE", help="a puzzle, or a file with one per line")
    parser.add_argument(
        "--halt", default="auto", help="q, fixed, a threshold of q_halt - q_continue, or auto: as calibrated, else q"
    )
    parser.add_argument("--max-steps", type=int)
    arguments = parser.parse_args()
    model = Model(Path(__file__).parent)
    texts: list[str] = []
    for puzzle in arguments.puzzles:
        is_file = len(puzzle) < 256 and Path(puzzle).is_file()
        texts += Path(puzzle).read_text(encoding="utf-8").splitlines() if is_file else [puzzle]
    try:
        puzzles = [model.parse(text) for text in texts if text.strip()]
    except ValueError as error:
        sys.exit(str(error))
    for frames in model.solve(puzzles, arguments.halt, arguments.max_steps):
        last = frames[-1]
        confidence = 1 / (1 + np.exp(-last.q_halt))
        print(f"{model.format(last.tokens)}  segments {last.step}, confidence {confidence:.2f}")


if __name__ == "__main__":
    main()
