"""All of an analysis at once, and its pages: pictures, numbers, and one HTML file that needs nothing else."""

import base64
import html
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hrm.analysis import pictures
from hrm.analysis.answers import Answers, answers_by_segment, difficulty
from hrm.analysis.baselines import Baseline, Kind, train_baseline
from hrm.analysis.states import (
    Covariance,
    Level,
    participation_ratio,
    principal_components,
    residual,
    state_updates,
    untrained,
)
from hrm.data.format import PuzzleDataset
from hrm.data.task import PuzzleTask
from hrm.files import write_json, written_beside
from hrm.inference.draw import draw_trace, save_gif
from hrm.inference.segments import evaluating, require_positive
from hrm.inference.solve import Solution
from hrm.model import HRM, Batch
from hrm.progress import Progress, begun, silent

FILES = ("report.html", "analysis.json", *(f"{name}.png" for name in pictures.NAMES))
"""What :meth:`Analysis.save` writes, beside ``board-<n>.gif``."""

_SEGMENTS_OF_BASELINES = 4  # they have as many updates as this many segments, with gradients through all of them


@dataclass(frozen=True)
class Trajectories:
    """The way of some puzzles' states in the plane of their first two principal components.

    Attributes:
        points: ``[puzzles, updates, 2]``.
        variance: ``[2]``, the part of the variance that each component holds.
    """

    points: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True)
class BaselineRun:
    """A baseline's forward residuals.

    Attributes:
        residuals: ``[depth]``, by update.
        loss: token loss at the end of its training.
        exact_accuracy: of its answers to the puzzles whose states were looked at.
    """

    residuals: np.ndarray
    loss: float
    exact_accuracy: float


@dataclass(frozen=True)
class Analysis:
    """What :func:`analyze` found.

    Attributes:
        task: of the puzzles.
        model: its configuration's values.
        parameters: of the model.
        answers: after each segment.
        difficulty_name, difficulty: how hard the puzzles are, ``[n]``.
        residuals: by level the numbers of its updates (from 1, both levels counted), and the residuals.
        updates_per_segment: of both levels.
        spectra: ``(trained or not, level)``: eigenvalues ``[D]`` of the states' covariance.
        puzzles: whose states these are, from the start of the split.
        shown: puzzles whose trajectories and boards are shown.
        trajectories: by level.
        baselines: by kind; none where they were not asked for.
        baseline_steps: their training.
    """

    task: PuzzleTask
    model: dict[str, Any]
    parameters: int
    answers: Answers
    difficulty_name: str
    difficulty: np.ndarray
    residuals: dict[Level, tuple[np.ndarray, np.ndarray]]
    updates_per_segment: int
    spectra: dict[tuple[bool, Level], np.ndarray]
    puzzles: int
    shown: np.ndarray
    trajectories: dict[Level, Trajectories]
    baselines: dict[Kind, BaselineRun]
    baseline_steps: int

    def participation(self, trained: bool, level: Level) -> float:
        """The participation ratio of a level's states."""
        return participation_ratio(self.spectra[trained, level])

    def numbers(self) -> dict[str, Any]:
        """The findings as JSON values."""
        answers = self.answers
        return {
            "model": self.model,
            "parameters": self.parameters,
            "puzzles": len(answers.inputs),
            "exact_accuracy_by_segment": answers.right.mean(1).tolist(),
            "accuracy_by_segment": answers.tokens_right.mean(1).tolist(),
            "halting": {
                "exact_accuracy": float(answers.right_when_halting.mean()),
                "mean_segments": float(answers.halting_steps.mean()),
                "histogram": np.bincount(answers.halting_steps, minlength=answers.steps + 1)[1:].tolist(),
            },
            "difficulty": {"name": self.difficulty_name, "values": self.difficulty.tolist()},
            "participation_ratio": {
                f"{'trained' if trained else 'untrained'}_z_{level}": self.participation(trained, level)
                for trained, level in self.spectra
            },
            "states_of_puzzles": self.puzzles,
            "residuals": {
                f"z_{level}": {"update": updates.tolist(), "residual": values.tolist()}
                for level, (updates, values) in self.residuals.items()
            },
            "baselines": {
                kind: {"residual": run.residuals.tolist(), "loss": run.loss, "exact_accuracy": run.exact_accuracy}
                for kind, run in self.baselines.items()
            },
            "baseline_steps": self.baseline_steps,
        }

    def solutions(self) -> list[Solution]:
        """The puzzles shown, each up to where it would halt."""
        inputs = self.answers.inputs.astype(np.uint8)
        found = []
        for index in self.shown.tolist():
            trace = self.answers.trace(index)
            found.append(Solution(inputs[index], trace, self.task.check(inputs[index], trace[-1].tokens), self.task))
        return found

    def save(self, out: Path, title: str) -> None:
        """Write the files of :data:`FILES` and an animation for each puzzle shown into ``out``."""
        out.mkdir(parents=True, exist_ok=True)
        images: dict[str, bytes] = {}
        for name, figure in pictures.draw(self).items():
            stream = io.BytesIO()
            figure.savefig(stream, format="png", dpi=110)
            images[f"{name}.png"] = stream.getvalue()
        for name, image in images.items():
            with written_beside(out / name) as part:
                part.write_bytes(image)
        boards = []
        for number, solution in enumerate(self.solutions(), 1):
            file = out / f"board-{number}.gif"
            save_gif(draw_trace(self.task, solution), file)
            boards.append(file.read_bytes())
        write_json(out / "analysis.json", {"title": title} | self.numbers())
        with written_beside(out / "report.html") as part:
            part.write_text(_page(self, title, images, boards), encoding="utf-8")


def analyze(
    model: HRM,
    task: PuzzleTask,
    dataset: PuzzleDataset,
    train_dataset: PuzzleDataset | None = None,
    *,
    max_steps: int | None = None,
    max_examples: int | None = 1000,
    puzzles: int = 100,
    boards: int = 6,
    baseline_steps: int = 300,
    seed: int = 0,
    progress: Progress = silent,
) -> Analysis:
    """Look at a model's answers and states on labelled puzzles.

    Args:
        model: its mode is restored.
        task: of the puzzles.
        dataset: puzzles not trained on.
        train_dataset: what the baselines are trained on; None leaves them out.
        max_steps: segments; None is the model's ``halt_max_steps``.
        max_examples: puzzles for accuracy and halting, from the start; None all.
        puzzles: of these, as many for residuals and participation ratios (the paper's 100).
        boards: puzzles whose trajectories and boards are shown.
        baseline_steps: batches each baseline is trained for.
        seed: of the untrained model and the baselines.
        progress: told what is being done, and how much of it is done.

    Raises:
        InputError: data and model don't fit, no puzzle has labels, or a number is impossible.
    """
    require_positive(puzzles=puzzles, boards=boards, baseline_steps=baseline_steps)
    max_steps = model.config.halt_max_steps if max_steps is None else max_steps
    answers = answers_by_segment(model, dataset, max_steps=max_steps, max_examples=max_examples, progress=progress)
    puzzles = min(puzzles, len(answers.inputs))
    batch = _batch(dataset, puzzles, model)
    spectra: dict[tuple[bool, Level], np.ndarray] = {}
    updates_per_segment = model.config.H_cycles * (model.config.L_cycles + 1)
    with evaluating(model):
        updates = max_steps * updates_per_segment
        residuals, own = _states(model, batch, max_steps, begun(progress, "states of the model", updates))
        tell = begun(progress, "states of an untrained model", updates)
        _, others = _states(untrained(model, seed), batch, max_steps, tell)
        for trained, covariances in ((True, own), (False, others)):
            spectra |= {(trained, level): covariance.eigenvalues() for level, covariance in covariances.items()}
        shown = _chosen(answers, puzzles, boards)
        trajectories = _trajectories(model, {name: values[shown] for name, values in batch.items()}, max_steps)
    baselines: dict[Kind, BaselineRun] = {}
    if train_dataset is not None:
        depth = updates_per_segment * min(max_steps, _SEGMENTS_OF_BASELINES)
        right = torch.from_numpy(answers.labels[:puzzles])
        kinds: tuple[Kind, ...] = ("recurrent", "feed-forward")
        for kind in kinds:
            tell = begun(progress, f"training the {kind} baseline", baseline_steps)
            baselines[kind] = _baseline(model, kind, depth, train_dataset, baseline_steps, seed, batch, right, tell)
    name, values = difficulty(task, answers.inputs, answers.labels)
    return Analysis(
        task=task,
        model=model.config.model_dump(),
        parameters=sum(one.numel() for one in model.parameters()),
        answers=answers,
        difficulty_name=name,
        difficulty=values,
        residuals=residuals,
        updates_per_segment=updates_per_segment,
        spectra=spectra,
        puzzles=puzzles,
        shown=shown,
        trajectories=trajectories,
        baselines=baselines,
        baseline_steps=baseline_steps if baselines else 0,
    )


def _batch(dataset: PuzzleDataset, puzzles: int, model: HRM) -> Batch:
    """The first labelled puzzles, as :class:`hrm.inference.examples.LabelledPuzzles` numbers them."""
    from hrm.inference.examples import LabelledPuzzles

    device = next(model.parameters()).device
    given = LabelledPuzzles(model, dataset, most=puzzles).puzzles
    return {
        "inputs": torch.from_numpy(np.stack([one.inputs for one in given])).int().to(device),
        "puzzle_identifiers": torch.tensor([one.identifier for one in given], dtype=torch.int32, device=device),
    }


def _states(
    model: HRM, batch: Batch, max_steps: int, tell: Callable[[int], None]
) -> tuple[dict[Level, tuple[np.ndarray, np.ndarray]], dict[Level, Covariance]]:
    """Residuals and covariances by level, over all positions, puzzles and updates. ``tell`` hears of each update."""
    moves: dict[Level, list[tuple[int, float]]] = {"H": [], "L": []}
    covariances: dict[Level, Covariance] = {level: Covariance(model.config.hidden_size) for level in moves}
    for number, update in enumerate(state_updates(model, batch, max_steps), 1):
        moves[update.level].append((number, residual(update.before, update.after)))
        covariances[update.level].add(update.after)
        tell(number)
    residuals = {level: (np.array([n for n, _ in own]), np.array([r for _, r in own])) for level, own in moves.items()}
    return residuals, covariances


def _chosen(answers: Answers, puzzles: int, boards: int) -> np.ndarray:
    """Puzzles to be shown, from those that halt first to those that halt last; a third of them wrong, if any are."""
    order = np.argsort(answers.halting_steps[:puzzles], kind="stable")
    right = answers.right_when_halting[:puzzles][order]
    wrong = _spread(order[~right], max(1, boards // 3))
    good = _spread(order[right], boards - len(wrong))
    return np.concatenate([good, wrong])


def _spread(items: np.ndarray, count: int) -> np.ndarray:
    """Up to ``count`` of ``items``, evenly, with the first and the last."""
    return (
        items[np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))]
        if len(items) and count
        else items[:0]
    )


def _trajectories(model: HRM, batch: Batch, max_steps: int) -> dict[Level, Trajectories]:
    states: dict[Level, list[np.ndarray]] = {"H": [], "L": []}
    for update in state_updates(model, batch, max_steps):
        if not states[update.level]:
            states[update.level].append(update.before.float().flatten(1).cpu().numpy())
        states[update.level].append(update.after.float().flatten(1).cpu().numpy())
    found: dict[Level, Trajectories] = {}
    for level, own in states.items():
        path = np.stack(own, 1)
        points, variance = principal_components(path.reshape(-1, path.shape[-1]))
        found[level] = Trajectories(points.reshape(*path.shape[:2], -1), variance)
    return found


def _baseline(
    model: HRM,
    kind: Kind,
    depth: int,
    train_dataset: PuzzleDataset,
    steps: int,
    seed: int,
    batch: Batch,
    labels: torch.Tensor,
    tell: Callable[[int], None],
) -> BaselineRun:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        baseline = Baseline(model.config, depth, kind).to(batch["inputs"].device)
    loss = train_baseline(baseline, train_dataset, steps=steps, seed=seed, progress=lambda step, _: tell(step))
    with torch.no_grad():
        residuals = np.array([residual(before, after) for before, after in baseline.states(batch)])
        tokens = baseline(batch).argmax(-1).cpu()
    right = ((tokens == labels) | (labels < 0)).all(-1)
    return BaselineRun(residuals, loss, float(right.float().mean()))


# The page

_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1f2933; background: #fff; margin: 0 auto; max-width: 62rem;
       padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; } .faint { color: #5b6672; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; }
table { border-collapse: collapse; margin: 1rem 0; } th { font-weight: 600; text-align: left; }
td, th { padding: .3rem 1.25rem .3rem 0; border-bottom: 1px solid #e4e7eb; } td.n, th.n { text-align: right; }
.boards { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
.boards img { width: 100%; border: 1px solid #e4e7eb; border-radius: 6px; }
"""


def _page(found: Analysis, title: str, images: dict[str, bytes], boards: list[bytes]) -> str:
    answers, last = found.answers, found.answers.steps
    config = found.model
    layers = ", ".join(f"{name} {config[name]}" for name in ("H_layers", "L_layers") if name in config)
    summary = [
        ("parameters", f"{found.parameters:,}"),
        ("hidden size, heads, layers", f"{config['hidden_size']}, {config['num_heads']}, {layers}"),
        ("updates in a segment", f"{config['H_cycles']} x ({config['L_cycles']} of z_L, 1 of z_H)"),
        ("puzzles", f"{len(answers.inputs):,}"),
        (f"all right after {last} segments", f"{answers.right[-1].mean():.2%}"),
        ("all right, each halting by Q", f"{answers.right_when_halting.mean():.2%}"),
        ("segments, each halting by Q", f"{answers.halting_steps.mean():.2f}"),
    ]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{html.escape(title)}</h1>",
            _table(None, summary),
            *_sections(found, images, boards),
            "</body></html>\n",
        ]
    )


def _sections(found: Analysis, images: dict[str, bytes], boards: list[bytes]) -> Iterator[str]:
    answers = found.answers
    yield "<h2>The boards, segment by segment</h2>"
    yield (
        "<p>Each board is the model's answer after a segment, up to where q_halt exceeds q_continue. Ringed cells have "
        "changed; the bar is the model's estimate that the answer is right. From the puzzle that halts first to the "
        "one that halts last; wrong answers come at the end.</p><div class='boards'>"
    )
    for number, board in enumerate(boards, 1):
        yield f"<img alt='board {number}' src='{_data('gif', board)}'>"
    yield "</div>"

    yield "<h2>Accuracy by segment</h2>"
    yield _figure(images, "accuracy", "exact and token accuracy, and when puzzles halt, by segment")
    rows = [
        (str(step + 1), f"{answers.right[step].mean():.2%}", f"{answers.tokens_right[step].mean():.2%}")
        for step in range(answers.steps)
    ]
    yield _table(("segment", "puzzles all right", "tokens right"), rows)

    yield "<h2>Halting and difficulty</h2>"
    yield (
        "<p>When each puzzle halts by Q, against how hard it is "
        f"({html.escape(found.difficulty_name)}). The line is the mean.</p>"
    )
    yield _figure(images, "halting", "halting segment against difficulty")

    yield "<h2>Forward residual</h2>"
    yield (
        "<p>How far a state moves in an update, |z<sub>t</sub> - z<sub>t-1</sub>| / sqrt(D), mean over positions and "
        f"{found.puzzles} puzzles (1: as far as the state is long). Hierarchical convergence would show as z_L moving "
        "less from update to update within a cycle and starting anew after each update of z_H, while z_H settles "
        "steadily.</p>"
    )
    if found.baselines:
        runs = "; ".join(
            f"{kind}: token loss {run.loss:.3f}, {run.exact_accuracy:.1%} of these puzzles all right"
            for kind, run in found.baselines.items()
        )
        yield (
            f"<p class='faint'>For comparison the same blocks, trained for {found.baseline_steps} batches of 32 with "
            f"gradients through all updates, as a plain recurrent network and as a feed-forward stack ({runs}).</p>"
        )
    yield _figure(images, "residuals", "forward residual over the updates")

    yield "<h2>Dimensions of the states</h2>"
    yield (
        "<p>Participation ratio (Σλ)² / Σλ² of the eigenvalues λ of the states' covariance over positions, updates and "
        f"{found.puzzles} puzzles. The paper reports 89.95 for z_H and 30.22 for z_L of its trained model (D = 512), "
        "and 40.75 and 42.09 without training.</p>"
    )
    ratios = {trained: [found.participation(trained, level) for level in ("H", "L")] for trained in (True, False)}
    yield _table(
        ("", "z_H", "z_L", "z_H / z_L"),
        [
            ("trained" if trained else "untrained", f"{high:.2f}", f"{low:.2f}", f"{high / low:.2f}")
            for trained, (high, low) in ratios.items()
        ],
    )
    yield _figure(images, "participation", "participation ratios and spectra")

    yield "<h2>Trajectories</h2>"
    yield (
        "<p>The states of the puzzles above, all positions together, in the plane of their first two principal "
        "components, update by update through all segments. A cross is a puzzle whose answer is wrong at the end.</p>"
    )
    yield _figure(images, "trajectories", "trajectories of z_H and z_L")


def _figure(images: dict[str, bytes], name: str, alt: str) -> str:
    return f"<figure><img alt='{alt}' src='{_data('png', images[f'{name}.png'])}'></figure>"


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _table(head: tuple[str, ...] | None, rows: Sequence[tuple[str, ...]]) -> str:
    def line(tag: str, cells: tuple[str, ...]) -> str:
        marks = ["", *[" class='n'"] * (len(cells) - 1)]
        return (
            "<tr>" + "".join(f"<{tag}{mark}>{html.escape(cell)}</{tag}>" for mark, cell in zip(marks, cells)) + "</tr>"
        )

    return "<table>" + (line("th", head) if head else "") + "".join(line("td", row) for row in rows) + "</table>"
